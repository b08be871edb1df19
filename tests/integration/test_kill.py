"""Killed at any moment, a run leaves no partial dataset and no process; run again, it gives the same result.

Tensors are the same byte for byte. So are a model's weights on one machine: the learning rate, the order of the
images and their augmentation depend on (seed, epoch, batch) alone, and the checkpoint holds all the rest."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mill
import pytest

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.step.runner_exit import RUNNER_PID

if TYPE_CHECKING:
    from conftest import Finished

KIND_BY_STEP = {"clean": "clean", "resize": "tensors", "train": "model", "evaluate": "evaluation"}
LONGER = ["--epochs", "4"]
"""Enough epochs for a checkpoint to go on from."""
ON_RAY = ["--executor", "ray"]
"""So few images would be resized in threads of the step."""


@pytest.fixture(scope="module")
def expected(finished_once: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Datasets of uninterrupted runs: the finished one's, and a model of more epochs."""
    copy = finished_once.copy(tmp_path_factory.mktemp("uninterrupted"))
    datasets = {kind: mill.dataset_of(finished_once.result, kind) for kind in ("raw", "clean", "tensors")}
    return datasets | {"model": read_dataset(run_step(copy, "train", "tensors", *mill.QUICK[2:], *LONGER), "model")}


def run_step(finished: Finished, name: str, parent: str, *more: str) -> str:
    """Run one step alone to its end; return the URI of its dataset."""
    result = mill.finish(start_step(finished, name, parent, *more), time.monotonic())
    assert result.rc == 0, result.stderr
    return result.error.rpartition(" ")[2]


def start_step(finished: Finished, name: str, parent: str, *more: str, **environment: str) -> subprocess.Popen[str]:
    parent_uri = str(finished.workspace / parent / Path(finished.result.json[parent]).name)
    return mill.start([name, f"--{parent}", parent_uri, "--workspace", str(finished.workspace), *more], environment)


def delete_outputs(finished: Finished, step: str) -> None:
    """Delete the datasets of the step and of those after it, and all names."""
    steps = list(KIND_BY_STEP)
    for later in steps[steps.index(step) :]:
        shutil.rmtree(finished.workspace / KIND_BY_STEP[later])
    shutil.rmtree(finished.workspace / "names")


def wait_for_processes(name: str, value: object, seconds: float = 120) -> None:
    """Wait until every process that inherited this variable has ended: the steps, and Ray with its workers."""
    mill.wait_until(lambda: not mill.processes_with(name, str(value)), "the end of all that was started", seconds)


def assert_same_datasets(result: mill.Result, expected: dict[str, Dataset], *kinds: str) -> None:
    for kind in kinds:
        dataset = mill.dataset_of(result, kind)
        assert dataset.fingerprint == expected[kind].fingerprint
        assert mill.content(dataset) == mill.content(expected[kind]), kind


def kill_and_run_again(
    finished: Finished, more: list[str], moment: Callable[[subprocess.Popen[str]], None]
) -> mill.Result:
    """Start a run, kill its process group at the moment, check that no process or partial dataset is left, rerun."""
    process = mill.start([*finished.arguments, *more])
    moment(process)
    mill.kill_group(process)
    wait_for_processes(RUNNER_PID, process.pid)
    for kind, manifests in mill.manifests(finished.workspace).items():
        for manifest in manifests:
            assert not read_dataset(str(manifest.parent), kind).missing()
    result = mill.run(*finished.arguments, *more)
    assert result.rc == 0, result.stderr
    return result


@pytest.mark.proof  # Ray's own watchdog decides how soon: seconds alone, over half a minute beside a full suite
def test_killed_resize_leaves_no_ray_process(finished: Finished, expected: dict[str, Dataset]) -> None:
    delete_outputs(finished, "resize")
    mark = {"IMAGEMILL_TEST_MARK": secrets.token_hex(8)}
    process = start_step(finished, "resize", "clean", *mill.QUICK[:2], *ON_RAY, **mark)
    mill.wait_for_line(process, "[resize] Ray with")
    assert any("raylet" in line for line in mill.processes_with(*next(iter(mark.items()))).values())
    process.kill()  # the step alone: Ray's processes have to see for themselves
    process.communicate()
    wait_for_processes(*next(iter(mark.items())))
    assert not mill.manifests(finished.workspace)["tensors"]
    tensors = read_dataset(run_step(finished, "resize", "clean", *mill.QUICK[:2]), "tensors")
    assert mill.content(tensors) == mill.content(expected["tensors"])


