"""Changed sources and parameters, moved workspaces: only what changed is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grown
import mill
import pytest

from imagemill.components.dataset.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Finished

CACHED = dict.fromkeys(mill.STEPS, "cached")
RECORD = {"uri", "fingerprint", "state", "seconds", "metrics", "exit_code", "error"}


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
def test_model_of_a_new_class_is_compared_on_all_images(finished: Finished) -> None:
    mill.make_photos(finished.photos, ["amber"])
    result = run_again(finished, "--promote", "unless-worse", "--min-test-images", "1")
    assert result.states == make_states("download")
    assert mill.dataset_of(result, "clean").manifest.classes == ("blue", "green", "red", "amber")
    assert result.json["verdict"] in ("better", "not_worse", "worse")
    assert "; classes added: amber; " in result.stderr


@pytest.mark.proof
def test_changed_color_reruns_all_but_download(finished: Finished) -> None:
    result = run_again(finished, "--color", "gray")
    assert result.states == make_states("clean")
    assert mill.dataset_of(result, "tensors").manifest.image.shape == (32, 32, 1)


@pytest.mark.proof
def test_changed_epochs_keep_the_tensors_and_a_changed_rule_the_model(finished: Finished) -> None:
    longer = ["--epochs", "2", "--promote", "never"]
    result = run_again(finished, *longer)
    assert result.states == make_states("train")
    assert not result.json["promoted"]
    assert run_again(finished, *longer).states == CACHED
    stricter = run_again(finished, *longer, "--level", "0.1")
    assert stricter.states == make_states("promote")
    assert stricter.json["evaluation"] == result.json["evaluation"]


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


def test_every_step_writes_its_record(finished_once: Finished) -> None:
    workspace = Workspace.open(str(finished_once.workspace))
    run = finished_once.result.json["run"]
    for name in mill.STEPS:
        record = workspace.step_record(run, name)
        assert record is not None and record.to_dict().keys() >= RECORD, name
        assert (record.state, record.exit_code, record.error) == ("ran", 0, "")
        assert record.seconds > 0 and record.fingerprint == Path(record.uri).name
    assert (finished_once.workspace / "runs" / run / "log.txt").stat().st_size > 0
    assert Path(finished_once.result.json["report"]).is_file()


def test_failed_step_writes_its_record(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    words = ["--dataset", "folder", "--source", str(tmp_path / "none"), "--workspace", str(tmp_path / "work")]
    assert mill.run("download", *words, "--run", "r1", "--result", str(file)).rc == 2
    record = json.loads(file.read_text())
    assert record == json.loads((tmp_path / "work" / "runs" / "r1" / "download.json").read_text())
    assert record.keys() >= RECORD
    assert (record["state"], record["exit_code"], record["uri"]) == ("failed", 2, "")
    assert str(tmp_path / "none") in record["error"]


def test_cached_run_writes_no_dataset(finished: Finished) -> None:
    datasets = [f for kind in mill.PRODUCTS for f in (finished.workspace / kind).rglob("*") if f.is_file()]
    before = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in datasets}
    assert run_again(finished).states == CACHED
    assert {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in datasets} == before


def test_tensors_continued_on_ray_equal_those_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.components.resize.plan.MAX_SHARD_ROWS", 7)
    photos = grown.several(60)
    later = {name: photo for name, photo in photos.items() if name != "p003"} | grown.several(9, "new")
    by_executor = []
    for executor in ("threads", "ray"):
        workspace = Workspace.open(str(tmp_path / executor))
        grown.resized(grown.clean_of(workspace, photos))
        options = {"executor": executor, "resize_workers": 1}
        by_executor.append(grown.resized(grown.clean_of(workspace, later), **options))
    by_threads, by_ray = by_executor
    assert grown.generations(by_ray) == {0: 59, 1: 9} and grown.content(by_ray) == grown.content(by_threads)
    assert by_ray.manifest.files == by_threads.manifest.files
