"""New data after the promotion of a champion: both models are evaluated on the new images, and judged."""

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


def copy_model(workspace: Workspace, model: str, name: str) -> str:
    """Commit another model with the same weights."""
    source = read_dataset(model, "model")
    uri = workspace.dataset_uri("model", name)
    shutil.copytree(source.uri, uri, ignore=shutil.ignore_patterns("_manifest.json", "_work"))
    commit(uri, dataclasses.replace(source.manifest, fingerprint=name))
    return uri


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """Return what a command that succeeds prints as JSON."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def run_step(workspace: Workspace, tmp_path: Path, name: str, *words: str) -> dict[str, Any]:
    file = tmp_path / f"{name}.json"
    assert main([name, "--workspace", workspace.uri, "--name", "photos", "--result", str(file), *words]) == 0
    record: dict[str, Any] = json.loads(file.read_text())
    return record


def test_promote_by_hand_and_roll_back(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(str(finished.workspace))
    location = ["--workspace", workspace.uri]
    champion = workspace.absolute(workspace.last_promotion("photos").model)
    for number in range(3):
        mill.add_photo(finished.photos / "red" / f"new{number}.jpg", "red", np.random.default_rng(number))
    raw = run_step(workspace, tmp_path, "download", "--dataset", "folder", "--source", str(finished.photos))
    clean = run_step(workspace, tmp_path, "clean", "--raw", raw["uri"])
    assert clean["state"] == "ran"
    other = copy_model(workspace, champion, "00000000000000ab")

    # Step by step: evaluate makes the champion's evaluation beside the challenger's, and promote finds it.
    evaluation = run_step(
        workspace, tmp_path, "evaluate", "--model", other, "--clean", clean["uri"], "--review", "false"
    )
    verdict = run_step(
        workspace,
        tmp_path,
        "promote",
        "--evaluation",
        evaluation["uri"],
        "--min-test-images",
        "1",
        "--promote",
        "never",
    )
    assert (verdict["metrics"]["verdict"], verdict["metrics"]["promoted"]) == ("not_worse", False)

    # In one go; the evaluations are there already, with the same parameters.
    options = ["--review", "false", "--min-test-images", "1"]
    judge_only = ["--config", '{"promote": {"promote": "never"}}']
    result = run_command(capsys, "champion", "promote", other, *location, *options, *judge_only)
    assert (result["verdict"], result["model"]) == ("not_worse", champion)
    result = run_command(capsys, "champion", "promote", evaluation["uri"], *location, *options, "--force")
    assert (result["promoted"], result["n"], result["model"]) == (True, 2, other)
    result = run_command(capsys, "champion", "rollback", *location)
    assert (result["n"], result["model"], result["is_there"]) == (3, champion, True)
    assert [record["verdict"] for record in run_command(capsys, "champion", "list", *location)["photos"]][1:] == [
        "not_worse", "rollback",
    ]  # fmt: skip
