"""The order of an epoch: a pure function of (seed, epoch), the same for any number of threads, ranks and batch sizes.

Files are shuffled as blocks, and rows within windows of several whole files: a window has at least `WINDOW_FILES` files
and `WINDOW_ROWS` rows where there are so many, and not much over `WINDOW_BYTES`, since all of a window's files are
needed at once. The files' rows are in random order already, so that neighbors in an epoch come from the whole dataset.

Rows that were added later lie in files of their own, in generations that are small beside the largest. Windows are made
of whole files of the largest one, and each has a share of the rows of every other generation, in proportion to its own
rows: the next ones of that generation's files, in an order of the epoch. So a window needs one or two files of each,
and a file is needed by windows that follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...dataset.manifest import File

WINDOW_FILES, WINDOW_ROWS, WINDOW_BYTES = 4, 4096, 2**30
_STREAM, _FILE = 1, 2
"""Purposes of random numbers beside those of windows: the last word of their seeds."""


@dataclass(frozen=True)
class ShuffleWindow:
    """Files, by their indices, in the order of the epoch; `rows` rows of the epoch from its row `first` on.

    `shares`: of each of the last files, which the window does not have as a whole, its range [begin, end) of the file's
    rows in the order of the epoch.
    """

    number: int
    files: tuple[int, ...]
    first: int
    rows: int
    shares: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Stream:
    """The rows of a generation, file after file in the order of an epoch; `ends`: the rows up to each file's end.

    `offset` in [0, 1): by it a share is rounded up or down, so that its expectation is exact (systematic sampling).
    """

    files: tuple[int, ...]
    ends: npt.NDArray[np.int64]
    offset: float

    def get_shares(self, low: float, high: float) -> Iterator[tuple[int, int, int]]:
        """Yield (file, begin, end) of the rows between two shares of the whole, 0 to 1."""
        total = int(self.ends[-1])
        begin, end = (min(int(total * part + self.offset), total) for part in (low, high))
        for number in range(int(np.searchsorted(self.ends, begin, side="right")), len(self.files)):
            first = int(self.ends[number - 1]) if number else 0
            if first >= end:
                return
            if (last := min(end, int(self.ends[number]))) > max(begin, first):
                yield self.files[number], max(begin, first) - first, last - first


@dataclass(frozen=True)
class EpochOrder:
    """The order of the rows of `files` in an epoch. `epoch` < 0: as they are stored. `repeats`: number of times that
    each row of a file is used (balanced sampling), 4 bytes an image; None: once. `generations`: of the files; none
    given: one."""

    files: Sequence[File]
    seed: int
    epoch: int
    repeats: Sequence[npt.NDArray[np.uint32]] | None = None
    generations: Sequence[int] = ()

    @property
    def is_shuffled(self) -> bool:
        return self.epoch >= 0

    def count_rows(self) -> int:
        return sum(self._count_file_rows(index) for index in range(len(self.files)))

    def iter_windows(self) -> Iterator[ShuffleWindow]:
        """Yield the windows in the order of the epoch; none of an empty split."""
        by_generation = self._group_by_generation()
        windows = self._iter_windows_of(by_generation.pop(0))
        return self._add_shares(list(windows), by_generation) if by_generation else windows

    def _group_by_generation(self) -> list[list[int]]:
        """Return the files of each generation, those of the largest one first; all together where nothing is mixed."""
        groups: dict[int, list[int]] = {}
        for index in range(len(self.files)):
            groups.setdefault(self.generations[index] if self.generations and self.is_shuffled else 0, []).append(index)
        ordered = sorted(groups.values(), key=lambda indices: -sum(self.files[index].rows for index in indices))
        has_rows = ordered and any(map(self._count_file_rows, ordered[0]))
        return ordered if has_rows else [list(range(len(self.files)))]

    def _iter_windows_of(self, indices: list[int]) -> Iterator[ShuffleWindow]:
        """Yield windows of whole files."""
        order = np.array(indices, np.int64)
        if self.is_shuffled:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        number = first = rows = size = 0
        files: list[int] = []
        for index in order.tolist():
            files.append(index)
            rows += self._count_file_rows(index)
            size += self.files[index].bytes
            if size >= WINDOW_BYTES or (len(files) >= WINDOW_FILES and rows >= WINDOW_ROWS):
                yield ShuffleWindow(number, tuple(files), first, rows)
                number, first, rows, size, files = number + 1, first + rows, 0, 0, []
        if rows:
            yield ShuffleWindow(number, tuple(files), first, rows)

    def _add_shares(self, windows: list[ShuffleWindow], by_generation: list[list[int]]) -> Iterator[ShuffleWindow]:
        """Yield windows with a share of the rows of each further generation."""
        total, first = sum(window.rows for window in windows), 0
        streams = [self._make_stream(indices) for indices in by_generation]
        for window in windows:
            low, high = window.first / total, (window.first + window.rows) / total
            shares = [share for stream in streams for share in stream.get_shares(low, high)]
            rows = window.rows + sum(end - begin for _, begin, end in shares)
            files = window.files + tuple(index for index, _, _ in shares)
            yield ShuffleWindow(window.number, files, first, rows, tuple((begin, end) for _, begin, end in shares))
            first += rows

    def _make_stream(self, indices: list[int]) -> _Stream:
        random = np.random.default_rng([self.seed, self.epoch, indices[0], _STREAM])
        order = random.permutation(np.array(indices, np.int64)).tolist()
        ends = np.cumsum([self._count_file_rows(index) for index in order], dtype=np.int64)
        return _Stream(tuple(order), ends, float(random.random()))

    def locate_rows(self, window: ShuffleWindow) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return (positions in `window.files`, rows in those files), int32 [window.rows] each, in the epoch's order."""
        whole = len(window.files) - len(window.shares)
        rows_by_file = [self._list_file_rows(index) for index in window.files[:whole]]
        for index, (begin, end) in zip(window.files[whole:], window.shares, strict=True):
            rows_by_file.append(self._shuffle_file_rows(index)[begin:end])
        positions = np.repeat(np.arange(len(rows_by_file), dtype=np.int32), [len(rows) for rows in rows_by_file])
        rows = np.concatenate(rows_by_file)
        if self.is_shuffled:
            order = np.random.default_rng([self.seed, self.epoch, window.number]).permutation(len(rows))
            positions, rows = positions[order], rows[order]
        return positions, rows

    def _list_file_rows(self, index: int) -> npt.NDArray[np.int32]:
        rows = np.arange(self.files[index].rows, dtype=np.int32)
        return rows if self.repeats is None else np.repeat(rows, self.repeats[index])

    def _shuffle_file_rows(self, index: int) -> npt.NDArray[np.int32]:
        random = np.random.default_rng([self.seed, self.epoch, index, _FILE])
        return random.permutation(self._list_file_rows(index))

    def _count_file_rows(self, index: int) -> int:
        return self.files[index].rows if self.repeats is None else int(self.repeats[index].sum())


