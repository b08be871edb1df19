"""A run that is refused before a step begins leaves no folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.docker import runner as in_docker
from imagemill.pipelines.parameters import resolve_parameters
from imagemill.pipelines.run_log import RunLog


def test_source_in_a_system_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    parameters = resolve_parameters({"dataset": "folder", "source": "/etc", "workspace": str(tmp_path)})
    workspace = Workspace.open(str(tmp_path))
    engine = in_docker.Engine(None, {}, {})
    with (
        pytest.raises(UserError, match="expected files in a folder of their own, found some in /etc"),
        RunLog.open(workspace, "etc-1", []) as log,
        in_docker.open_containers(engine, parameters, workspace, "etc-1", log),
    ):
        raise AssertionError("it is not refused")
    assert [path.name for path in tmp_path.iterdir()] == ["_workspace.json"]
