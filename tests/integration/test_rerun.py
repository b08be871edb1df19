"""`--rerun`: a step and those after it are done again, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mill
import pytest

if TYPE_CHECKING:
    from conftest import Finished


def make_states(step: str) -> dict[str, str]:
    """Return the states of a run in which this step and all after it ran."""
    first = mill.STEPS.index(step)
    return {name: "ran" if number >= first else "cached" for number, name in enumerate(mill.STEPS)}


def run_again(finished: Finished, *more: str) -> mill.Result:
    result = mill.run(*finished.arguments, *more)
    assert result.rc == 0, result.stderr
    return result


def run_step(finished: Finished, name: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    """Run one step alone on the finished workspace; return its result file."""
    file = tmp_path / "result.json"
    result = mill.run(name, "--workspace", str(finished.workspace), "--name", "photos", "--result", str(file), *more)
    assert result.rc == 0, result.stderr
    record: dict[str, Any] = json.loads(file.read_text())
    return record


@pytest.mark.proof
def test_rerun_train_repeats_train_and_later_steps_once(finished: Finished, tmp_path: Path) -> None:
    result = run_again(finished, "--rerun", "train")
    assert result.states == make_states("train")
    assert Path(result.json["model"]).name != Path(finished.result.json["model"]).name
    # A retry of the step within the run, as a cluster makes one that lost the pod just after the commit:
    retried = run_step(
        finished, "train", tmp_path, "--tensors", result.json["tensors"], "--rerun", "train",
        "--run", result.json["run"], *mill.QUICK[2:],
    )  # fmt: skip
    assert (retried["state"], retried["uri"]) == ("cached", result.json["model"])
