"""Killed at random moments, stopped, or twice at once: the same bytes in the end, and never half a dataset.

Moments are drawn anew each time and printed with a failure; a test that fails once is a finding, not bad luck.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import layout
import pictures
import pytest
from commands import (
    EXIT_TRANSIENT,
    KIND_BY_STEP,
    KINDS,
    PROMOTE_ALWAYS,
    TINY_MODEL,
    Workspace,
    finish,
    kill,
    run,
    start,
    succeed,
    wait_for_line,
)

LONGER = ["--epochs", "3"]
MOMENTS = {"download": 2, "clean": 2, "resize": 2, "train": 1, "evaluate": 1}
"""How often each step is killed; what it costs to start decides."""


@dataclass(frozen=True)
class Undisturbed:
    """A source, and the datasets that steps made of it without being disturbed, with the seconds of each."""

    source: Path
    workspace: Workspace
    uris: dict[str, str]
    seconds: dict[str, float]

    def arguments(self, step: str, workspace: Workspace) -> list[str]:
        """Return the command line of a step on this workspace, which may be a copy."""

        def parent(kind: str) -> str:
            return str(workspace.folder / kind / Path(self.uris[kind]).name)

        return [step, *workspace.flags, *{
            "download": ["--dataset", "folder", "--source", str(self.source)],
            "clean": ["--raw", parent("raw")] if "raw" in self.uris else [],
            "resize": ["--clean", parent("clean"), "--image-size", "32", "--executor", "threads"]
            if "clean" in self.uris else [],
            "train": ["--tensors", parent("tensors"), *TINY_MODEL, *LONGER, "--checkpoint-minutes", "0.001"]
            if "tensors" in self.uris else [],
            "evaluate": ["--model", parent("model"), "--clean", parent("clean")] if "model" in self.uris else [],
            "promote": ["--evaluation", parent("evaluation"), *PROMOTE_ALWAYS] if "evaluation" in self.uris else [],
        }[step]]  # fmt: skip

    def copy_before(self, step: str, folder: Path) -> Workspace:
        """Copy the workspace as it was before a step ran for the first time."""
        target = Workspace(str(folder / "work"))
        shutil.copytree(self.workspace.folder.parent / f"before-{step}", target.folder)
        return target


def content(kind: str, uri: str | Path) -> object:
    """Return what must be the same to the byte; a model's and an evaluation's other files hold times."""
    if kind == "model":
        return hashlib.sha256(layout.weights_file(uri).read_bytes()).hexdigest()
    if kind == "evaluation":
        return [entry for entry in layout.open_dataset(uri).stored_bytes() if entry[0] == "data"]
    return layout.open_dataset(uri).stored_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    for split, each in (("train", 16), ("val", 4), ("test", 4)):
        for label in ("blue", "green", "red"):
            for number in range(each):
                data = pictures.encode(pictures.noisy_pixels(f"{split}-{label}-{number}", label))
                pictures.write(folder / "photos" / split / label / f"{number}.png", data)
    workspace = Workspace(str(folder / "work"))
    workspace.folder.mkdir()
    whole = Undisturbed(folder / "photos", workspace, {}, {})
    for step, kind in KIND_BY_STEP.items():
        shutil.copytree(workspace.folder, folder / f"before-{step}")
        started = time.monotonic()
        succeed(*whole.arguments(step, workspace))
        whole.seconds[step] = time.monotonic() - started
        (dataset,) = layout.list_datasets(workspace.folder, kind)
        whole.uris[kind] = str(dataset.folder)
    return whole


def check_equal(undisturbed: Undisturbed, workspace: Workspace, kind: str) -> None:
    (dataset,) = layout.list_datasets(workspace.folder, kind)
    assert dataset.fingerprint == Path(undisturbed.uris[kind]).name
    assert content(kind, dataset.folder) == content(kind, undisturbed.uris[kind])


@pytest.mark.parametrize("step", MOMENTS)
def test_killed_step_gives_the_same_bytes(step: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Killed again and again at moments by chance, in the end left alone."""
    seed = time.time_ns()
    moments = random.Random(seed)
    workspace = undisturbed.copy_before(step, tmp_path)
    arguments = undisturbed.arguments(step, workspace)
    for _ in range(MOMENTS[step]):
        # The first third is the start of Python and its libraries.
        seconds = moments.uniform(0.3, 1.1) * undisturbed.seconds[step]
        print(f"seed {seed}: {step} is killed after {seconds:.2f} s")
        process = start(*arguments)
        time.sleep(seconds)
        kill(process)
        layout.check_complete(workspace.folder)
    succeed(*arguments)
    check_equal(undisturbed, workspace, KIND_BY_STEP[step])
    layout.check_complete(workspace.folder)


