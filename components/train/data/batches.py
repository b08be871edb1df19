"""Tensors as batches, at the speed of memory, in an order that is a function of (seed, epoch) alone.

Threads, not processes: a batch is copied out of mapped files once, which releases the interpreter's lock, and nothing
is sent to another process. Their memory is used again: allocating tens of megabytes of fresh pages takes longer than
filling them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...dataset.manifest import Dataset
from ...imaging.decoder import Pixels
from ...storage.parallel import cores
from .cache import PartCache
from .order import EpochOrder, ShuffleWindow, count_batches, sample_repeats
from .tensors import OpenPart, TensorSplit, gather_rows

OPEN_THREADS = 4
"""Threads that open parts: those of S3 are fetched as a whole."""
T = TypeVar("T")
MAX_POOLS = 2
"""That a process keeps from epoch to epoch: training's and validation's."""


class BufferPool:
    """Arrays uint8 of one shape. An array returns to the pool when nothing refers to it any more, views and torch
    tensors that share its memory included.

    Args:
        max_free: number of unused arrays that are kept.
        pinned: allocate page-locked memory, from which a GPU copies asynchronously.
    """

    def __init__(self, shape: tuple[int, ...], max_free: int, pinned: bool = False) -> None:
        self._shape, self._pinned = shape, pinned
        self._free: deque[Any] = deque(maxlen=max_free)

    def acquire(self) -> Pixels:
        """Return an array with arbitrary content."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate()
        return np.asarray(_Lease(memory, self._free))

    def _allocate(self) -> Any:
        if not self._pinned:
            return np.empty(self._shape, np.uint8)
        import torch

        return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()


_get_buffer_pool = lru_cache(MAX_POOLS)(BufferPool)


