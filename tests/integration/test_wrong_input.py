"""User errors of the command: exit code 2 and one message with the field, what was expected and what was found."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import mill
import numpy as np
import pytest

from imagemill.components.dataset.manifest import MANIFEST, Manifest

KEYS = {"status", "name", "raw", "clean", "tensors", "model", "evaluation", "report", "metrics", "promoted", "steps"}


def assert_refused(result: mill.Result, *words: str) -> None:
    """Exit code 2, no trace, and one message with all the words in it."""
    assert result.rc == 2, result.stderr
    assert "Traceback" not in result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("imagemill: error: ")]
    assert messages == [result.error], "one message, and it is the last line"
    for word in words:
        assert word in result.error
    assert "None" not in result.error


ARGUMENT_ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "missing source": (["--dataset", "folder", "--source", "{tmp}/nowhere"], ["source", "expected", "nowhere"]),
    "no source": (["--dataset", "folder"], ["source", "needs"]),
    "unknown dataset": (["--dataset", "petz"], ["dataset", "pets", "'petz'"]),
    "unknown flag": (["--epohcs", "3"], ["--epohcs", "--epochs"]),
    "unknown backbone": (["--backbone", "resnet19"], ["backbone", "resnet18", "'resnet19'"]),
    "empty folder": (["--dataset", "folder", "--source", "{tmp}/empty"], ["source", "empty", "nothing"]),
    "no images": (["--dataset", "folder", "--source", "{tmp}/texts"], ["source", "texts", "no image"]),
    "one class": (["--dataset", "folder", "--source", "{tmp}/lonely"], ["two classes", "only 'red'"]),
    "csv without label": (["--dataset", "csv", "--source", "{tmp}/no-label.csv"], ["no-label.csv", "label", "path"]),
    "csv without rows": (["--dataset", "csv", "--source", "{tmp}/no-rows.csv"], ["no-rows.csv", "at least one row"]),
    "csv with a ragged line": (["--dataset", "csv", "--source", "{tmp}/ragged.csv"], ["ragged.csv", "2 columns"]),
    "bad pattern": (["--dataset", "filename", "--source", "{tmp}/lonely", "--label-pattern", "("], ["--label-pattern"]),
    "workspace below a file": (["--workspace", "{tmp}/no-label.csv/work"], ["no-label.csv/work", "expected"]),
    "workspace in /proc": (["--workspace", "/proc/imagemill"], ["/proc/imagemill", "expected"]),
    "workspace by ftp": (["--workspace", "ftp://x"], ["workspace", "s3://bucket/prefix", "'ftp://x'"]),
    "no config file": (["--config", "{tmp}/none.yaml"], ["--config", "none.yaml"]),
    "config that is no YAML": (["--config", "{tmp}/broken.yaml"], ["--config", "broken.yaml"]),
    "config that is a list": (["--config", "{tmp}/list.yaml"], ["--config", "names and values", "list"]),
    "unknown key in the config": (["--config", "{tmp}/unknown.yaml"], ["epoch", "is it epochs?"]),
    "unknown key in a section": (["--config", "{tmp}/section.yaml"], ["weight_dekay", "weight_decay"]),
    "wrong type in the config": (["--config", "{tmp}/type.yaml"], ["epochs", "a whole number", "'many'"]),
    "bad number": (["--learning-rate", "fast"], ["--learning-rate", "a number", "'fast'"]),
    "fraction of a whole number": (["--epochs", "1.5"], ["--epochs", "a whole number", "'1.5'"]),
    "number out of range": (["--image-size", "4"], ["--image-size", "at least 8", "4"]),
    "nothing to train on": (["--val-fraction", "0.6", "--test-fraction", "0.6"], ["less than 1", "1.2"]),
    "unknown step to rerun": (["--rerun", "nosuchstep"], ["rerun", "download", "'nosuchstep'"]),
    "unknown runner": (["--runner", "slurm"], ["--runner", "subprocess", "'slurm'"]),
    "name with a slash": (["--name", "../x"], ["name", "letters", "'../x'"]),
    "no class list": (["--class-list", "{tmp}/none.txt"], ["class_list", "none.txt"]),
    "no weights": (["--weights", "{tmp}/none.safetensors"], ["weights", "none.safetensors"]),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of each mistake."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "texts" / "red").mkdir(parents=True)
    (folder / "texts" / "red" / "notes.txt").write_text("not an image")
    mill.make_photos(folder / "lonely", ["red"], each=3)
    for name, text in {
        "no-label.csv": "path,kind\na.jpg,x\n", "no-rows.csv": "path,label\n", "ragged.csv": "path,label\na.jpg,x,y\n",
        "broken.yaml": "epochs: [1, 2\n", "list.yaml": "- 1\n", "unknown.yaml": "epoch: 3\n",
        "section.yaml": "train:\n  weight_dekay: 0.1\n", "type.yaml": "epochs: many\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("case", ARGUMENT_ERRORS)
def test_argument_error_is_found_before_data_is_read(case: str, mistakes: Path, tmp_path: Path) -> None:
    """Refused after less than five seconds of work, nothing run, with one line of JSON for whoever reads that."""
    arguments, words = ARGUMENT_ERRORS[case]
    arguments_ = [argument.replace("{tmp}", str(mistakes)) for argument in arguments]
    workspace = [] if "--workspace" in arguments_ else ["--workspace", str(tmp_path / "work")]
    result = mill.run("run", "--json", *workspace, *arguments_)
    assert_refused(result, *words)
    assert result.worked < 5
    assert result.json["exit_code"] == 2 and result.error == f"imagemill: error: {result.json['error']}"
    assert result.json.keys() >= KEYS and result.json["status"] == "failed" and result.json["steps"] == {}
    assert not (tmp_path / "work" / "raw").exists()


def test_flag_of_a_step_is_suggested() -> None:
    result = mill.run("clean", "--colour", "gray")
    assert (result.rc, result.error) == (2, "[clean] error: --colour: expected a known flag; is it --color?")


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["run", "--epochs"], ["compile", "--target", "kfp"]])
def test_unknown_command_is_refused(words: list[str]) -> None:
    assert_refused(mill.run(*words))


def test_unwritable_result_file_is_refused_before_the_work(tmp_path: Path) -> None:
    result = mill.run("download", "--workspace", str(tmp_path / "work"), "--result", str(tmp_path / "none" / "r.json"))
    assert result.rc == 2 and "--result" in result.error and "Traceback" not in result.stderr
    assert not (tmp_path / "work" / "raw").exists()


# What only reading the data can tell: the step refuses it, and the command repeats its message.


def run_folder(source: Path, workspace: Path, *more: str) -> mill.Result:
    words = ["--dataset", "folder", "--source", str(source), "--workspace", str(workspace)]
    return mill.run("run", "--json", *words, *more)


def test_source_with_only_corrupt_images_is_refused(tmp_path: Path) -> None:
    for name in ("red/1.jpg", "red/2.jpg", "blue/3.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff\xe0 this is no photograph" + name.encode())
    result = run_folder(tmp_path / "photos", tmp_path / "work")
    assert_refused(result, "clean: source", "none", "corrupt ")
    assert result.json["steps"].keys() == {"download", "clean"}
    assert result.json["steps"]["clean"]["state"] == "failed"
    assert result.json["raw"] and not result.json["clean"]


def test_missing_test_split_is_refused(small_photos: Path, tmp_path: Path) -> None:
    result = run_folder(small_photos, tmp_path / "work", "--test-fraction", "0")
    assert_refused(result, "clean: split", "test image", "test_fraction")
    assert not mill.manifests(tmp_path / "work")["clean"]


def test_single_class_in_an_archive_is_refused(tmp_path: Path) -> None:
    mill.make_photos(tmp_path / "photos", ["red"], each=3)
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "tar", tmp_path / "photos"))
    assert_refused(run_folder(archive, tmp_path / "work"), "label", "at least two classes", "only 'red'", "photos.tar")


def test_duplicate_path_in_an_archive_is_refused(tmp_path: Path) -> None:
    """`red/1.png` and `./red/1.png` are one image_id."""
    archive = tmp_path / "photos.tar"
    mill.add_photo(tmp_path / "1.png", "red", np.random.default_rng(0))
    data = (tmp_path / "1.png").read_bytes()
    with tarfile.open(archive, "w") as tar:
        for name in ("red/1.png", "blue/2.png", "./red/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert_refused(run_folder(archive, tmp_path / "work"), "image_id", "'red/1.png' 2 times")


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos.tar.gz").write_bytes(b"<html>404</html>" * 100)
    assert_refused(run_folder(tmp_path / "photos.tar.gz", tmp_path / "work"), "photos.tar.gz", "expected")


@pytest.mark.parametrize(
    "step,parent", [("clean", "raw"), ("resize", "clean"), ("train", "tensors"), ("evaluate", "model")]
)
def test_parent_that_is_no_dataset_is_refused(step: str, parent: str, tmp_path: Path) -> None:
    place = str(tmp_path / parent / "0123456789abcdef")
    result = mill.run(step, f"--{parent}", place, "--workspace", str(tmp_path))
    assert result.rc == 2 and "Traceback" not in result.stderr
    assert result.error.startswith(f"[{step}] error: {parent}: expected the URI of a {parent} dataset")
    assert place in result.error and not list(tmp_path.iterdir())


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
        ({"version": 2}, ["(version)", "expected 1; ", "found 2"]),
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
