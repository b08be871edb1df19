"""The lowest versions that pyproject.toml allows work: those of `.[all,test]` together, and imagemill without extras.

A proof: PyTorch with CUDA alone is 3 GB to download, once, and 6 GB on disk while it lasts; a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packages import IMAGES
from without import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.proof
QUICK = ["--image-size", "32", "--epochs", "1", "--backbone", "shufflenet_v2_x0_5"]


def install(extras: str) -> Iterator[Path]:
    """Yield the bin folder of a fresh environment with the lowest direct dependencies of `imagemill` with extras."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    assert uv, "uv is missing: pip install uv"
    with tempfile.TemporaryDirectory(prefix="imagemill-floors-") as folder:
        source, environment = Path(folder) / "source", Path(folder) / "venv"
        for part in ("components", "pipelines"):  # installing writes beside the sources
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, source / part)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
        python = environment / "bin" / "python"
        command = [uv, "pip", "install", "--quiet", "--python", python, "--resolution", "lowest-direct"]
        subprocess.run([*command, f"imagemill{extras} @ {source.as_uri()}"], check=True)
        yield environment / "bin"


@pytest.fixture(scope="module")
def with_extras() -> Iterator[Path]:
    yield from install("[all,test]")


@pytest.fixture(scope="module")
def without_extras() -> Iterator[Path]:
    yield from install("")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"images": IMAGES}))
    return tmp_path


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the fresh environment, without what this one says of Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONHASHSEED"] = "0"  # pytest's workers have to list the tests in the same order
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", ["kfp", "argo"])
def test_pipeline_is_compiled(target: str, with_extras: Path, folder: Path) -> None:
    words = ["compile", "--target", target, "--cluster", "cluster.yaml", "-o", "pipeline.yaml"]
    process = run(folder, with_extras / "imagemill", *words)
    assert process.returncode == 0, process.stderr
    assert all(yaml.safe_load_all((folder / "pipeline.yaml").read_text()))


def test_model_of_a_run_predicts(with_extras: Path, folder: Path) -> None:
    process = run(folder, with_extras / "imagemill", "run", "--json", *QUICK)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["status"] == "succeeded" and list(Path(result["model"]).glob("*.onnx"))
    words = ["export", result["clean"], "--format", "imagefolder", "--output", "out"]
    process = run(folder, with_extras / "imagemill", *words)
    assert process.returncode == 0, process.stderr
    photo = next((folder / "out" / "test").rglob("*.*"))
    process = run(folder, with_extras / "imagemill", "predict", "--model", result["model"], str(photo))
    assert process.returncode == 0, process.stderr


def test_unit_tests_pass(with_extras: Path) -> None:
    command = [with_extras / "python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    process = run(ROOT, *command, "tests/unit")
    assert process.returncode == 0, process.stdout[-5000:]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_names_its_missing_extra(name: str, without_extras: Path, folder: Path) -> None:
    module, words, message = COMMANDS[name]
    message.check(run(folder, without_extras / "python", "-m", module, *words))


def test_download_works_without_extras(without_extras: Path, folder: Path) -> None:
    process = run(folder, without_extras / "imagemill", "download", "--dataset", "demo", "--workspace", "work")
    assert process.returncode == 0, process.stderr