class _Lease:
    """Owner of the memory that every view keeps alive. numpy shortens a chain of views to its last array; this is not
    an array, so it stays referenced."""

    def __init__(self, memory: Pixels, free: deque[Any]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or uint8 [B, classes] of zeros and ones where an image may have
    several; `number` is the batch's index in the epoch. Of a batch that several ranks share these are the rows from
    `first` on, of `total`."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    number: int
    first: int = 0
    total: int = 0

    def one_hot(self, classes: int) -> npt.NDArray[np.float32]:
        """Return the labels as float32 [B, classes], 1 at the id of every label of an image and 0 elsewhere."""
        if self.labels.ndim == 2:
            return self.labels.astype(np.float32)
        return np.eye(classes, dtype=np.float32)[self.labels]


def count_train_batches(dataset: Dataset, split: str, batch_size: int, ranks: int = 1) -> int:
    """Return the number of batches of a training epoch."""
    return count_batches(dataset.manifest.totals.by_split.get(split, 0), batch_size, True, ranks)


def iter_batches(
    dataset: Dataset,
    split: str | TensorSplit,
    batch_size: int,
    seed: int = 0,
    epoch: int = -1,
    *,
    start: int = 0,
    step: int = 1,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 0,
    transform: Callable[[Batch], Any] | None = None,
    balance: npt.ArrayLike | None = None,
    pin: bool = False,
    cache: PartCache | None = None,
) -> Iterator[Any]:
    """Yield the batches of one pass over a split.

    In training a last batch with less than two images a rank is left out, if it is not the only one.

    Args:
        split: its name, or its images as `TensorSplit` has them.
        epoch: below 0 for stored order (validation); else shuffled by (seed, epoch).
        start: the first batch, to resume in the middle of an epoch.
        step: distance from one batch to the next, to share an epoch among worker processes.
        rank: of the `ranks` processes that share each batch of `batch_size`.
        threads: of the loader; 0: one for each core.
        transform: is applied to each batch in the loader's threads; its results are yielded in the batches' order.
        balance: float [classes], the relative probability of a row of each class; rows are repeated and left out by it,
            of images with one label.
        pin: use page-locked memory, for copies to a GPU.
        cache: for files of S3 (default: `PartCache.create()`).
    """
    source = split if isinstance(split, TensorSplit) else TensorSplit.from_dataset(dataset, split, cache)
    repeats = None if balance is None else sample_repeats(source.labels, balance, seed, max(0, epoch))
    order = EpochOrder(source, seed, epoch, repeats)
    threads = threads or cores()
    loader = _Loader(source, order, batch_size, rank, ranks, max_free=threads + 2, pin=pin)
    numbers = range(start, count_batches(loader.total, batch_size, order.is_shuffled, ranks), step)

    def load(task: tuple[int, list[_Piece]]) -> Any:
        batch = loader.load_batch(*task)
        return batch if transform is None else transform(batch)

    with ThreadPoolExecutor(threads, "load") as pool, ThreadPoolExecutor(OPEN_THREADS, "open") as open_pool:
        try:
            yield from _map_ordered(pool, load, loader.iter_tasks(numbers, open_pool), max_pending=threads + 1)
        finally:
            for executor in (pool, open_pool):
                executor.shutdown(wait=True, cancel_futures=True)


def _map_ordered(
    pool: ThreadPoolExecutor, function: Callable[[T], Any], items: Iterable[T], max_pending: int
) -> Iterator[Any]:
    """Yield `function(item)`, computed on the pool's threads, in the items' order; at most `max_pending` at a time are
    submitted and not yet yielded."""
    pending: deque[Future[Any]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= max_pending:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pending.clear()  # an exception keeps this frame alive, and with it the batches


class _OpenWindow:
    """A window whose parts are being opened, and the order of its images; freed with the last of its batches.

    `previous`: the window before, of which parts that both need stay open.
    """

    def __init__(
        self, source: TensorSplit, order: EpochOrder, window: ShuffleWindow, open_pool: ThreadPoolExecutor,
        previous: _OpenWindow | None,
    ) -> None:  # fmt: skip
        self.first, self.end = window.first, window.first + window.rows
        self._source = source
        self._images = open_pool.submit(order.locate_rows, window)
        opened: dict[int, Future[OpenPart]] = previous._parts if previous else {}
        self._parts: dict[int, Future[OpenPart]] = {
            position: opened.get(position) or open_pool.submit(source.open_part, position) for position in window.parts
        }
        self._places = np.full(len(source.parts), -1, np.int32)
        self._places[list(window.parts)] = np.arange(len(window.parts), dtype=np.int32)

    def read(self, part: slice, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Read the pixels of images of the window into `out` uint8 [rows, H, W, C]; return their numbers in the
        split."""
        parts = [future.result() for future in self._parts.values()]
        numbers = self._images.result()[part]
        gather_rows(parts, self._places[self._source.positions[numbers]], self._source.rows[numbers], out)
        return numbers


_Piece = tuple[_OpenWindow, slice]
"""Rows of a window, by their positions in its order."""


class _Loader:
    """Loads any batch of one pass, this rank's share of it."""

    def __init__(
        self, source: TensorSplit, order: EpochOrder, batch_size: int, rank: int, ranks: int, max_free: int, pin: bool
    ) -> None:
        self._source, self._order = source, order
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        manifest = source.dataset.manifest
        max_rows = -(-batch_size // ranks)
        self._buffers = _get_buffer_pool((max_rows, *manifest.image_spec.shape), max_free, pin)
        self.total = order.count_rows()

    def iter_tasks(self, numbers: range, open_pool: ThreadPoolExecutor) -> Iterator[tuple[int, list[_Piece]]]:
        """Yield (number, the rows of this rank's share) of each batch; opens the parts of the windows that a batch
        needs, and of the next one."""
        windows = self._order.iter_windows()
        open_windows: deque[_OpenWindow] = deque()
        for number in numbers:
            start, end = self._locate_share(number)
            while open_windows and open_windows[0].end <= start:
                open_windows.popleft()
            while not open_windows or open_windows[-1].first < end:  # one more than is needed
                window = next(windows, None)
                if window is None:
                    break
                if window.first + window.rows > start:
                    previous = open_windows[-1] if open_windows else None
                    open_windows.append(_OpenWindow(self._source, self._order, window, open_pool, previous))
            pieces = []
            for opened in open_windows:
                low, high = max(start, opened.first), min(end, opened.end)
                if low < high:
                    pieces.append((opened, slice(low - opened.first, high - opened.first)))
            yield number, pieces

    def _locate_share(self, number: int) -> tuple[int, int]:
        """Return the first and the end row of this rank's share of a batch, as positions in the epoch."""
        start = number * self._batch_size
        size = min(self._batch_size, self.total - start)
        return start + self._rank * size // self._ranks, start + (self._rank + 1) * size // self._ranks

    def load_batch(self, number: int, pieces: list[_Piece]) -> Batch:
        start, end = self._locate_share(number)
        images = self._buffers.acquire()[: end - start]
        numbers = [np.empty(0, np.int64)]
        filled = 0
        for opened, part in pieces:
            size = part.stop - part.start
            numbers.append(opened.read(part, images[filled : filled + size]))
            filled += size
        batch_start = number * self._batch_size
        labels = self._source.take_labels(np.concatenate(numbers))
        return Batch(images, labels, number, start - batch_start, min(self._batch_size, self.total - batch_start))
