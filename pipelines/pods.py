"""What all pods have, whoever makes them: the KFP package, the Argo templates or KubeRay.

Their security is what Pod Security `restricted` asks for, and a root file system that can't be written.
"""

from __future__ import annotations

from typing import Any

from ..components.store.workspace import S3_ONLY, WORKSPACES_ENV
from .cluster import UID, Cluster

NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""As a label, where newer Istio looks first, and for older Istio as an annotation. A sidecar would outlive the step,
and the pod would never end; and Ray's ports are not HTTP."""


def pod_security() -> dict[str, Any]:
    """What holds for all containers of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """What holds for each of our containers."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def storage_env(cluster: Cluster) -> list[dict[str, Any]]:
    """Where the object store is, and from which secret the credentials come."""
    storage = cluster.storage
    keys = {"AWS_ACCESS_KEY_ID": storage.access_key, "AWS_SECRET_ACCESS_KEY": storage.secret_key}
    found: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": storage.secret, "key": key}}}
        for name, key in keys.items()
        if storage.secret
    ]
    if storage.endpoint:
        found.append({"name": "AWS_ENDPOINT_URL", "value": storage.endpoint})
    return [*found, *({"name": name, "value": value} for name, value in place_env(cluster).items())]


def place_env(cluster: Cluster) -> dict[str, str]:
    """What the steps are told of where they are: the store's region, and that no folder is shared."""
    regions = ("AWS_REGION", "AWS_DEFAULT_REGION")  # boto3 reads the second alone
    return {**dict.fromkeys(regions, cluster.storage.region), WORKSPACES_ENV: S3_ONLY}


def rayjob_seconds(cluster: Cluster) -> int:
    """The longest that a pod which starts a RayJob and waits for its end may take; 0: as long as the run.

    Beyond the job's own deadlines: to start, to hear of its end, to clean up. Without KubeRay it would never end.
    """
    ray = cluster.ray
    return ray.pending_seconds + ray.deadline_seconds + GRACE_S if ray.deadline_seconds else 0


GRACE_S = 900
