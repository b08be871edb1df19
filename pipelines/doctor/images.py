"""Check whether the three images are on the nodes or can be pulled, as far as nodes and pods show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from .findings import ERROR, OK, WARNING, Finding, make_unseen
from .view import ApiError, ClusterView

CHECK = "images"
TARGETS = ("cpu", "ray", "gpu")
PULL_PROBLEMS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
MAX_HEARTBEAT_AGE = timedelta(minutes=6)
"""Kubelets report their node's status every five minutes, and when something has changed."""
MAX_LISTED_IMAGES = 50
"""The number of images that a kubelet lists, the largest ones, unless it is configured otherwise."""
_LOAD_HINT = (
    "`kind load docker-image` puts it onto kind's nodes; `imagemill images build --registry …` pushes it to a registry"
)


def normalize_image(image: str) -> str:
    """Return an image's name as nodes list it: registry/repository:tag, or registry/repository@sha256:…"""
    name, _, digest = image.partition("@")
    registry, slash, repository = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in registry or ":" in registry or registry == "localhost"):
        name = f"docker.io/{registry}/{repository}"
    folder, _, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return f"{folder}/{repository}@{digest}" if digest else f"{folder}/{repository}:{tag or 'latest'}"


def has_registry(image: str) -> bool:
    """Return whether the name has a registry to pull from; if not, the image was built on some machine."""
    registry, slash, _ = image.partition("/")
    return bool(slash) and ("." in registry or ":" in registry)


def check_images(view: ClusterView, cluster: Cluster) -> list[Finding]:
    """Check each image."""
    try:
        nodes = view.list_items("/api/v1/nodes")
    except ApiError as error:
        return [make_unseen(CHECK, f"what is on the nodes ({error})", "--probe tries to start a pod of each")]
    try:
        pods = view.list_items(f"/api/v1/namespaces/{view.namespace}/pods")
    except ApiError:
        pods = []
    policy = cluster.images.pull_policy
    fields = {cluster.image(target): f"images.{target}" for target in reversed(TARGETS)}
    findings = [_check_image(field, image, policy, nodes, pods) for image, field in reversed(fields.items())]
    problems = [finding for finding in findings if finding.state != OK]
    return problems or [Finding(CHECK, OK, "; ".join(finding.seen for finding in findings))]


def _check_image(field: str, image: str, policy: str, nodes: Sequence[Json], pods: Sequence[Json]) -> Finding:
    nodes_with_image = [
        node for node in nodes if normalize_image(image) in _list_image_names(node) or _has_started(image, node, pods)
    ]
    observation = f"{field}: {image} is on {len(nodes_with_image)} of {len(nodes)} nodes"
    if policy == "Always" and not has_registry(image):
        observation = f"{field}: {image} names no registry, and images.pull_policy Always pulls it"
        return Finding(CHECK, ERROR, observation, "images.pull_policy: IfNotPresent")
    if len(nodes_with_image) == len(nodes):
        return Finding(CHECK, OK, observation)
    if policy == "Never" or not has_registry(image):
        may_be_there = nodes_with_image or any(
            len(_list_images(node)) >= MAX_LISTED_IMAGES or _is_outdated(node) for node in nodes
        )
        reason = "images.pull_policy is Never" if policy == "Never" else "it names no registry to be pulled from"
        return Finding(CHECK, WARNING if may_be_there else ERROR, f"{observation}, and {reason}", _LOAD_HINT)
    if nodes_with_image:
        return Finding(CHECK, OK, observation)
    if problem := next(_find_pull_problems(image, pods), ""):
        return Finding(CHECK, ERROR, f"{field}: {problem}", "correct the name, or images.pull_secrets")
    observation = f"{field}: no node is known to have {image}: it is pulled when it is first needed"
    return Finding(CHECK, WARNING, observation, "--probe tries to start a pod of it")


def _list_images(node: Json) -> list[Json]:
    return list((node.get("status") or {}).get("images") or ())


def _list_image_names(node: Json) -> set[str]:
    return {normalize_image(name) for image in _list_images(node) for name in image.get("names") or ()}


def _has_started(image: str, node: Json, pods: Iterable[Json]) -> bool:
    """Return whether a pod of the namespace has run the image on the node."""
    placed = (pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == node["metadata"]["name"])
    started = (container for pod in placed for container in get_container_statuses(pod) if container.get("imageID"))
    return any(normalize_image(str(container.get("image"))) == normalize_image(image) for container in started)


def _is_outdated(node: Json) -> bool:
    """Return whether the node's status is older than MAX_HEARTBEAT_AGE."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and (time := condition.get("lastHeartbeatTime")):
            return datetime.now(UTC) - datetime.fromisoformat(time) > MAX_HEARTBEAT_AGE
    return False


def _find_pull_problems(image: str, pods: Iterable[Json]) -> Iterator[str]:
    """Yield the messages of the namespace's pods that could not pull the image."""
    for pod in pods:
        for container in get_container_statuses(pod):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in PULL_PROBLEMS and normalize_image(
                str(container.get("image"))
            ) == normalize_image(image):
                yield f"pod {pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}".strip(": ")


def get_container_statuses(pod: Json) -> list[Json]:
    """Return the statuses of a pod's containers, its init containers first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
