"""The class list, whose ids stay the same from one run to the next, and the classes of a row's label text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..dataset.manifest import find_dataset
from ..dataset.workspace import Workspace
from ..imaging.decoder import ImageRejected
from ..storage import uri as uris
from ..storage.errors import UserError, wrong
from ..storage.store import get_store
from .config import CleanConfig


def extend_class_list(labels: Iterable[str], base: Iterable[str]) -> tuple[str, ...]:
    """Return `base` unchanged, followed by the new labels in sorted order. The id of a class is its index."""
    classes = list(base)
    return (*classes, *sorted(set(labels) - set(classes)))


def find_base_classes(config: CleanConfig, workspace: Workspace, name: str) -> tuple[str, ...]:
    """Return the classes that have ids already: of `config.class_list`, else of the latest clean dataset of `name`."""
    if config.class_list:
        return read_class_list(config.class_list)
    latest = workspace.latest_uri(name, "clean")
    dataset = find_dataset(latest) if latest else None
    return dataset.manifest.classes if dataset else ()


def read_class_list(uri: str) -> tuple[str, ...]:
    """Read a file of one class a line; UserError if it is missing or empty, or if a class occurs twice."""
    absolute = uris.normalize(uri, "class_list")
    try:
        lines = get_store(absolute).read(absolute).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise wrong("class_list", "a file that is there", uri) from None
    except UnicodeDecodeError:
        raise UserError(f"class_list: expected UTF-8 text in {uri}, found other bytes") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    duplicates = sorted(name for name, count in Counter(classes).items() if count > 1)
    if duplicates or not classes:
        problem = f"{duplicates[0]!r} twice" if duplicates else f"no class in {uri}"
        raise wrong("class_list", "every class once, one a line", problem)
    return classes


@dataclass(frozen=True)
class LabelRules:
    """Rules that map a row's label text to classes, whose `ids` are by name.

    Several labels of one row have `separator` between; it is empty for a single-label dataset. `rare` classes are
    merged into `other`, or rejected where that is empty.
    """

    ids: dict[str, int]
    separator: str = ""
    rare: frozenset[str] = frozenset()
    other: str = ""

    @property
    def is_multi_label(self) -> bool:
        return bool(self.separator)

    def parse(self, text: str | None) -> list[str]:
        """Return the classes of a label text in the order of their ids, exactly one unless `is_multi_label`.

        Raises ImageRejected where no class is left.
        """
        names = split_labels(text or "", self.separator)
        if not names:
            raise ImageRejected("no_label", "the source gives no label")
        merged = {self.other if name in self.rare else name for name in names} - {""}
        if not merged:
            raise ImageRejected("rare_class", f"{text} has too few images")
        if unknown := sorted(merged - self.ids.keys()):
            raise ImageRejected("unknown_label", f"{unknown[0]} is not in the class list")
        return sorted(merged, key=self.ids.__getitem__)

    def restrict(self, texts: Iterable[str]) -> LabelRules:
        """Return the part of the rules that decides on `texts`: what is left out changes none of their results."""
        names = {name for text in texts for name in split_labels(text, self.separator)}
        rare = self.rare & names
        other = self.other if rare else ""
        occurring = (names - rare) | {other}
        ids = {name: number for name, number in self.ids.items() if name in occurring}
        return LabelRules(ids, self.separator, rare, other)

    def to_record(self) -> dict[str, Any]:
        return asdict(self) | {"rare": sorted(self.rare)}


def split_labels(text: str, separator: str) -> list[str]:
    """Split a label text at `separator`, if there is one, and strip white space; empty labels are left out."""
    parts = text.split(separator) if separator else [text]
    return [name for part in parts if (name := part.strip())]


def make_label_rules(
    by_label: Mapping[str, int], base: tuple[str, ...], config: CleanConfig, source: str
) -> LabelRules:
    """Make the rules for a source, named `source` in messages; UserError where fewer than two classes are left.

    `by_label`: number of images by label text. `base`: classes that have ids already; they are never renumbered.
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
        labels = f"only {min(names)!r}" if names else "no label" if not counts else "none that is known or not rare"
        raise UserError(f"label: expected images of at least two classes, found {labels} in {source}")
    classes = extend_class_list(names, base)
    return LabelRules({name: number for number, name in enumerate(classes)}, config.label_separator, rare, other)
