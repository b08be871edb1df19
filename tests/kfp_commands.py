"""The commands that speak to Kubeflow Pipelines, in this process, against tests/kfp_server.py."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kfp_server import KfpService, serving

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import STEPS
from imagemill.pipelines import compile as compiling
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.cluster_file import Cluster, load_cluster, parse_cluster_json
from imagemill.pipelines.compile import compile_kfp
from imagemill.pipelines.kfp import artifacts, following
from imagemill.pipelines.kfp import client as kfp_client
from imagemill.pipelines.parameters import RunParameters

CLUSTER = "images:\n  tags_allowed: true\nstorage:\n  workspace: s3://mill/work\n"


@dataclass
class CommandResult:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return parsed


@dataclass
class Commands:
    """The service, and `imagemill` with its address and, unless a cluster is given, a package compiled once."""

    service: KfpService
    folder: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str, host: str = "") -> CommandResult:
        if words[0] in ("submit", "schedule") and not {"--package", "--cluster"} & {*words}:
            words = (*words, "--package", str(compiled_once()))
        code = cli.main([*words, "--host", host or self.service.url])
        printed = self.capsys.readouterr()
        return CommandResult(code, printed.out, printed.err)


@cache
def compiled_once() -> Path:
    """The pipeline for CLUSTER: compiling takes a second."""
    folder = Path(tempfile.mkdtemp(prefix="imagemill-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "cluster.yaml").write_text(CLUSTER)
    compile_kfp(RunParameters({}, {}), folder / "pipeline.yaml", load_cluster(str(folder / "cluster.yaml")))
    return folder / "pipeline.yaml"


def _compile_once(parameters: RunParameters, target: Path, cluster: Cluster, *, bake: bool = True) -> None:
    """`compile_kfp`, but the same package is compiled once in a session."""
    target.write_bytes(_package(cluster.to_json(), json.dumps([parameters.pipeline, parameters.sections]), bake))


@cache
def _package(cluster: str, parameters: str, bake: bool) -> bytes:
    with tempfile.TemporaryDirectory(prefix="imagemill-test-") as folder:
        target = Path(folder) / "pipeline.yaml"
        compile_kfp(RunParameters(*json.loads(parameters)), target, parse_cluster_json(cluster), bake=bake)
        return target.read_bytes()


@contextmanager
def commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], service: KfpService | None = None
) -> Iterator[Commands]:
    """Yield the command line with a fresh environment, configuration and short waits."""
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES", "AWS_", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(following, "POLL_S", 0.02)
    monkeypatch.setattr(following, "SLOW_POLL_S", 0.02)
    monkeypatch.setattr(following, "MAX_OUTAGE_S", 20.0)
    monkeypatch.setattr(kfp_client, "RETRY_S", 2.0)
    monkeypatch.setattr(compiling, "compile_kfp", _compile_once)
    (folder / "cluster.yaml").write_text(CLUSTER)
    with serving(service or KfpService()) as served:
        yield Commands(served, folder, capsys)


# Fixtures: a module that wants them binds their names.


@pytest.fixture
def mill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Commands]:
    with commands(tmp_path, monkeypatch, capsys) as mill_commands:
        yield mill_commands


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> dict[str, StepRecord]:
    """Records of the steps of every run, as from a readable workspace; test_submit_records has a real one."""
    records_by_step: dict[str, StepRecord] = {}
    monkeypatch.setattr(artifacts, "read_stored_records", lambda workspace, run: records_by_step)
    return records_by_step


def script(*step_names: str, last: str = "SUCCEEDED") -> list[tuple[str, dict[str, str]]]:
    """A run in which the steps end one after the other; the last of them as the run does."""
    steps = step_names or STEPS
    states: list[tuple[str, dict[str, str]]] = [("PENDING", {})]
    task_states: dict[str, str] = {}
    for step in steps:
        states.append(("RUNNING", {**task_states, step: "RUNNING"}))
        task_states[step] = "SUCCEEDED"
    return [*states, (last, {**task_states, steps[-1]: "SUCCEEDED" if last == "SUCCEEDED" else "FAILED"})]


def record(step: str, **more: Any) -> StepRecord:
    """Make a step's record."""
    return replace(StepRecord(f"s3://mill/work/{step}/00", "00", "ran", seconds=2.0), **more)
