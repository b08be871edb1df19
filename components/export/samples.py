"""Read the images of a clean or tensors dataset one by one, with labels and other values that a format writes.

The rows of a clean split are read in the order of `shuffle_index`, with bounded memory. Clean's files are many, and
each has rows from the whole range of indices. The indices are cut into ranges of at most `SPILL_BYTES` of images; the
row groups that have rows in a range are read once, and their rows are written to scratch files of about `WINDOW_BYTES`,
which are then read one after another and sorted. A range that fits into one window is never spilled. So memory is
bounded by two windows and a row group, scratch space by `SPILL_BYTES`, and each image is read about once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import ImageSpec
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset, File
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
            for table in read_file(dataset.locate(file), columns):
                images = self._decode(table.column("image"))
                ids, copies, all_labels = self.source.parse_ids(table, file.uri)
                for data, image_id, copy, labels in zip(images, ids, copies, all_labels, strict=True):
                    yield Sample(image_id, self.split, number, data, labels, copy)
                    number += 1

    def _decode(self, column: pa.ChunkedArray) -> Any:
        return decode_column(column, self.source.image) if self.source.is_raw else (value.as_py() for value in column)


WINDOW_BYTES = 96 * 2**20
SPILL_BYTES = 8 * 2**30
_BITS = 16
_SHIFT = np.int64(63 - _BITS)
"""Indices are counted in 2^16 bins, at whose borders ranges are cut: a window may be too large by one bin."""
_BATCH_ROWS = 64
"""Rows that are converted to Python objects at a time."""
_READ_BY_TENSORFLOW = ("JPEG", "PNG")

Range = tuple[int, int]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowGroup:
    """A row group: number of its file, index in it, and the first and last bin of its rows."""

    file: int
    index: int
    low: int
    high: int


@dataclass(frozen=True)
class SplitIndex:
    """Index of a split: its row groups, and the bytes of images in each bin of shuffle indices (int64 [2^16]).

    `bytes_with_png`: estimated bytes of all images if those that are neither JPEG nor PNG become PNG.
    """

    files: list[File]
    groups: list[RowGroup]
    bytes: Counts
    bytes_with_png: int

    @property
    def total(self) -> int:
        return int(self.bytes.sum())


def index_split(dataset: Dataset, split: str) -> SplitIndex:
    """Read the small columns of a split. The result takes 0.5 MB, and some 100 bytes a row group."""
    bin_bytes, groups, bytes_with_png = np.zeros(2**_BITS, np.int64), [], 0
    columns = ["shuffle_index", "image_bytes", "format", "width", "height"]
    files = dataset.files("data", split)
    for number, file in enumerate(files):
        uri = dataset.locate(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                table = read_row_group(parquet, index, uri, columns)
                if not table.num_rows:
                    continue
                bins = _get_bins(table)
                sizes = table.column("image_bytes").to_numpy().astype(np.int64)
                np.add.at(bin_bytes, bins, sizes)
                groups.append(RowGroup(number, index, int(bins.min()), int(bins.max())))
                bytes_with_png += _estimate_png_bytes(table, sizes)
    return SplitIndex(files, groups, bin_bytes, bytes_with_png)


def _get_bins(table: pa.Table) -> Counts:
    indices: Counts = table.column("shuffle_index").to_numpy().astype(np.int64)
    return indices >> _SHIFT


def _estimate_png_bytes(table: pa.Table, sizes: Counts) -> int:
    stays = pc.is_in(table.column("format"), pa.array(_READ_BY_TENSORFLOW)).to_numpy()
    pixels = table.column("width").to_numpy().astype(np.int64) * table.column("height").to_numpy()
    # A photograph as PNG has about half a byte for each of a pixel's three channels.
    return int(np.where(stays, sizes, np.maximum(sizes, pixels * 3 // 2)).sum())


def partition(bin_bytes: Counts, low: int, high: int, budget: int) -> list[Range]:
    """Cut the bins [low, high) into as few ranges [begin, end) as have at most `budget` bytes each.

    A single bin may exceed it.
    """
    ranges, begin, range_bytes = [], low, 0
    for number in range(low, high):
        size = int(bin_bytes[number])
        if range_bytes and range_bytes + size > budget:
            ranges.append((begin, number))
            begin, range_bytes = number, 0
        range_bytes += size
    return [*ranges, (begin, high)]


def read_in_order(
    dataset: Dataset, index: SplitIndex, columns: Sequence[str], scratch: Path,
    window: int = WINDOW_BYTES, spill: int = SPILL_BYTES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield rows as Python objects, sorted by `shuffle_index` and then by `image_id`.

    At most `window` bytes of images are sorted in memory at a time, and `spill` bytes are in the folder `scratch`.
    """
    scratch_bytes = max(window, min(spill, shutil.disk_usage(scratch).free // 4))
    columns = [*columns, "shuffle_index"]
    for bins in partition(index.bytes, 0, len(index.bytes), scratch_bytes):
        windows = partition(index.bytes, *bins, window)
        tables = _read_range(dataset, index, columns, bins)
        if len(windows) > 1:
            yield from _sort_by_spilling(tables, windows, scratch)
        elif in_memory := list(tables):
            yield from _sort(pa.concat_tables(in_memory))


def _read_range(dataset: Dataset, index: SplitIndex, columns: list[str], bins: Range) -> Iterator[pa.Table]:
    """Yield the rows of each row group that are in the bins [low, high)."""
    low, high = bins
    overlapping = (group for group in index.groups if group.high >= low and group.low < high)
    for file_number, groups in groupby(overlapping, key=lambda group: group.file):
        uri = dataset.locate(index.files[file_number])
        with open_parquet(uri) as parquet:
            for group in groups:
                table = read_row_group(parquet, group.index, uri, columns)
                if group.low < low or group.high >= high:
                    row_bins = _get_bins(table)
                    table = table.filter(pa.array((row_bins >= low) & (row_bins < high)))
                yield table


def _sort_by_spilling(tables: Iterator[pa.Table], windows: list[Range], scratch: Path) -> Iterator[dict[str, Any]]:
    """Write rows to one scratch file for each window, then yield the windows one after another, each sorted."""
    boundaries = np.array([low for low, _ in windows[1:]], np.int64)
    paths = [scratch / f"window-{number}.arrow" for number in range(len(windows))]
    writers: dict[int, Any] = {}
    with map_disk_errors(str(scratch)):
        for table in tables:
            window_of_row = np.searchsorted(boundaries, _get_bins(table), side="right")
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
