"""Read the images of a clean or tensors dataset one by one, with labels and other values that a format writes.

The rows of a clean split are read in the order of `shuffle_index`, which is a uniform hash, while each of clean's files
has rows from its whole range. So the range is cut into equal windows of about `WINDOW_BYTES` of images. As many windows
as `SPILL_BYTES` hold are filled at a time, each in a scratch file, and then read one after another and sorted: memory
is bounded by a window and a row group, scratch space by `SPILL_BYTES`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import ImageSpec
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset
from ..dataset.shards import open_parquet, read_file, read_row_group, row_groups
from ..imaging.decoder import Pixels
from ..imaging.pixel_options import JPEG
from ..imaging.tensors import decode_column
from ..storage.errors import DatasetError
from ..storage.store import map_disk_errors
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

    def read_samples(self, split: str, scratch: Path) -> Iterator[Sample]:
        """Yield every image of a split in stored order; DatasetError if their number differs from the manifest's.

        `scratch`: a folder for rows that are being sorted.
        """
        rows = 0
        for sample in self._read_tensors(split) if self.is_tensors else self._read_clean(split, scratch):
            rows += 1
            yield sample
        if rows != self.rows[split]:
            uri = self.dataset.uri
            raise DatasetError(f"{uri}: the manifest lists {self.rows[split]:,} rows of {split}, found {rows:,}")

    def _read_clean(self, split: str, scratch: Path) -> Iterator[Sample]:
        label = label_column(self.dataset.manifest.task)
        columns = ["image_id", "image.bytes", label, "decoder_warning"]
        for number, row in enumerate(read_in_order(self.dataset, split, columns, scratch)):
            labels = self.check_labels(row[label], row["image_id"])
            data, has_warning = row["image"]["bytes"], bool(row["decoder_warning"])
            yield Sample(row["image_id"], split, number, data, labels, 0, has_warning)

    def _read_tensors(self, split: str) -> Iterator[Sample]:
        number = 0
        for file in self.dataset.files("data", split):
            for table in read_file(self.dataset.locate(file), ["image", *self.id_columns()]):
                images = self._decode(table.column("image"))
                ids, copies, all_labels = self.parse_ids(table, file.uri)
                for data, image_id, copy, labels in zip(images, ids, copies, all_labels, strict=True):
                    yield Sample(image_id, split, number, data, labels, copy)
                    number += 1

    def _decode(self, column: pa.ChunkedArray) -> Any:
        return decode_column(column, self.image) if self.is_raw else (value.as_py() for value in column)


WINDOW_BYTES = 96 * 2**20
SPILL_BYTES = 8 * 2**30
_INDEX_RANGE = 2**63
"""Shuffle indices are in [0, 2^63)."""
_BATCH_ROWS = 64
"""Rows that are converted to Python objects at a time."""


def read_in_order(
    dataset: Dataset, split: str, columns: Sequence[str], scratch: Path,
    window: int = WINDOW_BYTES, spill: int = SPILL_BYTES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield rows as Python objects, sorted by `shuffle_index` and then by `image_id`.

    About `window` bytes of images are sorted in memory at a time, and `spill` bytes are in the folder `scratch`.
    """
    spill = max(window, min(spill, shutil.disk_usage(scratch).free // 4))
    num_windows = max(1, -(-sum(file.bytes for file in dataset.files("data", split)) // window))
    starts = [number * _INDEX_RANGE // num_windows for number in range(num_windows)]
    windows_at_a_time = spill // window
    for first in range(0, num_windows, windows_at_a_time):
        end = starts[first + windows_at_a_time] if first + windows_at_a_time < num_windows else _INDEX_RANGE
        tables = _read_range(dataset, split, [*columns, "shuffle_index"], starts[first], end)
        yield from _sort_by_spilling(tables, starts[first : first + windows_at_a_time], scratch)


def _read_range(dataset: Dataset, split: str, columns: list[str], low: int, end: int) -> Iterator[pa.Table]:
    """Yield the rows with a shuffle index in [low, end); images of row groups without any are not read."""
    for file in dataset.files("data", split):
        uri = dataset.locate(file)
        with open_parquet(uri) as parquet:
            for group in range(parquet.num_row_groups):
                indices = _get_indices(read_row_group(parquet, group, uri, ["shuffle_index"]))
                in_range = (indices >= low) & (indices <= end - 1)
                if in_range.any():
                    yield read_row_group(parquet, group, uri, columns).filter(pa.array(in_range))


def _get_indices(table: pa.Table) -> npt.NDArray[np.int64]:
    indices: npt.NDArray[np.int64] = table.column("shuffle_index").to_numpy().astype(np.int64)
    return indices


def _sort_by_spilling(tables: Iterator[pa.Table], starts: list[int], scratch: Path) -> Iterator[dict[str, Any]]:
    """Write rows to one scratch file for each window, then yield the windows one after another, each sorted."""
    paths = [scratch / f"window-{number}.arrow" for number in range(len(starts))]
    writers: dict[int, Any] = {}
    with map_disk_errors(str(scratch)):
        for table in tables:
            window_of_row = np.searchsorted(np.array(starts, np.int64), _get_indices(table), side="right") - 1
            for number in np.unique(window_of_row).tolist():
                if number not in writers:
                    writers[number] = pa.ipc.new_stream(str(paths[number]), table.schema)
                writers[number].write_table(table.filter(pa.array(window_of_row == number)))
        for writer in writers.values():
            writer.close()
    for number in sorted(writers):
        with map_disk_errors(str(paths[number])), pa.memory_map(str(paths[number])) as file:
            table = pa.ipc.open_stream(file).read_all()
        yield from _sort(table)
        del table
        paths[number].unlink()


def _sort(table: pa.Table) -> Iterator[dict[str, Any]]:
    keys = [("shuffle_index", "ascending"), ("image_id", "ascending")]
    order = pc.sort_indices(table.select([name for name, _ in keys]), sort_keys=keys)
    for start in range(0, len(order), _BATCH_ROWS):
        yield from table.take(order.slice(start, _BATCH_ROWS)).to_pylist()
