"""Helpers for tests of the launcher: fixtures, a workspace in S3, the step as KFP calls it, a RayJob's command."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import chain
import pytest
from cleaned import Row, cleaned, picture
from conftest import forget_s3_clients
from kube_api import Act, KubeApi, status, submitter
from kube_http import NAMESPACE, PODS, RAYJOBS, Json

from imagemill.components.clean.splits import compute_shuffle_index
from imagemill.components.dataset.manifest import digest, read_dataset
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize import STEP
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.command_line import Parser, add_flag
from imagemill.pipelines.cluster import kube_client as kube
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.kuberay import launcher
from imagemill.pipelines.kuberay import pods as joblog
from imagemill.pipelines.kuberay import pods as ray_pods
from imagemill.pipelines.kuberay.ray_step import run_step

BUCKET = "mill"
RUN = "run-1"
WORDS = ["python", "-m", "imagemill.components.resize"]
SPLITS = ("train", "train", "val", "test")
_NUMBERS = itertools.count()
"""Of workspaces: what moto holds outlives its server."""
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "training-x7k2p", "uid": "uid-workflow"}
"""What Argo makes the owner of each pod of a run."""
NEW: tuple[Act, ...] = (status(""), status("Initializing"))
STARTED = (*NEW, status("Running"), status("Running", "PENDING"), status("Running", "RUNNING"))
DONE = (status("Running", "SUCCEEDED"), status("Complete", "SUCCEEDED"))


@dataclass(frozen=True)
class Work:
    """A workspace with a small clean dataset."""

    workspace: str
    clean: str

    @classmethod
    def make(cls, prefix: str) -> Work:
        rows = [
            Row(f"{n:02d}.jpg", ("cat", "dog")[n % 2], SPLITS[n % 4], picture(f"{n % 3}") + b"%08d" % n)
            for n in range(16)
        ]
        rows.sort(key=lambda row: compute_shuffle_index(hashlib.sha256(row.data).hexdigest()))
        workspace = f"s3://{BUCKET}/{prefix}"
        return cls(workspace, cleaned(f"{workspace}/clean/0123456789abcdef", rows, classes=("cat", "dog")).uri)

    def copy(self) -> Work:
        """Another workspace with the same clean dataset."""
        prefix = f"work{next(_NUMBERS)}"
        work = Work(f"s3://{BUCKET}/{prefix}", self.clean.replace(self.workspace, f"s3://{BUCKET}/{prefix}"))
        place(self, work.workspace, "clean/")
        return work

    def keys(self, under: str = "") -> list[str]:
        """List the keys of the workspace."""
        prefix = self.workspace.removeprefix(f"s3://{BUCKET}/") + f"/{under}"
        objects = client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in objects]

    def record(self, run: str = RUN) -> StepRecord:
        return Workspace.open(self.workspace).step_record(run, "resize") or StepRecord()


@lru_cache
def client() -> Any:
    """Make the S3 client once, which takes a twentieth of a second."""
    return boto3.client("s3")


@contextmanager
def s3_server() -> Iterator[None]:
    """moto's server: what is in question here is not the store."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            ("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
        ):  # fmt: skip
            patch.setenv(name, value)
        forget_s3_clients()
        client.cache_clear()
        client().create_bucket(Bucket=BUCKET)
        yield
        forget_s3_clients()
        server.stop()


@contextmanager
def served(folder: Path) -> Iterator[KubeApi]:
    """The stand-in, as a pod of the namespace `mill` sees it; all waits are short. No RayJob may be left."""
    with pytest.MonkeyPatch.context() as patch, KubeApi() as api:
        for module, name, seconds in (
            (launcher, "POLL_S", 0.02), (joblog, "POLL_S", 0.05), (launcher, "WATCH_TIMEOUT_S", 2),
            (kube, "RETRY_S", 5.0), (launcher, "LOG_TIMEOUT_S", 5), (launcher, "DELETE_RETRY_S", 2.0),
            (launcher, "READ_RETRY_S", 1.0), (ray_pods, "REFRESH_S", 0.1),
        ):  # fmt: skip
            patch.setattr(module, name, seconds)
        for name in ("KFP_POD_NAME", "ARGO_POD_NAME", "POD_NAME"):
            patch.delenv(name, raising=False)
        (folder / "namespace").write_text(NAMESPACE)
        patch.setattr(kube, "SERVICE_ACCOUNT_DIR", folder)
        metadata = {
            "name": "resize-pod",
            "ownerReferences": [WORKFLOW | {"controller": True, "blockOwnerDeletion": True}],
        }
        api.put(PODS, {"metadata": metadata, "spec": {"serviceAccountName": "default-editor"}})
        patch.setenv("KUBECONFIG", str(api.kubeconfig(folder)))
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("HOSTNAME", "resize-pod")
        yield api
        assert not api.errors
        assert not api.objects[RAYJOBS], "a RayJob was left behind"


