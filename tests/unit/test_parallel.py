"""Map over threads: ordered results, limited work in flight, and errors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.clean.reuse import WORKER_BYTES
from imagemill.components.engine import ray_session
from imagemill.components.storage import parallel
from imagemill.components.storage.errors import MillError
from imagemill.components.storage.parallel import cores, map_ordered, max_workers, memory_limit


def mill_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mill")]


def wait_for_threads() -> None:
    deadline = time.monotonic() + 60
    while mill_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not mill_threads()


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_results_are_in_the_order_of_items(items: list[int], workers: int, budget: int) -> None:
    def work(item: int) -> int:
        time.sleep(item % 3 / 5000)
        return item * 2

    assert list(map_ordered(items, work, workers, lambda item: item, budget)) == [item * 2 for item in items]


class Meter:
    """Number and bytes of items in flight: taken from the source and not yet returned; their maxima."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.taken, self.out, self.most_items, self.most_bytes = sizes, 0, 0, 0, 0

    def items(self) -> Iterator[int]:
        for size in self.sizes:
            yield size
            self.taken += 1  # reached when the item before was submitted
            self.most_items = max(self.most_items, self.taken - self.out)
            self.most_bytes = max(self.most_bytes, sum(self.sizes[self.out : self.taken]))


@pytest.mark.parametrize(
    ("sizes", "budget"), [([10] * 100, 35), ([1] * 100, 10**9), ([50, 1, 1, 90, 1, 200, 3] * 9, 100)]
)
def test_work_in_flight_is_limited(sizes: list[int], budget: int) -> None:
    meter = Meter(sizes)
    for _ in map_ordered(meter.items(), lambda size: size, 3, lambda size: size, budget):
        meter.out += 1
    assert meter.out == len(sizes)
    assert meter.most_items <= 4 * 3
    assert meter.most_bytes <= max(budget, *sizes)


def test_item_above_the_budget_runs_alone() -> None:
    active, max_active = 0, 0
    lock = threading.Lock()

    def work(size: int) -> int:
        nonlocal active, max_active
        with lock:
            active += 1
            max_active = max(max_active, active)
        time.sleep(0.002)
        with lock:
            active -= 1
        return size

    assert list(map_ordered([100] * 10, work, 4, lambda size: size, budget=10)) == [100] * 10
    assert max_active == 1


def test_workers_run_concurrently() -> None:
    barrier = threading.Barrier(4)
    assert list(map_ordered(range(4), lambda n: barrier.wait(60) * 0 + n, 4, lambda _: 1)) == [0, 1, 2, 3]


@pytest.mark.parametrize("failing_part", ["work", "items", "cost"])
def test_error_stops_the_map(failing_part: str) -> None:
    finished: list[int] = []

    def fail_in(part: str, item: int) -> None:
        if failing_part == part and item == 20:
            raise MillError(f"{part} failed")

    def items() -> Iterator[int]:
        for item in range(10_000):
            fail_in("items", item)
            yield item

    def work(item: int) -> int:
        fail_in("work", item)
        finished.append(item)
        return item

    def cost(item: int) -> int:
        fail_in("cost", item)
        return 1

    results: list[int] = []
    with pytest.raises(MillError, match=f"{failing_part} failed"):
        for result in map_ordered(items(), work, 2, cost):
            results.append(result)
    assert results == list(range(len(results))) and len(results) <= 20
    wait_for_threads()
    assert len(finished) <= 20 + 4 * 2, "nothing new was begun"


def test_closing_the_iterator_stops_the_threads() -> None:
    results = map_ordered(iter(range(10**9)), lambda item: item, 3, lambda _: 1)
    assert [next(results) for _ in range(5)] == list(range(5))
    results.close()  # type: ignore[attr-defined]
    wait_for_threads()


def test_there_is_at_least_one_core() -> None:
    assert 1 <= cores() <= 4096


@pytest.mark.parametrize(
    ("files", "limited"),
    [
        ({"cpu.max": "100000 100000\n", "memory.max": "536870912\n"}, True),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n",
          "memory/memory.limit_in_bytes": "536870912\n"}, True),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, False),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
          "memory/memory.limit_in_bytes": "9223372036854771712\n"}, False),
        ({}, False),
    ],
)  # fmt: skip
def test_cgroup_limits_are_read(
    files: dict[str, str], limited: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both versions of cgroups."""
    monkeypatch.setattr(parallel, "CGROUP", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit() == (2**29 if limited else machine)
    assert cores() == (1 if limited else len(os.sched_getaffinity(0)))


def test_number_of_workers_is_limited_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's in a pod of 3 GiB without a CPU limit, on a node of 64 cores."""
    monkeypatch.setattr(parallel, "cores", lambda: 64)
    workers = []
    for gigabytes in (1, 2, 3, 8, 128):
        monkeypatch.setattr(parallel, "memory_limit", lambda size=gigabytes * 2**30: size)
        workers.append(max_workers(ray_session.WORKER_BYTES, ray_session.RAY_BYTES))
    assert workers == [1, 1, 2, 9, 64]
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert max_workers(WORKER_BYTES) == 2
