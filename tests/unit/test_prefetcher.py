"""Device prefetcher: every batch once, in order, and the seconds that the training waited."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from imagemill.components.train.data.loader import Batch
from imagemill.components.train.data.prefetcher import DevicePrefetcher, copy_to_device


def make_batches(count: int, pause: float = 0.0) -> Iterator[Batch]:
    for number in range(count):
        time.sleep(pause)
        yield Batch(np.full((3, 4, 4, 1), number, np.uint8), np.arange(3) + number, number)


def test_cpu_tensors_share_the_batchs_memory() -> None:
    prefetcher = DevicePrefetcher(make_batches(4), "cpu")
    for number, (images, labels, batch) in enumerate(prefetcher):
        assert batch.number == number and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images == number).all() and labels.tolist() == [number, number + 1, number + 2]
        assert images.data_ptr() == batch.images.ctypes.data and labels.data_ptr() == batch.labels.ctypes.data
    assert number == 3 and next(prefetcher, None) is None


def test_wait_seconds_exclude_training() -> None:
    prefetcher, started = DevicePrefetcher(make_batches(3, 0.05), torch.device("cpu")), time.perf_counter()
    for _ in prefetcher:
        time.sleep(0.2)
    assert 0.15 <= prefetcher.wait_seconds <= time.perf_counter() - started - 0.6
    prefetcher.wait_seconds = 0.0
    assert next(prefetcher, None) is None and prefetcher.wait_seconds < 0.6, "pauses of the training do not count"


def test_error_of_the_loader_is_raised() -> None:
    def fail_after_one() -> Iterator[Batch]:
        yield from make_batches(1)
        raise OSError("gone")

    prefetcher = DevicePrefetcher(fail_after_one(), "cpu")
    next(prefetcher)
    with pytest.raises(OSError, match="gone"):
        next(prefetcher)


def test_close_closes_the_loader() -> None:
    closed = []

    def record_end() -> Iterator[Batch]:
        try:
            yield from make_batches(100)
        finally:
            closed.append(True)

    prefetcher = DevicePrefetcher(record_end(), "cpu")
    next(prefetcher)
    prefetcher.close()
    assert closed == [True]
    DevicePrefetcher(iter(list(make_batches(1))), "cpu").close()  # whatever is no generator has nothing to close


def test_non_contiguous_arrays_are_copied() -> None:
    array = np.arange(6).reshape(2, 3).T
    tensor = copy_to_device(array, torch.device("cpu"))
    assert tensor.tolist() == array.tolist()
    array[0, 0] = 9
    assert tensor[0, 0] == 0


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@cuda
def test_gpu_batches_are_intact_while_buffers_are_reused() -> None:
    """Two buffers by turns, filled anew as soon as nobody refers to them, and a device that is kept busy."""
    from imagemill.components.train.data.batches import BufferPool

    buffers = BufferPool((64, 128, 128, 3), 2, pinned=True)

    def lend_buffers() -> Iterator[Batch]:
        for number in range(60):
            images = buffers.acquire()
            images[:] = number
            yield Batch(images, np.full(64, number), number)

    summaries, product = [], torch.rand(2048, 2048, device="cuda")
    prefetcher = DevicePrefetcher(lend_buffers(), "cuda")
    for images, labels, _ in prefetcher:
        product = (product @ product).clamp(0, 1)
        summaries.append(torch.stack([images.amin().long(), images.amax().long(), labels.amin(), labels.amax()]))
        del images, labels, _
    assert torch.stack(summaries).cpu().tolist() == [[number] * 4 for number in range(60)]
    prefetcher.close()
