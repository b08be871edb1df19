"""Single steps in this process: record, errors, output, and stop by a watch function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mill
import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.step.progress import say
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.local import StepRunner
from imagemill.pipelines.run_log import RunLog


def test_finished_step_is_cached(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = mill.make_photos(tmp_path / "photos", each=2)
    config = DownloadConfig(workspace=workspace.uri, dataset="folder", source=str(source), run="r.a")
    with RunLog.open(workspace, "r", []) as log:
        steps = StepRunner(log)
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
    with RunLog.open(workspace, "r", []) as log, pytest.raises(UserError, match="download: source: expected"):
        StepRunner(log).run("download", config)


def test_output_of_libraries_goes_to_the_log_alone(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever writes it: Python, a library in C, another process; and passwords stay out of it."""
    source = "https://me:secret@photos.example/x.zip"
    with RunLog.open(workspace, "r", [source]) as log, log.capture():
        print("from Python")
        os.write(2, b"from C\n")
        subprocess.run(["echo", "from a process"], check=True)
        say("clean", f"reading {source}")
        print("no line of a step: [clean] x", file=sys.stderr)
    assert capfd.readouterr() == ("", f"[clean] reading {source}\n")
    lines = workspace.store.read(workspace.run_file_uri("r", "log.txt")).decode().splitlines()
    assert {"from Python", "from C", "from a process", "no line of a step: [clean] x"} <= set(lines)
    assert "[clean] reading https://photos.example/x.zip" in lines and "secret" not in str(lines)
