"""The three images: on the nodes already, or to be pulled; as far as nodes and pods tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from ..cluster import Cluster
from ..kube import Json
from .findings import ERROR, OK, WARNING, Finding, unseen
from .view import Refused, View

CHECK = "images"
TARGETS = ("cpu", "ray", "gpu")
PULL_PROBLEMS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
OUTDATED = timedelta(minutes=6)
"""Kubelets tell of their node every five minutes, and when something has changed."""
LISTED = 50
"""So many images a kubelet lists, the largest ones, unless it is set to more: another one may be there as well."""
_LOAD = (
    "`kind load docker-image` puts it onto kind's nodes; `imagemill images build --registry …` pushes it to a registry"
)


def full_name(image: str) -> str:
    """An image as nodes list it: registry/repository:tag, or registry/repository@sha256:…"""
    name, _, digest = image.partition("@")
    registry, slash, repository = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in registry or ":" in registry or registry == "localhost"):
        name = f"docker.io/{registry}/{repository}"
    folder, _, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return f"{folder}/{repository}@{digest}" if digest else f"{folder}/{repository}:{tag or 'latest'}"


def names_registry(image: str) -> bool:
    """Whether the name says where the image can be pulled from; if not, it was built on some machine."""
    registry, slash, _ = image.partition("/")
    return bool(slash) and ("." in registry or ":" in registry)


def look(view: View, cluster: Cluster) -> list[Finding]:
    """Whether pods get each image."""
    try:
        nodes = view.items("/api/v1/nodes")
    except Refused as error:
        return [unseen(CHECK, f"what is on the nodes ({error})", "--probe tries to start a pod of each")]
    try:
        pods = view.items(f"/api/v1/namespaces/{view.namespace}/pods")
    except Refused:
        pods = []
    policy = cluster.images.pull_policy
    fields = {cluster.image(target): f"images.{target}" for target in reversed(TARGETS)}
    findings = [_judge(field, image, policy, nodes, pods) for image, field in reversed(fields.items())]
    bad = [finding for finding in findings if finding.state != OK]
    return bad or [Finding(CHECK, OK, "; ".join(finding.seen for finding in findings))]


def _judge(field: str, image: str, policy: str, nodes: Sequence[Json], pods: Sequence[Json]) -> Finding:
    having = [node for node in nodes if full_name(image) in _names(node) or _has_started(image, node, pods)]
    seen = f"{field}: {image} is on {len(having)} of {len(nodes)} nodes"
    if policy == "Always" and not names_registry(image):
        seen = f"{field}: {image} names no registry, and images.pull_policy Always pulls it"
        return Finding(CHECK, ERROR, seen, "images.pull_policy: IfNotPresent")
    if len(having) == len(nodes):
        return Finding(CHECK, OK, seen)
    if policy == "Never" or not names_registry(image):
        may_be_there = having or any(len(_images(node)) >= LISTED or _is_outdated(node) for node in nodes)
        why = "images.pull_policy is Never" if policy == "Never" else "it names no registry to be pulled from"
        return Finding(CHECK, WARNING if may_be_there else ERROR, f"{seen}, and {why}", _LOAD)
    if having:
        return Finding(CHECK, OK, seen)
    if problem := next(_problems(image, pods), ""):
        return Finding(CHECK, ERROR, f"{field}: {problem}", "correct the name, or images.pull_secrets")
    seen = f"{field}: no node is known to have {image}: it is pulled when it is first needed"
    return Finding(CHECK, WARNING, seen, "--probe tries to start a pod of it")


def _images(node: Json) -> list[Json]:
    return list((node.get("status") or {}).get("images") or ())


def _names(node: Json) -> set[str]:
    return {full_name(name) for image in _images(node) for name in image.get("names") or ()}


def _has_started(image: str, node: Json, pods: Iterable[Json]) -> bool:
    """Whether a pod of the namespace has run the image on the node."""
    placed = (pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == node["metadata"]["name"])
    started = (container for pod in placed for container in container_statuses(pod) if container.get("imageID"))
    return any(full_name(str(container.get("image"))) == full_name(image) for container in started)


def _is_outdated(node: Json) -> bool:
    """Whether the node has not told for long what is on it."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and (time := condition.get("lastHeartbeatTime")):
            return datetime.now(UTC) - datetime.fromisoformat(time) > OUTDATED
    return False


def _problems(image: str, pods: Iterable[Json]) -> Iterator[str]:
    """What pods of the namespace that could not pull the image say."""
    for pod in pods:
        for container in container_statuses(pod):
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in PULL_PROBLEMS and full_name(str(container.get("image"))) == full_name(image):
                yield f"pod {pod['metadata']['name']}: {waiting['reason']}: {waiting.get('message', '')}".strip(": ")


def container_statuses(pod: Json) -> list[Json]:
    """The statuses of a pod's containers, those that come first among them."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
