"""The order of an epoch: a pure function of (seed, epoch), the same for any machine, number of threads, ranks and batch
sizes, so that any batch can be named by its number.

A split of up to `WINDOW_BYTES` is permuted as a whole. A larger one is divided into windows: parts are shuffled, a
window is as many of them as fit, and its rows are permuted. Each part is a random sample of what was read with it, so
that a window is nearly one of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...imaging.pixel_options import JPEG
from .tensors import TensorSplit

WINDOW_BYTES, JPEG_WINDOW_BYTES = 4 * 2**30, 2**29
"""Bytes of the parts of a window, and of those of JPEGs, which are held in memory. Constants, since a training that is
resumed on another machine has to go on in the same order."""
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShuffleWindow:
    """Parts, by their positions in the split, whose rows are mixed: `rows` of the epoch, from its row `first` on."""

    number: int
    parts: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class EpochOrder:
    """The order of the images of a split in an epoch. `epoch` < 0: as they are stored. `repeats`: uint32 [N], number of
    times that each image is used (balanced sampling); None: once."""

    split: TensorSplit
    seed: int
    epoch: int
    repeats: npt.NDArray[np.uint32] | None = None

    @property
    def is_shuffled(self) -> bool:
        return self.epoch >= 0

    def count_rows(self) -> int:
        return len(self.split) if self.repeats is None else int(self.repeats.sum())

    def iter_windows(self) -> Iterator[ShuffleWindow]:
        """Yield the windows in the order of the epoch; none of an empty split."""
        counts = self._count_part_rows()
        order = np.arange(len(counts))
        if self.is_shuffled:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        is_jpeg = self.split.dataset.manifest.image_spec.encoding == JPEG
        limit = JPEG_WINDOW_BYTES if is_jpeg else WINDOW_BYTES
        number = first = rows = size = 0
        parts: list[int] = []
        for position in order.tolist():
            part_size = self.split.parts[position].bytes
            if parts and size + part_size > limit:
                yield ShuffleWindow(number, tuple(parts), first, rows)
                number, first, rows, size, parts = number + 1, first + rows, 0, 0, []
            parts.append(position)
            rows += int(counts[position])
            size += part_size
        if rows:
            yield ShuffleWindow(number, tuple(parts), first, rows)

    def locate_rows(self, window: ShuffleWindow) -> Int64Array:
        """Return int64 [window.rows], the images of a window, by their numbers in the split, in the epoch's order."""
        starts = self.split.starts
        images = [np.arange(starts[position], starts[position + 1]) for position in window.parts]
        numbers = np.concatenate(images)
        if self.repeats is not None:
            numbers = np.repeat(numbers, self.repeats[numbers])
        if self.is_shuffled:
            numbers = np.random.default_rng([self.seed, self.epoch, window.number]).permutation(numbers)
        return numbers

    def _count_part_rows(self) -> Int64Array:
        if self.repeats is None:
            return np.diff(self.split.starts)
        totals = np.concatenate([[0], np.cumsum(self.repeats, dtype=np.int64)])
        return np.diff(totals[self.split.starts])


def sample_repeats(
    labels: npt.NDArray[np.int64], weights: npt.ArrayLike, seed: int, epoch: int
) -> npt.NDArray[np.uint32]:
    """Sample how many times each row is used, so that a row of class c is `weights[c]` times as likely as one of weight
    1, and the total is the number of rows. `labels` and the result are arrays [rows].

    By systematic sampling: a row with an expected count of x is used floor(x) or ceil(x) times (Madow and Madow, "On
    the theory of systematic sampling", 1944).
    """
    row_weights = np.asarray(weights, np.float64)[labels]
    total = float(row_weights.sum())
    if not total:
        return np.zeros(len(labels), np.uint32)
    position = float(np.random.default_rng([seed, epoch, 2**31]).random())
    ends = position + np.cumsum(row_weights) * (len(labels) / total)
    return np.diff(np.floor(np.concatenate([[position], ends]) + 1e-9)).astype(np.uint32)


def count_batches(rows: int, batch_size: int, is_shuffled: bool = True, ranks: int = 1) -> int:
    """Return the number of batches of an epoch. In training a last batch with less than two images a rank is left out
    (batch normalization can't take it), if it is not the only one."""
    full_batches, remainder = divmod(rows, batch_size)
    min_rows = 2 * ranks if is_shuffled and full_batches else 1
    return full_batches + (1 if remainder >= min_rows else 0)
