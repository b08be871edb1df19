"""Pods of doctor's own: one of each image, which shows whether it can be pulled and started, and one for the store.

They are made only where the user says so, are as the steps' pods are, and are deleted when they have answered.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pods
from ..cluster import LABELS, SCRATCH, UID, Cluster
from ..kube import Json
from ..settings import to_plain
from . import inside
from .findings import ERROR, OK, WARNING, Finding, unseen
from .images import PULL_PROBLEMS, TARGETS, container_statuses
from .view import Refused, View

PATIENCE_S = 600.0
"""How long images may take to be pulled."""
LOOK_S = 1.0
_START_PROBLEMS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_NEEDS = {"cpu": "kubernetes", "ray": "ray", "gpu": "torch"}
"""Target of the Dockerfile → a module that its image has to have."""


@dataclass
class Answer:
    """What a pod answers, or why it answers nothing."""

    content: Json | None
    problem: str = ""


def pod(cluster: Cluster, name: str, target: str, question: str) -> Json:
    """A pod as the steps' are: same user, same restrictions, same credentials, same labels for network policies."""
    container = {
        "name": "main",
        "image": cluster.image(target),
        "imagePullPolicy": cluster.images.pull_policy,
        "command": ["python", "-c", Path(inside.__file__).read_text(encoding="utf-8"), question],
        "args": [cluster.storage.workspace],
        "env": pods.storage_env(cluster),
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": pods.container_security(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(PATIENCE_S),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pods.pod_security(),
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
    }
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.images.pull_secrets]
    labels = {**cluster.labels, **LABELS, "app.kubernetes.io/component": "doctor", **pods.NO_SIDECAR}
    metadata = {"name": name, "labels": labels, "annotations": pods.NO_SIDECAR}
    document: Json = to_plain({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return document


def dry_run(view: View, cluster: Cluster) -> list[Finding]:
    """Whether the API takes a pod as the steps' are: Pod Security, webhooks and quotas have their say; none is made."""
    try:
        if not view.may("", "pods", "create"):
            return [unseen("pods", f"you may not make pods in {view.namespace}, not even for a trial")]
    except Refused as error:
        return [unseen("pods", str(error))]
    try:
        view.create("pods", pod(cluster, "imagemill-doctor-trial", "cpu", "version"), dry_run=True)
    except Refused as error:
        mend = "let the namespace take pods that Pod Security `restricted` takes"
        return [Finding("pods", ERROR, f"a pod as the steps' are is refused: {error}", mend)]
    return [Finding("pods", OK, "a pod as the steps' are would be taken")]


def run(view: View, cluster: Cluster) -> list[Finding]:
    """Findings of pods that are started: of the images, and of the store. Nothing of them is left."""
    suffix = secrets.token_hex(3)
    wanted = {f"imagemill-doctor-{suffix}-{target}": (target, "version") for target in TARGETS}
    wanted[f"imagemill-doctor-{suffix}-store"] = ("cpu", "reach")
    try:
        for name, (target, question) in wanted.items():
            view.create("pods", pod(cluster, name, target, question))
        answers = _wait(view, list(wanted))
    except Refused as error:
        return [unseen("probe", str(error))]
    finally:
        for name in wanted:
            with contextlib.suppress(Refused):  # never made
                view.delete("pods", name)
    *images, store = (answers[name] for name in wanted)
    return [*_images(cluster, dict(zip(TARGETS, images, strict=True))), _store(cluster, store)]


def _wait(view: View, names: list[str]) -> dict[str, Answer]:
    """The answer of each pod, by its name; a problem where it can't start or has not ended in time."""
    answers: dict[str, Answer] = {}
    until = time.monotonic() + PATIENCE_S
    while len(answers) < len(names):
        for name in names:
            if name not in answers and (answer := _look(view, name)) is not None:
                answers[name] = answer
        if time.monotonic() > until:
            late = Answer(None, f"no answer within {PATIENCE_S:g} s")
            return {name: answers.get(name, late) for name in names}
        time.sleep(LOOK_S)
    return answers


def _look(view: View, name: str) -> Answer | None:
    """What the pod answers; None as long as it may still do so."""
    document = view.poll("pods", name)
    if document is None:
        return Answer(None, "the pod was deleted")
    if problem := trouble(document):
        return Answer(None, problem)
    status = document.get("status") or {}
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    lines = view.log(name).strip().splitlines()
    answers = [line.removeprefix(inside.MARK) for line in lines if line.startswith(inside.MARK)]
    if answers:
        return Answer(json.loads(answers[-1]))
    reason = " / ".join(lines[-2:]) or str(status.get("message") or "")
    return Answer(None, reason or f"the pod ended {status['phase']} without a word")


def trouble(pod: Json) -> str:
    """Why a pod can't start, in Kubernetes' words; empty while it may."""
    for container in container_statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in (*PULL_PROBLEMS, *_START_PROBLEMS):
            return f"{waiting['reason']}: {waiting.get('message', container.get('image', ''))}"
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node takes it")
    return ""


def _images(cluster: Cluster, answers: Mapping[str, Answer]) -> list[Finding]:
    findings = []
    for target, answer in answers.items():
        image = f"images.{target}: {cluster.image(target)}"
        if answer.content is None:
            findings.append(Finding("images", ERROR, f"{image}: {answer.problem}", "correct what the message names"))
        elif answer.content["uid"] != UID or _NEEDS[target] not in answer.content["has"]:
            seen = f"{image} is none of imagemill's target {target}: user {answer.content['uid']}, no {_NEEDS[target]}"
            findings.append(Finding("images", ERROR, seen, "`imagemill images build` makes them"))
    if findings:
        return findings
    versions = sorted({str(answer.content["version"]) for answer in answers.values() if answer.content})
    seen = f"{', '.join(TARGETS)} start, with imagemill {', '.join(versions)}"
    if len(versions) > 1:
        return [Finding("images", WARNING, seen, "`imagemill images build` makes all three of one version")]
    return [Finding("images", OK, seen)]


def _store(cluster: Cluster, answer: Answer) -> Finding:
    workspace = cluster.storage.workspace
    if answer.content is None:
        mend = "correct storage in the cluster's file, the secret, the bucket, or the network policies"
        return Finding("store", ERROR, f"from a pod: {answer.problem}", mend)
    if not (answer.content["read"] and answer.content["listed"]):
        seen = f"{workspace}: what a pod has written is not read or listed again"
        return Finding("store", ERROR, seen, "the store is not consistent: use another one")
    deletes = "" if answer.content["deletes"] else "; deleting is forbidden, so that doctor's object stays"
    return Finding("store", OK, f"a pod writes, reads and lists {workspace}{deletes}")