def test_training_that_is_stopped_twice_resumes_to_the_same_weights(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """By SIGTERM, as Kubernetes ends a pod, and by SIGKILL."""
    workspace = undisturbed.copy_before("train", tmp_path)
    arguments = undisturbed.arguments("train", workspace)
    for number, (kind, code) in enumerate(((signal.SIGTERM, EXIT_TRANSIENT), (signal.SIGKILL, -signal.SIGKILL)), 1):
        process = start(*arguments)
        wait_for_line(process, f"epoch {number}/3")
        process.send_signal(kind)
        finished = finish(process)
        assert finished.code == code, finished.stderr
        assert not layout.list_datasets(workspace.folder, "model")
    succeed(*arguments)
    check_equal(undisturbed, workspace, "model")


@pytest.mark.parametrize("step", ["download", "clean", "resize"])
def test_step_that_runs_twice_at_once_gives_one_dataset(step: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    workspace = undisturbed.copy_before(step, tmp_path)
    arguments = undisturbed.arguments(step, workspace)
    processes = [start(*arguments) for _ in range(2)]
    for process in processes:
        finished = finish(process)
        assert finished.code == 0, finished.stderr
    check_equal(undisturbed, workspace, KIND_BY_STEP[step])
    layout.check_complete(workspace.folder)


def test_two_promotions_at_once_append_one_entry(undisturbed: Undisturbed, tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "work"))
    shutil.copytree(undisturbed.workspace.folder, workspace.folder)
    processes = [start(*undisturbed.arguments("promote", workspace)) for _ in range(2)]
    for process in processes:
        finished = finish(process)
        assert finished.code == 0, finished.stderr
    assert len(layout.promotions(workspace.folder, workspace.name)) == 1
    assert layout.champion(workspace.folder, workspace.name) == Path(undisturbed.uris["model"]).name


def test_killed_run_is_continued(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The whole pipeline, killed once at a moment by chance: the second run ends with the undisturbed datasets."""
    seed = time.time_ns()
    # In one process the steps take less than the sum of the commands.
    seconds = random.Random(seed).uniform(0.1, 0.7) * sum(undisturbed.seconds.values())
    workspace = Workspace(str(tmp_path / "work"))
    arguments = [
        "run", "--json", *workspace.flags, "--dataset", "folder", "--source", str(undisturbed.source),
        "--image-size", "32", *TINY_MODEL, *LONGER, *PROMOTE_ALWAYS,
    ]  # fmt: skip
    print(f"seed {seed}: the run is killed after {seconds:.2f} s")
    process = start(*arguments)
    time.sleep(seconds)
    kill(process)
    time.sleep(3)  # its steps notice that it is gone
    layout.check_complete(workspace.folder)
    finished = run(*arguments)
    assert finished.code == 0, finished.stderr
    for kind in KINDS:
        assert Path(finished.json[kind]).name == Path(undisturbed.uris[kind]).name
        assert content(kind, finished.json[kind]) == content(kind, undisturbed.uris[kind]), kind
    assert Path(finished.json["champion"]).name == Path(undisturbed.uris["model"]).name
