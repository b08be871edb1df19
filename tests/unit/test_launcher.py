"""The launcher: what it makes of the step's values, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import launching
import pytest
from kube_api import KubeApi
from kube_http import NAMESPACE, PODS
from launching import (
    DONE,
    STARTED,
    WORKFLOW,
    Work,
    config_of,
    launch,
    place,
    run_for_real,
    write_tensors,
)

from imagemill.components.dataset.manifest import find_intact_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.target import find_target
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines.kuberay.launcher import WATCHER_ANNOTATION
from imagemill.pipelines.kuberay.manifest import build_job_name

ODD_RUN = """run '"$(touch x)`touch x`;touch x&"""
s3, api, finished_work, work = launching.s3, launching.api, launching.finished_work, launching.work


@pytest.mark.proof
def test_the_command_line_makes_the_tensors(api: KubeApi, tmp_path: Path) -> None:
    """The step's values pass two shells and Ray; a run's name is quoted."""
    work = Work.make("real")
    api.acts = [(*STARTED, run_for_real(tmp_path), *DONE)]
    result = launch(work, run=ODD_RUN)
    assert result.code == 0, result.stderr
    assert result.record.state == "ran" and result.record.metrics["rows"] == 16
    dataset = find_intact_dataset(result.record.uri)
    assert dataset and dataset.manifest.totals.rows == 16 and dataset.manifest.image.shape == (16, 16, 3)
    assert result.stderr.count("[resize] Ray with") == 1 and result.stderr.count("16 images of 16 x 16") == 1
    assert not list(tmp_path.rglob("x"))
    cached = launch(work, run="run-2")
    assert cached.code == 0 and cached.record.state == "cached"


