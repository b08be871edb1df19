"""Step in a container that ends with its runner, which holds a named pipe open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagemill.components.step.runner_exit import RUNNER_BOOT, RUNNER_PIPE, boot_id
from imagemill.components.storage.errors import EXIT_TRANSIENT

STEP = (
    "import time; from imagemill.components.step.runner_exit import exit_with_runner; exit_with_runner(); "
    "print(1, flush=True); "
)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "runner")
    return tmp_path / "runner"


@pytest.fixture
def steps() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start_step(
    steps: list[subprocess.Popen[str]], pipe: Path, kernel: str, work_s: float = 600
) -> subprocess.Popen[str]:
    steps.append(subprocess.Popen(
        [sys.executable, "-c", f"{STEP}time.sleep({work_s})"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {RUNNER_PIPE: str(pipe), RUNNER_BOOT: kernel},
    ))  # fmt: skip
    return steps[-1]


def test_step_runs_until_its_runner_ends(pipe: Path, steps: list[subprocess.Popen[str]]) -> None:
    descriptor = os.open(pipe, os.O_RDWR)
    step = start_step(steps, pipe, boot_id())
    assert step.stdout and step.stdout.readline() == "1\n"
    with pytest.raises(subprocess.TimeoutExpired):
        step.wait(0.3)
    os.close(descriptor)
    assert step.wait(60) == EXIT_TRANSIENT


def test_step_of_a_dead_runner_exits(pipe: Path, steps: list[subprocess.Popen[str]]) -> None:
    assert boot_id() and start_step(steps, pipe, boot_id()).wait(60) == EXIT_TRANSIENT


def test_pipe_of_another_kernel_is_ignored(pipe: Path, steps: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """Docker in a virtual machine shows the pipe's name, and nobody who holds it."""
    assert start_step(steps, pipe, "of another machine", work_s=0.3).wait(60) == 0
    assert start_step(steps, tmp_path / "none", boot_id(), work_s=0.3).wait(60) == 0
