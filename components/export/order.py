"""Read the rows of a clean split in the order of `shuffle_index`, with bounded memory.

Clean's files are many, and each has rows from the whole range of indices. The indices are cut into ranges of at most
`SPILL_BYTES` of images; the row groups that have rows in a range are read once, and their rows are written to scratch
files of about `WINDOW_BYTES`, which are then read one after another and sorted. A range that fits into one window is
never spilled. So memory is bounded by two windows and a row group, scratch space by `SPILL_BYTES`, and each image is
read about once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet, read_row_group
from ..storage.store import map_disk_errors

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

    Args:
        columns: to read, beside `shuffle_index`.
        scratch: a folder for spilled rows.
        window: bytes of images that are sorted in memory at a time.
        spill: bytes of images that may be in `scratch`.
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
    file_number, parquet = -1, None
    try:
        for group in index.groups:
            if group.high < low or group.low >= high:
                continue
            uri = dataset.locate(index.files[group.file])
            if file_number != group.file:
                if parquet is not None:
                    parquet.close()
                file_number, parquet = group.file, open_parquet(uri)
            table = read_row_group(parquet, group.index, uri, columns)
            if group.low < low or group.high >= high:
                row_bins = _get_bins(table)
                table = table.filter(pa.array((row_bins >= low) & (row_bins < high)))
            yield table
    finally:
        if parquet is not None:
            parquet.close()


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