def test_rayjob_runs_the_command_line_of_the_step(
    api: KubeApi, work: Work, finished_work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's command line, parsed by a shell and the step's parser, makes the expected tensors."""
    monkeypatch.chdir(tmp_path)
    api.acts = [(*STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work, run=ODD_RUN)
    assert (result.code, result.record.state) == (0, "ran"), result.stderr
    config = config_of(api.created[0])
    assert (config.run, config.ray_address, config.workspace) == (ODD_RUN, "auto", work.workspace)
    assert (config.clean, config.image_size, config.device) == (work.clean, 16, "cpu")
    context = Context("resize", Workspace.open(work.workspace), ODD_RUN, False)
    assert find_target(config, context, 0).uri == result.record.uri
    assert not list(tmp_path.rglob("x"))


def test_job_is_owned_by_the_workflow(api: KubeApi, work: Work, finished_work: Work) -> None:
    """The step's pod does not own it, since its next try finds the job again."""
    api.acts = [(*STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work, run=ODD_RUN)
    [job] = api.created
    assert job["metadata"]["name"] == build_job_name(ODD_RUN, result.record.fingerprint)
    assert job["metadata"]["namespace"] == NAMESPACE
    assert job["metadata"]["ownerReferences"] == [WORKFLOW]
    assert job["metadata"]["annotations"] == {WATCHER_ANNOTATION: api.objects[PODS]["resize-pod"]["metadata"]["uid"]}
    assert "hunter2" not in json.dumps(job) + result.stderr
    [deletion] = api.deletions
    assert deletion["propagationPolicy"] == "Foreground"
    assert deletion["preconditions"] == {"uid": job["metadata"]["uid"]}


def test_job_is_owned_by_the_pod_where_there_is_no_workflow(api: KubeApi, work: Work, finished_work: Work) -> None:
    api.put(PODS, {"metadata": {"name": "resize-pod"}, "spec": {}})
    api.acts = [(*STARTED, write_tensors(finished_work), *DONE)]
    assert launch(work).code == 0
    uid = api.objects[PODS]["resize-pod"]["metadata"]["uid"]
    [owner] = api.created[0]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": uid}


def test_existing_tensors_need_no_cluster(work: Work, finished_work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    place(finished_work, work.workspace)
    result = launch(work)
    assert (result.code, result.record.state) == (0, "cached") and "RayJob" not in result.stderr
    rerun = launch(work, rerun="resize")
    assert rerun.code == EXIT_USER and "KUBECONFIG: expected a cluster's configuration" in rerun.stderr


def test_mode_auto_resizes_small_data_in_the_pod(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of this process make the same tensors as a RayJob, without any request to Kubernetes."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    result = launch(work, {"ray": {"mode": "auto"}})
    assert (result.code, result.record.state) == (0, "ran"), result.stderr
    assert "done in this pod, without a RayJob (ray.auto_seconds)" in result.stderr and "Ray with" not in result.stderr
    context = Context("resize", Workspace.open(work.workspace), "run-1", False)
    config = ResizeConfig(workspace=work.workspace, clean=work.clean, image_size=16)
    assert find_target(config, context, 0).uri == result.record.uri


def test_mode_auto_makes_a_rayjob_for_large_data(api: KubeApi, work: Work, finished_work: Work) -> None:
    api.acts = [(*STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work, {"ray": {"mode": "auto", "auto_seconds": 0}})
    assert (result.code, result.record.state) == (0, "ran"), result.stderr
    assert len(api.created) == 1


def test_workspace_in_a_folder_is_rejected_on_a_cluster(tmp_path: Path) -> None:
    result = launch(Work(str(tmp_path), f"{tmp_path}/clean/0123456789abcdef"))
    assert result.code == EXIT_USER and "workspace: expected s3://bucket/prefix" in result.stderr


@pytest.mark.parametrize(("gpu", "device"), [(1, "cuda"), (0, "cpu")])
def test_the_device_is_decided_by_rays_workers(gpu: int, device: str, api: KubeApi, work: Work) -> None:
    """The job is told the device, so that its tensors have the expected fingerprint."""
    api.acts = [(*STARTED, *DONE)]
    cluster = {"ray": {"workers": {"minimum": 0, "pod": {"gpu": gpu}}}}
    launch(work, cluster, config={"resize": {"device": "auto", "gpu_pixels": 1}})
    [job] = api.created
    assert config_of(job).device == device
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == gpu


def test_without_a_secret_ray_pods_use_the_service_account_of_the_step(api: KubeApi, work: Work) -> None:
    api.acts = [(*STARTED, *DONE)]
    launch(work, {"storage": {"secret": ""}})
    launch(work, run="run-2")
    identities = [json.dumps(job).count('"serviceAccountName": "default-editor"') for job in api.created]
    assert identities == [2, 0]


def test_running_ray_cluster_is_used_by_its_address(work: Work) -> None:
    cluster = {"ray": {"mode": "address", "address": "http://127.0.0.1:1"}}
    result = launch(work, cluster)
    assert (
        result.code == EXIT_TRANSIENT and "ray_address: expected a Ray cluster at http://127.0.0.1:1" in result.stderr
    )


def test_ray_address_in_the_run_configuration_is_rejected(work: Work) -> None:
    """The launcher's image has no Ray."""
    result = launch(work, config={"resize": {"ray_address": "http://me:hunter2@ray:8265"}})
    assert result.code == result.record.exit_code == EXIT_USER and "hunter2" not in result.stderr
    assert "ray_address: expected none, since by the cluster file" in result.record.error


@pytest.mark.parametrize(
    ("cluster_json", "message"), [('{"nosuch": 1}', "cluster (nosuch): expected one of"), ("{", "as JSON")]
)
def test_cluster_file_of_another_release_is_rejected_with_a_record(work: Work, cluster_json: str, message: str) -> None:
    result = launch(work, cluster_json=cluster_json)
    assert result.code == result.record.exit_code == EXIT_USER and message in result.record.error
    assert ("by another imagemill" in result.record.error) == (cluster_json != "{")


def test_help_stays_quick() -> None:
    """None of this imports Kubernetes' client before it is needed."""
    import subprocess
    import sys

    code = (
        "import sys, imagemill.pipelines.kuberay.launcher; "
        "sys.exit('kubernetes' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
