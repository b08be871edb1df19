"""RayJob manifest field by field, and its statuses compared with Argo's conditions."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import manifests
import pytest

from imagemill.components.engine.ray_job import build_command
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.storage.errors import EXIT_INTERNAL, EXIT_TRANSIENT, EXIT_USER, UserError
from imagemill.pipelines.cluster import pod_fields
from imagemill.pipelines.cluster.cluster_file import RUN_LABEL, Cluster, parse_cluster
from imagemill.pipelines.kuberay.failures import explain_failure, list_problems, waits_in_vain
from imagemill.pipelines.kuberay.manifest import (
    FAILED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    build_job_name,
    build_rayjob,
    build_run_label,
    classify_status,
)

Json = dict[str, Any]
DEPLOYMENTS = ("", "Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended",
               "Retrying", "Waiting")  # fmt: skip
JOBS = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
DIGEST = "registry.example/imagemill-ray@sha256:" + "0" * 64
FINGERPRINT = "0123456789abcdef"
BARE = {"images": {"ray": DIGEST}, "ray": {"version": "2.60.0"}}
FULL: Json = {
    "namespace": "team-vision",
    "images": {"ray": DIGEST, "pull_secrets": ["registry-login"], "pull_policy": "Always"},
    "storage": {"endpoint": "https://s3.example", "secret": "s3-keys", "access_key": "id", "secret_key": "key"},
    "labels": {"team": "vision"},
    "ray": {
        "version": "2.60.0",
        "head": {"cpu": "2", "memory": "6Gi", "node_selector": {"pool": "cpu"}},
        "workers": {
            "minimum": 0, "maximum": 8,
            "pod": {
                "cpu": "6", "cpu_limit": "8", "memory": "24Gi", "memory_limit": "32Gi", "gpu": 1, "shm": "4Gi",
                "gpu_type": "nvidia.com/gpu", "node_selector": {"pool": "gpu"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            },
        },
    },
}  # fmt: skip
OWNER = {"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": "1-2-3"}


def build_job(values: Json, owner: Json | None = None, run: str = "run-1") -> Json:
    config = ResizeConfig(workspace="s3://bucket/work", clean="s3://bucket/work/clean/x", run=run, device="cpu")
    words = build_command("resize", config)
    return build_rayjob(parse_cluster(values), "resize", build_job_name(run, FINGERPRINT), words, run, owner)


def get_pod_templates(job: Json) -> dict[str, Json]:
    """Return the pod templates by role: head, workers, submitter."""
    ray = job["spec"]["rayClusterSpec"]
    [workers] = ray["workerGroupSpecs"]
    return {
        "head": ray["headGroupSpec"]["template"],
        "workers": workers["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }


def test_manifest_equals_the_golden_file() -> None:
    manifests.check_golden("rayjob.yaml", manifests.dumped(build_job(BARE), sort_keys=False))


@pytest.mark.parametrize("values", [BARE, FULL])
def test_manifest_passes_the_schema_and_pod_security(values: Json) -> None:
    job = build_job(values, OWNER)
    for where, spec in manifests.pod_specs(job):
        manifests.check_restricted(where, spec)
    manifests.check_custom(job)


@pytest.mark.parametrize("values", [BARE, FULL])
def test_pods_have_labels_resources_and_a_read_only_root(values: Json) -> None:
    job = build_job(values)
    for role, template in get_pod_templates(job).items():
        spec, labels = template["spec"], template["metadata"]["labels"]
        annotations = template["metadata"]["annotations"]
        assert labels["sidecar.istio.io/inject"] == annotations["sidecar.istio.io/inject"] == "false", role
        assert labels[RUN_LABEL] == "run-1" and labels["app.kubernetes.io/part-of"] == "imagemill"
        assert labels.items() >= values.get("labels", {}).items()
        assert spec["securityContext"]["runAsUser"] == 10001 and spec["restartPolicy"] == "Never"
        # Explicit, because our service account sets false, and without a token no worker would ever start.
        assert spec["automountServiceAccountToken"] == (role == "head"), "the autoscaler alone needs one"
        assert spec["terminationGracePeriodSeconds"] == 5
        [container] = spec["containers"]
        resources = container["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(resources["requests"]) and "memory" in resources["limits"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/scratch", "/tmp/ray"} <= set(mounts)
        assert sorted(mounts.values()) == sorted(volume["name"] for volume in spec["volumes"])
        assert container["image"] == DIGEST and "RAY_TMPDIR" in str(container["env"])
    autoscaler = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert autoscaler["resources"]["requests"]["cpu"] == "100m" and "cpu" not in autoscaler["resources"]["limits"]
    assert {mount["name"] for mount in autoscaler["volumeMounts"]} <= {
        volume["name"] for volume in get_pod_templates(job)["head"]["spec"]["volumes"]
    }


def test_workers_follow_the_cluster_file() -> None:
    job = build_job(FULL)
    ray = job["spec"]["rayClusterSpec"]
    [group] = ray["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 8), "a GPU has to be seen at once"
    spec = group["template"]["spec"]
    assert spec["containers"][0]["resources"] == {
        "requests": {"cpu": "6", "memory": "24Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": "1"},
        "limits": {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": "1"},
    }
    assert group["rayStartParams"]["num-cpus"] == "6"
    assert spec["nodeSelector"] == {"pool": "gpu"} and spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    [shm] = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert group["rayStartParams"]["object-store-memory"] == str(2 * 2**30)
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert ray["enableInTreeAutoscaling"] is True and ray["autoscalerOptions"]["idleTimeoutSeconds"] == 60
    [cpu] = build_job(BARE)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (1, 4)


def test_cpu_has_a_request_and_no_limit_by_default() -> None:
    """A head of 200m that is throttled to them never starts; and Ray, unlimited, would take the node's cores."""
    small = {"cpu": "200m", "memory": "1Gi"}
    values = BARE | {"ray": {"version": "2.60.0", "head": small, "workers": {"pod": small}, "submitter": small,
                             "autoscaler": {**small, "cpu_limit": "2", "memory_limit": "2Gi"}}}  # fmt: skip
    job = build_job(values)
    for template in get_pod_templates(job).values():
        resources = template["spec"]["containers"][0]["resources"]
        assert (resources["requests"]["cpu"], resources["limits"].get("cpu")) == ("200m", None)
        assert resources["requests"]["memory"] == resources["limits"]["memory"] == "1Gi"
    ray = job["spec"]["rayClusterSpec"]
    resources = ray["autoscalerOptions"]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["cpu"]) == ("200m", "2"), "a limit raises no request"
    assert (resources["requests"]["memory"], resources["limits"]["memory"]) == ("1Gi", "2Gi")
    [group] = ray["workerGroupSpecs"]
    num_cpus = (ray["headGroupSpec"]["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-cpus"])
    assert num_cpus == ("0", "1"), "the head runs no task, a worker at least one"


