"""Single steps in processes of their own: record, errors, output, and the end that a watch gives them."""

from __future__ import annotations

from pathlib import Path

import mill
import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.local.step_process import StepRunner, StoppedByWatch


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(str(tmp_path / "mill"))


def test_a_step_runs_once_and_is_found_then(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = mill.make_photos(tmp_path / "photos", each=2)
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(source), run="r.a")
    with StepRunner.open(workspace, "r") as steps:
        assert steps.find("download", config) is None
        record = steps.run("download", config)
        found = steps.find("download", config)
    assert record["state"] == "ran" and found and found["state"] == "cached" and found["uri"] == record["uri"]
    assert "[download] 6 images" in capsys.readouterr().err
    assert "[download] 6 images" in workspace.store.read(workspace.run_file("r", "log.txt")).decode()
    assert workspace.step_record("r.a", "download") == record


def test_a_steps_error_is_raised_as_its_own(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(tmp_path / "empty"), run="r.a")
    with StepRunner.open(workspace, "r") as steps, pytest.raises(UserError, match="download: source: expected"):
        steps.run("download", config)


def test_a_watch_ends_a_step(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.pipelines.local.step_process.POLL_S", 0.01)
    source = mill.make_photos(tmp_path / "photos", each=2)
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(source), run="r.a")
    with StepRunner.open(workspace, "r") as steps, pytest.raises(StoppedByWatch):
        steps.run("download", config, watch=lambda: True)
