"""Output folders of exports: written once, completely, and never over other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import exports
import pytest

from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.export import output_folder
from imagemill.components.export.config import ExportConfig
from imagemill.components.export.output_folder import MARKER, STARTED
from imagemill.components.storage.errors import DatasetError, UserError

FORMATS = ("imagefolder", "tfrecord", "webdataset", "huggingface")


@pytest.fixture
def source(tmp_path: Path) -> Dataset:
    return exports.tensors(str(tmp_path / "tensors" / "01"))


@pytest.mark.parametrize("form", FORMATS)
def test_second_run_is_cached_and_another_folder_gets_the_same_bytes(
    source: Dataset, tmp_path: Path, form: str
) -> None:
    first = exports.run(source, form, tmp_path / "one", 4000)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*")}
    assert (first["state"], exports.run(source, form, tmp_path / "one", 4000)["state"]) == ("ran", "cached")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*")} == times
    exports.run(source, form, tmp_path / "two", 4000)
    assert exports.tree(tmp_path / "one") == exports.tree(tmp_path / "two")
    marker = json.loads((tmp_path / "one" / MARKER).read_text())
    assert marker["totals"]["rows"] == 40 and marker["identity"]["manifest_sha256"] == source.manifest_sha256
    for file in marker["files"]:
        assert len((tmp_path / "one" / file["path"]).read_bytes()) == file["bytes"]


def run_unfinished(source: Dataset, form: str, output: Path, shard_bytes: int) -> None:
    """Interrupt an export before its marker is written."""

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(output_folder.OutputFolder, "finish", interrupt)
        exports.run(source, form, output, shard_bytes)


@pytest.mark.parametrize("form", FORMATS)
def test_unfinished_export_continues(source: Dataset, tmp_path: Path, form: str) -> None:
    exports.run(source, form, tmp_path / "whole", 4000)
    run_unfinished(source, form, tmp_path / "out", 4000)
    files = [p for p in sorted((tmp_path / "out").rglob("*")) if p.is_file() and p.name != STARTED]
    files[0].unlink()
    files[1].write_bytes(b"x" * files[1].stat().st_size)  # of the right size, and wrong
    (tmp_path / "out" / f".{files[1].name}.0123456789ab.tmp").write_bytes(b"left by a kill")
    old_scratch = tmp_path / "out" / ".scratch-left"
    old_scratch.mkdir()
    (old_scratch / ".lock").touch()
    exports.run(source, form, tmp_path / "out", 4000)
    assert exports.tree(tmp_path / "out") == exports.tree(tmp_path / "whole")


def test_folder_with_other_files_is_rejected(source: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match=r"--output: expected an empty place.*thesis\.txt"):
        exports.run(source, "webdataset", tmp_path / "mine")
    assert exports.tree(tmp_path / "mine") == {"thesis.txt": b"dear"}
    with pytest.raises(UserError, match="Not a directory"):
        exports.run(source, "webdataset", tmp_path / "mine" / "thesis.txt")


@pytest.mark.parametrize("run", [exports.run, run_unfinished], ids=["finished", "unfinished"])
def test_another_export_is_not_mixed_with(source: Dataset, tmp_path: Path, run: Callable[..., Any]) -> None:
    run(source, "webdataset", tmp_path / "out", 1 << 28)
    before = exports.tree(tmp_path / "out")
    other = exports.tensors(str(tmp_path / "tensors" / "02"), rows=4)
    for dataset, form, size in (
        (other, "webdataset", 1 << 28),
        (source, "tfrecord", 1 << 28),
        (source, "webdataset", 9),
    ):
        with pytest.raises(UserError, match="an export webdataset"):
            exports.run(dataset, form, tmp_path / "out", size)
    assert exports.tree(tmp_path / "out") == before


@pytest.mark.parametrize("output", ["{source}", "{source}/export", "{parent}", ""])
def test_the_output_is_apart_from_the_dataset(source: Dataset, output: str) -> None:
    path = output.format(source=source.uri, parent=source.uri.rpartition("/")[0])
    with pytest.raises(UserError, match="--output: expected"):
        exports.run(source, "imagefolder", path)


def test_datasets_without_images_are_rejected(tmp_path: Path) -> None:
    uri = str(tmp_path / "model" / "01")
    commit(uri, Manifest("model", "01"))
    with pytest.raises(UserError, match=r"a clean or tensors dataset, found .* of kind model"):
        ExportConfig(uri, "webdataset", str(tmp_path / "out")).open_dataset()
    with pytest.raises(UserError, match=r"a folder with _manifest\.json"):
        ExportConfig(str(tmp_path), "webdataset", str(tmp_path / "out")).open_dataset()


def test_a_label_that_is_none_of_the_classes_is_an_error(tmp_path: Path) -> None:
    uri = str(tmp_path / "tensors" / "01")
    tensors = exports.tensors(uri)
    (Path(uri) / "_manifest.json").unlink()
    commit(uri, replace(tensors.manifest, classes=("a", "b"), fingerprint="02"))
    with pytest.raises(DatasetError, match="expected labels of 2 classes, found 2"):
        exports.run(tensors, "webdataset", tmp_path / "out")
