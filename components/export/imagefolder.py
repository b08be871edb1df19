"""One file an image, in a folder a class, and a table that leads from each file back to its image.

Where an image has several labels there is one folder a split, with the table in Hugging Face's form (`metadata.csv`).
The table lists every file's bytes and sha256, for the marker does not.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from ..store.filesystem import map_disk_errors
from ..store.parallel import map_ordered
from .names import class_names, collision_key, image_name
from .pictures import ending, png
from .place import Written
from .samples import Sample, Source
from .shards import Work

LABELS, METADATA = "labels.csv", "metadata.csv"
AT_A_TIME = 10
"""Files that are written or uploaded at once: each is small, so the way there counts."""
_UNREAD = ("gif",)
"""What torchvision's ImageFolder passes over, unless it is told otherwise."""


@dataclass(frozen=True)
class _File:
    """A written image: its row of the table."""

    sample: Sample
    written: Written


class ImageFolder:
    """Writes the files, and the table beside. `loose` counts the images' files and their bytes."""

    def __init__(self, work: Work) -> None:
        self._work, self._source = work, work.source
        self._folders = class_names(work.source.classes)
        self._taken = taken_names(work.source, self._folders)
        self.files, self.bytes = 0, 0
        self.by_split: dict[str, int] = {}

    def export(self) -> list[Written]:
        """Every split; returns the tables."""
        if self._source.multi:
            return [self._table(f"{split}/{METADATA}", [split], split) for split in self._source.rows]
        return [self._table(LABELS, list(self._source.rows), "")]

    def _table(self, name: str, splits: list[str], split: str) -> Written:
        path, rows = self._work.scratch / "table.csv", 0
        seen: dict[str, set[int]] = {one: set() for one in splits}
        passed_over: Counter[str] = Counter()
        with map_disk_errors(str(path)), path.open("w", encoding="utf-8", newline="") as file:
            table = self._writer(file, bool(split))
            for number, one in enumerate(self._files(splits), 1):
                table.writerow(self._row(one, split))
                seen[one.sample.split].update(one.sample.label_ids)
                passed_over[one.written.path.rpartition(".")[2]] += 1
                rows = number
        self._note(seen, passed_over)
        return self._work.place.publish(path, name, split, rows)

    def _files(self, splits: list[str]) -> Iterator[_File]:
        for split in splits:
            samples = self._source.read(split, self._work.scratch).samples()
            for one in map_ordered(samples, self._write, AT_A_TIME, lambda sample: sample.size):
                self.files, self.bytes = self.files + 1, self.bytes + one.written.bytes
                self.by_split[split] = self.by_split.get(split, 0) + one.written.bytes
                self._work.progress.add()
                yield one

    def _write(self, sample: Sample) -> _File:
        raw = isinstance(sample.data, np.ndarray)
        data = png(sample.data) if isinstance(sample.data, np.ndarray) else sample.data
        folder = self._folder(sample.split, sample.label_ids)
        taken = collision_key(folder, sample.image_id, sample.copy) in self._taken
        name = image_name(sample.image_id, sample.copy, taken)
        path = f"{folder}/{name}.{'png' if raw else ending(data, sample.image_id)}"
        return _File(sample, self._work.place.put(path, data, sample.split, 1))

    def _folder(self, split: str, labels: tuple[int, ...]) -> str:
        return folder_of(self._source, self._folders, split, labels)

    def _writer(self, file: TextIO, multi: bool) -> Any:
        table = csv.writer(file, lineterminator="\n")
        labels = ["labels", "label_ids"] if multi else ["split", "label", "label_id"]
        copies = ["copy"] if self._source.has_copies else []
        table.writerow(["file_name", *labels, "image_id", *copies, "bytes", "sha256"])
        return table

    def _row(self, one: _File, split: str) -> list[Any]:
        sample, written, names = one.sample, one.written, self._source.names(one.sample)
        copies = [sample.copy] if self._source.has_copies else []
        if split:  # of a split's own table, paths begin below the split's folder
            path, labels = written.path.partition("/")[2], [_json(names), _json(list(sample.label_ids))]
        else:
            path, labels = written.path, [sample.split, names[0], str(sample.label_ids[0])]
        return [path, *labels, sample.image_id, *copies, written.bytes, written.sha256]

    def _note(self, seen: dict[str, set[int]], endings: Counter[str]) -> None:
        """What a reader that goes by the folders alone would get wrong."""
        if passed_over := sum(endings[one] for one in _UNREAD):
            self._work.notes["gif"] = self._work.notes.get("gif", 0) + passed_over
        everywhere = all(len(found) == len(self._folders) for found in seen.values())
        if not self._source.multi and (not everywhere or self._folders != sorted(self._folders)):
            self._work.notes["other_class_ids"] = True


def folder_of(source: Source, folders: list[str], split: str, labels: tuple[int, ...]) -> str:
    """Where the images of some labels are."""
    return split if source.multi else f"{split}/{folders[labels[0]]}"


def taken_names(source: Source, folders: list[str]) -> frozenset[int]:
    """The collision keys that several images of a folder have. Costs 16 bytes an image while it works."""
    keys = np.fromiter(
        (
            collision_key(folder_of(source, folders, split, labels), image_id, copy)
            for split in source.rows
            for image_id, copy, labels in source.ids(split)
        ),
        np.uint64,
    )
    keys.sort()
    return frozenset(keys[1:][keys[1:] == keys[:-1]].tolist())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
