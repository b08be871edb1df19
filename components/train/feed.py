"""From the loader's batches to tensors on the device, so that the network need not wait for a copy.

On a GPU the copies run on a stream of their own, one batch ahead, from pinned memory, which alone can be copied while
something else is computed (CUDA C Programming Guide, "Asynchronous Concurrent Execution").
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
Fed = tuple["torch.Tensor", "torch.Tensor", B]


def put(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy of a small array on the device, in the order of the current stream: nothing waits, on either side."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor.clone()
    # Torch's pinned memory is not given out again before the copies that were recorded on it are done.
    return tensor.pin_memory().to(device, non_blocking=True)


class Feed(Generic[B]):
    """(images, labels, batch) of every batch, as uint8 [B, H, W, C] and int64 [B] or uint8 [B, classes] on the device.

    `waited`: seconds that whoever iterates spent here, waiting for the loader, since the start or since it was last
    set to 0. On a GPU the host runs ahead of the arithmetic, so the GPU itself idled for at most as long.
    """

    def __init__(self, batches: Iterator[B], device: torch.device | str) -> None:
        import torch

        self._batches, self._device = iter(batches), torch.device(device)
        self.waited = 0.0
        self._ahead: deque[tuple[Fed[B], torch.cuda.Event]] = deque()
        self._copying: deque[tuple[B, list[torch.Tensor], torch.cuda.Event]] = deque()
        self._stream = _side_stream(self._device) if self._device.type == "cuda" else None

    def __iter__(self) -> Feed[B]:
        return self

    def __next__(self) -> Fed[B]:
        started = time.perf_counter()
        try:
            return self._host() if self._stream is None else self._from_stream()
        finally:
            self.waited += time.perf_counter() - started

    def close(self) -> None:
        """Nothing more will be asked for: the copies under way end, and the loader's threads are let go."""
        self._ahead.clear()
        while self._copying:
            self._copying.popleft()[2].synchronize()  # type: ignore[no-untyped-call]
        if hasattr(self._batches, "close"):
            self._batches.close()

    def _host(self) -> Fed[B]:
        """No copy: the tensors are the batch's own memory."""
        import torch

        batch = next(self._batches)
        return torch.from_numpy(batch.images), torch.from_numpy(batch.labels), batch

    def _from_stream(self) -> Fed[B]:
        import torch

        if not self._ahead:
            self._start_copy()
        if not self._ahead:
            raise StopIteration
        self._start_copy()
        fed, done = self._ahead.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for tensor in fed[:2]:  # made on another stream: its memory must outlive what this one does with it
            tensor.record_stream(current)
        return fed

    def _start_copy(self) -> None:
        """The next batch, if there is one, on its way to the device."""
        import torch

        batch = next(self._batches, None)
        if batch is None:
            return
        hosts = [_pinned(torch.from_numpy(batch.images)), _pinned(torch.from_numpy(batch.labels))]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            images, labels = (host.to(self._device, non_blocking=True) for host in hosts)
            done.record()
        self._ahead.append(((images, labels, batch), done))
        self._copying.append((batch, hosts, done))
        # The loader may use a batch's memory again once nobody holds it: it is held until it has been copied.
        while self._copying and self._copying[0][2].query():  # type: ignore[no-untyped-call]
            self._copying.popleft()


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()


def feed(batches: Iterator[B], device: torch.device | str) -> Feed[B]:
    """`batches` on the device, in their order."""
    return Feed(batches, device)
