"""Threads with bounded memory, and the cores and memory that a process may use."""

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


def map_ordered(
    items: Iterable[A], work: Callable[[A], B], workers: int, cost: Callable[[A], int], budget: int = BYTES_IN_FLIGHT
) -> Iterator[B]:
    """Yield `work(item)` for each item, computed on `workers` threads, in the order of the items.

    At most 4 items a worker and `budget` bytes (by `cost(item)`; one item may exceed it alone) are in
    flight, finished results that wait for their turn included. The first error ends it.
    """
    pending: deque[tuple[Future[B], int]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mill")
    try:
        for item in items:
            size = cost(item)
            while pending and (held + size > budget or len(pending) >= 4 * workers):
                future, freed = pending.popleft()
                yield future.result()
                held -= freed
            pending.append((pool.submit(work, item), size))
            held += size
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Budget:
    """A limit on a quantity (bytes, pixels) that all threads hold together; one holder may exceed it alone."""

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
    """Return the number of cores that this process may use, by its affinity and its container's CPU limit."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read_cgroup("cpu.max") or [*_read_cgroup("cpu/cpu.cfs_quota_us"), *_read_cgroup("cpu/cpu.cfs_period_us")]
    if len(quota) == 2:
        available = min(available, quota[0] // quota[1])
    return max(1, available)


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, *_read_cgroup("memory.max"), *_read_cgroup("memory/memory.limit_in_bytes"), machine)


def max_workers(worker_bytes: int, base_bytes: int = 0) -> int:
    """Return the number of worker processes: one per core, as far as memory allows.

    A worker takes `worker_bytes`, everything else `base_bytes`. A pod without a CPU limit sees all cores of its node,
    and has memory for few.
    """
    return max(1, min(cores(), (memory_limit() - base_bytes) // worker_bytes))


def _read_cgroup(name: str) -> list[int]:
    """Return the numbers in a file of this process's cgroup (v2 or v1); none where there is no limit (`max`, -1)."""
    try:
        with open(f"{CGROUP}/{name}") as file:  # noqa: PTH123 (a kernel file)
            words = file.read().split()
    except OSError:
        return []
    return [] if words[:1] in ([], ["max"], ["-1"]) else [int(word) for word in words]
