"""Read the images of a clean or tensors dataset one by one, with labels and other values that a format writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..dataset.kinds import ImageSpec
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset
from ..dataset.shards import open_parquet, read_row_group, row_groups
from ..imaging.decoder import Pixels
from ..imaging.pixel_options import JPEG
from ..imaging.tensors import decode_column
from ..storage.errors import DatasetError
from .config import SPLITS
from .order import SplitIndex, index_split, read_in_order

_PICTURE_COLORS = ("rgb", "gray", "red", "green", "blue")
COPY = "copy"
"""Column of tensors with augmented copies: 0 for the image itself, 1 and up for its copies."""


@dataclass(frozen=True)
class Sample:
    """One image with its labels.

    Args:
        number: its position in the split, 0-based.
        data: the bytes of an image file, or uint8 [H, W, C] of raw tensors.
        copy: number of an augmented copy; 0 for the image itself.
        has_warning: whether its decoder gave a warning.
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
        """Return whether the images can be files: they are, or their pixels are grey or RGB, as in a PNG."""
        color, channels = self.dataset.manifest.color or "rgb", self.image.shape[2] if self.is_tensors else 3
        return not self.is_raw or (color in _PICTURE_COLORS and channels == (3 if color == "rgb" else 1))

    @cached_property
    def rows(self) -> dict[str, int]:
        """Number of images by split, without empty splits."""
        counts = {split: sum(file.rows for file in self.dataset.files("data", split)) for split in SPLITS}
        return {split: count for split, count in counts.items() if count}

    @cached_property
    def has_copies(self) -> bool:
        files = self.dataset.files("data")
        if not files or not self.is_tensors:
            return False
        with open_parquet(self.dataset.locate(files[0])) as parquet:
            return COPY in parquet.schema_arrow.names

    def label_names(self, sample: Sample) -> list[str]:
        return [self.classes[label] for label in sample.label_ids]

    def read_ids(self, split: str) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Yield (image_id, copy, label_ids) of every image of a split, in the order of the files."""
        for file in self.dataset.files("data", split):
            for table in row_groups(self.dataset, file, self.id_columns()):
                yield from zip(*self.parse_ids(table, file.uri), strict=True)

    def open_split(self, split: str, scratch: Path) -> SplitReader:
        """Return a reader of a split. `scratch`: a folder for rows that do not fit into memory."""
        return SplitReader(self, split, scratch, None if self.is_tensors else index_split(self.dataset, split))

    def id_columns(self) -> list[str]:
        """Return the columns that `parse_ids` needs."""
        copies = [COPY] if self.has_copies else []
        return ["image_id", label_column(self.dataset.manifest.task), *copies]

    def parse_ids(self, table: pa.Table, origin: str) -> tuple[list[str], list[int], list[tuple[int, ...]]]:
        """Return image ids, copy numbers and label ids of a table. `origin`: the file, for errors."""
        labels = table.column(label_column(self.dataset.manifest.task)).to_pylist()
        copies = table.column(COPY).to_pylist() if self.has_copies else [0] * table.num_rows
        return table.column("image_id").to_pylist(), copies, [self.check_labels(value, origin) for value in labels]

    def check_labels(self, labels: Any, origin: str) -> tuple[int, ...]:
        """Return the label ids of a row; DatasetError, which names `origin`, for an id that is none of the classes."""
        label_ids = tuple(labels or ()) if self.is_multi_label else (labels,)
        if not all(isinstance(label_id, int) and 0 <= label_id < len(self.classes) for label_id in label_ids):
            raise DatasetError(f"{origin}: expected labels of {len(self.classes)} classes, found {labels!r}")
        return label_ids


@dataclass(frozen=True)
class SplitReader:
    """Reader of one split in stored order. `index`: of a clean split; None for tensors."""

    source: ExportSource
    split: str
    scratch: Path
    index: SplitIndex | None

    def estimate_bytes(self, with_png: bool) -> int:
        """Return the approximate bytes of the images; `with_png`: if those that TensorFlow can't read become PNG."""
        if self.index:
            return self.index.bytes_with_png if with_png else self.index.total
        return sum(file.bytes for file in self.source.dataset.files("data", self.split))

    def samples(self) -> Iterator[Sample]:
        """Yield every image of the split in stored order; DatasetError if their number differs from the manifest's."""
        rows, listed_rows = 0, self.source.rows[self.split]
        for sample in self._read_clean(self.index) if self.index else self._read_tensors():
            rows += 1
            yield sample
        if rows != listed_rows:
            uri = self.source.dataset.uri
            raise DatasetError(f"{uri}: the manifest lists {listed_rows:,} rows of {self.split}, found {rows:,}")

    def _read_clean(self, index: SplitIndex) -> Iterator[Sample]:
        label = label_column(self.source.dataset.manifest.task)
        columns = ["image_id", "image.bytes", label, "decoder_warning"]
        rows = read_in_order(self.source.dataset, index, columns, self.scratch)
        for number, row in enumerate(rows):
            labels = self.source.check_labels(row[label], row["image_id"])
            data, has_warning = row["image"]["bytes"], bool(row["decoder_warning"])
            yield Sample(row["image_id"], self.split, number, data, labels, 0, has_warning)

    def _read_tensors(self) -> Iterator[Sample]:
        dataset, number = self.source.dataset, 0
        columns = ["image", *self.source.id_columns()]
        for file in dataset.files("data", self.split):
            uri = dataset.locate(file)
            with open_parquet(uri) as parquet:
                for index in range(parquet.num_row_groups):
                    table = read_row_group(parquet, index, uri, columns)
                    images = self._decode(table.column("image"))
                    ids, copies, all_labels = self.source.parse_ids(table, file.uri)
                    for data, image_id, copy, labels in zip(images, ids, copies, all_labels, strict=True):
                        yield Sample(image_id, self.split, number, data, labels, copy)
                        number += 1

    def _decode(self, column: pa.ChunkedArray) -> Any:
        return decode_column(column, self.source.image) if self.source.is_raw else (value.as_py() for value in column)
