"""The rows of a clean split in the order of their `shuffle_index`, whatever the size of the dataset.

Clean's files are many, and each has rows from all over that order. The order is cut into ranges of at most
`SPILL_BYTES` of images; the row groups that have a part in a range are read once, and their rows go to scratch files
of about `WINDOW_BYTES`, which are then read one after another and sorted. What fits into one window is never spilled.
So memory is bounded by two windows and a row group, scratch space by `SPILL_BYTES`, and each image is read about once.
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

from ..store.filesystem import map_disk_errors
from ..store.manifest import Dataset, File
from ..store.shards import open_parquet, read_row_group

WINDOW_BYTES = 96 * 2**20
SPILL_BYTES = 8 * 2**30
_BITS = 16
_SHIFT = np.int64(63 - _BITS)
"""Ranges are cut at multiples of 2^-16 of the order, which is a hash: a window may exceed by that share of it all."""
_TAKEN = 64
"""Rows that are turned into Python objects at a time."""
_PNG = ("JPEG", "PNG")

Range = tuple[int, int]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """A row group of a file: its rows lie between `low` and `high` of the order, both included, in 2^-16 of it."""

    file: int
    index: int
    low: int
    high: int


@dataclass(frozen=True)
class Survey:
    """What is known of a split before an image is read: its row groups, and the bytes in each 2^-16 of the order.

    `as_png`: about the bytes of all images when those that are neither JPEG nor PNG become PNG.
    """

    files: list[File]
    groups: list[Group]
    bytes: Counts
    as_png: int

    @property
    def total(self) -> int:
        return int(self.bytes.sum())


def survey(dataset: Dataset, split: str) -> Survey:
    """Read the small columns of a split. Costs 0.5 MB, and some 100 bytes a row group."""
    counts, groups, as_png = np.zeros(2**_BITS, np.int64), [], 0
    columns = ["shuffle_index", "image_bytes", "format", "width", "height"]
    files = dataset.files("data", split)
    for number, file in enumerate(files):
        uri = dataset.locate(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                table = read_row_group(parquet, index, uri, columns)
                if not table.num_rows:
                    continue
                places = _places(table)
                sizes = table.column("image_bytes").to_numpy().astype(np.int64)
                np.add.at(counts, places, sizes)
                groups.append(Group(number, index, int(places.min()), int(places.max())))
                as_png += _as_png(table, sizes)
    return Survey(files, groups, counts, as_png)


def _places(table: pa.Table) -> Counts:
    indices: Counts = table.column("shuffle_index").to_numpy().astype(np.int64)
    return indices >> _SHIFT


def _as_png(table: pa.Table, sizes: Counts) -> int:
    """A photograph as PNG has about half a byte a sample and channel of three."""
    stays = pc.is_in(table.column("format"), pa.array(_PNG)).to_numpy()
    pixels = table.column("width").to_numpy().astype(np.int64) * table.column("height").to_numpy()
    return int(np.where(stays, sizes, np.maximum(sizes, pixels * 3 // 2)).sum())


def cuts(counts: Counts, low: int, high: int, budget: int) -> list[Range]:
    """[low, high) of the order in as few ranges as have at most `budget` bytes each, where one step allows it."""
    found, begin, held = [], low, 0
    for place in range(low, high):
        size = int(counts[place])
        if held and held + size > budget:
            found.append((begin, place))
            begin, held = place, 0
        held += size
    return [*found, (begin, high)]


def rows_in_order(
    dataset: Dataset, about: Survey, columns: Sequence[str], scratch: Path,
    window: int = WINDOW_BYTES, spill: int = SPILL_BYTES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows as Python objects, `columns` of them and `shuffle_index`, sorted by it and then by `image_id`."""
    room = max(window, min(spill, shutil.disk_usage(scratch).free // 4))
    wanted = [*columns, "shuffle_index"]
    for outer in cuts(about.bytes, 0, len(about.bytes), room):
        inner = cuts(about.bytes, *outer, window)
        parts = _parts(dataset, about, wanted, outer)
        if len(inner) == 1:
            tables = list(parts)
            if tables:
                yield from _sorted(pa.concat_tables(tables))
        else:
            yield from _through_scratch(parts, inner, scratch)


def _parts(dataset: Dataset, about: Survey, columns: list[str], part: Range) -> Iterator[pa.Table]:
    """What each row group has of a range of the order."""
    low, high = part
    opened: tuple[int, Any] = (-1, None)
    try:
        for group in about.groups:
            if group.high < low or group.low >= high:
                continue
            uri = dataset.locate(about.files[group.file])
            if opened[0] != group.file:
                if opened[1] is not None:
                    opened[1].close()
                opened = (group.file, open_parquet(uri))
            table = read_row_group(opened[1], group.index, uri, columns)
            if group.low < low or group.high >= high:
                places = _places(table)
                table = table.filter(pa.array((places >= low) & (places < high)))
            yield table
    finally:
        if opened[1] is not None:
            opened[1].close()


def _through_scratch(parts: Iterator[pa.Table], inner: list[Range], scratch: Path) -> Iterator[dict[str, Any]]:
    edges = np.array([low for low, _ in inner[1:]], np.int64)
    paths = [scratch / f"window-{number}.arrow" for number in range(len(inner))]
    writers: dict[int, Any] = {}
    with map_disk_errors(str(scratch)):
        for table in parts:
            windows = np.searchsorted(edges, _places(table), side="right")
            for number in np.unique(windows).tolist():
                if number not in writers:
                    writers[number] = pa.ipc.new_stream(str(paths[number]), table.schema)
                writers[number].write_table(table.filter(pa.array(windows == number)))
        for writer in writers.values():
            writer.close()
    for number in sorted(writers):
        with map_disk_errors(str(paths[number])), pa.memory_map(str(paths[number])) as file:
            table = pa.ipc.open_stream(file).read_all()
        yield from _sorted(table)
        del table
        paths[number].unlink()


def _sorted(table: pa.Table) -> Iterator[dict[str, Any]]:
    keys = [("shuffle_index", "ascending"), ("image_id", "ascending")]
    order = pc.sort_indices(table.select([name for name, _ in keys]), sort_keys=keys)
    for start in range(0, len(order), _TAKEN):
        yield from table.take(order.slice(start, _TAKEN)).to_pylist()
