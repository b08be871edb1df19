"""Read the images of a clean or tensors dataset one by one, with labels and other values that a format writes.

They come in the order of the index: part after part, which are random samples of the source, each in shuffled order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ..dataset.index import read_rows
from ..dataset.kinds import ImageSpec, TensorsExtra
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset
from ..imaging.decoder import Pixels
from ..imaging.pixel_options import JPEG
from ..imaging.tensors import decode_column
from ..storage.errors import DatasetError
from .config import SPLITS

_PICTURE_COLORS = ("rgb", "gray", "red", "green", "blue")
COPY = "copy"
"""Column of tensors with augmented copies: 0 for the image itself, 1 and up for its copies."""


@dataclass(frozen=True)
class Sample:
    """One image with its labels: the bytes of its file, or uint8 [H, W, C] of raw tensors.

    `number`: its position in the split, 0-based; `copy`: number of an augmented copy, 0 for the image itself.
    """

    image_id: str
    split: str
    number: int
    data: bytes | Pixels
    label_ids: tuple[int, ...]
    copy: int = 0
    has_warning: bool = False

    @property
    def size(self) -> int:
        """Bytes of `data`."""
        return self.data.nbytes if isinstance(self.data, np.ndarray) else len(self.data)


@dataclass(frozen=True)
class ExportSource:
    """The dataset to export."""

    dataset: Dataset

    @property
    def is_multi_label(self) -> bool:
        return self.dataset.manifest.task == MULTI

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.manifest.classes

    @property
    def image(self) -> ImageSpec:
        """The images of tensors."""
        return self.dataset.manifest.image_spec

    @property
    def is_tensors(self) -> bool:
        return self.dataset.manifest.kind == "tensors"

    @property
    def is_raw(self) -> bool:
        """Return whether the images are raw pixels and not image files."""
        return self.is_tensors and self.image.encoding != JPEG

    @property
    def fits_image_files(self) -> bool:
        """Return whether the images can be files: they are, or their pixels are gray or RGB, as in a PNG."""
        color, channels = self.dataset.manifest.color or "rgb", self.image.shape[2] if self.is_tensors else 3
        return not self.is_raw or (color in _PICTURE_COLORS and channels == (3 if color == "rgb" else 1))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Number of images by split, without empty splits."""
        counts = self.dataset.manifest.totals.by_split
        return {split: counts[split] for split in SPLITS if counts.get(split)}

    @cached_property
    def has_copies(self) -> bool:
        return self.is_tensors and TensorsExtra.of(self.dataset.manifest).copies is not None

    def label_names(self, sample: Sample) -> list[str]:
        return [self.classes[label] for label in sample.label_ids]

    def read_ids(self, split: str) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Yield (image_id, copy, label_ids) of every image of a split, in the order of the index."""
        for table in read_rows(self.dataset, self.id_columns(), split):
            yield from zip(*self.parse_ids(table), strict=True)

    def id_columns(self) -> list[str]:
        """Return the columns that `parse_ids` needs."""
        copies = [COPY] if self.has_copies else []
        return ["image_id", label_column(self.dataset.manifest.task), *copies]

    def parse_ids(self, table: pa.Table) -> tuple[list[str], list[int], list[tuple[int, ...]]]:
        """Return image ids, copy numbers and label ids of a table."""
        labels = table.column(label_column(self.dataset.manifest.task)).to_pylist()
        copies = table.column(COPY).to_pylist() if self.has_copies else [0] * table.num_rows
        ids = table.column("image_id").to_pylist()
        return ids, copies, [self.check_labels(value, name) for value, name in zip(labels, ids, strict=True)]

    def check_labels(self, labels: Any, origin: str) -> tuple[int, ...]:
        """Return the label ids of a row; DatasetError, which names `origin`, for an id that is none of the classes."""
        label_ids = tuple(labels or ()) if self.is_multi_label else (labels,)
        if not all(isinstance(label_id, int) and 0 <= label_id < len(self.classes) for label_id in label_ids):
            raise DatasetError(f"{origin}: expected labels of {len(self.classes)} classes, found {labels!r}")
        return label_ids

    def read_samples(self, split: str) -> Iterator[Sample]:
        """Yield every image of a split in stored order; DatasetError if their number differs from the manifest's."""
        rows = 0
        for sample in self._read_tensors(split) if self.is_tensors else self._read_clean(split):
            rows += 1
            yield sample
        if rows != self.rows[split]:
            uri = self.dataset.uri
            raise DatasetError(f"{uri}: the manifest lists {self.rows[split]:,} rows of {split}, found {rows:,}")

    def _read_clean(self, split: str) -> Iterator[Sample]:
        label = label_column(self.dataset.manifest.task)
        columns = ["image_id", "image.bytes", label, "decoder_warning"]
        rows = (row for table in read_rows(self.dataset, columns, split) for row in table.to_pylist())
        for number, row in enumerate(rows):
            labels = self.check_labels(row[label], row["image_id"])
            data, has_warning = row["image"]["bytes"], bool(row["decoder_warning"])
            yield Sample(row["image_id"], split, number, data, labels, 0, has_warning)

    def _read_tensors(self, split: str) -> Iterator[Sample]:
        number = 0
        for table in read_rows(self.dataset, ["image", *self.id_columns()], split):
            images = self._decode(table.column("image"))
            ids, copies, all_labels = self.parse_ids(table)
            for data, image_id, copy, labels in zip(images, ids, copies, all_labels, strict=True):
                yield Sample(image_id, split, number, data, labels, copy)
                number += 1

    def _decode(self, column: pa.ChunkedArray) -> Any:
        return decode_column(column, self.image) if self.is_raw else (value.as_py() for value in column)
