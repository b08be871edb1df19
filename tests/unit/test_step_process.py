"""Single steps in subprocesses: record, errors, output, and stop by a watch function."""

from __future__ import annotations

from pathlib import Path

import mill
import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.local.step_process import StepRunner, StoppedByWatch


def test_finished_step_is_cached(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = mill.make_photos(tmp_path / "photos", each=2)
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(source), run="r.a")
    with StepRunner.open(workspace, "r") as steps:
        assert steps.find("download", config) is None
        record = steps.run("download", config)
        cached = steps.find("download", config)
    assert record.state == "ran" and cached and cached.state == "cached" and cached.uri == record.uri
    assert "[download] 6 images" in capsys.readouterr().err
    assert "[download] 6 images" in workspace.store.read(workspace.run_file_uri("r", "log.txt")).decode()
    assert workspace.step_record("r.a", "download") == record


def test_error_of_a_step_is_raised(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(tmp_path / "empty"), run="r.a")
    with StepRunner.open(workspace, "r") as steps, pytest.raises(UserError, match="download: source: expected"):
        steps.run("download", config)


def test_watch_stops_a_step(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.pipelines.local.step_process.POLL_S", 0.01)
    source = mill.make_photos(tmp_path / "photos", each=2)
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(source), run="r.a")
    with StepRunner.open(workspace, "r") as steps, pytest.raises(StoppedByWatch):
        steps.run("download", config, watch=lambda: True)
