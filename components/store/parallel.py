"""Work in threads with everything bounded: results in order, so many bytes in flight and no more."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

BYTES_IN_FLIGHT = 64 * 2**20


def ordered(
    items: Iterable[A], work: Callable[[A], B], workers: int, cost: Callable[[A], int], budget: int = BYTES_IN_FLIGHT
) -> Iterator[B]:
    """`work(item)` for each item on `workers` threads, results in the order of the items.

    At most 4 items a worker and `budget` bytes (by `cost(item)`; one item may exceed it alone) are in
    flight, finished results that wait for their turn included. The first error ends it.
    """
    waiting: deque[tuple[Future[B], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mill")
    try:
        for item in items:
            size = cost(item)
            while waiting and (held + size > budget or len(waiting) >= 4 * workers):
                future, freed = waiting.popleft()
                yield future.result()
                held -= freed
            waiting.append((pool.submit(work, item), size))
            held += size
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Budget:
    """So much of something (bytes, pixels) may be held by all threads together; one holder may exceed it alone."""

    def __init__(self, total: int) -> None:
        self._total, self._held, self._changed = total, 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Wait until `number` fits, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + number <= self._total)
            self._held += number
        try:
            yield
        finally:
            with self._changed:
                self._held -= number
                self._changed.notify_all()


def cores() -> int:
    """The cores this process may use: a container's share where the affinity or cgroup says so."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # noqa: PTH123 (a kernel file, cgroup v2)
            quota, period = file.read().split()
        if quota != "max":
            available = min(available, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, available)