@pytest.mark.parametrize(("minimum", "gpu", "grows"), [(1, 0, True), (2, 0, False), (0, 0, True), (0, 1, True)])
def test_the_autoscaler_runs_where_it_can_scale(minimum: int, gpu: int, grows: bool) -> None:
    workers = {"minimum": minimum, "maximum": 2, "pod": {"gpu": gpu}}
    job = build_job(BARE | {"ray": {"version": "2.60.0", "workers": workers}})
    ray = job["spec"]["rayClusterSpec"]
    assert ray["enableInTreeAutoscaling"] is ("autoscalerOptions" in ray) is grows
    assert get_pod_templates(job)["head"]["spec"]["automountServiceAccountToken"] is grows
    [group] = ray["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == max(minimum, gpu)
    manifests.check_custom(job)


def test_deadlines_of_the_job() -> None:
    spec = build_job({"ray": {"version": "2.60.0", "deadline_seconds": 7200, "pending_seconds": 300}})["spec"]
    assert (spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (7200, 300)
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] == 0
    assert build_job({"ray": {"version": "2.60.0", "ttl_seconds": 90}})["spec"]["ttlSecondsAfterFinished"] == 90
    assert spec["backoffLimit"] == 0 and spec["submitterConfig"] == {"backoffLimit": 0}
    spec = build_job({"ray": {"version": "2.60.0", "deadline_seconds": 0, "pending_seconds": 0}})["spec"]
    assert not {"activeDeadlineSeconds", "preRunningDeadlineSeconds"} & set(spec), "KubeRay takes no deadline of 0"


def test_credentials_come_from_the_secret_and_reach_ray_pods_only() -> None:
    templates = get_pod_templates(build_job(FULL))
    for role in ("head", "workers"):
        env = {variable["name"]: variable for variable in templates[role]["spec"]["containers"][0]["env"]}
        assert env["AWS_ACCESS_KEY_ID"]["valueFrom"]["secretKeyRef"] == {"name": "s3-keys", "key": "id"}
        assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {"name": "s3-keys", "key": "key"}
        assert env["AWS_ENDPOINT_URL"]["value"] == "https://s3.example"
        regions = {env[name]["value"] for name in ("AWS_REGION", "AWS_DEFAULT_REGION")}  # boto3 reads the second alone
        assert regions == {parse_cluster(FULL).storage.region}
    assert "AWS_" not in str(templates["submitter"])
    assert "serviceAccountName" not in str(templates)
    assert "secretKeyRef" not in str(build_job({"storage": {"secret": ""}})) and "AWS_REGION" in str(build_job(BARE))


@pytest.mark.parametrize(("version", "tokens"), [("2.60.0", True), ("2.52.0", True), ("2.9.3", False), ("2.51", False)])
def test_token_authentication_depends_on_rays_version(version: str, tokens: bool) -> None:
    ray = build_job({"ray": {"version": version}})["spec"]["rayClusterSpec"]
    assert ray.get("authOptions") == ({"mode": "token"} if tokens else None) and ray["rayVersion"] == version


def test_rays_version_is_the_installed_one_or_required(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    assert pod_fields.get_ray_version(Cluster()) == version("ray")
    monkeypatch.setattr(pod_fields, "version", absent)
    with pytest.raises(UserError, match=r"cluster \(ray.version\): expected"):
        pod_fields.get_ray_version(Cluster())


@pytest.mark.parametrize("run", ["", "x", "a" * 300, "run 1/ü'$(x)", "-.-", "demo-20261121-081500-3f9a", "É" * 60])
def test_any_run_gives_valid_names_and_labels(run: str) -> None:
    """KubeRay: a DNS-1035 label of 47 characters at most; Kubernetes: label values of 63."""
    name = build_job_name(run, FINGERPRINT)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 47  # as KubeRay asks
    assert name == build_job_name(run, FINGERPRINT) != build_job_name(run + "x", FINGERPRINT)
    label = build_run_label(run)
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label)
    assert label != build_run_label(run + "y") and (label == run or label != build_run_label(label + "y"))


def test_arguments_survive_the_shells_of_submitter_and_head() -> None:
    words = ["printf", "%s\\0", *("a b", "it's", '"', "$(x)", "`x`", ";x&", "\\", "é", "*", "", "--run=-x")]
    line = build_rayjob(parse_cluster(BARE), "resize", "x", words, "x")["spec"]["entrypoint"]
    submitted = subprocess.run(["/bin/bash", "-ec", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    quoted_anew = shlex.join(submitted.stdout.decode().split("\0")[:-1])
    ran = subprocess.run(["/bin/sh", "-c", quoted_anew], capture_output=True, check=True)
    assert ran.stdout.decode().split("\0")[:-1] == words[2:]


# The table of statuses


def test_statuses_are_classified() -> None:
    ends = {(d, j): classify_status({"jobDeploymentStatus": d, "jobStatus": j}) for d in DEPLOYMENTS for j in JOBS}
    assert [key for key, status in ends.items() if status == SUCCEEDED] == [("Complete", "SUCCEEDED")]
    assert {key for key, status in ends.items() if status == FAILED} == {
        (d, j) for d, j in ends if j == "STOPPED" or d in ("Failed", "ValidationFailed")
        or (d == "Complete" and j != "SUCCEEDED")
    }  # fmt: skip
    assert {d for (d, j), status in ends.items() if status == RUNNING} == {"Running"}
    assert classify_status({}) == classify_status({"jobDeploymentStatus": "Pondering"}) == WAITING
    assert ends["Retrying", "FAILED"] == WAITING and ends["Running", "FAILED"] == RUNNING


# Failures


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"jobDeploymentStatus": "ValidationFailed", "message": "x"}, EXIT_USER),
        ({"jobStatus": "STOPPED"}, EXIT_TRANSIENT),
        ({"reason": "DeadlineExceeded"}, EXIT_TRANSIENT),
        ({"reason": "PreRunningDeadlineExceeded"}, EXIT_TRANSIENT),
        ({"reason": "SubmissionFailed"}, EXIT_TRANSIENT),
        ({"reason": "JobStatusCheckTimeoutExceeded"}, EXIT_TRANSIENT),
        ({"reason": "JobDeploymentStatusTransitionGracePeriodExceeded"}, EXIT_TRANSIENT),
        (
            {"reason": "AppFailed", "message": "Submitter completed but Ray job not found in RayCluster."},
            EXIT_TRANSIENT,
        ),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 2, …"}, EXIT_USER),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 75, …"}, EXIT_TRANSIENT),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 137, …"}, EXIT_TRANSIENT),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 1, …"}, EXIT_INTERNAL),
        ({"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 127, …"}, EXIT_USER),
        ({}, EXIT_TRANSIENT),
    ],
)
def test_exit_codes_of_failures(status: Json, code: int) -> None:
    assert explain_failure("job", status).exit_code == code


