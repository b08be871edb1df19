"""Workers killed at random and changed numbers of workers: the same bytes, and no Ray process left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import mill
import pytest
from ray_cluster import Slow, content, descendants, slow_clean, start_resize, still_there, without_ray

AT_WORK = "ray::_run_on_node"
Content = list[tuple[str, str, int, str]]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Slow:
    return slow_clean(tmp_path_factory.mktemp("slow"), rows=240, parts=24)


@pytest.fixture(scope="module")
def expected(slow: Slow, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Content of the same jobs without Ray, in files of ten rows."""
    tensors = without_ray(slow, tmp_path_factory.mktemp("expected"))
    assert len(tensors) >= 24
    return tensors


class Killer(threading.Thread):
    """Thread that kills busy workers until it has killed enough or the step has ended."""

    def __init__(self, step: subprocess.Popen[str], kills: int, pause: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.step, self.wanted, self.pause = step, kills, pause
        self.random = random.Random(seed)
        self.killed: list[int] = []
        self.seen: list[tuple[int, str]] = []

    def run(self) -> None:
        while self.step.poll() is None and len(self.killed) < self.wanted:
            self.seen = descendants(self.step.pid) or self.seen
            if busy := [process for process in self.seen if any(AT_WORK in line for line in still_there([process]))]:
                victim, _ = self.random.choice(sorted(busy))
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(victim, signal.SIGKILL)
                    self.killed.append(victim)
                time.sleep(self.random.uniform(0, self.pause))
            time.sleep(0.01)


def wait_for_end(processes: list[tuple[int, str]]) -> None:
    """Wait until all processes have ended; name those that have not."""
    with contextlib.suppress(AssertionError):
        mill.wait_until(lambda: not still_there(processes), "their end", 120)
    assert not still_there(processes)


def resize_with_kills(slow: Slow, kills: int, pause: float, seed: int, *more: str) -> tuple[mill.Result, Killer]:
    process = start_resize(slow, *more)
    killer = Killer(process, kills, pause, seed)
    killer.start()
    result = mill.finish(process, time.monotonic(), 570)
    killer.join()
    wait_for_end(killer.seen)
    return result, killer


def test_three_of_four_workers_are_killed(slow: Slow, expected: Content, tmp_path: Path) -> None:
    copy = slow.copy(tmp_path / "work")
    result, killer = resize_with_kills(copy, 3, 0.2, 1, "--resize-workers", "4")
    assert content(copy, result) == expected
    assert len(killer.killed) == 3 and "[resize] Ray with 4 cores" in result.stderr
    assert 1 <= result.stderr.count("rows are done again") <= 3  # a worker may die between two tasks


CRASHES = """
import os, sys
from imagemill.components.engine import tasks
from imagemill.components.resize import STEP, plan, resize
plan.MAX_SHARD_ROWS = 10
tasks.MAX_WORKER_FAILURES = 4
def write_shards(task, *more, work=resize.write_shards):
    if task.key.startswith("val"):
        os.kill(os.getpid(), 11)
    return work(task, *more)
resize.write_shards = write_shards
sys.exit(STEP.main())
"""


@pytest.mark.proof
def test_job_that_crashes_its_worker_is_named(slow: Slow, tmp_path: Path) -> None:
    """After so many tries it is named; what the others gave stays, and a retry has only that one to do."""
    copy = slow.copy(tmp_path / "work")
    process = start_resize(copy, script=CRASHES)
    result = mill.finish(process, time.monotonic())
    assert result.rc == 1, result.stderr
    assert "error: val-" in result.error and "lost their worker 4 times" in result.error
    assert len(result.error) < 400 and "Traceback" not in result.stderr
    assert list(copy.workspace.glob("tensors/*/_work/train-*.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.proof)])
def test_signal_ends_the_step_and_its_ray(number: int, slow: Slow, tmp_path: Path) -> None:
    copy = slow.copy(tmp_path / "work")
    process = start_resize(copy)
    mill.wait_for_line(process, "[resize] Ray with")
    started = descendants(process.pid)
    lines = [line for line in still_there(started) if "--session-name=" in line]
    sessions = {line.partition("--session-name=")[2].split()[0] for line in lines}
    agents = [
        pid for pid, start_time in started if any(line.endswith("Agent") for line in still_there([(pid, start_time)]))
    ]
    for pid in agents:  # as on a busy machine, where they don't come to their end before their raylet is killed
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0 and len(started) > 5 and len(agents) == 2
    wait_for_end(started)
    assert sessions and not [name for name in sessions if Path("/tmp/ray", name).exists()]


@pytest.mark.proof
@pytest.mark.parametrize("seconds", [0, 2])
def test_killed_step_leaves_no_ray_process(seconds: float, slow: Slow, tmp_path: Path) -> None:
    """SIGKILL for the step alone: Ray's processes have to see for themselves. Workers do in seconds; its two agents
    first try for a minute to tell the GCS, which is gone as well."""
    copy = slow.copy(tmp_path / "work")
    process = start_resize(copy)
    mill.wait_for_line(process, "[resize] Ray with")
    time.sleep(seconds)
    started = descendants(process.pid)
    process.kill()
    process.communicate()
    assert len(started) > 5

    def only_agents() -> bool:
        return all(line.endswith("Agent") for line in still_there(started))

    mill.wait_until(only_agents, "the end of all but the agents", 20)
    mill.wait_until(lambda: not still_there(started), "the end of all that was started", 100)
