"""Without an extra every command says in one line which one it needs, before it does any work."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import exports
import mill
import pytest
import yaml
from packages import IMAGES
from trained import commit_model
from without import CLI, CLUSTER, COMMANDS, Message, run_without

from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.artifact import ModelSpec
from imagemill.components.step.command_line import MODULES
from imagemill.pipelines.steps import PIPELINE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"images": IMAGES}))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_command_names_the_missing_extra(name: str, folder: Path) -> None:
    module, arguments, message = COMMANDS[name]
    message.check(run_without(MODULES, module, arguments, folder))
    assert [path.name for path in folder.iterdir()] == ["cluster.yaml"], "it left something behind"


@pytest.mark.parametrize("command", ["run", "tune", "resize", "train", "submit", "doctor"])
def test_help_needs_no_extra(command: str, tmp_path: Path) -> None:
    process = run_without(MODULES, CLI, [command, "--help"], tmp_path)
    assert (process.returncode, process.stderr) == (0, "") and "usage: imagemill" in process.stdout


def test_run_checks_the_extras_of_all_steps_first(tmp_path: Path) -> None:
    """The run fails before download and clean do their work."""
    process = run_without(["cleanlab"], CLI, ["run", "--json"], tmp_path)
    assert process.returncode == 2 and '"status": "failed"' in process.stdout.splitlines()[-1]
    assert "imagemill run needs cleanlab: pip install 'imagemill[all]'" in process.stderr
    assert not list(tmp_path.iterdir())


def test_download_and_inspect_need_no_extra(tmp_path: Path) -> None:
    mill.make_photos(tmp_path / "photos")
    arguments = ["--dataset", "folder", "--source", "photos", "--workspace", "work", "--result", "result.json"]
    process = run_without(MODULES, CLI, ["download", *arguments], tmp_path)
    assert process.returncode == 0, process.stderr
    raw = re.search(r'"uri": "([^"]+)"', (tmp_path / "result.json").read_text())
    assert raw
    inspected = run_without(MODULES, CLI, ["inspect", raw[1]], tmp_path)
    assert inspected.returncode == 0 and "60" in inspected.stdout, inspected.stderr


def test_extras_of_single_options_are_named_when_missing(folder: Path) -> None:
    """kfp-kubernetes is a package of its own within kfp's."""
    arguments = ["compile", "--target", "kfp", *CLUSTER, "-o", "a.yaml"]
    Message("compile", "kfp-kubernetes", "pipelines").check(run_without(["kfp.kubernetes"], CLI, arguments, folder))
    arguments = ["predict", "--ray-address", "auto", "photo.jpg"]
    Message("predict", "Ray", "resize").check(run_without(["ray"], CLI, arguments, folder))


@pytest.mark.proof
def test_predict_needs_its_own_extra_alone(tmp_path: Path) -> None:
    """The image of Ray's nodes has no more."""
    mill.make_photos(tmp_path / "photos", each=1)
    geometry = Geometry(32).describe("raw", [0.5] * 3, [0.1] * 3)
    model = commit_model(tmp_path, ModelSpec("resnet18", ("cat", "dog"), geometry)).uri
    others = [module for module, (_, extras) in MODULES.items() if "predict" not in extras]
    process = run_without(others, CLI, ["predict", "--model", model, "--json", "photos"], tmp_path)
    assert process.returncode == 0 and len(process.stdout.splitlines()) == len(mill.CLASSES), process.stderr


def test_an_export_names_the_extra_of_its_format(tmp_path: Path) -> None:
    dataset = exports.clean_single(str(tmp_path / "clean" / "01"))
    arguments = ["export", dataset.uri, "--output", str(tmp_path / "out"), "--format"]
    Message("export", "google-crc32c", "export").check(run_without(MODULES, CLI, [*arguments, "tfrecord"], tmp_path))
    assert not (tmp_path / "out").exists()
    process = run_without(MODULES, CLI, [*arguments, "webdataset"], tmp_path)
    assert process.returncode == 0, process.stderr


# --- the tables agree with pyproject.toml and with the images ---------------------------------------------------------


def requirements(extra: str) -> set[str]:
    """The distributions that an extra names."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    return {canonical(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in listed}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


@functools.cache
def modules_of_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()  # which reads every installed file's name: seconds


def distributions(module: str) -> set[str]:
    special = {"kfp.kubernetes": "kfp-kubernetes", "kfp_server_api": "kfp", "tensorflow": "tensorflow-cpu"}
    names = modules_of_distributions().get(module, [module])
    return {special[module]} if module in special else {canonical(name) for name in names}


def test_extras_install_the_modules() -> None:
    for module, (_, extras) in MODULES.items():
        for extra in extras:
            assert distributions(module) & requirements(extra), f"[{extra}] does not install {module}"


@pytest.mark.parametrize("step", PIPELINE)
def test_image_of_a_step_has_its_required_modules(step: str) -> None:
    lock = (ROOT / "docker" / f"{PIPELINE[step].image}.lock").read_text()
    locked = {canonical(name) for name in re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==", lock, re.M)}
    for module in PIPELINE[step].step.needs:
        assert distributions(module) & locked, module