def pod(kind: str, /, **status: Any) -> Json:
    return {"metadata": {"name": "x", "labels": {"ray.io/node-type": kind}}, "status": status}


def make_terminated_status(container: str, reason: str, code: int, state: str = "state", **more: Any) -> Json:
    return {"name": container, state: {"terminated": {"exitCode": code, "reason": reason, **more}}}


def event(reason: str, message: str, kind: str = "RayCluster", name: str = "job-x7k2p", **more: Any) -> Json:
    return {"reason": reason, "message": message, "involvedObject": {"kind": kind, "name": name}} | more


def test_failure_is_explained_by_pod_statuses() -> None:
    unscheduled = pod("worker", conditions=[{"type": "PodScheduled", "status": "False",
                                             "message": "0/3 nodes: Insufficient nvidia.com/gpu"}])  # fmt: skip
    killed = pod("worker", containerStatuses=[make_terminated_status("ray-worker", "OOMKilled", 137)])
    waits = {"reason": "ErrImagePull", "message": "no such image"}
    unpulled = pod("head", containerStatuses=[{"name": "ray-head", "state": {"waiting": waits}}])
    well = pod("head", phase="Running", containerStatuses=[{"name": "ray-head", "state": {"running": {}}}])
    assert list_problems([well]) == [] and not waits_in_vain([well, unscheduled, killed])
    late = explain_failure("job", {"reason": "PreRunningDeadlineExceeded"}, [unscheduled, unscheduled])
    assert late.exit_code == EXIT_TRANSIENT and str(late).count("Insufficient nvidia.com/gpu") == 1
    text = str(explain_failure("job", {"reason": "AppFailed"}, [killed]))
    assert "worker: ray-worker: OOMKilled (exit code 137): it took more than ray.workers.pod.memory" in text
    named = explain_failure("job", {"reason": "PreRunningDeadlineExceeded"}, [unpulled])
    assert named.exit_code == EXIT_USER and "no such image" in str(named)
    evicted = pod("head", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                                       "message": "Eviction API: evicting"}])  # fmt: skip
    assert list_problems([evicted]) == ["head: EvictionByEvictionAPI: Eviction API: evicting"]


