"""The command of a step's pod: what Argo and Kubeflow Pipelines give it, and find of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mill
import pytest

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import TransientError
from imagemill.pipelines import pod
from imagemill.pipelines.kfp import results
from imagemill.pipelines.kfp.artifacts import RECORDS
from imagemill.pipelines.steps import PIPELINE, list_outputs


@pytest.fixture
def form(tmp_path: Path) -> dict[str, str]:
    photos = mill.make_photos(tmp_path / "photos", each=6)
    return {"dataset": "folder", "source": str(photos), "workspace": str(tmp_path / "workspace"), "name": ""}


def run_argo(step: str, outputs: Path, **values: str) -> int:
    return pod.main([step, *(f"--{name}={value}" for name, value in values.items()), f"--outputs={outputs}"])


def run_kfp(step: str, folder: Path, **values: Any) -> int:
    """Run a pod as KFP's launcher does."""
    artifact = {"name": "manifest", "uri": "minio://bucket/manifest", "type": {"schemaTitle": "system.Dataset"}}
    executor_input = {
        "inputs": {"parameterValues": values},
        "outputs": {
            "artifacts": {name: {"artifacts": [artifact]} for name in ("manifest", "summary")},
            "outputFile": str(folder / "output.json"),
        },
    }
    name = "summary" if step == "finish" else "manifest"
    return pod.main([step, "--kfp", json.dumps(executor_input), "--artifact", name, str(folder / "deep" / name)])


def test_steps_give_what_later_ones_take() -> None:
    assert list_outputs("download") == {"name": "name", "raw": "uri"}
    assert list_outputs("evaluate") == {
        "evaluation": "uri", "champion_evaluation": "champion_evaluation",
    }  # fmt: skip
    assert {giver for row in PIPELINE.values() for giver, _ in row.inputs.values()} == {*PIPELINE} - {"promote"}


def test_argo_finds_values_in_files(form: dict[str, str], tmp_path: Path) -> None:
    raw = tmp_path / "deep" / "raw"
    assert run_argo("download", raw, run="r1", **form) == 0
    uri = (raw / "raw").read_text()
    assert uri.startswith(f"{form['workspace']}/raw/")
    assert (raw / "name").read_text() == "photos" and (raw / "changed").read_text() == "true"  # without quotes
    assert json.loads((raw / "metrics.json").read_text())["rows"] == 18
    config = json.dumps({"clean": {"min_side": 20}, "train": {"weight_decay": 0.1}})
    given = {"workspace": form["workspace"], "config": config, "raw": uri, "name": "photos"}
    assert run_argo("clean", tmp_path / "clean", run="r1", **given) == 0
    record = Workspace(form["workspace"]).step_record("r1", "clean")
    assert record and record.uri == (tmp_path / "clean" / "clean").read_text()


def test_kfp_finds_values_and_metadata_in_one_file(form: dict[str, str], tmp_path: Path) -> None:
    assert run_kfp("download", tmp_path, run="r1", config="", **form) == 0
    output = json.loads((tmp_path / "output.json").read_text())
    record = Workspace(form["workspace"]).step_record("r1", "download")
    assert record and output["parameterValues"] == {"name": "photos", "raw": record.uri, "changed": "true"}
    (artifact,) = output["artifacts"]["manifest"]["artifacts"]
    assert artifact["uri"] == "minio://bucket/manifest" and artifact["metadata"]["rows"] == 18
    assert json.loads(artifact["metadata"][RECORDS])["download"]["uri"] == record.uri
    assert json.loads((tmp_path / "deep" / "manifest").read_text())["kind"] == "raw"


def test_exit_step_tells_how_a_run_ended(
    form: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_argo("download", tmp_path / "raw", run="r1", **form) == 0
    ended = {"workspace": form["workspace"], "run": "r1"}
    assert run_argo("finish", tmp_path / "end", status="Failed", **ended) == 0
    assert "[finish] failed at clean" in capsys.readouterr().err
    assert "# photos: " in (tmp_path / "end" / "summary.md").read_text()
    assert run_kfp("finish", tmp_path, status={"state": "FAILED"}, **ended) == 0
    (artifact,) = json.loads((tmp_path / "output.json").read_text())["artifacts"]["summary"]["artifacts"]
    assert list(json.loads(artifact["metadata"][RECORDS])) == ["download"]


def test_failed_step_gives_nothing(form: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = {"workspace": form["workspace"], "name": "x", "raw": f"{form['workspace']}/raw/0"}
    assert run_argo("clean", out, run="r1", **values) == 2 and not out.exists()
    record = Workspace(form["workspace"]).step_record("r1", "clean")
    assert record and record.exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "step: expected one of download"),
        (["clean", "--run=r", "--outputs=o"], "--name: expected a value"),
        (["train", "--epoch=3"], "--epoch: expected a known flag; is it --epochs?"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pod.main(words) == 2 and message in capsys.readouterr().err


def test_storage_error_while_writing_results_is_transient(
    form: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset is made: the next try finds it, so this one must be one that is tried again."""

    def fail(uri: str, path: str) -> None:
        raise TransientError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(results, "download_file", fail)
        assert run_kfp("download", tmp_path, run="r1", config="", **form) == 75
    assert "could not be written for the orchestrator: the store does not answer" in capsys.readouterr().err
    assert run_kfp("download", tmp_path, run="r1", config="", **form) == 0
    record = Workspace(form["workspace"]).step_record("r1", "download")
    assert record and record.state == "cached"


def test_server_that_ignores_the_pods_settings_is_named(
    form: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(results.KFP_VERSION_VARIABLE, "2.17")
    monkeypatch.delenv(results.POD_NAME_VARIABLE, raising=False)
    assert run_kfp("download", tmp_path, run="r1", config="", **form) == 2
    assert "[download] error: kfp.version: expected the release" in capsys.readouterr().err
