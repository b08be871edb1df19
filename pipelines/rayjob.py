"""The RayJob that resizes, for KubeRay 1.4 to 1.7, and what its status means: for the KFP step and for Argo alike.

Read in KubeRay's operator (v1.4.2 to v1.7.0): it adds the autoscaler beside the head, an init container to the workers
with the security context, environment and mounts of theirs, and a Job of one pod that submits the command and prints
its log. Older ones drop the fields that they don't know: before 1.5.1 `authOptions` (Ray then runs without a token),
before 1.6 `preRunningDeadlineSeconds`.

The submitter's pod stays (K8sJobMode), for KubeRay's other modes lose more than it costs:

- SidecarMode adds the submitter to the head's pod without a security context, which Pod Security `restricted` refuses,
  and with 500m and 1 GiB, which nothing can change (common/job.go: GetDefaultSubmitterContainer; utils/validation.go).
- HTTPMode has no log to follow. And when its head is lost it submits the job to the next head, again and again, without
  counting (rayjob_controller.go: reconcileHTTPModeJobNotFound): a head that has too little memory would be started anew
  until the job's deadline, where here the job fails at once with the reason, and is tried `backoffLimit` times.

Ray's pods go as soon as the job has ended, however it ended (`ttlSecondsAfterFinished` is of the RayCluster; the RayJob
and the submitter's log stay). `deletionStrategy` could keep the pods of a failed job alone, but before 1.6 KubeRay
refuses it, and what the pods would tell is told without them (ray_pods.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import wrong
from ..components.store.fingerprint import digest
from .cluster import LABELS, RUN_LABEL, SCRATCH, Cluster, Pod
from .pods import NO_SIDECAR, container_security, pod_security, storage_env
from .settings import parse_quantity, to_plain

API = "ray.io/v1"
GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"

WAITING, RUNNING, SUCCEEDED, FAILED = "waiting", "running", "succeeded", "failed"
_DEPLOYMENTS = {
    "": WAITING,
    "Initializing": WAITING,
    "Waiting": WAITING,
    "Retrying": WAITING,
    "Suspending": WAITING,
    "Suspended": WAITING,
    "Running": RUNNING,
    "Complete": SUCCEEDED,
    "Failed": FAILED,
    "ValidationFailed": FAILED,
}
"""jobDeploymentStatus → what it means, all that KubeRay 1.7 has. Another one, of a newer KubeRay, goes on."""
SUCCESS, _STOPPED = "SUCCEEDED", "STOPPED"


def _deployments(meaning: str) -> list[str]:
    return sorted(name for name, found in _DEPLOYMENTS.items() if found == meaning)


SUCCESS_CONDITION = f"status.jobDeploymentStatus in ({','.join(_deployments(SUCCEEDED))}),status.jobStatus == {SUCCESS}"
"""Argo's conditions of a resource template. Requirements of success must all hold; of failure one is enough, and it is
looked at first. What they can't say is one of `Complete` with yet another status, which KubeRay since 1.4 never writes:
the table calls it failed, and Argo would wait for the deadline."""
FAILURE_CONDITION = f"status.jobDeploymentStatus in ({','.join(_deployments(FAILED))}),status.jobStatus == {_STOPPED}"


def verdict(status: Mapping[str, Any]) -> str:
    """What a RayJob's status means: `waiting`, `running`, `succeeded` or `failed`.

    KubeRay calls a job that was stopped complete; a jobStatus of FAILED alone may be a try that is made again.
    """
    job = str(status.get("jobStatus") or "")
    meaning = _DEPLOYMENTS.get(str(status.get("jobDeploymentStatus") or ""), WAITING)
    if job == _STOPPED:
        return FAILED
    return FAILED if meaning == SUCCEEDED and job != SUCCESS else meaning


_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def job_name(run: str, fingerprint: str) -> str:
    """The one name of the RayJob that makes the tensors of that fingerprint in that run: a DNS label.

    KubeRay takes 47 characters, since names of the cluster, its services and pods are made of it.
    """
    return f"imagemill-{digest([run])[:10]}-{fingerprint}"


def run_label(run: str) -> str:
    """A run as the value of RUN_LABEL: itself, unless that is too long or has characters that no label may have."""
    if _LABEL.fullmatch(run):
        return run
    kept = re.sub(r"[^-A-Za-z0-9_.]", "-", run).strip("-_.")[:46]
    return f"{kept or 'run'}-{digest([run])[:16]}"


def manifest(
    cluster: Cluster, name: str, command: Sequence[str], run: str, owner: Mapping[str, Any] | None = None,
    identity: str = "", retries: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The whole RayJob. `command`: the words that the head runs; `owner`: an owner reference, with which it is deleted;
    `identity`: the service account by which Ray's pods reach the store where there is no secret; `retries`: how often
    KubeRay tries a failed one again, where nobody else does.

    Everyone who may read RayJobs can read the command: nothing secret may be in it.
    """
    ray = cluster.ray
    labels = {**cluster.labels, **LABELS, "app.kubernetes.io/component": "resize", RUN_LABEL: run_label(run)}
    metadata: dict[str, Any] = {"name": name, "namespace": cluster.namespace, "labels": labels}
    if owner:
        metadata["ownerReferences"] = [dict(owner)]
    deadlines = {"activeDeadlineSeconds": ray.deadline_seconds, "preRunningDeadlineSeconds": ray.pending_seconds}
    spec = {
        "entrypoint": shlex.join(command),  # for the submitter's shell; Ray's client quotes anew for the head's
        "submissionMode": "K8sJobMode",
        "backoffLimit": retries,
        "submitterConfig": {"backoffLimit": 0},
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": ray.ttl_seconds,
        **{field: seconds for field, seconds in deadlines.items() if seconds},
        "submitterPodTemplate": _submitter(cluster, labels),
        "rayClusterSpec": _ray_cluster(cluster, labels, identity),
    }
    made: dict[str, Any] = to_plain({"apiVersion": API, "kind": "RayJob", "metadata": metadata, "spec": spec})
    return made


