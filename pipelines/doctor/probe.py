"""Check whether the three images are on the nodes or can be pulled, as far as nodes and pods show it; and, with
`--probe`, by pods: one of each image, which shows whether it can be pulled and started, and one for the store.

The pods have the fields of the steps' pods, and are deleted when they have answered.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..cluster import pod_fields
from ..cluster.cluster_file import LABELS, SCRATCH, UID, Cluster
from ..cluster.kube_client import Json
from ..settings import to_plain
from . import inside
from .view import ERROR, OK, WARNING, ApiError, ClusterView, Finding, make_unseen

TIMEOUT_S = 600.0
"""Seconds that the pods may take, with the pull of their images."""
POLL_S = 1.0
_START_PROBLEMS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_NEEDED_MODULES = {"cpu": "kubernetes", "ray": "ray", "gpu": "torch"}
"""Target of the Dockerfile → a module that its image has to have."""


@dataclass
class Answer:
    """The answer of a pod, or the problem for which it has none."""

    content: Json | None
    problem: str = ""


def build_pod(cluster: Cluster, name: str, target: str, question: str) -> Json:
    """Return a pod with the user, restrictions, credentials and labels (for network policies) of the steps' pods."""
    container = {
        "name": "main",
        "image": cluster.image(target),
        "imagePullPolicy": cluster.images.pull_policy,
        "command": ["python", "-c", Path(inside.__file__).read_text(encoding="utf-8"), question],
        "args": [cluster.storage.workspace],
        "env": pod_fields.build_storage_env(cluster),
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": pod_fields.build_container_security_context(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(TIMEOUT_S),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_fields.build_pod_security_context(),
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.images.pull_secrets]
    labels = {**cluster.labels, **LABELS, "app.kubernetes.io/component": "doctor", **pod_fields.NO_SIDECAR}
    metadata = {"name": name, "labels": labels, "annotations": pod_fields.NO_SIDECAR}
    document: Json = to_plain({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return document


def check_dry_run(view: ClusterView, cluster: Cluster) -> list[Finding]:
    """Check by a dry run that the API accepts a pod like the steps', past Pod Security, webhooks and quotas."""
    try:
        if not view.is_allowed("", "pods", "create"):
            return [make_unseen("pods", f"you may not make pods in {view.namespace}, not even for a trial")]
    except ApiError as error:
        return [make_unseen("pods", str(error))]
    try:
        view.create("pods", build_pod(cluster, "imagemill-doctor-trial", "cpu", "version"), dry_run=True)
    except ApiError as error:
        remedy = "let the namespace take pods that Pod Security `restricted` takes"
        return [Finding("pods", ERROR, f"a pod as the steps' are is refused: {error}", remedy)]
    return [Finding("pods", OK, "a pod as the steps' are would be taken")]


def check_with_pods(view: ClusterView, cluster: Cluster) -> list[Finding]:
    """Check images and store with pods, which are created and deleted."""
    suffix = secrets.token_hex(3)
    questions = {f"imagemill-doctor-{suffix}-{target}": (target, "version") for target in TARGETS}
    questions[f"imagemill-doctor-{suffix}-store"] = ("cpu", "reach")
    try:
        for name, (target, question) in questions.items():
            view.create("pods", build_pod(cluster, name, target, question))
        answers = _wait_for_answers(view, list(questions))
    except ApiError as error:
        return [make_unseen("probe", str(error))]
    finally:
        for name in questions:
            with contextlib.suppress(ApiError):  # never made
                view.delete("pods", name)
    *images, store = (answers[name] for name in questions)
    return [*_check_images(cluster, dict(zip(TARGETS, images, strict=True))), _check_store(cluster, store)]


def _wait_for_answers(view: ClusterView, names: list[str]) -> dict[str, Answer]:
    """Return the answer of each pod by its name; a problem where it can't start or has not ended in time."""
    answers: dict[str, Answer] = {}
    give_up_at = time.monotonic() + TIMEOUT_S
    while len(answers) < len(names):
        for name in names:
            if name not in answers and (answer := _read_answer(view, name)) is not None:
                answers[name] = answer
        if time.monotonic() > give_up_at:
            timed_out = Answer(None, f"no answer within {TIMEOUT_S:g} s")
            return {name: answers.get(name, timed_out) for name in names}
        time.sleep(POLL_S)
    return answers


def _read_answer(view: ClusterView, name: str) -> Answer | None:
    """Return the pod's answer; None while it may still come."""
    document = view.poll("pods", name)
    if document is None:
        return Answer(None, "the pod was deleted")
    if problem := find_start_problem(document):
        return Answer(None, problem)
    status = document.get("status") or {}
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    lines = view.read_log(name).strip().splitlines()
    answers = [line.removeprefix(inside.MARK) for line in lines if line.startswith(inside.MARK)]
    if answers:
        return Answer(json.loads(answers[-1]))
    reason = " / ".join(lines[-2:]) or str(status.get("message") or "")
    return Answer(None, reason or f"the pod ended {status['phase']} without a word")


def find_start_problem(pod: Json) -> str:
    """Return why a pod can't start, in Kubernetes' words; empty while it may."""
    for container in get_container_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in (*PULL_PROBLEMS, *_START_PROBLEMS):
            return f"{waiting['reason']}: {waiting.get('message', container.get('image', ''))}"
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node takes it")
    return ""


def _check_images(cluster: Cluster, answers: Mapping[str, Answer]) -> list[Finding]:
    findings = []
    for target, answer in answers.items():
        image = f"images.{target}: {cluster.image(target)}"
        if answer.content is None:
            findings.append(Finding("images", ERROR, f"{image}: {answer.problem}", "correct what the message names"))
        elif answer.content["uid"] != UID or _NEEDED_MODULES[target] not in answer.content["has"]:
            observation = (
                f"{image} is none of imagemill's target {target}: user {answer.content['uid']}, "
                f"no {_NEEDED_MODULES[target]}"
            )
            findings.append(Finding("images", ERROR, observation, "`imagemill images build` makes them"))
    if findings:
        return findings
    versions = sorted({str(answer.content["version"]) for answer in answers.values() if answer.content})
    observation = f"{', '.join(TARGETS)} start, with imagemill {', '.join(versions)}"
    if len(versions) > 1:
        return [Finding("images", WARNING, observation, "`imagemill images build` makes all three of one version")]
    return [Finding("images", OK, observation)]


def _check_store(cluster: Cluster, answer: Answer) -> Finding:
    workspace = cluster.storage.workspace
    if answer.content is None:
        remedy = "correct storage in the cluster file, the secret, the bucket, or the network policies"
        return Finding("store", ERROR, f"from a pod: {answer.problem}", remedy)
    if not (answer.content["read"] and answer.content["listed"]):
        observation = f"{workspace}: what a pod has written is not read or listed again"
        return Finding("store", ERROR, observation, "the store is not consistent: use another one")
    deletes = "" if answer.content["deletes"] else "; deleting is forbidden, so that doctor's object stays"
    return Finding("store", OK, f"a pod writes, reads and lists {workspace}{deletes}")


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