def orphan(script: str, *arguments: str) -> int:
    """Run `script` as a step until it is ready and a second longer, kill its runner, and return its exit status."""
    runner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    environment = {**os.environ, RUNNER_PID: str(runner.pid)}
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout and step.stdout.readline() == "ready\n"
        time.sleep(1)
        assert step.poll() is None
        runner.kill()  # and not waited for: a runner that is a zombie is gone as well
        status = step.wait(timeout=60)
    runner.wait()
    return status


def test_orphaned_step_exits() -> None:
    """Only the runner is killed, not its group: the step sees that and ends, long before its work would."""
    script = (
        "import time; from imagemill.components.step.runner_exit import exit_with_runner; exit_with_runner()\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    assert orphan(script) == 75


def test_orphaned_step_that_handles_sigterm_finishes_its_handler(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; from pathlib import Path\n"
        "from imagemill.components.step.runner_exit import exit_with_runner, handles_sigterm; exit_with_runner()\n"
        "asked = []; signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
        "with handles_sigterm():\n"
        "    print('ready', flush=True)\n"
        "    while not asked: time.sleep(0.05)\n"
        "    time.sleep(1); Path(sys.argv[1]).write_text('written down')\n"
        "time.sleep(600)"
    )
    words = tmp_path / "words"
    assert orphan(script, str(words)) == 75
    assert words.read_text() == "written down"


# The series: every step, several moments, Ray's own processes.


def wait_after(seconds: float, text: str) -> Callable[[subprocess.Popen[str]], None]:
    def wait(process: subprocess.Popen[str]) -> None:
        mill.wait_for_line(process, text)
        time.sleep(seconds)

    return wait


@pytest.mark.proof
@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.2, 2, 3, 5, 7, 9, 12, 15])
def test_run_killed_at_any_moment(seconds: float, finished: Finished, expected: dict[str, Dataset]) -> None:
    shutil.rmtree(finished.workspace)
    result = kill_and_run_again(finished, LONGER, wait_after(seconds, "run photos-"))
    assert_same_datasets(result, expected, *mill.PRODUCTS[:4])


@pytest.mark.proof
@pytest.mark.parametrize("step", KIND_BY_STEP)
@pytest.mark.parametrize("seconds", [0, 0.3, 1])
def test_step_killed_at_any_moment(step: str, seconds: float, finished: Finished, expected: dict[str, Dataset]) -> None:
    before = {"clean": "download", "resize": "clean", "train": "resize", "evaluate": "train"}[step]
    delete_outputs(finished, step)
    line = f"[{before}] {'done' if step == 'evaluate' else 'there already'}"  # with more epochs train has work to do
    result = kill_and_run_again(finished, LONGER, wait_after(seconds, line))
    assert_same_datasets(result, expected, *mill.PRODUCTS[:4])


@pytest.mark.proof
@pytest.mark.parametrize("victim", ["executor_main", "raylet", "gcs_server", "ray::"])
def test_killed_process_of_resize(victim: str, finished: Finished, expected: dict[str, Dataset]) -> None:
    """The step itself: the run ends with 75. A part of Ray: it goes on without, or ends with 75."""
    delete_outputs(finished, "resize")
    process = mill.start([*finished.arguments, *ON_RAY])
    started = time.monotonic()
    mill.wait_for_line(process, "[resize] Ray with")

    def list_victims() -> list[int]:
        processes = mill.processes_with(RUNNER_PID, str(process.pid))
        return [pid for pid, line in processes.items() if victim in line and not line.startswith("sh ")]

    mill.wait_until(lambda: bool(list_victims()), f"a {victim}")
    os.kill(list_victims()[0], signal.SIGKILL)
    first = mill.finish(process, started)
    assert first.rc in (0, 75), first.stderr
    wait_for_processes(RUNNER_PID, process.pid)
    result = mill.run(*finished.arguments)
    assert result.rc == 0, result.stderr
    assert_same_datasets(result, expected, "tensors")


@pytest.mark.proof
@pytest.mark.parametrize("text", ["[resize] Ray with", "[train] epoch 1/4"])
def test_killed_runner(text: str, finished: Finished, expected: dict[str, Dataset]) -> None:
    delete_outputs(finished, "resize")
    process = mill.start([*finished.arguments, *LONGER, *ON_RAY])
    mill.wait_for_line(process, text)
    process.kill()
    process.communicate()

    def step_is_running() -> bool:
        return any("executor_main" in line for line in mill.processes_with(RUNNER_PID, str(process.pid)).values())

    mill.wait_until(lambda: not step_is_running(), "the step's own end", 2)
    wait_for_processes(RUNNER_PID, process.pid)  # Ray's workers end when they see that their raylet is gone
    result = mill.run(*finished.arguments, *LONGER)
    assert result.rc == 0, result.stderr
    assert_same_datasets(result, expected, "tensors", "model")