def refuse_address(address: str) -> None:
    """Refuse the address of a Ray cluster where each run may have a RayJob of its own: neither the launcher's image nor
    Argo's clean pod, which plans the tensors, has Ray to reach it."""
    if address:
        raise wrong(
            "ray_address", "none, since by the cluster's file (ray.mode: auto or rayjob) a run has a Ray cluster of "
            "its own; mode address uses one that is there", uris.redact(address),
        )  # fmt: skip


def ray_version(cluster: Cluster) -> str:
    """Ray's version in the image: as the file says, or the one that is installed here. Without importing it."""
    try:
        return cluster.ray.version or version("ray")
    except PackageNotFoundError:
        raise wrong("cluster (ray.version)", "Ray's version in the image, since none is installed here", "") from None


def gpus(cluster: Cluster) -> int:
    """GPUs that Ray's workers may have in all: what `components.resize.resize.find` decides the device by."""
    return cluster.ray.workers.pod.gpu * cluster.ray.workers.maximum


TOKENS_SINCE = (2, 52)
"""The Ray that has tokens; KubeRay refuses to ask an older one for them."""


def _ray_cluster(cluster: Cluster, labels: Mapping[str, str], identity: str) -> dict[str, Any]:
    account = {"serviceAccountName": identity} if identity else {}
    ray, known = cluster.ray, ray_version(cluster)
    tokens = tuple(int(part) for part in re.findall(r"\d+", known)[:2]) >= TOKENS_SINCE
    workers = ray.workers
    # GPUs are counted when the job begins: one that starts from none would find none.
    least = max(workers.minimum, 1) if workers.pod.gpu else workers.minimum
    grows = workers.maximum > least
    return {
        "rayVersion": known,
        **({"authOptions": {"mode": "token"}} if tokens else {}),
        "enableInTreeAutoscaling": grows,
        **({"autoscalerOptions": _autoscaler(cluster)} if grows else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_store(ray.head)},
            # The autoscaler asks the API server for workers, whatever the account says of its token.
            "template": _template(
                cluster, ray.head, "ray-head", labels, {**account, "automountServiceAccountToken": grows}
            ),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": workers.maximum,
                "rayStartParams": {
                    "num-cpus": str(max(1, int(parse_quantity(workers.pod.cpu)))),
                    **_store(workers.pod),
                },
                "template": _template(
                    cluster, workers.pod, "ray-worker", labels, {**account, "automountServiceAccountToken": False}
                ),
            }
        ],
    }


