"""A function mapped over tasks, in threads and in processes: each is done once, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mapped
import mill
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped import Number

from imagemill.components.engine import tasks as engine
from imagemill.components.engine.processes import Processes, Threads
from imagemill.components.engine.tasks import run_tasks, run_tasks_in_order
from imagemill.components.step.runner_exit import RUNNER_PID
from imagemill.components.storage.errors import MillError, TransientError, UserError

Executor = Threads | Processes


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find the module of the tasks."""
    monkeypatch.setenv("PYTHONPATH", str(Path(mapped.__file__).parent), prepend=os.pathsep)


def workers() -> dict[int, str]:
    return {
        p: line for p, line in mill.processes_with(RUNNER_PID, str(os.getpid())).items() if "engine.processes" in line
    }


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(), max_size=40), number=st.integers(1, 6))
def test_threads_do_every_task_once(values: list[int], number: int) -> None:
    with Threads("clean", number) as executor:
        results = list(run_tasks([Number(v) for v in values], mapped.multiply, (3,), executor))
    assert sorted(task.value for task, _ in results) == sorted(values)
    assert all(result["product"] == 3 * task.value for task, result in results)


@settings(max_examples=30, deadline=None)
@given(milliseconds=st.lists(st.integers(0, 20), max_size=40), workers=st.integers(1, 4))
def test_results_in_order_leave_few_tasks_open(milliseconds: list[int], workers: int) -> None:
    """Whatever the tasks take, results come in order, and no further tasks are taken than may be open."""
    taken: list[int] = []

    def numbers() -> Iterator[Number]:
        for value, rows in enumerate(milliseconds):
            taken.append(value)
            yield Number(value, rows=rows)

    def sleep(task: Number) -> dict[str, Any]:
        time.sleep(task.rows / 1000)
        return {"value": task.value}

    with Threads("predict", workers) as executor:
        limit = engine.OPEN_TASKS_PER_SLOT * executor.count_slots() + 1
        for position, (task, result) in enumerate(run_tasks_in_order(numbers(), sleep, (), executor)):
            assert task.value == result["value"] == position and len(taken) <= position + limit
    assert len(taken) == len(milliseconds)


def test_lost_first_task_stops_the_others_at_the_limit(tmp_path: Path) -> None:
    """Task 2 is lost three times while the others go on, as far as results may wait for it; none is missing."""
    with Processes("clean", 2) as executor:
        numbers = [Number(v, str(tmp_path)) for v in range(30)]
        results = list(run_tasks_in_order(numbers, mapped.end_process, (3, 9), executor))
    assert [task.value for task, _ in results] == [result["value"] for _, result in results] == list(range(30))


def test_processes_run_every_task_once_with_new_arguments() -> None:
    with Processes("clean", 3) as executor:
        for factor in (3, 5):
            numbers = [Number(v) for v in range(40)]
            results = list(run_tasks(numbers, mapped.multiply, (factor,), executor))
            assert sorted(result["product"] for _, result in results) == [factor * v for v in range(40)]
        pids = {result["pid"] for _, result in results}
        assert os.getpid() not in pids and pids <= set(workers()) and len(workers()) == 3
    assert not workers()


def test_no_process_is_started_without_work() -> None:
    with Processes("clean", 3) as executor:
        assert not list(run_tasks([], mapped.multiply, (3,), executor)) and not workers()
        list(run_tasks([Number(1)], mapped.multiply, (3,), executor))
        assert len(workers()) == 1


@pytest.mark.parametrize("kind", [Threads, Processes])
def test_tasks_are_taken_as_workers_are_free(kind: Callable[..., Executor]) -> None:
    """However many there are, two for each worker are taken; when the caller stops, no further one is."""
    taken: list[int] = []

    def numbers() -> Iterator[Number]:
        for value in range(1000):
            taken.append(value)
            yield Number(value)

    with kind("clean", 2) as executor:
        next(run_tasks(numbers(), mapped.sleep, (0.01,), executor))
    assert len(taken) == 4 and not workers()


@pytest.mark.parametrize("kind", [Threads, Processes])
@pytest.mark.parametrize("error", [MillError, TransientError, UserError])
def test_error_of_a_task_keeps_its_type_and_message(kind: Callable[..., Executor], error: type[MillError]) -> None:
    with kind("clean", 1) as executor, pytest.raises(error, match=r"^the second$") as raised:
        list(run_tasks([Number(v) for v in range(100)], mapped.fail, (error.__name__,), executor))
    assert raised.value.exit_code == error.exit_code


def test_unexpected_error_of_a_process_is_internal() -> None:
    with Processes("clean", 1) as executor, pytest.raises(MillError, match="internal error") as raised:
        list(run_tasks([Number(2)], mapped.fail, ("ValueError",), executor))
    assert raised.value.exit_code == 1 and "ValueError: the second" in str(raised.value)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "its process was killed by SIGKILL (perhaps memory ran out)"),
        (signal.SIGSEGV, "its process was killed by SIGSEGV"),
        (0, "its process ended with exit code 7"),
    ],
)
def test_a_task_whose_process_dies_is_named_and_done_again(
    number: int, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three times, and the tasks that waited for the same process are not blamed."""
    with Processes("clean", 2) as executor:
        numbers = [Number(v, str(tmp_path), rows=7) for v in range(12)]
        results = list(run_tasks(numbers, mapped.end_process, (3, int(number)), executor))
    assert sorted(result["value"] for _, result in results) == list(range(12)) and not workers()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("[clean] ")]
    assert lines == [f"[clean] {reason}; 7 rows are done again (number-2, attempt {n} of 20)" for n in (2, 3, 4)]


def test_a_task_that_always_brings_its_process_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_WORKER_FAILURES", 3)
    with Processes("clean", 1) as executor, pytest.raises(MillError, match=r"number-2: its 1 rows lost their worker 3"):
        list(run_tasks([Number(v, str(tmp_path)) for v in range(4)], mapped.end_process, (99, 9), executor))
    assert not workers()


def test_processes_end_at_once_with_ctrl_c() -> None:
    """SIGINT for the whole group, as from a terminal, while every process is busy for a minute."""
    script = (
        "import mapped; from imagemill.components.engine.tasks import run_tasks\n"
        "from imagemill.components.engine.processes import Processes\n"
        "with Processes('clean', 2) as executor:\n"
        "    list(run_tasks([mapped.Number(v) for v in range(9)], mapped.sleep, (60,), executor))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, start_new_session=True)

    def busy() -> list[int]:
        lines = mill.processes_with(RUNNER_PID, str(process.pid))
        return [pid for pid, line in lines.items() if "engine.processes" in line]

    mill.wait_until(lambda: len(busy()) == 2, "two processes", 60)
    time.sleep(1)  # until they ignore the signal themselves
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - started < 10 and not busy()
    assert process.returncode != 0 and stderr.count(b"Traceback") == 1


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)
    with Threads("clean", 3) as executor:
        results = list(run_tasks([Number(v) for v in range(3)], lambda task: {"at": together.wait()}, (), executor))
    assert len(results) == 3