def tensors() -> Work:
    """A workspace with the tensors that `launch` asks for, made here, without Ray: for stand-ins to place."""
    work = Work.make(f"tensors{next(_NUMBERS)}")
    chain.resized(Workspace.open(work.workspace), read_dataset(work.clean, "clean"), image_size=16)
    return work


# Fixtures: a module that wants them binds their names.


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with served(tmp_path) as kube_api:
        yield kube_api


@pytest.fixture
def work(finished_work: Work) -> Work:
    return finished_work.copy()


@pytest.fixture(scope="module")
def finished_work(s3: None) -> Work:
    """A workspace with tensors, for stand-ins to place."""
    return tensors()


@dataclass(frozen=True)
class Launched:
    """The result of a launch: exit code, record and stderr."""

    code: int
    record: StepRecord
    stderr: str


def launch(work: Work, cluster: Json | None = None, run: str = RUN, cluster_json: str = "", **values: Any) -> Launched:
    """Run the step as the KFP component calls it. The mode is rayjob unless `cluster` has another; `cluster_json` is
    the cluster file as JSON, used instead of `cluster`."""
    cluster = cluster or {}
    cluster_json = (
        cluster_json or parse_cluster(cluster | {"ray": {"mode": "rayjob"} | cluster.get("ray", {})}).to_json()
    )
    arguments = {"workspace": work.workspace, "clean": work.clean, "run": run, "image_size": 16.0} | values
    config = json.dumps(arguments.pop("config", {}))
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CLUSTER_VARIABLE, cluster_json)
        try:
            record, code = run_step(STEP, config, "", **arguments), 0
        except SystemExit as error:
            record, code = work.record(run), int(str(error.code))
    return Launched(code, record, stderr.getvalue())


def words_of(job: Json) -> list[str]:
    """The words that the head runs: the submitter's shell reads the entrypoint, Ray's client quotes them anew."""
    read = subprocess.run(
        ["/bin/bash", "-ec", f"printf '%s\\0' {job['spec']['entrypoint']}"], capture_output=True, check=True
    )
    return read.stdout.decode().split("\0")[:-1]


def config_of(job: Json) -> ResizeConfig:
    """The config that the command line says, read as the step reads it."""
    arguments = words_of(job)
    assert arguments[:3] == WORDS
    parser = Parser(prog="resize")
    for field in fields(ResizeConfig):
        add_flag(parser, field.name, field.default, field.metadata["help"], field.metadata["choices"])
    values = {k: v for k, v in vars(parser.parse_args(arguments[3:])).items() if v is not None}
    return ResizeConfig.from_values(values, prefix="--")


def run_for_real(work_folder: Path) -> Act:
    """The command as the head runs it, but with Ray in its own process; what it says goes to the submitter's log."""

    def act(api: KubeApi, job: Json) -> None:
        line = shlex.join(word for word in words_of(job) if word != "--ray-address=auto")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path}
        process = subprocess.run(line, shell=True, cwd=work_folder, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        submitter(*process.stderr.splitlines(), phase="Succeeded")(api, job)

    return act


def write_tensors(finished: Work) -> Act:
    """The command makes the tensors: those that were made in another workspace; and writes its record."""

    def act(api: KubeApi, job: Json) -> None:
        config = config_of(job)
        place(finished, config.workspace)
        workspace = Workspace.open(config.workspace)
        fingerprint = job["metadata"]["name"].rpartition("-")[2]
        _record(job, {"uri": workspace.dataset_uri("tensors", fingerprint), "fingerprint": fingerprint, "state": "ran"})

    return act


def place(source: Work, workspace: str, kind: str = "tensors/") -> None:
    """The tensors of one workspace in another, the manifest last."""
    s3, source_prefix = client(), source.workspace.removeprefix(f"s3://{BUCKET}/")
    for key in sorted(source.keys(kind), key=lambda name: name.endswith("_manifest.json")):
        target = workspace.removeprefix(f"s3://{BUCKET}/") + key.removeprefix(source_prefix)
        s3.copy_object(Bucket=BUCKET, Key=target, CopySource={"Bucket": BUCKET, "Key": key})


def job_failed(code: int, error: str) -> Act:
    """The command ends with this code, and says so in its record."""
    return lambda api, job: _record(job, {"state": "failed", "exit_code": code, "error": error})


def _record(job: Json, overrides: Json) -> None:
    config = config_of(job)
    record = StepRecord(**{"inputs": digest({**asdict(config), "step": "resize"}), "seconds": 1.0} | overrides)
    Workspace.open(config.workspace).write_step_record(config.run, "resize", record)
