"""The manifest of the RayJob of clean or resize, for KubeRay 1.4 to 1.7, and the meaning of its status.

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
refuses it, and what the pods would tell is told without them (pods.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...components.clean import STEP as CLEAN
from ...components.dataset.manifest import digest
from ...components.storage import uri as uris
from ...components.storage.errors import wrong
from ..cluster.cluster_file import COMPONENT_LABEL, LABELS, RUN_LABEL, SCRATCH, Cluster, Pod
from ..cluster.pod_fields import (
    NO_SIDECAR,
    build_container_security_context,
    build_pod_security_context,
    build_storage_env,
    get_ray_version,
)
from ..settings import parse_quantity, to_plain

API = "ray.io/v1"

WAITING, RUNNING, SUCCEEDED, FAILED = "waiting", "running", "succeeded", "failed"
_DEPLOYMENT_STATUSES = {
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
"""jobDeploymentStatus → its meaning, all of KubeRay 1.7. Another one, of a newer KubeRay, means WAITING."""
SUCCESS, _STOPPED = "SUCCEEDED", "STOPPED"


def classify_status(status: Mapping[str, Any]) -> str:
    """Return the meaning of a RayJob's status: `waiting`, `running`, `succeeded` or `failed`.

    KubeRay calls a job that was stopped complete; a jobStatus of FAILED alone may be followed by another attempt.
    """
    job = str(status.get("jobStatus") or "")
    meaning = _DEPLOYMENT_STATUSES.get(str(status.get("jobDeploymentStatus") or ""), WAITING)
    if job == _STOPPED:
        return FAILED
    return FAILED if meaning == SUCCEEDED and job != SUCCESS else meaning


_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def build_job_name(run: str, fingerprint: str) -> str:
    """Return the name of the RayJob that makes the dataset of that fingerprint in that run: a DNS label.

    KubeRay takes 47 characters, since names of the cluster, its services and pods are made of it.
    """
    return f"imagemill-{digest([run])[:10]}-{fingerprint}"


def build_run_label(run: str) -> str:
    """Return the value of RUN_LABEL for a run: its name, changed if it is too long or has characters no label has."""
    if _LABEL.fullmatch(run):
        return run
    prefix = re.sub(r"[^-A-Za-z0-9_.]", "-", run).strip("-_.")[:46]
    return f"{prefix or 'run'}-{digest([run])[:16]}"


def build_rayjob(
    cluster: Cluster, step: str, name: str, command: Sequence[str], run: str, owner: Mapping[str, Any] | None = None,
    identity: str = "", retries: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Return the manifest of a RayJob for clean, whose workers have no GPU, or resize.

    Everyone who may read RayJobs can read the command: nothing secret may be in it.

    Args:
        run: the run, whose label the RayJob and its pods have.
        owner: an owner reference, with which the RayJob is deleted.
        identity: the service account by which Ray's pods reach the store where there is no secret.
        retries: how often KubeRay tries a failed RayJob again, where the orchestrator does not.
    """
    if step == CLEAN.name:
        cluster = without_worker_gpus(cluster)
    ray = cluster.ray
    labels = {**cluster.labels, **LABELS, COMPONENT_LABEL: step, RUN_LABEL: build_run_label(run)}
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
        "submitterPodTemplate": _build_submitter(cluster, labels),
        "rayClusterSpec": _build_ray_cluster(cluster, labels, identity),
    }
    rayjob: dict[str, Any] = to_plain({"apiVersion": API, "kind": "RayJob", "metadata": metadata, "spec": spec})
    return rayjob


def refuse_address(address: str) -> None:
    """Raise for the address of a Ray cluster where each run may have a RayJob of its own: neither the launcher's image
    nor Argo's pods for download and clean, which plan RayJobs, have Ray to reach it."""
    if address:
        raise wrong(
            "ray_address", "none, since by the cluster file (ray.mode, ray.clean: auto or rayjob) a run has a Ray "
            "cluster of its own; mode address uses one that is there", uris.redact(address),
        )  # fmt: skip


def count_gpus(cluster: Cluster) -> int:
    """Return the GPUs of all Ray workers, by which `components.resize.target.find_target` chooses the device."""
    return cluster.ray.workers.pod.gpu * cluster.ray.workers.maximum


def without_worker_gpus(cluster: Cluster) -> Cluster:
    """Return the cluster with no GPU in Ray's workers."""
    workers = replace(cluster.ray.workers, pod=replace(cluster.ray.workers.pod, gpu=0))
    return replace(cluster, ray=replace(cluster.ray, workers=workers))


MIN_RAY_WITH_TOKENS = (2, 52)
"""The first Ray with token authentication; KubeRay refuses `authOptions` for an older one."""


