"""Reusable memory for batches: allocating tens of megabytes of fresh pages takes longer than filling them."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from threading import Lock
from typing import Any

import numpy as np

from ...imaging.decoder import Pixels

MAX_POOLS = 2
"""That a process keeps from epoch to epoch: training's and validation's."""
_pools: OrderedDict[tuple[tuple[int, ...], bool], BufferPool] = OrderedDict()
_lock = Lock()


def _renew_lock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread of the parent may hold it, and does not exist in the child


def get_buffer_pool(shape: tuple[int, ...], max_free: int, pinned: bool = False) -> BufferPool:
    """Return the process's pool for this shape; the `MAX_POOLS` most recently used ones are kept."""
    with _lock:
        pool = _pools.pop((shape, pinned), None)
        if pool is None or pool.max_free != max_free:
            pool = BufferPool(shape, max_free, pinned)
        _pools[shape, pinned] = pool
        while len(_pools) > MAX_POOLS:
            _pools.popitem(last=False)
        return pool


class BufferPool:
    """Arrays uint8 of one shape. An array returns to the pool when nothing refers to it any more, views and torch
    tensors that share its memory included.

    Args:
        max_free: number of unused arrays that are kept.
        pinned: allocate page-locked memory, from which a GPU copies asynchronously.
    """

    def __init__(self, shape: tuple[int, ...], max_free: int, pinned: bool = False) -> None:
        self._shape, self._pinned, self.max_free = shape, pinned, max_free
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


class _Lease:
    """Owner of the memory that every view keeps alive. numpy shortens a chain of views to its last array; this is not
    an array, so it stays referenced."""

    def __init__(self, memory: Pixels, free: deque[Any]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
