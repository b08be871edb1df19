"""Which rows of which clean files make up each tensor file: a function of the input alone.

Every split's rows are ordered by `shuffle_index` and cut into files of a fixed number of rows. The plan costs
8 bytes an image in memory; nothing here depends on timing, retries or the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..store.errors import DatasetError
from ..store.labels import SINGLE
from ..store.manifest import Dataset, File
from ..store.parallel import map_ordered
from ..store.shards import open_parquet, read_row_group

FILE_BYTES = 64 * 2**20
"""Of pixels. A file is one core's work from beginning to end: with larger ones a core is idle at the end."""
FILE_ENCODED_BYTES, FILE_LEAST_ROWS = 48 * 2**20, 64
"""Of encoded images, by the dataset's mean, unless that would be too few rows."""
ENCODED_BYTES = 96 * 2**20
"""What a task may hold of encoded images: very large photographs make short files."""
FILE_ROWS = 4096
"""So that small images make work for many cores, too."""
ROW_GROUP_BYTES = 24 * 2**20
"""16 to 32 MB: large enough to read at memory speed, small enough to shuffle by."""
INDEX_THREADS = 16
"""Files whose indices are read at a time: from an object store each of them is some round trips."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of one file: `skip` rows into the row groups `groups`, then `rows` of them."""

    uri: str
    groups: tuple[int, ...]
    skip: int
    rows: int


@dataclass(frozen=True)
class Job:
    """One tensor file to make: the rows whose shuffle_index is in [low, high), from wherever they lie.

    `rows` are the images that go in: of copies there may come more out.
    """

    key: str
    split: str
    rows: int
    slices: tuple[Slice, ...] = ()
    low: int = 0
    high: int = 0
    task: str = SINGLE


@dataclass(frozen=True)
class Source:
    """A sequence of rows in shuffled order: a clean file, or a run, which may be several files one after the other.

    `indices`: the rows' shuffle indices, ascending; `starts`: the row at which each row group begins, and the end;
    `firsts`: of each file its first row group, and the end.
    """

    uris: tuple[str, ...]
    indices: Indices
    starts: Indices
    firsts: tuple[int, ...]

    def slices(self, begin: int, end: int) -> Iterator[Slice]:
        """Where the rows [begin, end) lie."""
        if begin == end:
            return
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        last = int(np.searchsorted(self.starts, end, side="left"))
        for uri, at, after in zip(self.uris, self.firsts, self.firsts[1:], strict=False):
            low, high = max(first, at), min(last, after)
            if low < high:
                skip = max(begin - int(self.starts[low]), 0)
                rows = min(end, int(self.starts[high])) - int(self.starts[low]) - skip
                yield Slice(uri, tuple(range(low - at, high - at)), skip, rows)


@dataclass(frozen=True)
class Plan:
    """The tensor files of one split, in shuffled order, and where their rows lie. `mean_bytes`: of an image."""

    jobs: tuple[Job, ...]
    sources: tuple[Source, ...]
    mean_bytes: int

    @property
    def rows(self) -> int:
        return sum(job.rows for job in self.jobs)


