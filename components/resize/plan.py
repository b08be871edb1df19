"""Plan the tensor shards of a split: which rows of which clean files each holds, as a function of the input alone.

A split's rows are ordered by `shuffle_index` and cut into shards of a fixed number of rows. The plan costs 8 bytes an
image in memory; nothing here depends on timing, retries or the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataset.labels import SINGLE
from ..dataset.manifest import Dataset, File
from ..dataset.shards import read_file
from ..storage.errors import DatasetError
from ..storage.parallel import map_ordered

SHARD_BYTES = 64 * 2**20
"""Most bytes of pixels in a shard. One core writes a shard: with larger ones cores are idle at the end."""
SHARD_ENCODED_BYTES, MIN_SHARD_ROWS = 48 * 2**20, 64
"""Most bytes of encoded images for a shard, by the dataset's mean, unless that would be fewer rows than this."""
MAX_TASK_ENCODED_BYTES = 96 * 2**20
"""Most bytes of encoded images that a task may hold: very large photographs make short shards."""
MAX_SHARD_ROWS = 4096
"""So that small images make work for many cores, too."""
ROW_GROUP_BYTES = 24 * 2**20
"""16 to 32 MB: large enough to read at memory speed, small enough to shuffle by."""
INDEX_THREADS = 16
"""Files whose indices are read at a time: from an object store each of them is some round trips."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowSlice:
    """Rows of one file: `skip` rows into the row groups `groups`, then `rows` of them.

    `chosen`: of these only the ones at these offsets, ascending; None for all.
    """

    uri: str
    groups: tuple[int, ...]
    skip: int
    rows: int
    chosen: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ShardPlan:
    """One tensor shard to write: the rows whose shuffle_index is in [low, high), and where they lie.

    `rows` counts the images that are read: with augmented copies more are written. `task`: `single` or `multi`.
    """

    key: str
    split: str
    rows: int
    slices: tuple[RowSlice, ...] = ()
    low: int = 0
    high: int = 0
    task: str = SINGLE


@dataclass(frozen=True)
class SortedRows:
    """A sequence of rows in the order of shuffle_index: a clean file or some of its rows, or several files that were
    merged.

    Args:
        uris: the files that hold the rows, one after the other.
        indices: int64 [rows], the rows' shuffle indices, ascending.
        starts: int64 [row groups + 1], the first row of each row group, and the number of rows in the files.
        first_groups: of each file its first row group, and the number of row groups.
        positions: int64 [rows], ascending: the places of the rows in the only file; None for all of its rows.
    """

    uris: tuple[str, ...]
    indices: Indices
    starts: Indices
    first_groups: tuple[int, ...]
    positions: Indices | None = None

    def locate(self, begin: int, end: int) -> Iterator[RowSlice]:
        """Yield the slices that hold the rows [begin, end)."""
        if begin == end:
            return
        if self.positions is not None:
            yield self._choose(self.positions[begin:end])
            return
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        last = int(np.searchsorted(self.starts, end, side="left"))
        for uri, file_first, file_last in zip(self.uris, self.first_groups, self.first_groups[1:], strict=False):
            low, high = max(first, file_first), min(last, file_last)
            if low < high:
                skip = max(begin - int(self.starts[low]), 0)
                rows = min(end, int(self.starts[high])) - int(self.starts[low]) - skip
                yield RowSlice(uri, tuple(range(low - file_first, high - file_first)), skip, rows)

    def _choose(self, positions: Indices) -> RowSlice:
        """Return the slice of rows that lie anywhere in the only file; row groups without any are not in it."""
        groups, counts = np.unique(self.find_groups(positions), return_counts=True)
        ends = np.cumsum(self.starts[groups + 1] - self.starts[groups])
        offsets = np.concatenate([[0], ends[:-1]])
        chosen = positions - np.repeat(self.starts[groups] - offsets, counts)
        return RowSlice(self.uris[0], tuple(groups.tolist()), 0, int(ends[-1]), tuple(chosen.tolist()))

    def find_groups(self, positions: Indices) -> Indices:
        """Return the row groups of rows by their places in the files: int64 [n]."""
        return np.searchsorted(self.starts, positions, side="right").astype(np.int64) - 1


@dataclass(frozen=True)
class SplitPlan:
    """The tensor shards of one split in shuffled order, and the rows to read.

    `mean_bytes`: of an encoded image; `prefix`: of the keys under which finished work is recorded.
    """

    shards: tuple[ShardPlan, ...]
    sources: tuple[SortedRows, ...]
    mean_bytes: int
    prefix: str = ""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def plan_split(
    clean: Dataset,
    split: str,
    row_bytes: int,
    copies: int = 0,
    chosen: Mapping[str, Indices] | None = None,
    prefix: str = "",
) -> SplitPlan:
    """Plan one split, without the places of its rows.

    `chosen`: of each clean file, by its URI in the manifest, the rows to plan for: int64, ascending; None for all.
    `prefix`: of the shards' keys, which tells plans for different rows apart.
    """
    sources = index_files(clean, split, chosen)
    totals = clean.manifest.totals
    mean_bytes = max(1, totals.bytes // max(1, totals.rows))
    max_rows = compute_max_rows_per_shard(row_bytes, mean_bytes, copies if split == "train" else 0)
    shards = (
        ShardPlan(f"{prefix}{split}-{low:016x}-{high:016x}", split, rows, (), low, high, clean.manifest.task)
        for low, high, rows in cut([source.indices for source in sources], max_rows)
    )
    return SplitPlan(tuple(shards), sources, mean_bytes, prefix)


def compute_max_rows_per_shard(row_bytes: int, mean_bytes: int, copies: int) -> int:
    """Return the most images of one shard: by its bytes with their copies, and by the memory of the task."""
    written = 1 + copies
    encoded = max(SHARD_ENCODED_BYTES // mean_bytes, min(MIN_SHARD_ROWS, MAX_TASK_ENCODED_BYTES // mean_bytes))
    return max(1, min(SHARD_BYTES // (row_bytes * written), encoded, MAX_SHARD_ROWS // written))


def cut(indices: Sequence[Indices], max_rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (low, high, rows) of each shard: its indices are in [low, high), and none lies between two shards."""
    if not indices:
        return
    merged = np.sort(np.concatenate(indices))
    begin = 0
    while begin < len(merged):
        low = int(merged[begin])
        # Rows of one index (copies that were kept) stay together: the cut moves up to the next index.
        end = begin + max_rows
        high = int(merged[end]) if end < len(merged) else int(merged[-1]) + 1
        if high == low:
            high = low + 1
        end = len(merged) if high > merged[-1] else int(np.searchsorted(merged, high))
        yield low, int(merged[end]) if end < len(merged) else high, end - begin
        begin = end