def test_terminated_containers_of_deleted_pods_are_ignored_except_for_memory() -> None:
    """Those of a job that has ended, above all; unless it was memory."""
    last = make_terminated_status("ray-worker", "Error", 1, "lastState", message="no address")
    assert list_problems([pod("worker", containerStatuses=[last])]) == [
        "worker: ray-worker: Error (exit code 1): no address"
    ]
    for container, reason, is_reported in (("ray-worker", "Error", False), ("ray-head", "OOMKilled", True)):
        ended = pod("head", containerStatuses=[make_terminated_status(container, reason, 137)])
        ended["metadata"]["deletionTimestamp"] = "2026-11-22T10:00:00Z"
        assert bool(list_problems([ended])) == is_reported
    assert list_problems([pod("", containerStatuses=[make_terminated_status("ray-job-submitter", "Error", 1)])]) == []


@pytest.mark.parametrize(
    ("container", "memory"),
    [("ray-head", "ray.head.memory"), ("autoscaler", "ray.autoscaler.memory"),
     ("ray-job-submitter", "ray.submitter.memory")],
)  # fmt: skip
def test_too_little_memory_of_the_head_is_a_user_error(container: str, memory: str) -> None:
    """Of the head and what is beside it: no other try of the job has more."""
    lost = {"reason": "SubmissionFailed", "message": "Job submission has failed."}
    error = explain_failure(
        "job", lost, [pod("head", containerStatuses=[make_terminated_status(container, "OOMKilled", 137)])]
    )
    assert error.exit_code == EXIT_USER and f"cluster ({memory}): expected enough memory" in str(error)


