"""The class list, whose order stays the same from one run to the next, and the classes of a row's label text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ..dataset.kinds import ClassChanges
from ..dataset.labels import translate_classes
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
    lines = _read_lines(uri, "class_list")
    classes = tuple(line.strip() for line in lines if line.strip())
    duplicates = sorted(name for name, count in Counter(classes).items() if count > 1)
    if duplicates or not classes:
        problem = f"{duplicates[0]!r} twice" if duplicates else f"no class in {uri}"
        raise wrong("class_list", "every class once, one a line", problem)
    return classes


def _read_lines(uri: str, option: str) -> list[str]:
    absolute = uris.normalize(uri, option)
    try:
        return get_store(absolute).read(absolute).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise wrong(option, "a file that is there", uri) from None
    except UnicodeDecodeError:
        raise UserError(f"{option}: expected UTF-8 text in {uri}, found other bytes") from None


def read_label_map(config: CleanConfig) -> dict[str, str]:
    """Read `config.map_labels`, a csv file with the columns old and new: new labels by old ones; empty if it is unset.

    UserError where a label is blank or is renamed twice, and where a new label is an old one, too: then the result
    would depend on the order in which the rows are applied.
    """
    if not config.map_labels:
        return {}

    def refuse(expected: str, problem: str) -> UserError:
        return UserError(f"map_labels ({config.map_labels}): expected {expected}, found {problem}")

    rows = csv.DictReader(_read_lines(config.map_labels, "map_labels"), skipinitialspace=True)
    columns = [name.strip() for name in rows.fieldnames or ()]
    if not {"old", "new"} <= {*columns}:
        raise refuse("a first line with the columns old and new", ", ".join(columns) or "no line")
    rows.fieldnames = columns
    label_map: dict[str, str] = {}
    for row in rows:
        old, new = ((row[column] or "").strip() for column in ("old", "new"))
        if not old or not new:
            raise refuse("a label in both columns", f"a blank one in line {rows.line_num}")
        if old in label_map:
            raise refuse("each old label once", f"{old!r} again in line {rows.line_num}")
        if joined := [name for name in (old, new) if config.label_separator and config.label_separator in name]:
            raise refuse(f"labels without label_separator {config.label_separator!r}", f"{joined[0]!r}")
        label_map[old] = new
    for old, new in label_map.items():
        if new in label_map:
            raise refuse("new labels that are not renamed themselves", f"{old!r} to {new!r} to {label_map[new]!r}")
    return label_map


@dataclass(frozen=True)
class LabelRules:
    """Rules that map a row's label text to classes, whose `ids` are by name.

    Several labels of one row have `separator` between; it is empty for a single-label dataset. `label_map` has new
    names by old ones. `rare` classes are merged into `other`, or rejected where that is empty.
    """

    ids: dict[str, int]
    separator: str = ""
    rare: frozenset[str] = frozenset()
    other: str = ""
    label_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_multi_label(self) -> bool:
        return bool(self.separator)

    def parse(self, text: str | None) -> list[str]:
        """Return the classes of a label text in the order of their ids, exactly one unless `is_multi_label`.

        Raises ImageRejected where no class is left.
        """
        names = [self.label_map.get(name, name) for name in split_labels(text or "", self.separator)]
        if not names:
            raise ImageRejected("no_label", "the source gives no label")
        merged = {self.other if name in self.rare else name for name in names} - {""}
        if not merged:
            raise ImageRejected("rare_class", f"{text} has too few images")
        if unknown := sorted(merged - self.ids.keys()):
            raise ImageRejected("unknown_label", f"{unknown[0]} is not in the class list")
        return sorted(merged, key=self.ids.__getitem__)


def split_labels(text: str, separator: str) -> list[str]:
    """Split a label text at `separator`, if there is one, and strip white space; empty labels are left out."""
    parts = text.split(separator) if separator else [text]
    return [name for part in parts if (name := part.strip())]


def make_label_rules(
    by_label: Mapping[str, int],
    base: tuple[str, ...],
    config: CleanConfig,
    source: str,
    label_map: Mapping[str, str] = MappingProxyType({}),
) -> LabelRules:
    """Make the rules for a source, named `source` in messages; UserError where fewer than two classes are left.

    `by_label`: number of images by label text. `base`: classes in the order of their ids so far, under the names of
    then; those without images leave the list, unless it is given, says which labels are known, or `keep_classes`.
    """
    counts: Counter[str] = Counter()
    for text, number in by_label.items():
        for name in {label_map.get(label, label) for label in split_labels(text, config.label_separator)}:
            counts[name] += number
    base, _ = translate_classes(base, label_map)
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
    if not (config.class_list or config.keep_classes or config.unknown_labels == "reject"):
        base = tuple(name for name in base if name in names)
    ids = {name: number for number, name in enumerate(extend_class_list(names, base))}
    return LabelRules(ids, config.label_separator, rare, other, dict(label_map))


def find_unknown_labels(label_map: Mapping[str, str], texts: Iterable[str], separator: str) -> list[str]:
    """Return the old labels of a map that no label text of the source has."""
    return sorted(label_map.keys() - {name for text in texts for name in split_labels(text, separator)})


def compare_class_lists(base: Sequence[str], classes: Sequence[str], label_map: Mapping[str, str]) -> ClassChanges:
    """Compare a class list with an earlier one, whose names `label_map` changes; no change where there was none."""
    members: dict[str, list[str]] = {}
    for name in base:
        members.setdefault(label_map.get(name, name), []).append(name)
    living = {name: members[name] for name in classes if name in members}
    return ClassChanges(
        added=tuple(name for name in classes if base and name not in members),
        removed=tuple(name for new, olds in members.items() if new not in living for name in olds),
        renamed={olds[0]: name for name, olds in living.items() if olds != [name] and len(olds) == 1},
        merged={name: tuple(olds) for name, olds in living.items() if len(olds) > 1},
    )
