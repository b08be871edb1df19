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
CGROUP = "/sys/fs/cgroup"


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
    share = _cgroup("cpu.max") or [*_cgroup("cpu/cpu.cfs_quota_us"), *_cgroup("cpu/cpu.cfs_period_us")]
    if len(share) == 2:
        available = min(available, share[0] // share[1])
    return max(1, available)


def memory_limit() -> int:
    """Bytes of memory that this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *_cgroup("memory.max"), *_cgroup("memory/memory.limit_in_bytes"), machine)


def workers_that_fit(each: int, base: int = 0) -> int:
    """Return a number of worker processes: one a core, as far as the memory goes, of which a worker takes `each` bytes
    and what is not theirs `base`. A pod without a CPU limit sees all cores of its node, and has memory for few."""
    return max(1, min(cores(), (memory_limit() - base) // each))


def _cgroup(name: str) -> list[int]:
    """The numbers in a file of this process's cgroup, of version 2 or 1; none where it says no limit (`max`, -1)."""
    try:
        with open(f"{CGROUP}/{name}") as file:  # noqa: PTH123 (a kernel file)
            words = file.read().split()
    except OSError:
        return []
    return [] if words[:1] in ([], ["max"], ["-1"]) else [int(word) for word in words]
