"""The images of a clean or tensors dataset, one by one and split by split, with everything that a format may ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..store.choices import JPEG, RAW
from ..store.errors import DatasetError
from ..store.images import Pixels
from ..store.labels import MULTI, label_column
from ..store.manifest import Dataset
from ..store.shards import open_parquet, read_row_group, row_groups
from ..store.tensors import decode_column
from .config import SPLITS
from .order import Survey, rows_in_order, survey

_PICTURE_COLORS = ("rgb", "gray", "red", "green", "blue")
COPY = "copy"
"""The column of tensors that have augmented copies: 0 the image itself, 1 and up its copies."""


@dataclass(frozen=True)
class Sample:
    """One image. `number`: its place in its split; `data`: the bytes of a file, or of raw tensors uint8 [H, W, C];
    `warned`: its decoder had something to say of it."""

    image_id: str
    split: str
    number: int
    data: bytes | Pixels
    label_ids: tuple[int, ...]
    copy: int = 0
    warned: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self.data.nbytes if isinstance(self.data, np.ndarray) else len(self.data)


@dataclass(frozen=True)
class Source:
    """A dataset as what it is exported from."""

    dataset: Dataset

    @property
    def multi(self) -> bool:
        return self.dataset.manifest.task == MULTI

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.manifest.classes

    @property
    def image(self) -> dict[str, Any]:
        return self.dataset.manifest.image

    @property
    def is_tensors(self) -> bool:
        return self.dataset.manifest.kind == "tensors"

    @property
    def is_raw(self) -> bool:
        """Pixels, not files of pictures."""
        return self.is_tensors and self.image.get("encoding", RAW) != JPEG

    @property
    def are_pictures(self) -> bool:
        """Whether the pixels are grey or red, green and blue: what a PNG can say."""
        color, channels = self.image.get("color", "rgb"), self.image["shape"][2] if self.is_tensors else 3
        return not self.is_raw or (color in _PICTURE_COLORS and channels == (3 if color == "rgb" else 1))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Images by split, of the splits that have some."""
        counts = {split: sum(f.rows for f in self.dataset.files("data", split)) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    @cached_property
    def has_copies(self) -> bool:
        files = self.dataset.files("data")
        if not files or not self.is_tensors:
            return False
        with open_parquet(self.dataset.locate(files[0])) as parquet:
            return COPY in parquet.schema_arrow.names

    def names(self, sample: Sample) -> list[str]:
        """The names of an image's labels."""
        return [self.classes[label] for label in sample.label_ids]

    def ids(self, split: str) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """(image_id, copy, label_ids) of every image of a split, in the order of the files."""
        for file in self.dataset.files("data", split):
            for table in row_groups(self.dataset, file, self._columns()):
                yield from zip(*self._about(table, file.uri), strict=True)

    def read(self, split: str, scratch: Path) -> Reading:
        """Make ready to read a split."""
        return Reading(self, split, scratch, None if self.is_tensors else survey(self.dataset, split))

    def _columns(self) -> list[str]:
        copies = [COPY] if self.has_copies else []
        return ["image_id", label_column(self.dataset.manifest.task), *copies]

    def _about(self, table: pa.Table, where: str) -> tuple[list[str], list[int], list[tuple[int, ...]]]:
        labels = table.column(label_column(self.dataset.manifest.task)).to_pylist()
        copies = table.column(COPY).to_pylist() if self.has_copies else [0] * table.num_rows
        return table.column("image_id").to_pylist(), copies, [self.checked(one, where) for one in labels]

    def checked(self, labels: Any, where: str) -> tuple[int, ...]:
        """The label or labels of a row; DatasetError for what is none of the classes."""
        found = tuple(labels or ()) if self.multi else (labels,)
        if not all(isinstance(one, int) and 0 <= one < len(self.classes) for one in found):
            raise DatasetError(f"{where}: expected labels of {len(self.classes)} classes, found {labels!r}")
        return found


@dataclass(frozen=True)
class Reading:
    """A split that is about to be read."""

    source: Source
    split: str
    scratch: Path
    about: Survey | None

    def bytes(self, as_png: bool) -> int:
        """About how many bytes its images have; `as_png`: when those that TensorFlow can't read become PNG."""
        if self.about:
            return self.about.as_png if as_png else self.about.total
        return sum(f.bytes for f in self.source.dataset.files("data", self.split))

    def samples(self) -> Iterator[Sample]:
        """Every image of the split, in stored order; DatasetError where they are not as many as the manifest says."""
        found, wanted = 0, self.source.rows[self.split]
        for sample in self._clean(self.about) if self.about else self._tensors():
            found += 1
            yield sample
        if found != wanted:
            where = self.source.dataset.uri
            raise DatasetError(f"{where}: the manifest lists {wanted:,} rows of {self.split}, found {found:,}")

    def _clean(self, about: Survey) -> Iterator[Sample]:
        label = label_column(self.source.dataset.manifest.task)
        columns = ["image_id", "image.bytes", label, "decoder_warning"]
        rows = rows_in_order(self.source.dataset, about, columns, self.scratch)
        for number, row in enumerate(rows):
            labels = self.source.checked(row[label], row["image_id"])
            data, warned = row["image"]["bytes"], bool(row["decoder_warning"])
            yield Sample(row["image_id"], self.split, number, data, labels, 0, warned)

    def _tensors(self) -> Iterator[Sample]:
        dataset, number = self.source.dataset, 0
        columns = ["image", *self.source._columns()]
        for file in dataset.files("data", self.split):
            uri = dataset.locate(file)
            with open_parquet(uri) as parquet:
                for index in range(parquet.num_row_groups):
                    table = read_row_group(parquet, index, uri, columns)
                    images = self._images(table.column("image"))
                    ids, copies, all_labels = self.source._about(table, file.uri)
                    for data, image_id, copy, labels in zip(images, ids, copies, all_labels, strict=True):
                        yield Sample(image_id, self.split, number, data, labels, copy)
                        number += 1

    def _images(self, column: pa.ChunkedArray) -> Any:
        return decode_column(column, self.source.image) if self.source.is_raw else (one.as_py() for one in column)
