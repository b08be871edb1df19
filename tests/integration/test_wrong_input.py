"""User errors of the command: exit code 2 and one message with the field, what was expected and what was found."""

from __future__ import annotations

import json
from pathlib import Path

import mill
import pytest

from imagemill.components.dataset.manifest import MANIFEST, Manifest


def assert_refused(result: mill.Result, *words: str) -> None:
    """Exit code 2, no trace, and one message with all the words in it."""
    assert result.rc == 2, result.stderr
    assert "Traceback" not in result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("imagemill: error: ")]
    assert messages == [result.error], "one message, and it is the last line"
    for word in words:
        assert word in result.error
    assert "None" not in result.error


def test_flag_of_a_step_is_suggested() -> None:
    result = mill.run("clean", "--colour", "gray")
    assert (result.rc, result.error) == (2, "[clean] error: --colour: expected a known flag; is it --color?")


# What only reading the data can tell: the step refuses it, and the command repeats its message.


def run_folder(source: Path, workspace: Path, *more: str) -> mill.Result:
    words = ["--dataset", "folder", "--source", str(source), "--workspace", str(workspace)]
    return mill.run("run", "--json", *words, *more)


def test_missing_test_split_is_refused(small_photos: Path, tmp_path: Path) -> None:
    result = run_folder(small_photos, tmp_path / "work", "--test-fraction", "0")
    assert_refused(result, "clean: split", "test image", "test_fraction")
    assert not mill.manifests(tmp_path / "work")["clean"]


def test_parent_of_another_kind_or_workspace_is_refused(tmp_path: Path) -> None:
    """The message names both places and the flag; and a step that could not begin has left nothing."""
    elsewhere = f", of the workspace {tmp_path}/other: say --workspace {tmp_path}/other"
    for place, hint in ((tmp_path / "work" / "raw" / "01", ""), (tmp_path / "other" / "clean" / "01", elsewhere)):
        result = mill.run("resize", "--clean", str(place), "--workspace", str(tmp_path / "work"))
        assert result.rc == 2 and "Traceback" not in result.stderr
        expected = f"clean: expected a clean dataset of the workspace {tmp_path}/work (--workspace), found '{place}'"
        assert result.error.endswith(expected + hint)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change,words",
    [
        ({"version": 1}, ["(version)", "expected 2; ", "found 1"]),
        ({"format": "parquet-of-mine"}, ["(format)", "imagemill", "'parquet-of-mine'"]),
        ({"kind": "cooked"}, ["(kind)", "raw", "'cooked'"]),
        ({"files": [{"uri": "x"}]}, ["files[0].role", "expected a text"]),
    ],
)
def test_manifest_of_another_version_is_refused(change: dict[str, object], words: list[str], tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "0123456789abcdef"
    raw.mkdir(parents=True)
    (raw / MANIFEST).write_bytes(Manifest("raw", raw.name).to_json())
    manifest = json.loads((raw / MANIFEST).read_text())
    (raw / MANIFEST).write_text(json.dumps(manifest | change))
    result = mill.run("clean", "--raw", str(raw), "--workspace", str(tmp_path))
    assert result.rc == 2 and "Traceback" not in result.stderr
    for word in [MANIFEST, *words]:
        assert word in result.error
