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
    job_made,
    launch,
    place,
    run_for_real,
)

from imagemill.components.dataset.manifest import find_intact_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.resize import find_target
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines.kuberay.launcher import WATCHER_ANNOTATION
from imagemill.pipelines.kuberay.manifest import build_job_name

ODD_RUN = """run '"$(touch x)`touch x`;touch x&"""
s3, api, made, work = launching.s3, launching.api, launching.made, launching.work


@pytest.mark.proof
def test_the_command_line_makes_the_tensors(api: KubeApi, tmp_path: Path) -> None:
    """From the step's values to tensors, through two shells and Ray; an odd name of a run does no harm."""
    work = Work.make("real")
    api.acts = [(*STARTED, run_for_real(tmp_path), *DONE)]
    found = launch(work, run=ODD_RUN)
    assert found.code == 0, found.stderr
    assert found.record["state"] == "ran" and found.record["metrics"]["rows"] == 16
    dataset = find_intact_dataset(found.record["uri"])
    assert dataset and dataset.manifest.totals.rows == 16 and dataset.manifest.image.shape == (16, 16, 3)
    assert found.stderr.count("[resize] Ray with") == 1 and found.stderr.count("16 images of 16 x 16") == 1
    assert not list(tmp_path.rglob("x"))
    cached = launch(work, run="run-2")
    assert cached.code == 0 and cached.record["state"] == "cached"


def test_the_command_line_is_the_steps(
    api: KubeApi, work: Work, made: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the head runs makes the tensors that were looked for: read by a shell and by the step's own parser."""
    monkeypatch.chdir(tmp_path)
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work, run=ODD_RUN)
    assert (found.code, found.record["state"]) == (0, "ran"), found.stderr
    config = config_of(api.made[0])
    assert (config.run, config.ray_address, config.workspace) == (ODD_RUN, "auto", work.workspace)
    assert (config.clean, config.image_size, config.device) == (work.clean, 16, "cpu")
    context = Context("resize", Workspace.open(work.workspace), ODD_RUN, False)
    assert find_target(config, context, 0).uri == found.record["uri"]
    assert not list(tmp_path.rglob("x"))


def test_the_job_is_the_workflows_and_goes_with_it(api: KubeApi, work: Work, made: Work) -> None:
    """Not with the step's pod, whose next try finds it again."""
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work, run=ODD_RUN)
    [job] = api.made
    assert job["metadata"]["name"] == build_job_name(ODD_RUN, found.record["fingerprint"])
    assert job["metadata"]["namespace"] == NAMESPACE
    assert job["metadata"]["ownerReferences"] == [WORKFLOW]
    assert job["metadata"]["annotations"] == {WATCHER_ANNOTATION: api.objects[PODS]["resize-pod"]["metadata"]["uid"]}
    assert "hunter2" not in json.dumps(job) + found.stderr
    [deletion] = api.deletions
    assert deletion["propagationPolicy"] == "Foreground"
    assert deletion["preconditions"] == {"uid": job["metadata"]["uid"]}


def test_the_job_of_a_pod_without_a_workflow_is_the_pods(api: KubeApi, work: Work, made: Work) -> None:
    api.put(PODS, {"metadata": {"name": "resize-pod"}, "spec": {}})
    api.acts = [(*STARTED, job_made(made), *DONE)]
    assert launch(work).code == 0
    uid = api.objects[PODS]["resize-pod"]["metadata"]["uid"]
    [owner] = api.made[0]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": uid}


def test_what_is_there_needs_no_cluster(work: Work, made: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    place(made, work.workspace)
    found = launch(work)
    assert (found.code, found.record["state"]) == (0, "cached") and "RayJob" not in found.stderr
    other = launch(work, rerun="resize")
    assert other.code == EXIT_USER and "KUBECONFIG: expected a cluster's configuration" in other.stderr


def test_small_data_is_resized_in_the_steps_pod(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mode auto: in threads of this process, on the same tensors as a RayJob's; nothing is asked of Kubernetes."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    found = launch(work, {"ray": {"mode": "auto"}})
    assert (found.code, found.record["state"]) == (0, "ran"), found.stderr
    assert "done in this pod, without a RayJob (ray.auto_seconds)" in found.stderr and "Ray with" not in found.stderr
    context = Context("resize", Workspace.open(work.workspace), "run-1", False)
    config = ResizeConfig(workspace=work.workspace, clean=work.clean, image_size=16)
    assert find_target(config, context, 0).uri == found.record["uri"]


def test_large_data_has_a_rayjob_with_mode_auto(api: KubeApi, work: Work, made: Work) -> None:
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work, {"ray": {"mode": "auto", "auto_seconds": 0}})
    assert (found.code, found.record["state"]) == (0, "ran"), found.stderr
    assert len(api.made) == 1


def test_a_folder_is_not_seen_by_a_cluster(tmp_path: Path) -> None:
    found = launch(Work(str(tmp_path), f"{tmp_path}/clean/0123456789abcdef"))
    assert found.code == EXIT_USER and "workspace: expected s3://bucket/prefix" in found.stderr


@pytest.mark.parametrize(("gpu", "device"), [(1, "cuda"), (0, "cpu")])
def test_the_device_is_decided_by_rays_workers(gpu: int, device: str, api: KubeApi, work: Work) -> None:
    """And said to the job, so that what it makes has the name that was looked for."""
    api.acts = [(*STARTED, *DONE)]
    cluster = {"ray": {"workers": {"minimum": 0, "pod": {"gpu": gpu}}}}
    launch(work, cluster, config={"resize": {"device": "auto", "gpu_pixels": 1}})
    [job] = api.made
    assert config_of(job).device == device
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == gpu


def test_without_a_secret_rays_pods_are_who_the_step_is(api: KubeApi, work: Work) -> None:
    api.acts = [(*STARTED, *DONE)]
    launch(work, {"storage": {"secret": ""}})
    launch(work, run="run-2")
    identities = [json.dumps(job).count('"serviceAccountName": "default-editor"') for job in api.made]
    assert identities == [2, 0]


def test_a_cluster_that_runs_is_used_by_its_address(work: Work) -> None:
    cluster = {"ray": {"mode": "address", "address": "http://127.0.0.1:1"}}
    found = launch(work, cluster)
    assert found.code == EXIT_TRANSIENT and "ray_address: expected a Ray cluster at http://127.0.0.1:1" in found.stderr


def test_an_address_of_the_runs_own_is_refused(work: Work) -> None:
    """The launcher's image has no Ray."""
    found = launch(work, config={"resize": {"ray_address": "http://me:hunter2@ray:8265"}})
    assert found.code == found.record["exit_code"] == EXIT_USER and "hunter2" not in found.stderr
    assert "ray_address: expected none, since by the cluster file" in found.record["error"]


@pytest.mark.parametrize(("told", "said"), [('{"nosuch": 1}', "cluster (nosuch): expected one of"), ("{", "as JSON")])
def test_what_another_imagemill_compiled_is_refused_with_a_record(work: Work, told: str, said: str) -> None:
    found = launch(work, told=told)
    assert found.code == found.record["exit_code"] == EXIT_USER and said in found.record["error"]
    assert ("by another imagemill" in found.record["error"]) == (told != "{")


def test_help_stays_quick() -> None:
    """None of this imports Kubernetes' client before it is needed."""
    import subprocess
    import sys

    code = (
        "import sys, imagemill.pipelines.kuberay.launcher; "
        "sys.exit('kubernetes' in sys.modules or 'ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
