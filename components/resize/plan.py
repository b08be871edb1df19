"""Which rows of which clean files make up each tensor file: a function of the input alone.

Every split's rows are ordered by `shuffle_index` and cut into files of a fixed number of rows. The plan costs
8 bytes an image in memory; nothing here depends on timing, retries or the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.manifest import Dataset, File
from ..store.shards import open_parquet, read_row_group

FILE_BYTES = 128 * 2**20
ENCODED_BYTES = 256 * 2**20
"""What a task holds of encoded images, by the dataset's mean: large photographs make short files."""
FILE_ROWS = 4096
"""So that small images make work for many cores, too."""
ROW_GROUP_BYTES = 24 * 2**20
"""16 to 32 MB: large enough to read at memory speed, small enough to shuffle by."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of one clean file: `skip` rows into the row groups `groups`, then `rows` of them."""

    uri: str
    groups: tuple[int, ...]
    skip: int
    rows: int


@dataclass(frozen=True)
class Job:
    """One tensor file to make: the rows of a range of the shuffled order, from wherever they lie."""

    key: str
    split: str
    rows: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class _Indexed:
    """A clean file's shuffle indices, ascending (clean writes them so), and where its row groups begin."""

    uri: str
    indices: Indices
    starts: Indices


def plan_jobs(clean: Dataset, split: str, row_bytes: int) -> Iterator[Job]:
    """The tensor files of one split, in shuffled order."""
    files = [_index(clean, file) for file in clean.files("data", split)]
    if not files:
        return
    merged = np.sort(np.concatenate([f.indices for f in files]))
    totals = clean.manifest.totals
    mean_bytes = max(1, totals.bytes // max(1, totals.rows))
    per_file = max(1, min(FILE_BYTES // row_bytes, ENCODED_BYTES // mean_bytes, FILE_ROWS))
    low = int(merged[0])
    position = 0
    while position < len(merged):
        # Rows of one index (copies that were kept) stay together: the cut moves up to the next index.
        end = position + per_file
        high = int(merged[end]) if end < len(merged) else int(merged[-1]) + 1
        if high == low:
            high = low + 1
        slices = tuple(s for f in files if (s := _slice(f, low, high)))
        rows = sum(s.rows for s in slices)
        yield Job(f"{split}-{low:016x}-{high:016x}", split, rows, slices)
        position += rows
        low = high


def _index(clean: Dataset, file: File) -> _Indexed:
    uri = clean.locate(file)
    parts: list[Any] = []
    with open_parquet(uri) as parquet:
        for group in range(parquet.num_row_groups):
            column = read_row_group(parquet, group, uri, ["shuffle_index"]).column("shuffle_index")
            parts.append(column.to_numpy())
    lengths = np.array([0, *(len(part) for part in parts)], dtype=np.int64)
    return _Indexed(uri, np.concatenate(parts).astype(np.int64), np.cumsum(lengths))


def _slice(file: _Indexed, low: int, high: int) -> Slice | None:
    begin, end = (int(i) for i in np.searchsorted(file.indices, [low, high]))
    if begin == end:
        return None
    first = int(np.searchsorted(file.starts, begin, side="right")) - 1
    last = int(np.searchsorted(file.starts, end, side="left"))
    return Slice(file.uri, tuple(range(first, last)), begin - int(file.starts[first]), end - begin)
