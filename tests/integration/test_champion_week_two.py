"""The data has changed since the champion was promoted: models are evaluated on today's images, and judged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import mill
import numpy as np
import pytest
from conftest import Finished

from imagemill.components.dataset.manifest import commit, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.pipelines.cli.main import main


def renamed(workspace: Workspace, model: str, name: str) -> str:
    """Another model with the same weights."""
    there = read_dataset(model, "model")
    uri = workspace.dataset("model", name)
    shutil.copytree(there.uri, uri, ignore=shutil.ignore_patterns("_manifest.json", "_work"))
    commit(uri, dataclasses.replace(there.manifest, fingerprint=name))
    return uri


def command(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What a command that succeeds prints as JSON."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def step(workspace: Workspace, tmp_path: Path, name: str, *words: str) -> dict[str, Any]:
    file = tmp_path / f"{name}.json"
    assert main([name, "--workspace", workspace.uri, "--name", "photos", "--result", str(file), *words]) == 0
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def test_promote_by_hand_and_back(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(str(finished.workspace))
    here = ["--workspace", workspace.uri]
    champion = workspace.absolute(workspace.last_promotion("photos").model)
    for number in range(3):
        mill.add_photo(finished.photos / "red" / f"new{number}.jpg", "red", np.random.default_rng(number))
    raw = step(workspace, tmp_path, "download", "--dataset", "folder", "--source", str(finished.photos))
    clean = step(workspace, tmp_path, "clean", "--raw", raw["uri"])
    assert clean["state"] == "ran"
    other = renamed(workspace, champion, "00000000000000ab")

    # Step by step: evaluate makes the champion's evaluation beside the challenger's, and promote finds it.
    evaluation = step(workspace, tmp_path, "evaluate", "--model", other, "--clean", clean["uri"], "--review", "false")
    verdict = step(workspace, tmp_path, "promote", "--evaluation", evaluation["uri"], "--min-test-images", "1")
    assert (verdict["metrics"]["verdict"], verdict["metrics"]["promoted"]) == ("not_shown_better", False)

    # In one go; the evaluations are there already, with the same parameters.
    asked = ["--review", "false", "--min-test-images", "1"]
    found = command(capsys, "champion", "promote", other, *here, *asked)
    assert (found["verdict"], found["model"]) == ("not_shown_better", champion)
    found = command(capsys, "champion", "promote", evaluation["uri"], *here, *asked, "--force")
    assert (found["promoted"], found["n"], found["model"]) == (True, 2, other)
    found = command(capsys, "champion", "rollback", *here)
    assert (found["n"], found["model"], found["is_there"]) == (3, champion, True)
    assert [record["verdict"] for record in command(capsys, "champion", "list", *here)["photos"]][1:] == [
        "not_shown_better", "rollback",
    ]  # fmt: skip
