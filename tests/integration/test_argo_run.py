"""DAG of the Argo template run as local processes, from download to promote, on photographs.

tests/argo_dag.py stands for Argo; the RayJob's command line is run without a Ray cluster."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_dag import SKIPPED, SUCCEEDED, Ended, Workflow
from mill import QUICK, STEPS

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.pipelines.argo.workflow import compile_argo
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.parameters import resolve_parameters


class Pods:
    """Pods run as processes, each with an empty scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.lines: list[str] = []

    def __call__(self, task: str, template: dict[str, Any]) -> Ended:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        if "resource" in template:
            words = shlex.split(yaml.safe_load(template["resource"]["manifest"])["spec"]["entrypoint"])
            words = ["--ray-address=" if word == "--ray-address=auto" else word for word in words]
        else:
            words = [*template["container"]["command"], *template["container"]["args"]]
        variables = {
            variable["name"]: variable.get("value", "") for variable in template.get("container", {}).get("env", [])
        }
        cluster_variable = {CLUSTER_VARIABLE: variables.get(CLUSTER_VARIABLE, "")}
        if "exit_handler" in words[2]:  # there is no cluster in which something could be left
            cluster_variable = {}
        assert words.pop(0) == "python"
        words = [word.replace("/scratch", str(self.scratch), 1) for word in words]
        environment = {**os.environ, **cluster_variable, "TMPDIR": str(self.scratch), "HOME": str(self.scratch)}
        environment |= {"RAY_TMPDIR": "/tmp"}
        process = subprocess.run(
            [sys.executable, *words], env=environment, cwd="/", capture_output=True, text=True, timeout=300
        )
        self.lines += [f"{task}: {line}" for line in process.stderr.splitlines()[-5:]]
        return Ended(process.returncode)


@pytest.mark.proof
@pytest.mark.parametrize("ray", [{"mode": "rayjob", "clean": "rayjob"}, {"mode": "pod"}])
def test_workflow_promotes_and_is_cached_then(ray: dict[str, str], small_photos: Path, tmp_path: Path) -> None:
    cluster = parse_cluster({"images": {"tags_allowed": True}, "ray": {**ray, "version": "2.49.0"}})
    compile_argo(resolve_parameters({}), tmp_path / "argo.yaml", cluster)
    document = next(yaml.safe_load_all((tmp_path / "argo.yaml").read_text()))
    workspace = Workspace(str(tmp_path / "work"))
    parameters = {name[2:].replace("-", "_"): value for name, value in zip(QUICK[::2], QUICK[1::2], strict=True)}
    parameters |= {"config": json.dumps({"batch_size": int(parameters.pop("batch_size"))})}
    parameters |= {"promote": "always", "dataset": "folder", "source": str(small_photos), "workspace": workspace.uri}
    first, pods = _run_workflow(document, parameters, tmp_path, "run-1")
    assert {name: node.phase for name, node in first.nodes.items()} == dict.fromkeys(first.nodes, SUCCEEDED), pods.lines
    records = {step: workspace.step_record("run-1", step) for step in STEPS}
    assert all(record and (record.state, record.exit_code) == ("ran", 0) for record in records.values()), records
    outputs = {output: value for node in first.nodes.values() for output, value in node.outputs.items()}
    assert read_dataset(outputs["tensors"], "tensors").manifest.totals.rows > 40
    assert outputs["champion"] == outputs["model"] and outputs["promoted"] == "true" and outputs["name"] == "photos"
    assert float(outputs["top1"]) >= 0
    summary = workspace.store.read(workspace.run_file_uri("run-1", "summary.md")).decode()
    assert "photos: done" in summary

    second, _ = _run_workflow(document, parameters, tmp_path, "run-2")
    assert second.nodes["download"].outputs["raw"] == outputs["raw"] and second.nodes["clean"].phase == SKIPPED
    assert {step: record.state for step, record in workspace.step_records("run-2").items()} == dict.fromkeys(
        STEPS, "cached"
    )
    if ray["mode"] == "rayjob":
        assert second.nodes["clean-rayjob"].phase == SKIPPED
        for planner, step in (("download", "clean"), ("clean", "resize")):
            labels = json.loads(first.nodes[planner].outputs["rayjob"])["metadata"]["labels"]
            assert labels["app.kubernetes.io/component"] == step


def _run_workflow(
    document: dict[str, Any], parameters: dict[str, str], tmp_path: Path, name: str
) -> tuple[Workflow, Pods]:
    pods = Pods(tmp_path / "scratch")
    workflow = Workflow(document, parameters, pods, tmp_path / "scratch", name)
    assert workflow.run() == SUCCEEDED, "\n".join(pods.lines)
    return workflow, pods
