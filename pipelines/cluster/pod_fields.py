"""The fields that all pods of a run have in common: those of steps in a KFP package or an Argo template, those of Ray,
and the probes of `imagemill doctor`.

Their security contexts meet Pod Security `restricted`, with a read-only root file system.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ...components.clean.config import CleanConfig
from ...components.dataset.workspace import S3_ONLY, WORKSPACES_ENV
from ...components.resize.config import ResizeConfig
from ...components.storage.errors import wrong
from ...components.train.config import TrainConfig
from ..parameters import RunParameters
from ..settings import parse_quantity, to_plain
from .cluster_file import UID, Cluster, Pod, parse_cluster_json

NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""A label of all these pods for newer Istio, and an annotation for older releases. A sidecar would outlive a step, so
that its pod would never end; and Ray's ports are not HTTP."""
CLUSTER_VARIABLE = "IMAGEMILL_CLUSTER"
"""The variable with the cluster file as JSON, in the pods that plan, make or delete a RayJob (`read_pod_cluster`). A
parameter or flag would be at the top of the log, where KFP's executor prints every input of a step, or in the command
line."""
_POD_FIELDS: Sequence[str] = ("namespace", "images", "storage", "labels", "ray", "limits", "argo", "steps", "small")
"""The fields of the cluster file that are in CLUSTER_VARIABLE: all that building and finding a RayJob takes."""
DEADLINE_MARGIN_S = 900
"""Seconds to start the pod, to observe the end of the job, and to clean up."""


def build_pod_security_context() -> dict[str, Any]:
    """Return the security context of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_container_security_context() -> dict[str, Any]:
    """Return the security context of a container."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_storage_env(cluster: Cluster) -> list[dict[str, Any]]:
    """Return a container's `env` for the object store: the credentials, by reference to their secret, and
    `build_plain_storage_variables`."""
    storage = cluster.storage
    keys = {"AWS_ACCESS_KEY_ID": storage.access_key, "AWS_SECRET_ACCESS_KEY": storage.secret_key}
    variables: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": storage.secret, "key": key}}}
        for name, key in keys.items()
        if storage.secret
    ]
    plain = build_plain_storage_variables(cluster)
    return [*variables, *({"name": name, "value": value} for name, value in plain.items())]


def build_plain_storage_variables(cluster: Cluster) -> dict[str, str]:
    """Return the variables that are no secrets: the store's address and region, and the only kind of workspace that all
    pods reach."""
    storage = cluster.storage
    endpoint = {"AWS_ENDPOINT_URL": storage.endpoint} if storage.endpoint else {}
    region_names = ("AWS_REGION", "AWS_DEFAULT_REGION")  # boto3 reads the second alone
    return {**endpoint, **dict.fromkeys(region_names, storage.region), WORKSPACES_ENV: S3_ONLY}


def get_rayjob_deadline(cluster: Cluster) -> int:
    """Return the deadline in seconds of a pod that waits for a RayJob, 0 for that of the run.

    It is later than the job's own deadlines by DEADLINE_MARGIN_S. Without KubeRay the pod would wait for ever.
    """
    ray = cluster.ray
    return ray.pending_seconds + ray.deadline_seconds + DEADLINE_MARGIN_S if ray.deadline_seconds else 0


def build_cluster_variable(cluster: Cluster) -> dict[str, str]:
    """Return the environment variable by which `read_pod_cluster` reads the cluster in a pod: {name: JSON}.

    Ray's version is written out, because the images of the small pods have no Ray.
    """
    resolved = replace(cluster, ray=replace(cluster.ray, version=get_ray_version(cluster)))
    values = {name: to_plain(getattr(resolved, name)) for name in _POD_FIELDS}
    return {CLUSTER_VARIABLE: json.dumps(values, sort_keys=True, separators=(",", ":"))}


def read_pod_cluster() -> Cluster | None:
    """Return the cluster that this process was given; None outside a cluster.

    UserError where the variable was written by another imagemill.
    """
    text = os.environ.get(CLUSTER_VARIABLE, "")
    return parse_cluster_json(text) if text else None


def get_ray_version(cluster: Cluster) -> str:
    """Return Ray's version in the image: that of the cluster file, else the installed one, without importing it."""
    try:
        return cluster.ray.version or version("ray")
    except PackageNotFoundError:
        raise wrong("cluster (ray.version)", "Ray's version in the image, since none is installed here", "") from None


MIB = 2**20
BASE_BYTES = 512 * MIB
"""The use of NCCL and PyTorch themselves, with room to spare."""
STEP_BYTES = 256 * MIB
"""Sizes are multiples of it."""
MAX_MEMORY_SHARE = 0.5
"""Of the memory limit."""
QUEUED_BATCHES = 2
"""Batches that the loader keeps ready, beside one under way for each core."""


def shm_size(step: str, pod: Pod, parameters: RunParameters) -> str:
    """Return the size of a step's /dev/shm as a quantity; empty where the pod's 64 MiB suffice.

    `pod.shm` if it is set. Else for train, by the configured batch size: room for every batch that is loaded ahead
    (one a core and two that are ready), twice, for a copy of each may be under way; at least 512 MiB, in steps of
    256 MiB, and never above half of the memory limit.
    """
    if pod.shm or step != "train":
        return pod.shm
    train, resize = parameters.config("train"), parameters.config("resize")
    assert isinstance(train, TrainConfig) and isinstance(resize, ResizeConfig)
    clean = parameters.config("clean")
    assert isinstance(clean, CleanConfig)
    batch = train.batch_size * image_bytes(resize, clean.color)
    cores = math.ceil(parse_quantity(pod.cpu_limit or pod.cpu))
    required = BASE_BYTES + 2 * (cores + QUEUED_BATCHES) * batch
    limit = int(parse_quantity(pod.memory_limit or pod.memory) * MAX_MEMORY_SHARE)
    size = min(math.ceil(required / STEP_BYTES) * STEP_BYTES, limit // STEP_BYTES * STEP_BYTES or limit)
    return f"{size // MIB}Mi" if size >= MIB else ""


def image_bytes(config: ResizeConfig, color: str) -> int:
    """Return the bytes of one decoded image, uint8 [H, W, C]."""
    height, width, channels = config.geometry(color).shape
    return height * width * channels