def _autoscaler(cluster: Cluster) -> dict[str, Any]:
    return {
        "version": "v2",
        "idleTimeoutSeconds": cluster.ray.idle_seconds,
        "imagePullPolicy": cluster.images.pull_policy,
        "resources": cluster.ray.autoscaler.resources(),
        "securityContext": container_security(),
        "env": _RAY_ENV,
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT],
    }


_RAY_ENV = [{"name": "RAY_TMPDIR", "value": "/tmp"}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
"""Ray's session is where KubeRay expects it, in /tmp/ray: head and autoscaler meet there."""
_SCRATCH_MOUNT = {"name": "scratch", "mountPath": SCRATCH}
_RAY_MOUNT = {"name": "ray", "mountPath": "/tmp/ray"}
_SHM_MOUNT = {"name": "shm", "mountPath": "/dev/shm"}
SHM = "512Mi"
"""/dev/shm where the cluster's file says nothing: no image crosses Ray's object store."""


GRACE_S = 5
"""How long Ray may take to end: nothing is in its memory that is not in the store, and others wait for its cores."""


def _store(pod: Pod) -> dict[str, str]:
    """Ray's object store, in half of /dev/shm: by itself it would take a third of the memory."""
    return {"object-store-memory": str(int(parse_quantity(pod.shm or SHM)) // 2)}


def _template(
    cluster: Cluster, pod: Pod, container: str, labels: Mapping[str, str], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The pods of head or workers. The probes are given since KubeRay's own need wget, up to 1.6."""
    health = {"httpGet": {"path": "/api/local_raylet_healthz", "port": 52365}, "timeoutSeconds": 5, "periodSeconds": 5}
    made = {
        "name": container,
        "image": cluster.image("ray"),
        "imagePullPolicy": cluster.images.pull_policy,
        "env": [*_RAY_ENV, *storage_env(cluster)],
        "resources": pod.resources(),
        "securityContext": container_security(),
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT, _SHM_MOUNT],
        "readinessProbe": {**health, "initialDelaySeconds": 4, "periodSeconds": 2, "failureThreshold": 30},
        "livenessProbe": {**health, "initialDelaySeconds": 30, "failureThreshold": 120},
    }
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shm or SHM}}
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "ray", "emptyDir": {}}, shm]
    spec = {**_pod(cluster), **more, "containers": [made], "volumes": volumes}
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [dict(one) for one in pod.tolerations]
    return {"metadata": _metadata(labels), "spec": spec}


def _submitter(cluster: Cluster, labels: Mapping[str, str]) -> dict[str, Any]:
    """The pod that hands the command to the head and prints what it says; KubeRay adds command, address and token."""
    container = {
        "name": "ray-job-submitter",
        "image": cluster.image("ray"),
        "imagePullPolicy": cluster.images.pull_policy,
        "env": _RAY_ENV,
        "resources": cluster.ray.submitter.resources(),
        "securityContext": container_security(),
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT],
    }
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "ray", "emptyDir": {}}]
    spec = {**_pod(cluster), "automountServiceAccountToken": False, "containers": [container], "volumes": volumes}
    return {"metadata": _metadata(labels), "spec": spec}


def _metadata(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"labels": {**labels, **NO_SIDECAR}, "annotations": NO_SIDECAR}


def _pod(cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": pod_security(),
    }
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.images.pull_secrets]
    return spec