def _build_ray_cluster(cluster: Cluster, labels: Mapping[str, str], identity: str) -> dict[str, Any]:
    account = {"serviceAccountName": identity} if identity else {}
    ray, ray_version = cluster.ray, get_ray_version(cluster)
    has_tokens = tuple(int(part) for part in re.findall(r"\d+", ray_version)[:2]) >= MIN_RAY_WITH_TOKENS
    workers = ray.workers
    # GPUs are counted when the job begins: a cluster that starts without workers would count none.
    min_replicas = max(workers.minimum, 1) if workers.pod.gpu else workers.minimum
    autoscales = workers.maximum > min_replicas
    return {
        "rayVersion": ray_version,
        **({"authOptions": {"mode": "token"}} if has_tokens else {}),
        "enableInTreeAutoscaling": autoscales,
        **({"autoscalerOptions": _build_autoscaler_options(cluster)} if autoscales else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_build_object_store_params(ray.head)},
            # The autoscaler asks the API server for workers, whatever the account says of its token.
            "template": _build_pod_template(
                cluster, ray.head, "ray-head", labels, {**account, "automountServiceAccountToken": autoscales}
            ),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": min_replicas,
                "minReplicas": min_replicas,
                "maxReplicas": workers.maximum,
                "rayStartParams": {
                    "num-cpus": str(max(1, int(parse_quantity(workers.pod.cpu)))),
                    **_build_object_store_params(workers.pod),
                },
                "template": _build_pod_template(
                    cluster, workers.pod, "ray-worker", labels, {**account, "automountServiceAccountToken": False}
                ),
            }
        ],
    }


def _build_autoscaler_options(cluster: Cluster) -> dict[str, Any]:
    return {
        "version": "v2",
        "idleTimeoutSeconds": cluster.ray.idle_seconds,
        "imagePullPolicy": cluster.images.pull_policy,
        "resources": cluster.ray.autoscaler.resources(),
        "securityContext": build_container_security_context(),
        "env": _RAY_ENV,
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT],
    }


_RAY_ENV = [{"name": "RAY_TMPDIR", "value": "/tmp"}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
"""Ray's session is where KubeRay expects it, in /tmp/ray, which head and autoscaler share."""
_SCRATCH_MOUNT = {"name": "scratch", "mountPath": SCRATCH}
_RAY_MOUNT = {"name": "ray", "mountPath": "/tmp/ray"}
_SHM_MOUNT = {"name": "shm", "mountPath": "/dev/shm"}
DEFAULT_SHM = "512Mi"
"""Size of /dev/shm where the cluster file has none: no image crosses Ray's object store."""
GRACE_S = 5
"""Termination grace period of Ray's pods in seconds: they hold nothing that is not in the store, and others wait for
their cores."""


def _build_object_store_params(pod: Pod) -> dict[str, str]:
    """Return the start parameters for an object store of half of /dev/shm: Ray's default is a third of the memory."""
    return {"object-store-memory": str(int(parse_quantity(pod.shm or DEFAULT_SHM)) // 2)}


def _build_pod_template(
    cluster: Cluster, pod: Pod, name: str, labels: Mapping[str, str], spec_fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the pod template of head or workers. It has probes because KubeRay's own need wget, up to 1.6."""
    health = {"httpGet": {"path": "/api/local_raylet_healthz", "port": 52365}, "timeoutSeconds": 5, "periodSeconds": 5}
    container = {
        "name": name,
        "image": cluster.image("ray"),
        "imagePullPolicy": cluster.images.pull_policy,
        "env": [*_RAY_ENV, *build_storage_env(cluster)],
        "resources": pod.resources(),
        "securityContext": build_container_security_context(),
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT, _SHM_MOUNT],
        "readinessProbe": {**health, "initialDelaySeconds": 4, "periodSeconds": 2, "failureThreshold": 30},
        "livenessProbe": {**health, "initialDelaySeconds": 30, "failureThreshold": 120},
    }
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shm or DEFAULT_SHM}}
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "ray", "emptyDir": {}}, shm]
    spec = {**_build_pod_spec(cluster), **spec_fields, "containers": [container], "volumes": volumes}
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in pod.tolerations]
    return {"metadata": _build_metadata(labels), "spec": spec}


def _build_submitter(cluster: Cluster, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the template of the pod that submits the command to the head and prints its log; KubeRay adds the
    container's command, the head's address and the token."""
    container = {
        "name": "ray-job-submitter",
        "image": cluster.image("ray"),
        "imagePullPolicy": cluster.images.pull_policy,
        "env": _RAY_ENV,
        "resources": cluster.ray.submitter.resources(),
        "securityContext": build_container_security_context(),
        "volumeMounts": [_SCRATCH_MOUNT, _RAY_MOUNT],
    }
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "ray", "emptyDir": {}}]
    spec = {
        **_build_pod_spec(cluster),
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": volumes,
    }
    return {"metadata": _build_metadata(labels), "spec": spec}


def _build_metadata(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"labels": {**labels, **NO_SIDECAR}, "annotations": NO_SIDECAR}


def _build_pod_spec(cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": build_pod_security_context(),
    }
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.images.pull_secrets]
    return spec
