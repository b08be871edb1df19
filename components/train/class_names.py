"""What the names of classes tell of an augmentation that would make one class another: pairs that a mirror, a turn or a
change of colour swaps."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Pair = tuple[str, str]
_SIDES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise",
          "l": "r", "lt": "rt", "west": "east"}  # fmt: skip
_ENDS = {"up": "down", "upward": "downward", "upwards": "downwards", "top": "bottom", "upper": "lower",
         "north": "south", "above": "below"}  # fmt: skip
_MIRRORED = {"b": "d", "p": "q", "<": ">", "(": ")", "[": "]", "/": "\\", "2": "5", "s": "z", "j": "l",
             "←": "→", "«": "»"}  # fmt: skip
_UPENDED = {"6": "9", "n": "u", "m": "w", "p": "d", "b": "q", "↑": "↓", "^": "v"}
_COLOURS = {
    "red", "green", "blue", "yellow", "orange", "purple", "violet", "pink", "brown", "black", "white", "grey", "gray",
    "beige", "cyan", "magenta", "turquoise", "maroon", "navy", "olive", "teal", "gold", "silver", "crimson", "scarlet",
    "amber", "indigo", "lime",
}  # fmt: skip


def mirrored(names: Sequence[str]) -> Pair | None:
    """Two classes of which each is the other in a mirror, by their names: turn-left and turn-right, b and d."""
    return _swapped(names, _SIDES, _MIRRORED)


def upended(names: Sequence[str]) -> Pair | None:
    """Two classes of which each is the other upside down, by their names: arrow_up and arrow_down, 6 and 9."""
    return _swapped(names, _ENDS, _UPENDED)


def about_colour(names: Sequence[str]) -> Pair | None:
    """Two classes that differ in a colour alone: red_car and blue_car, ripe green and ripe yellow, red and green."""
    without = _by(names, lambda words: tuple("" if word in _COLOURS else word for word in words))
    for name in names:
        words = _words(name)
        if not any(word in _COLOURS for word in words):
            continue
        key = tuple("" if word in _COLOURS else word for word in words)
        if others := [other for other in without[key] if _words(other) != words]:
            return name, others[0]
    return None


def _swapped(names: Sequence[str], words: dict[str, str], signs: dict[str, str]) -> Pair | None:
    """The first pair that comes of each other by exchanging words, or a single letter or sign for its counterpart."""
    both = words | {b: a for a, b in words.items()}
    known = {_words(name): name for name in names}
    whole = {name.strip().lower(): name for name in names}
    for name in names:
        swapped = tuple(both.get(word, word) for word in _words(name))
        if swapped != _words(name) and swapped in known:
            return name, known[swapped]
        sign = name.strip().lower()
        if sign in signs and signs[sign] in whole:
            return name, whole[signs[sign]]
    return None


def _words(name: str) -> tuple[str, ...]:
    """A name's words in lower case: TurnLeft, turn_left and turn-left are the same."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W_]+", spaced.lower()))


def _by(names: Sequence[str], key: Callable[[tuple[str, ...]], tuple[str, ...]]) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        found.setdefault(key(_words(name)), []).append(name)
    return found