def sample_repeats(
    labels: Sequence[npt.NDArray[np.int64]], weights: npt.ArrayLike, seed: int, epoch: int
) -> list[npt.NDArray[np.uint32]]:
    """Sample how many times each row is used, so that a row of class c is `weights[c]` times as likely as one of weight
    1, and the total is the number of rows. `labels` and the result are arrays [rows], one for each file.

    By systematic sampling: a row with an expected count of x is used floor(x) or ceil(x) times (Madow and Madow, "On
    the theory of systematic sampling", 1944).
    """
    class_weights = np.asarray(weights, np.float64)
    total_weight = sum(float(class_weights[file_labels].sum()) for file_labels in labels)
    num_rows = sum(len(file_labels) for file_labels in labels)
    position = float(np.random.default_rng([seed, epoch, 2**31]).random())
    repeats = []
    for file_labels in labels:
        scale = num_rows / total_weight if total_weight else 0.0
        ends = position + np.cumsum(class_weights[file_labels]) * scale
        counts = np.floor(np.concatenate([[position], ends]) + 1e-9)
        repeats.append(np.diff(counts).astype(np.uint32))
        position = float(ends[-1]) if len(ends) else position
    return repeats


def count_batches(rows: int, batch_size: int, is_shuffled: bool = True, ranks: int = 1) -> int:
    """Return the number of batches of an epoch. In training a last batch with less than two images a rank is left out
    (batch normalization can't take it), if it is not the only one."""
    full_batches, remainder = divmod(rows, batch_size)
    min_rows = 2 * ranks if is_shuffled and full_batches else 1
    return full_batches + (1 if remainder >= min_rows else 0)
