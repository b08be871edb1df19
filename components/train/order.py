"""The order of an epoch: a pure function of (seed, epoch), the same for any number of threads, ranks and batch sizes.

Files are shuffled as blocks, and rows within windows of several whole files: a window has at least `FILES` files and
`ROWS` rows where there are so many, and not much over `BYTES`, since all of a window's files are needed at once. The
files' rows are in random order already, so neighbours in an epoch come from all over the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..store.manifest import File

FILES, ROWS, BYTES = 4, 4096, 2**30
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """Whole files, by their places in the list, in the order of the epoch; `rows` of the epoch from its row `first`
    on."""

    number: int
    files: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class Order:
    """An epoch over files of `rows` rows each. `epoch` < 0: as they are stored. `repeats`: how often each row of a file
    comes (balanced sampling), 4 bytes an image; None: once."""

    files: Sequence[File]
    seed: int
    epoch: int
    repeats: Sequence[npt.NDArray[np.uint32]] | None = None

    @property
    def shuffled(self) -> bool:
        return self.epoch >= 0

    def total(self) -> int:
        """Rows of the epoch."""
        return sum(self._rows(index) for index in range(len(self.files)))

    def windows(self) -> Iterator[Window]:
        """In the order of the epoch; of an empty split none."""
        order = np.arange(len(self.files))
        if self.shuffled:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        number = first = rows = size = 0
        held: list[int] = []
        for index in order.tolist():
            held.append(index)
            rows += self._rows(index)
            size += self.files[index].bytes
            if size >= BYTES or (len(held) >= FILES and rows >= ROWS):
                yield Window(number, tuple(held), first, rows)
                number, first, rows, size, held = number + 1, first + rows, 0, 0, []
        if rows:
            yield Window(number, tuple(held), first, rows)

    def rows_of(self, window: Window) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(places of files in `window.files`, rows in those files), int32 [window.rows] each, in the epoch's order."""
        rows = [self._picked(index) for index in window.files]
        places = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
        found = np.concatenate(rows)
        if self.shuffled:
            order = np.random.default_rng([self.seed, self.epoch, window.number]).permutation(len(found))
            places, found = places[order], found[order]
        return places, found

    def _picked(self, index: int) -> npt.NDArray[np.int32]:
        rows = np.arange(self.files[index].rows, dtype=np.int32)
        return rows if self.repeats is None else np.repeat(rows, self.repeats[index])

    def _rows(self, index: int) -> int:
        return self.files[index].rows if self.repeats is None else int(self.repeats[index].sum())


def balanced(
    labels: Sequence[npt.NDArray[np.int64]], weights: npt.ArrayLike, seed: int, epoch: int
) -> list[npt.NDArray[np.uint32]]:
    """How often each row comes, so that a row of class c is `weights[c]` times as likely as one of weight 1, and as
    many rows come as there are. By systematic sampling: a row that should come x times comes floor(x) or ceil(x) times
    (Madow and Madow, "On the theory of systematic sampling", 1944)."""
    wanted = np.asarray(weights, np.float64)
    total = sum(float(wanted[part].sum()) for part in labels)
    number = sum(len(part) for part in labels)
    at = float(np.random.default_rng([seed, epoch, 2**31]).random())
    found = []
    for part in labels:
        ends = at + np.cumsum(wanted[part]) * (number / total if total else 0.0)
        steps = np.floor(np.concatenate([[at], ends]) + 1e-9)
        found.append(np.diff(steps).astype(np.uint32))
        at = float(ends[-1]) if len(ends) else at
    return found


def steps(rows: int, batch_size: int, shuffled: bool = True, ranks: int = 1) -> int:
    """The batches of an epoch. In training a last batch with less than two images a rank is left out (batch
    normalization can't take it), if it is not the only one."""
    whole, rest = divmod(rows, batch_size)
    least = 2 * ranks if shuffled and whole else 1
    return whole + (1 if rest >= least else 0)
