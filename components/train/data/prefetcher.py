"""Copies the loader's batches to the device ahead of their use.

On a GPU the copies run on a stream of their own, one batch ahead, from pinned memory, the only memory that can be
copied while something else is computed (CUDA C Programming Guide, "Asynchronous Concurrent Execution").
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from .batches import Batch

if TYPE_CHECKING:
    import torch

B = TypeVar("B", bound=Batch)
Prefetched = tuple["torch.Tensor", "torch.Tensor", B]


def copy_to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy a small array to the device, in the order of the current stream: nothing waits, on either side."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor.clone()
    # Torch does not reuse pinned memory before the copies that were recorded on it are done.
    return tensor.pin_memory().to(device, non_blocking=True)


class DevicePrefetcher(Generic[B]):
    """Iterates over (images, labels, batch): uint8 [B, H, W, C] and int64 [B] or uint8 [B, classes] on the device.

    `wait_seconds`: time that the caller of `next` spent waiting for the loader, since the start or since it was last
    set to 0. On a GPU the host runs ahead of the computation, so the GPU itself idled for at most as long.
    """

    def __init__(self, batches: Iterator[B], device: torch.device | str) -> None:
        import torch

        self._batches, self._device = iter(batches), torch.device(device)
        self.wait_seconds = 0.0
        self._prefetched: deque[tuple[Prefetched[B], torch.cuda.Event]] = deque()
        self._copying: deque[tuple[B, list[torch.Tensor], torch.cuda.Event]] = deque()
        is_cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]

    def __iter__(self) -> DevicePrefetcher[B]:
        return self

    def __next__(self) -> Prefetched[B]:
        started = time.perf_counter()
        try:
            return self._next_on_host() if self._stream is None else self._next_on_device()
        finally:
            self.wait_seconds += time.perf_counter() - started

    def close(self) -> None:
        """Wait for the copies under way and close the loader."""
        self._prefetched.clear()
        while self._copying:
            self._copying.popleft()[2].synchronize()  # type: ignore[no-untyped-call]
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _next_on_host(self) -> Prefetched[B]:
        """Return tensors that share the batch's memory."""
        import torch

        batch = next(self._batches)
        return torch.from_numpy(batch.images), torch.from_numpy(batch.labels), batch

    def _next_on_device(self) -> Prefetched[B]:
        import torch

        if not self._prefetched:
            self._start_copy()
        if not self._prefetched:
            raise StopIteration
        self._start_copy()
        prefetched, copied = self._prefetched.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for tensor in prefetched[:2]:  # allocated on another stream: its memory must outlive its use on this one
            tensor.record_stream(current)
        return prefetched

    def _start_copy(self) -> None:
        """Start copying the next batch, if there is one."""
        import torch

        batch = next(self._batches, None)
        if batch is None:
            return
        pinned = [_pin(torch.from_numpy(batch.images)), _pin(torch.from_numpy(batch.labels))]
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            images, labels = (tensor.to(self._device, non_blocking=True) for tensor in pinned)
            copied.record()
        self._prefetched.append(((images, labels, batch), copied))
        self._copying.append((batch, pinned, copied))
        # The loader reuses a batch's memory once nothing refers to it: it is referred to until it has been copied.
        while self._copying and self._copying[0][2].query():  # type: ignore[no-untyped-call]
            self._copying.popleft()


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()
