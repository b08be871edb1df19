"""Exit codes and messages: 0 done, 2 the user's input is wrong, 75 try again later, 130 Ctrl-C; never a traceback."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pictures
import pytest
from commands import EXIT_INTERRUPTED, EXIT_USER, TINY, Workspace, finish, refuse, run, start, succeed, wait_for_line

MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "source that is not there": (["--dataset", "folder", "--source", "{tmp}/nowhere"], ("source", "nowhere")),
    "no source": (["--dataset", "folder"], ("source",)),
    "unknown dataset": (["--dataset", "petz"], ("dataset", "pets", "'petz'")),
    "misspelled flag": (["--epohcs", "3"], ("--epohcs", "--epochs")),
    "unknown backbone": (["--backbone", "resnet19"], ("backbone", "resnet18", "'resnet19'")),
    "folder without a file": (["--dataset", "folder", "--source", "{tmp}/empty"], ("source", "empty")),
    "folder without an image": (["--dataset", "folder", "--source", "{tmp}/texts"], ("source", "no image")),
    "table without labels": (["--dataset", "csv", "--source", "{tmp}/no-label.csv"], ("no-label.csv", "label")),
    "table without rows": (["--dataset", "csv", "--source", "{tmp}/no-rows.csv"], ("no-rows.csv", "row")),
    "ragged table": (["--dataset", "csv", "--source", "{tmp}/ragged.csv"], ("ragged.csv", "2")),
    "broken pattern": (
        ["--dataset", "filename", "--source", "{tmp}/lonely", "--label-pattern", "("], ("--label-pattern",),
    ),
    "workspace below a file": (["--workspace", "{tmp}/no-label.csv/work"], ("no-label.csv",)),
    "workspace of an unknown scheme": (["--workspace", "ftp://x"], ("workspace", "s3://", "'ftp://x'")),
    "config file that is not there": (["--config", "{tmp}/none.yaml"], ("--config", "none.yaml")),
    "config that is no YAML": (["--config", "{tmp}/broken.yaml"], ("--config", "broken.yaml")),
    "unknown key in a config": (["--config", "{tmp}/unknown.yaml"], ("epoch", "epochs")),
    "wrong type in a config": (["--config", "{tmp}/type.yaml"], ("epochs", "'many'")),
    "word for a number": (["--learning-rate", "fast"], ("--learning-rate", "number", "'fast'")),
    "fraction for a whole number": (["--epochs", "1.5"], ("--epochs", "whole number", "'1.5'")),
    "number out of range": (["--image-size", "4"], ("--image-size", "8", "4")),
    "fractions above one": (["--val-fraction", "0.6", "--test-fraction", "0.6"], ("1.2",)),
    "unknown step to rerun": (["--rerun", "nosuchstep"], ("rerun", "download", "'nosuchstep'")),
    "unknown runner": (["--runner", "slurm"], ("--runner", "'slurm'")),
    "name with a slash": (["--name", "../x"], ("name", "'../x'")),
    "class list that is not there": (["--class-list", "{tmp}/none.txt"], ("class_list", "none.txt")),
    "weights that are not there": (["--weights", "{tmp}/none.safetensors"], ("weights", "none.safetensors")),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the mistakes."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    pictures.write(folder / "texts" / "red" / "notes.txt", b"not an image")
    pictures.make_folder(folder / "lonely", ["red"], each=3)
    for name, text in {
        "no-label.csv": "path,kind\na.jpg,x\n", "no-rows.csv": "path,label\n", "ragged.csv": "path,label\na.jpg,x,y\n",
        "broken.yaml": "epochs: [1, 2\n", "unknown.yaml": "epoch: 3\n", "type.yaml": "epochs: many\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_refused_before_the_work(case: str, mistakes: Path, tmp_path: Path) -> None:
    """Exit code 2, one message that names the field or file and what it found; the same in the line of JSON."""
    arguments, words = MISTAKES[case]
    arguments = [argument.replace("{tmp}", str(mistakes)) for argument in arguments]
    if "--workspace" not in arguments:
        arguments += ["--workspace", str(tmp_path / "work")]
    finished = refuse("run", "--json", *arguments, words=words)
    assert finished.cpu_seconds < 10
    assert finished.json["status"] == "failed" and finished.json["exit_code"] == EXIT_USER
    assert finished.json["error"] in finished.error and finished.json["steps"] == {}
    assert not (tmp_path / "work" / "raw").exists()


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["run", "--epochs"], ["compile", "--target", "kfp"]])
def test_unknown_command_is_refused(arguments: list[str]) -> None:
    refuse(*arguments)


@pytest.mark.parametrize(
    ("step", "flag"),
    [("clean", "--raw"), ("resize", "--clean"), ("train", "--tensors"), ("promote", "--evaluation"),
     ("inspect", ""), ("predict", "--model")],
)  # fmt: skip
def test_dataset_that_is_not_there_is_refused(step: str, flag: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "work" / "kind" / "0123456789abcdef")
    arguments = [step, *([flag] if flag else []), nowhere]
    if step == "predict":
        arguments.append(str(pictures.add_picture(tmp_path, "red", 1)))
    elif flag:
        arguments += ["--workspace", str(tmp_path / "work")]
    refuse(*arguments, words=("0123456789abcdef",))


def test_dataset_of_another_kind_is_refused(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path / "work"))
    raw = workspace.download("folder", pictures.make_folder(tmp_path / "photos", each=2))
    refuse("resize", "--clean", raw, "--workspace", workspace.uri, words=("clean", "raw"))


def test_source_of_broken_images_alone_is_refused(tmp_path: Path) -> None:
    for number in range(6):
        data = pictures.encode(pictures.noisy_pixels(str(number)), "JPEG")[:300]
        pictures.write(tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg", data)
    finished = run("run", "--json", "--dataset", "folder", "--source", str(tmp_path / "photos"), "--workspace",
                   str(tmp_path / "work"), *TINY)  # fmt: skip
    assert finished.code == EXIT_USER and "Traceback" not in finished.stderr
    assert finished.json["status"] == "failed" and finished.json["steps"]["clean"]["state"] == "failed"


def test_unwritable_result_file_is_refused(tmp_path: Path) -> None:
    refuse("download", "--workspace", str(tmp_path / "work"), "--result", str(tmp_path / "none" / "r.json"),
           words=("--result",))  # fmt: skip
    assert not (tmp_path / "work" / "raw").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_workspace_without_rights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refuse("download", "--workspace", str(tmp_path / "locked" / "work"), words=("locked",))


def test_ctrl_c_ends_a_run_with_130_and_the_next_one_goes_on(tmp_path: Path) -> None:
    arguments = ["run", "--json", "--workspace", str(tmp_path / "work"), *TINY]
    process = start(*arguments)
    wait_for_line(process, "[clean]")
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
    finished = finish(process)
    assert finished.code == EXIT_INTERRUPTED and "Traceback" not in finished.stderr, finished.stderr
    assert time.monotonic() - started < 60
    assert succeed(
        "download", "--workspace", str(tmp_path / "work"), "--name", "demo", "--result", str(tmp_path / "result.json")
    ).code == 0  # fmt: skip
    assert json.loads((tmp_path / "result.json").read_text())["state"] == "cached"


def test_help_and_version_answer_at_once() -> None:
    """Under 0.3 CPU seconds on a quiet machine; three times that leaves room for a slow one."""
    assert "COMMAND" in succeed("--help").stdout
    assert min(succeed("--version").cpu_seconds for _ in range(3)) < 0.9


def test_parameters_come_from_flag_variable_and_file(tmp_path: Path) -> None:
    """A flag wins over a variable, and that over the file; `imagemill config` tells where each comes from."""
    (tmp_path / "mill.yaml").write_text("epochs: 3\nimage_size: 48\ntrain: {seed: 7}\n")
    finished = succeed(
        "config", "--config", str(tmp_path / "mill.yaml"), "--batch-size", "9", env={"IMAGEMILL_EPOCHS": "5"}
    )
    lines = {line.partition(":")[0].strip(): line.partition(":")[2].split() for line in finished.stdout.splitlines()}
    assert lines["epochs"][0] == "5" and lines["image_size"][0] == "48" and lines["batch_size"][0] == "9"


def test_schema_of_config_files_checks_them(tmp_path: Path) -> None:
    import jsonschema

    schema = json.loads(succeed("config", "--schema").stdout)
    jsonschema.validate({"epochs": 3, "train": {"seed": 7}, "color": "gray"}, schema)
    for wrong in ({"epoch": 3}, {"epochs": "many"}, {"color": "purple"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
