"""Memory for batches, used again: fresh pages for tens of megabytes cost more time than filling them."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
SHAPES = 2
"""Whose memory a process keeps from epoch to epoch: training's batches and validation's."""
_kept: OrderedDict[tuple[tuple[int, ...], bool], Buffers] = OrderedDict()
_lock = Lock()


def _renew_lock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread of the parent's may hold it, and is not there any more


def buffers(shape: tuple[int, ...], keep: int, pinned: bool = False) -> Buffers:
    """Those of this shape, with at most `keep` arrays waiting to be used again; of the last `SHAPES` the same."""
    with _lock:
        found = _kept.pop((shape, pinned), None)
        if found is None or found.keep != keep:
            found = Buffers(shape, keep, pinned)
        _kept[shape, pinned] = found
        while len(_kept) > SHAPES:
            _kept.popitem(last=False)
        return found


class Buffers:
    """Arrays of one shape. What was lent comes back when nothing refers to it any more, views and torch tensors that
    share its memory included; so whoever keeps batches keeps them, and whoever lets them go pays nothing.

    `pinned`: in page-locked memory, from which a GPU copies by itself.
    """

    def __init__(self, shape: tuple[int, ...], keep: int, pinned: bool = False) -> None:
        self._shape, self._pinned, self.keep = shape, pinned, keep
        self._free: deque[Any] = deque(maxlen=keep)

    def lend(self) -> Pixels:
        """uint8 of the shape, filled with anything."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._made()
        return np.asarray(_Lease(memory, self._free))

    def _made(self) -> Any:
        if not self._pinned:
            return np.empty(self._shape, np.uint8)
        import torch

        return torch.empty(self._shape, dtype=torch.uint8, pin_memory=True).numpy()


class _Lease:
    """What every view of the memory keeps alive. numpy shortens a chain of views down to the last array, and this is
    none, so it stays."""

    def __init__(self, memory: Pixels, free: deque[Any]) -> None:
        self._memory, self._free = memory, free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._memory)
