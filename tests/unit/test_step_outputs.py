"""Files that a step writes for an orchestrator with `--outputs`, and its JSON `--config`."""

from __future__ import annotations

import json
from pathlib import Path

import mill
import pytest

from imagemill.components.clean import STEP as CLEAN
from imagemill.components.download import STEP as DOWNLOAD
from imagemill.components.step import step
from imagemill.components.storage.errors import TransientError


def test_outputs_are_files_with_single_values(tmp_path: Path) -> None:
    photos, workspace = mill.make_photos(tmp_path / "photos", each=6), tmp_path / "workspace"
    raw = tmp_path / "deep" / "raw"
    common = [f"--workspace={workspace}", "--run=r1"]
    rc = DOWNLOAD.main(["--dataset=folder", f"--source={photos}", f"--outputs={raw}", *common])
    assert rc == 0
    uri = (raw / "uri").read_text()
    assert uri.startswith(f"{workspace}/raw/")
    assert (raw / "state").read_text() == "ran"
    assert (raw / "name").read_text() == "photos"  # no quotes: it becomes a parameter
    assert json.loads((raw / "rows").read_text()) == 18
    assert json.loads((raw / "manifest.json").read_text())["kind"] == "raw"
    assert json.loads((raw / "metrics.json").read_text())["rows"] == 18

    clean_outputs = tmp_path / "clean"
    section = json.dumps({"clean": {"min_side": 20}, "train": {"weight_decay": 0.1}})
    words = [f"--raw={uri}/_manifest.json", f"--config={section}", f"--outputs={clean_outputs}", *common]
    assert CLEAN.main(words) == 0
    assert json.loads((clean_outputs / "manifest.json").read_text())["config"]["min_side"] == 20
    assert json.loads((clean_outputs / "record.json").read_text())["uri"] == (clean_outputs / "uri").read_text()


def test_failed_step_writes_no_uri(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = CLEAN.main([f"--raw={tmp_path}/raw/0", f"--workspace={tmp_path}", f"--outputs={out}"])
    assert code == 2
    assert not (out / "uri").exists()
    assert json.loads((out / "record.json").read_text())["exit_code"] == 2


def test_option_in_flag_and_config_is_refused(tmp_path: Path) -> None:
    words = [f"--raw={tmp_path}/raw/0", f"--workspace={tmp_path}", "--color=gray"]
    assert CLEAN.main([*words, '--config={"clean": {"color": "rgb"}}']) == 2
    assert CLEAN.main([*words, "--config={"]) == 2


def test_storage_error_while_writing_outputs_is_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset is made: the next try finds it, so this one must be one that is tried again."""
    photos = mill.make_photos(tmp_path / "photos", each=3)
    words = ["--dataset=folder", f"--source={photos}", f"--workspace={tmp_path / 'w'}", f"--outputs={tmp_path / 'o'}"]

    def fail(uri: str, path: str) -> None:
        raise TransientError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(step, "download_file", fail)
        assert DOWNLOAD.main(words) == 75
        with pytest.raises(SystemExit) as ended:
            DOWNLOAD.component("", str(tmp_path / "a"), dataset="folder", source=str(photos), workspace=f"{tmp_path}/w")
        assert ended.value.code == 75
    assert capsys.readouterr().err.count("could not be written for the orchestrator: the store does not answer") == 2
    assert DOWNLOAD.main(words) == 0
    assert (tmp_path / "o" / "state").read_text() == "cached"
