"""What a row's label becomes: names of the class list and their ids, or the reason why it can't be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ..store.errors import UserError, wrong
from ..store.images import ImageRejected
from .classes import class_list
from .config import CleanConfig


@dataclass(frozen=True)
class LabelRules:
    """`ids` of the classes by name. `separator`: rows may have several labels. Names in `rare` become `other`, or,
    where that is empty, are dropped."""

    ids: dict[str, int]
    separator: str = ""
    rare: frozenset[str] = frozenset()
    other: str = ""

    @property
    def multi(self) -> bool:
        return bool(self.separator)

    def read(self, text: str | None) -> list[str]:
        """The row's classes in the order of their ids, one unless `multi`; ImageRejected when there is none."""
        names = split_labels(text or "", self.separator)
        if not names:
            raise ImageRejected("no_label", "the source gives no label")
        kept = [name if name not in self.rare else self.other for name in names]
        known = {name for name in kept if name}
        if not known:
            raise ImageRejected("rare_class", f"{text} has too few images")
        if unknown := sorted(known - self.ids.keys()):
            raise ImageRejected("unknown_label", f"{unknown[0]} is not in the class list")
        return sorted(known, key=self.ids.__getitem__)


def split_labels(text: str, separator: str) -> list[str]:
    """The label, or the labels, without white space around them."""
    parts = text.split(separator) if separator else [text]
    return [name for part in parts if (name := part.strip())]


def label_rules(by_label: Mapping[str, int], base: tuple[str, ...], config: CleanConfig, source: str) -> LabelRules:
    """The rules for a source with so many images of each label; UserError where fewer than two classes are left.

    `base`: classes that have their ids already (of the given list or the last run); they are never renumbered.
    """
    counts: Counter[str] = Counter()
    for text, number in by_label.items():
        for name in set(split_labels(text, config.label_separator)):
            counts[name] += number
    rare = frozenset(
        name for name, number in counts.items() if number < config.rare_below and name != config.other_class
    )
    if config.rare_classes == "keep":
        rare = frozenset()
    other = config.other_class.strip() if rare and config.rare_classes == "merge" else ""
    names = (set(counts) - rare) | ({other} if other else set())
    if config.unknown_labels == "reject":
        if not base:
            raise wrong("unknown_labels", "append, or a class_list that says which labels are known", "reject")
        names &= set(base)
    if len(names) < 2:
        what = f"only {min(names)!r}" if names else "no label" if not counts else "none that is known or not rare"
        raise UserError(f"label: expected images of at least two classes, found {what} in {source}")
    classes = class_list(names, base)
    return LabelRules({name: number for number, name in enumerate(classes)}, config.label_separator, rare, other)