TERMINATED = (
    "Deleted {} Pod vision/job-x7k2p-{}-abcde; Pod status: Failed; Pod restart policy: Never; Ray container terminated "
    "status: &ContainerStateTerminated{{ExitCode:{},Signal:0,Reason:{},Message:{},StartedAt:2026-11-22 10:00:00 +0000 "
    "UTC,FinishedAt:2026-11-22 10:01:00 +0000 UTC,ContainerID:containerd://0a,}}"
)
"""As KubeRay 1.4 to 1.7 write it."""


def test_failure_is_explained_by_events_of_deleted_pods() -> None:
    lost = {"reason": "SubmissionFailed", "message": "Job submission has failed.", "jobStatus": "RUNNING"}
    head = event("DeletedHeadPod", TERMINATED.format("head", "head", 139, "Error", "core dumped,\nsee log"))
    worker = event("DeletedWorkerPod", TERMINATED.format("worker", "workers-worker", 137, "OOMKilled", ""))
    unready = event("Unhealthy", "Readiness probe failed", "Pod", "job-x7k2p-head-abcde", type="Warning")
    scheduled = event("FailedScheduling", "0/1 nodes", "Pod", "job-x7k2p-workers-worker-abcde", type="Warning")
    error = explain_failure("job", lost, [], "", [head, worker, unready, scheduled])
    assert error.exit_code == EXIT_TRANSIENT
    assert "head: ray-head: Error (exit code 139): core dumped, see log" in str(error)
    assert "worker: ray-worker: OOMKilled (exit code 137): it took more than ray.workers.pod.memory" in str(error)
    assert "Readiness" not in str(error) and "0/1 nodes" not in str(error), "a job that ran had its nodes"
    waited = explain_failure("job", {"reason": "PreRunningDeadlineExceeded"}, [], "", [scheduled, unready])
    assert "worker: not scheduled: 0/1 nodes" in str(waited) and "Readiness" not in str(waited)
    victim = event("DeletedWorkerPod", TERMINATED.format("worker", "workers-worker", 1, "Error", ""))
    assert len(list_problems([], [victim])) == 1 and "worker" not in str(list_problems([], [head, victim])), (
        "they end with it"
    )
    evicted = event("DeletedHeadPod", "Deleted head Pod vision/x; Pod status: Failed; Pod restart policy: Never; Ray "
                    "container terminated status: nil")  # fmt: skip
    assert list_problems([], [evicted]) == ["head: ray-head: its pod failed"]
    scaled = event("DeletedWorkerPod", "Deleted worker Pod vision/x for group workers: scaling down")
    assert list_problems([], [scaled]) == []


@pytest.mark.parametrize("more", [{"series": {"count": 2}}, {"count": 2}, {}])
def test_head_created_twice_was_lost(more: Json) -> None:
    """Whoever deletes it leaves no event; that KubeRay makes another one does."""
    created = event("CreatedHeadPod", "Created head Pod vision/job-x7k2p-head-abcde")
    assert list_problems([], [created]) == []
    events = [created | more] if more else [created, created]
    assert list_problems([], events) == ["head: its pod was lost (deleted, evicted, or with its node) and made anew"]
