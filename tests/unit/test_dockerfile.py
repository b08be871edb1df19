"""The Dockerfile and its locks, read as text: what an image must have, and that all that enters it is pinned."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from imagemill.pipelines.cluster.cluster_file import SCRATCH, UID
from imagemill.pipelines.steps import PIPELINE

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TEXT = (DOCKER / "Dockerfile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGES = ("cpu", "ray", "gpu")


def load(name: str) -> ModuleType:
    """A script of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


locks = load("locks")


def instructions() -> list[list[str]]:
    """Each instruction as [name, rest], comments and line ends folded."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    return [line.split(None, 1) for line in lines.replace("\\\n", " ").splitlines() if line.strip()]


def stages() -> dict[str, tuple[str, list[list[str]]]]:
    """Name → (what it builds on, its instructions)."""
    stages_by_name: dict[str, tuple[str, list[list[str]]]] = {}
    name = ""
    for instruction in instructions():
        if instruction[0] == "FROM":
            base, _, name = instruction[1].split()
            stages_by_name[name] = (base, [])
        elif name:
            stages_by_name[name][1].append(instruction)
    return stages_by_name


def lineage(name: str) -> list[list[str]]:
    """The instructions of a stage, and before them those of all that it builds on."""
    base, own = stages()[name]
    base = re.sub(r"\$\{TORCH_INDEX:\+.*?\}", "", base)
    return (lineage(base) if base in stages() else []) + own


def test_the_targets_are_the_images_that_the_cluster_file_names() -> None:
    assert {step.image for step in PIPELINE.values()} == set(IMAGES) and set(IMAGES) <= set(stages())
    assert [name for name, (base, _) in stages().items() if base == "${BASE_IMAGE}"] == ["tools", "runtime"]
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim-bookworm$", TEXT, re.MULTILINE)


def test_one_target_builds_all_images() -> None:
    base, own = stages()["all"]
    assert base == "scratch" and [rest.split()[0] for _, rest in own] == [f"--from={name}" for name in IMAGES]


def test_dockerfile_needs_no_recent_builder_or_latest_image() -> None:
    assert "latest" not in TEXT
    assert "# syntax" not in TEXT and "<<" not in TEXT and "--link" not in TEXT
    names = [instruction[0] for instruction in instructions()]
    assert "ADD" not in names  # it fetches, and unpacks, what it is given


@pytest.mark.parametrize("target", IMAGES)
def test_images_run_unprivileged_and_write_to_one_folder(target: str) -> None:
    own = lineage(target)
    assert own[-1] == ["USER", f"{UID}:{UID}"]
    assert ["VOLUME", SCRATCH] in own and ["WORKDIR", SCRATCH] in own
    settings = dict(
        pair.split("=", 1) for name, rest in own if name == "ENV" for pair in rest.split() if "=" in pair
    )  # fmt: skip
    assert settings["TMPDIR"] == settings["HOME"] == SCRATCH
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "RAY_TMPDIR"):
        assert settings[name].startswith(f"{SCRATCH}/"), name
    # A socket of Ray's: <RAY_TMPDIR>/session_<date>_<time>_<microseconds>_<pid>/sockets/plasma_store
    assert len(settings["RAY_TMPDIR"]) + len("/session_2026-11-21_22-13-36_836000_4194304/sockets/plasma_store.1") < 107
    expected = {"_KFP_RUNTIME": "true", "NO_ALBUMENTATIONS_UPDATE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    assert expected.items() <= settings.items()
    assert not [name for name in settings if name.startswith(("PIP_", "UV_"))]


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_inherits_no_build_stage_and_no_argument_with_an_index(target: str) -> None:
    own = lineage(target)
    assert not [rest for name, rest in own if name == "COPY"], "files come by the wheels alone"
    arguments = {rest.split("=")[0] for name, rest in own if name == "ARG"}
    assert arguments == {"VERSION", "REVISION", "SOURCE", "CREATED"}
    for words in (rest for name, rest in own if name == "RUN"):
        assert "apt-get" in words or words.startswith("--mount=type=bind"), words
        assert not re.search(r"pip (install|wheel)|build-essential|gcc", words), words


@pytest.mark.parametrize("target", IMAGES)
def test_an_image_has_the_labels_of_the_open_containers_initiative(target: str) -> None:
    labels = " ".join(rest for name, rest in stages()[target][1] if name == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision", "source", "created"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'title="imagemill-{target}"' in labels and f'licenses="{PROJECT["license"]}"' in labels


def test_copied_files_exist_pass_dockerignore_and_are_input_files() -> None:
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    allowed = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in allowed or f"docker/*{Path(source).suffix}" in allowed, source
    assert "LICENSE" in copied, "a copy of the software goes with its license"


@pytest.mark.parametrize("name", [*IMAGES, "build"])
def test_every_line_of_a_lock_is_a_version_with_hashes(name: str) -> None:
    text = (DOCKER / f"{name}.lock").read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9][a-z0-9-]*==[^\s;@]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
    for package, entry in locks.read_lock(DOCKER / f"{name}.lock").items():
        assert "--hash=sha256:" in entry, package
    assert "python docker/locks.py make" in text
    assert not re.search(r"https?:|file:|index|find-links|/opt/|/root/", text), "a lock names no host and no folder"


@pytest.mark.parametrize("target", IMAGES)
def test_a_lock_agrees_with_the_extras_of_the_project(target: str) -> None:
    pinned = {
        name: entry.split()[0].split("==")[1] for name, entry in locks.read_lock(DOCKER / f"{target}.lock").items()
    }
    requirements = list(PROJECT["dependencies"])
    for extra in locks.EXTRAS[target]:
        requirements += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, requirements):
        name = requirement.name.lower().replace("_", "-")
        assert name in pinned and requirement.specifier.contains(pinned[name]), (
            f"{requirement}: python docker/locks.py make"
        )


def test_every_step_finds_its_extra_in_its_image() -> None:
    extras = {"evaluate": "train"}
    for name, step in PIPELINE.items():
        assert {extras.get(name, name), "container"} <= {*locks.EXTRAS[step.image]}, name


def test_the_build_tools_suit_the_project() -> None:
    pinned = locks.list_pins(str(DOCKER / "build.lock"), ["pip", "setuptools"])
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert all(Requirement(need).specifier.contains(pinned[1].split("==")[1]) for need in needs)


def test_images_share_package_versions_and_layers() -> None:
    """All images have the same version of a package and cpu's packages; each package is in one layer of its image."""
    cpu, ray, gpu = (locks.read_lock(DOCKER / f"{name}.lock") for name in IMAGES)
    for packages in (ray, gpu):
        assert cpu.items() <= packages.items()
    assert all(ray[name] == gpu[name] for name in ray.keys() & gpu.keys())
    paths = {name: str(DOCKER / f"{name}.lock") for name in IMAGES}
    shared = locks.pick(paths["ray"], paths["gpu"], [paths["cpu"]], [])
    assert {"torch", "torchvision", "triton"} <= set(re.findall(r"^([a-z0-9-]+)==", shared, re.MULTILINE))
    for name, other in (("ray", "gpu"), ("gpu", "ray")):
        own = locks.pick(paths[name], "", [paths["cpu"], paths[other]], [])
        layers = "".join(cpu.values()) + shared + own
        assert sorted(re.findall(r"^([a-z0-9-]+)==", layers, re.MULTILINE)) == sorted(locks.read_lock(paths[name]))


def test_an_index_for_torch_leaves_out_cuda_and_torch_itself() -> None:
    paths = {name: str(DOCKER / f"{name}.lock") for name in IMAGES}
    command = next(rest for name, rest in instructions() if name == "RUN" and "torch-less.lock" in rest)
    without = re.findall(r"--without (\S+)", command)
    reduced = set(locks.pick(paths["ray"], paths["gpu"], [paths["cpu"]], without).replace("==", " ").split("\n"))
    full = set(locks.pick(paths["ray"], paths["gpu"], [paths["cpu"]], []).replace("==", " ").split("\n"))
    left_out = {line.split()[0] for line in full - reduced if line and line[0] != " "}
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= left_out
    assert all(name in ("torch", "torchvision") or name.startswith(locks.CUDA) for name in left_out)
    assert locks.list_pins(paths["ray"], ["torch", "torchvision"])[0].startswith("torch==")
