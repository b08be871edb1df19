"""From batches to tensors: every batch once, in order, and the time that was waited for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from imagemill.components.train.data.loader import Batch
from imagemill.components.train.data.prefetcher import DevicePrefetcher, copy_to_device


def some(count: int, pause: float = 0.0) -> Iterator[Batch]:
    for number in range(count):
        time.sleep(pause)
        yield Batch(np.full((3, 4, 4, 1), number, np.uint8), np.arange(3) + number, number)


def test_on_a_cpu_the_tensors_are_the_batchs_own_memory() -> None:
    fed = DevicePrefetcher(some(4), "cpu")
    for number, (images, labels, batch) in enumerate(fed):
        assert batch.number == number and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images == number).all() and labels.tolist() == [number, number + 1, number + 2]
        assert images.data_ptr() == batch.images.ctypes.data and labels.data_ptr() == batch.labels.ctypes.data
    assert number == 3 and next(fed, None) is None


def test_it_counts_the_seconds_that_were_waited_and_no_others() -> None:
    fed, started = DevicePrefetcher(some(3, 0.05), torch.device("cpu")), time.perf_counter()
    for _ in fed:
        time.sleep(0.2)
    assert 0.15 <= fed.wait_seconds <= time.perf_counter() - started - 0.6
    fed.wait_seconds = 0.0
    assert (
        next(fed, None) is None and fed.wait_seconds < 0.6
    )  # the pauses of whoever trains are not waiting for the loader


def test_an_error_of_the_loader_comes_through() -> None:
    def broken() -> Iterator[Batch]:
        yield from some(1)
        raise OSError("gone")

    fed = DevicePrefetcher(broken(), "cpu")
    next(fed)
    with pytest.raises(OSError, match="gone"):
        next(fed)


def test_closing_lets_the_loader_go() -> None:
    ended = []

    def watched() -> Iterator[Batch]:
        try:
            yield from some(100)
        finally:
            ended.append(True)

    fed = DevicePrefetcher(watched(), "cpu")
    next(fed)
    fed.close()
    assert ended == [True]
    DevicePrefetcher(iter(list(some(1))), "cpu").close()  # whatever is no generator has nothing to close


def test_small_arrays_are_copied() -> None:
    array = np.arange(6).reshape(2, 3).T
    tensor = copy_to_device(array, torch.device("cpu"))
    assert tensor.tolist() == array.tolist()
    array[0, 0] = 9
    assert tensor[0, 0] == 0


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@cuda
def test_on_a_gpu_every_batch_arrives_whole_while_buffers_are_used_again() -> None:
    """Two buffers by turns, filled anew as soon as nobody refers to them, and a device that is kept busy."""
    from imagemill.components.train.data.batches import BufferPool

    buffers = BufferPool((64, 128, 128, 3), 2, pinned=True)

    def lent() -> Iterator[Batch]:
        for number in range(60):
            images = buffers.acquire()
            images[:] = number
            yield Batch(images, np.full(64, number), number)

    seen, busy = [], torch.rand(2048, 2048, device="cuda")
    fed = DevicePrefetcher(lent(), "cuda")
    for images, labels, _ in fed:
        busy = (busy @ busy).clamp(0, 1)
        seen.append(torch.stack([images.amin().long(), images.amax().long(), labels.amin(), labels.amax()]))
        del images, labels, _
    assert torch.stack(seen).cpu().tolist() == [[number] * 4 for number in range(60)]
    fed.close()
