"""A run that is refused before a step begins leaves no folder of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.docker import runner as in_docker
from imagemill.pipelines.local.run import run_locally
from imagemill.pipelines.parameters import resolve_parameters


def test_source_in_a_system_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    parameters = resolve_parameters({"dataset": "folder", "source": "/etc", "workspace": str(tmp_path)})
    workspace = Workspace.open(str(tmp_path))
    engine = in_docker.Engine(None, {}, {})
    with pytest.raises(UserError, match="expected files in a folder of their own, found some in /etc"):
        run_locally(
            parameters.arguments(), workspace, "etc-1", partial(in_docker.prepare_containers, engine, parameters)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["_workspace.json"]
