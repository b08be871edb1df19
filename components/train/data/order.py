"""The order of an epoch: a pure function of (seed, epoch), the same for any number of threads, ranks and batch sizes.

Files are shuffled as blocks, and rows within windows of several whole files: a window has at least `WINDOW_FILES` files
and `WINDOW_ROWS` rows where there are so many, and not much over `WINDOW_BYTES`, since all of a window's files are
needed at once. The files' rows are in random order already, so that neighbors in an epoch come from the whole dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...dataset.manifest import File

WINDOW_FILES, WINDOW_ROWS, WINDOW_BYTES = 4, 4096, 2**30


@dataclass(frozen=True)
class ShuffleWindow:
    """Whole files, by their indices, in the order of the epoch; `rows` rows of the epoch from its row `first` on."""

    number: int
    files: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class EpochOrder:
    """The order of the rows of `files` in an epoch. `epoch` < 0: as they are stored. `repeats`: number of times that
    each row of a file is used (balanced sampling), 4 bytes an image; None: once."""

    files: Sequence[File]
    seed: int
    epoch: int
    repeats: Sequence[npt.NDArray[np.uint32]] | None = None

    @property
    def is_shuffled(self) -> bool:
        return self.epoch >= 0

    def count_rows(self) -> int:
        return sum(self._count_file_rows(index) for index in range(len(self.files)))

    def iter_windows(self) -> Iterator[ShuffleWindow]:
        """Yield the windows in the order of the epoch; none of an empty split."""
        order = np.arange(len(self.files))
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

    def locate_rows(self, window: ShuffleWindow) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return (positions in `window.files`, rows in those files), int32 [window.rows] each, in the epoch's order."""
        rows_by_file = [self._list_file_rows(index) for index in window.files]
        positions = np.repeat(np.arange(len(rows_by_file), dtype=np.int32), [len(rows) for rows in rows_by_file])
        rows = np.concatenate(rows_by_file)
        if self.is_shuffled:
            order = np.random.default_rng([self.seed, self.epoch, window.number]).permutation(len(rows))
            positions, rows = positions[order], rows[order]
        return positions, rows

    def _list_file_rows(self, index: int) -> npt.NDArray[np.int32]:
        rows = np.arange(self.files[index].rows, dtype=np.int32)
        return rows if self.repeats is None else np.repeat(rows, self.repeats[index])

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
