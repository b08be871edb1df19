"""Tensors as batches, at the speed of memory, in an order that is a function of (seed, epoch) alone.

Threads, not processes: a batch is copied out of mapped files once, which releases the interpreter's lock, and nothing
is sent anywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI, multi_hot
from ..store.manifest import Dataset
from ..store.parallel import cores
from . import order
from .buffers import buffers
from .cache import ShardCache
from .order import Order, Window
from .shard import Split, gather

OPENERS = 4
"""Threads that open files: those of S3 are fetched as a whole."""
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or uint8 [B, classes] of zeros and ones where an image may have
    several; `number` is its place in the epoch. Of a batch that several ranks share these are the rows from `first` on,
    of `total`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    number: int
    first: int = 0
    total: int = 0

    def one_hot(self, classes: int) -> npt.NDArray[np.float32]:
        """The labels as float32 [B, classes], 1 at the id of every label of an image and 0 elsewhere."""
        if self.labels.ndim == 2:
            return self.labels.astype(np.float32)
        return np.eye(classes, dtype=np.float32)[self.labels]


def steps(dataset: Dataset, split: str, batch_size: int, ranks: int = 1) -> int:
    """The batches of a training epoch."""
    return order.steps(sum(f.rows for f in dataset.files("data", split)), batch_size, True, ranks)


def batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    seed: int = 0,
    epoch: int = -1,
    *,
    start: int = 0,
    every: int = 1,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 0,
    work: Callable[[Batch], Any] | None = None,
    balance: npt.ArrayLike | None = None,
    pin: bool = False,
    cache: ShardCache | None = None,
) -> Iterator[Any]:
    """One pass over a split. `epoch` < 0: in stored order (validation); else shuffled by (seed, epoch).

    `start`: the first batch, to go on in the middle of an epoch; of those every `every`th. `rank` of `ranks` processes
    that share each batch of `batch_size`. `work` is done in the loader's `threads` (0: one for each core), and what it
    returns comes instead, in the batches' order. `balance` float [classes]: how likely a row of each class is; rows are
    repeated and left out by it, of images with one label. `pin`: in page-locked memory, for copies to a GPU. `cache`:
    for files of S3 (default: the usual one).

    In training a last batch with less than two images a rank is left out, if it is not the only one.
    """
    source = Split.of(dataset, split, cache)
    repeats = None if balance is None else order.balanced(source.labels(), balance, seed, max(0, epoch))
    plan = Order(source.files, seed, epoch, repeats)
    numbers = range(start, order.steps(plan.total(), batch_size, plan.shuffled, ranks), every)
    loading = _Loading(source, plan, batch_size, rank, ranks, pin)
    workers = threads or cores()
    with ThreadPoolExecutor(workers, "load") as pool, ThreadPoolExecutor(OPENERS, "open") as opener:
        loading.keep(workers + 2)
        tasks = loading.tasks(numbers, opener)
        yield from _in_order(pool, tasks, lambda task: _done(loading.batch(*task), work), workers + 1, opener)


def _done(batch: Batch, work: Callable[[Batch], Any] | None) -> Any:
    return batch if work is None else work(batch)


def _in_order(
    pool: ThreadPoolExecutor, items: Iterable[T], work: Callable[[T], Any], ahead: int, other: ThreadPoolExecutor
) -> Iterator[Any]:
    """`work(item)` on the pool's threads, the results in the items' order, at most `ahead` of them not yet taken."""
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        waiting.clear()
        for one in (pool, other):
            one.shutdown(wait=True, cancel_futures=True)


Piece = tuple["_Opened", slice]
"""Rows of a window, by their places in its order."""


class _Opened:
    """A window's files on their way to be opened, and where its rows lie; they are let go with the window's batches."""

    def __init__(self, source: Split, plan: Order, window: Window, opener: ThreadPoolExecutor) -> None:
        self.window = window
        self._rows = opener.submit(plan.rows_of, window)
        self._shards = [opener.submit(source.open, index) for index in window.files]

    def read(self, which: slice, out: npt.NDArray[np.uint8]) -> list[Any]:
        """The pixels of some rows of the window into `out` uint8 [rows, H, W, C]; their labels as in the files."""
        shards = [one.result() for one in self._shards]
        places, rows = (of_all[which] for of_all in self._rows.result())
        gather(shards, places, rows, out)
        return [shards[place].labels[row] for place, row in zip(places.tolist(), rows.tolist(), strict=True)]


@dataclass
class _Loading:
    """What one pass needs to make any of its batches."""

    source: Split
    plan: Order
    batch_size: int
    rank: int
    ranks: int
    pin: bool

    def keep(self, number: int) -> None:
        """So many batches' memory is kept for the next ones."""
        most = -(-self.batch_size // self.ranks)
        self.buffers = buffers((most, *self.source.dataset.manifest.image["shape"]), number, self.pin)
        manifest = self.source.dataset.manifest
        self.classes = len(manifest.classes) if manifest.task == MULTI else 0
        self.total = self.plan.total()

    def tasks(self, numbers: range, opener: ThreadPoolExecutor) -> Iterator[tuple[int, list[Piece]]]:
        """(number, the rows of this rank's share) of each batch; of the windows that a batch needs and the next one the
        files are being opened."""
        windows = self.plan.windows()
        held: deque[_Opened] = deque()
        for number in numbers:
            start, end = self._share(number)
            while held and held[0].window.first + held[0].window.rows <= start:
                held.popleft()
            while not held or held[-1].window.first < end:  # one more than is needed
                window = next(windows, None)
                if window is None:
                    break
                if window.first + window.rows > start:
                    held.append(_Opened(self.source, self.plan, window, opener))
            yield number, [piece for one in held if (piece := _piece(one, start, end)) is not None]

    def _share(self, number: int) -> tuple[int, int]:
        """This rank's rows of a batch, as places in the epoch."""
        start = number * self.batch_size
        size = min(self.batch_size, self.total - start)
        return start + self.rank * size // self.ranks, start + (self.rank + 1) * size // self.ranks

    def batch(self, number: int, pieces: list[Piece]) -> Batch:
        start, end = self._share(number)
        images = self.buffers.lend()[: end - start]
        labels: list[Any] = []
        for opened, which in pieces:
            labels += opened.read(which, images[len(labels) : len(labels) + which.stop - which.start])
        whole = number * self.batch_size
        targets = (
            multi_hot([ids.as_py() for ids in labels], self.classes) if self.classes else np.array(labels, np.int64)
        )
        return Batch(images, targets, number, start - whole, min(self.batch_size, self.total - whole))


def _piece(opened: _Opened, start: int, end: int) -> Piece | None:
    first, rows = opened.window.first, opened.window.rows
    low, high = max(start - first, 0), min(end - first, rows)
    return (opened, slice(low, high)) if low < high else None
