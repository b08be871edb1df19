"""A Python in which some modules are not installed, and what each command says there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

KFP = "the SDK of Kubeflow Pipelines"
CLI = "imagemill.pipelines.cli"
CLUSTER = ["--cluster", "cluster.yaml"]


@dataclass(frozen=True)
class Message:
    """The one line that a command ends with where an extra is missing."""

    command: str
    product: str
    extra: str

    def check(self, process: subprocess.CompletedProcess[str]) -> None:
        assert process.returncode == 2, process.stderr
        (line,) = process.stderr.splitlines()
        message = f"error: imagemill {self.command} needs {self.product}: pip install 'imagemill[{self.extra}]'"
        assert line.endswith(message), line


_STEPS = {
    "clean": (["--raw", "raw"], Message("clean", "Jinja", "clean")),
    "resize": (["--clean", "clean"], Message("resize", "PyTorch", "resize")),
    "train": (["--tensors", "tensors", "--backbone", "resnet18"], Message("train", "PyTorch", "train")),
    "evaluate": (["--model", "model", "--clean", "clean"], Message("evaluate", "PyTorch", "train")),
    "promote": (["--evaluation", "evaluation"], Message("promote", "Jinja", "promote")),
}
COMMANDS: dict[str, tuple[str, list[str], Message]] = {
    **{step: (CLI, [step, *words], message) for step, (words, message) in _STEPS.items()},
    "python -m train": ("imagemill.components.train", *_STEPS["train"]),
    "predict": (CLI, ["predict", "photo.jpg"], Message("predict", "PyTorch", "predict")),
    "run": (CLI, ["run"], Message("run", "Jinja", "all")),
    "compare": (CLI, ["compare", "{}", "{}"], Message("compare", "Jinja", "all")),
    "tune": (CLI, ["tune"], Message("tune", "Optuna", "tune")),
    "compile for kfp": (
        CLI, ["compile", "--target", "kfp", *CLUSTER, "-o", "a.yaml"], Message("compile", KFP, "pipelines"),
    ),
    "compile for argo": (
        CLI, ["compile", "--target", "argo", *CLUSTER, "-o", "a.yaml"], Message("compile", "Hera", "pipelines"),
    ),
    "submit": (CLI, ["submit", *CLUSTER], Message("submit", KFP, "pipelines")),
    "schedule": (CLI, ["schedule", "--list", *CLUSTER], Message("schedule", KFP, "pipelines")),
    "doctor": (CLI, ["doctor", *CLUSTER], Message("doctor", "Kubernetes' client", "pipelines")),
    "images": (CLI, ["images", "build", "--no-push"], Message("images", "Docker's client", "pipelines")),
}  # fmt: skip
"""Every command that needs an extra: module, words, and what it says without any. `cluster.yaml` lies in the folder."""
_HIDE = """
import importlib.machinery, runpy, sys
hidden, module, sys.argv = set(sys.argv[1].split(",")), sys.argv[2], sys.argv[2:]
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name in hidden else find(name, path, target)
)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_without(
    hidden: Iterable[str], module: str, words: Sequence[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """`python -m module words…` in `folder`, without the `hidden` modules (top-level, or dotted in a package)."""
    command = [sys.executable, "-c", _HIDE, ",".join(hidden), module, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