def plan_split(clean: Dataset, split: str, row_bytes: int, copies: int = 0) -> Plan:
    """The plan of one split, for tensors of `row_bytes` each and, in training, so many copies beside each image."""
    sources = index_files(clean, split)
    totals = clean.manifest.totals
    mean_bytes = max(1, totals.bytes // max(1, totals.rows))
    most = rows_per_file(row_bytes, mean_bytes, copies if split == "train" else 0)
    cuts = cut([source.indices for source in sources], most)
    jobs = (
        Job(f"{split}-{low:016x}-{high:016x}", split, rows, (), low, high, clean.manifest.task)
        for low, high, rows in cuts
    )
    return Plan(tuple(jobs), sources, mean_bytes)


def plan_jobs(clean: Dataset, split: str, row_bytes: int, copies: int = 0) -> Iterator[Job]:
    """The tensor files of one split, in shuffled order, each with its rows' places in the clean files."""
    plan = plan_split(clean, split, row_bytes, copies)
    for job, slices in zip(plan.jobs, places(plan.sources, bounds(plan.jobs)), strict=True):
        yield replace(job, slices=slices)


def rows_per_file(row_bytes: int, mean_bytes: int, copies: int) -> int:
    """Images of one tensor file: by what it holds with their copies, and by what a task holds to make it."""
    written = 1 + copies
    held = max(FILE_ENCODED_BYTES // mean_bytes, min(FILE_LEAST_ROWS, ENCODED_BYTES // mean_bytes))
    return max(1, min(FILE_BYTES // (row_bytes * written), held, FILE_ROWS // written))


def cut(indices: Sequence[Indices], most: int) -> Iterator[tuple[int, int, int]]:
    """(low, high, rows) of each file: its indices are in [low, high), and nothing is between two files."""
    if not indices:
        return
    merged = np.sort(np.concatenate(indices))
    begin = 0
    while begin < len(merged):
        low = int(merged[begin])
        # Rows of one index (copies that were kept) stay together: the cut moves up to the next index.
        end = begin + most
        high = int(merged[end]) if end < len(merged) else int(merged[-1]) + 1
        if high == low:
            high = low + 1
        end = len(merged) if high > merged[-1] else int(np.searchsorted(merged, high))
        yield low, int(merged[end]) if end < len(merged) else high, end - begin
        begin = end


def bounds(jobs: Sequence[Job]) -> Indices:
    """int64 [jobs, 2]: of each the lowest index that it may have, and the highest."""
    return np.array([(job.low, job.high - 1) for job in jobs], np.int64).reshape(-1, 2)


def places(sources: Sequence[Source], ranges: Indices) -> Iterator[tuple[Slice, ...]]:
    """Where the rows of each of `ranges` lie: int64 [n, 2], as `bounds` gives them."""
    rows = [_positions(source, ranges) for source in sources]
    for number in range(len(ranges)):
        found = (s.slices(int(begin[number]), int(end[number])) for s, (begin, end) in zip(sources, rows, strict=True))
        yield tuple(one for some in found for one in some)


def rows_read(sources: Sequence[Source], ranges: Indices) -> int:
    """Rows of all the row groups that must be read for `ranges`, each of which is read by itself."""
    total = 0
    for source in sources:
        begin, end = _positions(source, ranges)
        first = source.starts[np.searchsorted(source.starts, begin, side="right") - 1]
        last = source.starts[np.searchsorted(source.starts, end, side="left")]
        total += int((last - first)[end > begin].sum())
    return total


def _positions(source: Source, ranges: Indices) -> tuple[Indices, Indices]:
    """Of each range its first row in the source, and the one after its last."""
    begin = np.searchsorted(source.indices, ranges[:, 0], side="left")
    return begin, np.searchsorted(source.indices, ranges[:, 1], side="right")


def index_files(clean: Dataset, split: str) -> tuple[Source, ...]:
    """The clean files of one split, their indices read by some threads."""
    files = clean.files("data", split)
    return tuple(map_ordered(files, lambda file: _index(clean, file), INDEX_THREADS, lambda file: 8 * file.rows))


def _index(clean: Dataset, file: File) -> Source:
    uri = clean.locate(file)
    parts: list[Indices] = [np.zeros(0, np.int64)]
    with open_parquet(uri) as parquet:
        for group in range(parquet.num_row_groups):
            column = read_row_group(parquet, group, uri, ["shuffle_index"]).column("shuffle_index")
            parts.append(column.to_numpy().astype(np.int64, copy=False))
    starts = np.cumsum([len(part) for part in parts], dtype=np.int64)
    indices = np.concatenate(parts)
    if (indices[1:] < indices[:-1]).any():
        raise DatasetError(f"{uri}: expected rows in the order of shuffle_index, found others")
    return Source((uri,), indices, starts, (0, len(parts) - 1))
