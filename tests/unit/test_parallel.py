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

from imagemill.components.clean.clean import WORKER_BYTES
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