def get_index_ranges(groups: Sequence[Sequence[ShardPlan]]) -> Indices:
    """Return int64 [groups, 2]: the lowest and the highest shuffle_index of each group of consecutive shards."""
    return np.array([(group[0].low, group[-1].high - 1) for group in groups], np.int64).reshape(-1, 2)


def locate_rows(sources: Sequence[SortedRows], ranges: Indices) -> Iterator[tuple[RowSlice, ...]]:
    """Yield the slices that hold the rows of each range. `ranges`: int64 [n, 2], as from `get_index_ranges`."""
    positions = [_find_positions(source, ranges) for source in sources]
    for number in range(len(ranges)):
        yield tuple(
            row_slice
            for source, (begin, end) in zip(sources, positions, strict=True)
            for row_slice in source.locate(int(begin[number]), int(end[number]))
        )


def count_rows_read(sources: Sequence[SortedRows], ranges: Indices) -> int:
    """Return the rows of all row groups that must be read if each range is read by itself."""
    total = 0
    for source in sources:
        begin, end = _find_positions(source, ranges)
        if source.positions is not None:
            total += _count_chosen_groups(source, begin, end)
            continue
        first = source.starts[np.searchsorted(source.starts, begin, side="right") - 1]
        last = source.starts[np.searchsorted(source.starts, end, side="left")]
        total += int((last - first)[end > begin].sum())
    return total


def _count_chosen_groups(source: SortedRows, begin: Indices, end: Indices) -> int:
    """Return the rows of the row groups that hold the rows [begin, end) of a source of chosen rows, for each range."""
    assert source.positions is not None
    groups = source.find_groups(source.positions)
    lengths = np.diff(source.starts)[groups]
    is_first = np.concatenate([[True], groups[1:] != groups[:-1]])
    sums = np.concatenate([[0], np.cumsum(np.where(is_first, lengths, 0))])
    begin, end = begin[end > begin], end[end > begin]
    in_next = np.where(is_first[begin], 0, lengths[begin])  # a group that the range before has begun
    return int((sums[end] - sums[begin] + in_next).sum())


def _find_positions(source: SortedRows, ranges: Indices) -> tuple[Indices, Indices]:
    """Return the first row of each range in the source, and the row after its last: int64 [n] each."""
    begin = np.searchsorted(source.indices, ranges[:, 0], side="left")
    return begin, np.searchsorted(source.indices, ranges[:, 1], side="right")


def index_files(clean: Dataset, split: str, chosen: Mapping[str, Indices] | None = None) -> tuple[SortedRows, ...]:
    """Read the shuffle indices of a split's clean files, several files at a time. `chosen`: as in `plan_split`."""
    files = [file for file in clean.files("data", split) if chosen is None or len(chosen.get(file.uri, ()))]

    def index(file: File) -> SortedRows:
        return _index_file(clean, file, None if chosen is None else chosen[file.uri])

    return tuple(map_ordered(files, index, INDEX_THREADS, lambda file: 8 * file.rows))


def _index_file(clean: Dataset, file: File, positions: Indices | None) -> SortedRows:
    uri = clean.locate(file)
    parts: list[Indices] = [np.zeros(0, np.int64)]
    for table in read_file(uri, ["shuffle_index"]):
        parts.append(table.column("shuffle_index").to_numpy().astype(np.int64, copy=False))
    starts = np.cumsum([len(part) for part in parts], dtype=np.int64)
    indices = np.concatenate(parts)
    if (indices[1:] < indices[:-1]).any():
        raise DatasetError(f"{uri}: expected rows in the order of shuffle_index, found others")
    if positions is None or len(positions) == len(indices):
        return SortedRows((uri,), indices, starts, (0, len(parts) - 1))
    return SortedRows((uri,), indices[positions], starts, (0, len(parts) - 1), positions)
