"""Find pairs of classes, by their names, that an augmentation turns into one another: by a mirror, a turn, a colour."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

ClassPair = tuple[str, str]
_SIDES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise",
          "l": "r", "lt": "rt", "west": "east"}  # fmt: skip
_ENDS = {"up": "down", "upward": "downward", "upwards": "downwards", "top": "bottom", "upper": "lower",
         "north": "south", "above": "below"}  # fmt: skip
_MIRRORED = {"b": "d", "p": "q", "<": ">", "(": ")", "[": "]", "/": "\\", "2": "5", "s": "z", "j": "l",
             "←": "→", "«": "»"}  # fmt: skip
_UPENDED = {"6": "9", "n": "u", "m": "w", "p": "d", "b": "q", "↑": "↓", "^": "v"}
_COLORS = {
    "red", "green", "blue", "yellow", "orange", "purple", "violet", "pink", "brown", "black", "white", "grey", "gray",
    "beige", "cyan", "magenta", "turquoise", "maroon", "navy", "olive", "teal", "gold", "silver", "crimson", "scarlet",
    "amber", "indigo", "lime",
}  # fmt: skip


def find_mirrored(names: Sequence[str]) -> ClassPair | None:
    """Return two classes that a horizontal flip swaps: turn-left and turn-right, b and d."""
    return _find_swapped(names, _SIDES, _MIRRORED)


def find_upended(names: Sequence[str]) -> ClassPair | None:
    """Return two classes that a vertical flip or half a turn swaps: arrow_up and arrow_down, 6 and 9."""
    return _find_swapped(names, _ENDS, _UPENDED)


def find_recolored(names: Sequence[str]) -> ClassPair | None:
    """Return two classes that differ in a colour alone: red_car and blue_car, ripe green and ripe yellow."""
    by_colorless: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        by_colorless[_remove_colors(name)].append(name)
    for name in names:
        if _remove_colors(name) == _split_words(name):
            continue
        for other in by_colorless[_remove_colors(name)]:
            if _split_words(other) != _split_words(name):
                return name, other
    return None


def _find_swapped(names: Sequence[str], words: dict[str, str], signs: dict[str, str]) -> ClassPair | None:
    """Return the first pair that comes of one another by exchanging words, or a single letter or sign."""
    counterparts = words | {second: first for first, second in words.items()}
    by_words = {_split_words(name): name for name in names}
    by_sign = {name.strip().lower(): name for name in names}
    for name in names:
        swapped = tuple(counterparts.get(word, word) for word in _split_words(name))
        if swapped != _split_words(name) and swapped in by_words:
            return name, by_words[swapped]
        sign = name.strip().lower()
        if sign in signs and signs[sign] in by_sign:
            return name, by_sign[signs[sign]]
    return None


def _remove_colors(name: str) -> tuple[str, ...]:
    return tuple("" if word in _COLORS else word for word in _split_words(name))


def _split_words(name: str) -> tuple[str, ...]:
    """Return a name's words in lower case: TurnLeft, turn_left and turn-left are the same."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W_]+", spaced.lower()))
