"""A pod of the tests' own: it answers a question from inside the cluster, and shows whether an image can be pulled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagemill.pipelines.cluster import pod_fields as pods
from imagemill.pipelines.cluster.cluster_file import LABELS, SCRATCH, UID, Cluster
from imagemill.pipelines.settings import to_plain

from ..options import E2E_LABEL
from ..scenario import Deadline, Failed
from . import inside
from .kube import Doc, name_of

if TYPE_CHECKING:
    from ..session import Trial

COMPONENT = "app.kubernetes.io/component"
_SOURCE = Path(inside.__file__)
_PULL_PROBLEMS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_START_PROBLEMS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_LIFETIME_S = 1800


def pod(
    cluster: Cluster, name: str, suffix: str, target: str, question: str, arguments: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
) -> Doc:  # fmt: skip
    """A pod as the steps' are: same user, same restrictions, same credentials, same labels for network policies.

    `labels` take the place of the steps' own.
    """
    command = ["python", "-c", _SOURCE.read_text(encoding="utf-8"), question, json.dumps(arguments)]
    container = {
        "name": "main",
        "image": cluster.image(target),
        "imagePullPolicy": cluster.images.pull_policy,
        "command": command,
        "env": pods.build_storage_env(cluster),
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": pods.build_container_security_context(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _LIFETIME_S,
        "terminationGracePeriodSeconds": 2,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
    }  # fmt: skip
    if cluster.images.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in cluster.images.pull_secrets]
    off = {"sidecar.istio.io/inject": "false"}
    own = {**LABELS, COMPONENT: "e2e-probe"} if labels is None else labels
    metadata = {"name": name, "labels": {**cluster.labels, **own, **off, E2E_LABEL: suffix}, "annotations": off}
    document: Doc = to_plain({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return document


def begin(
    trial: Trial, question: str, arguments: Mapping[str, Any], target: str = "cpu",
    labels: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Create the pod that answers one of inside.py's questions; its name."""
    name = trial.name(f"probe-{question}")
    trial.create("pods", pod(trial.cluster, name, trial.session.suffix, target, question, arguments, labels))
    return name


def ask(
    trial: Trial, question: str, target: str = "cpu", deadline: Deadline | None = None, **arguments: Any
) -> Doc:  # fmt: skip
    """The answer of one of inside.py's questions. Failed says how the pod went wrong."""
    return answer(trial, begin(trial, question, arguments, target), deadline)


def answer(trial: Trial, name: str, deadline: Deadline | None = None) -> Doc:
    """Return the answer of a pod of `begin` when it has ended, and delete the pod."""

    def find_ended() -> Doc | None:
        document = trial.find("pods", name)
        if document is None:
            return None
        if problem := trouble(document):
            raise Failed(f"pod {name}: {problem}")
        return document if (document.get("status") or {}).get("phase") in ("Succeeded", "Failed") else None

    until = deadline or trial.deadline
    ended_pod = trial.mirror.wait(
        find_ended, f"the answer of pod {name}", until, lambda: _short(trial.find("pods", name))
    )
    log = trial.kube.log(name, "main")
    answers = [line for line in log.splitlines() if line.startswith(inside.MARK)]
    if ended_pod["status"]["phase"] != "Succeeded" or not answers:
        tail = " / ".join(log.strip().splitlines()[-3:])
        raise Failed(f"pod {name} ended {ended_pod['status']['phase']} without an answer: {tail or 'it wrote nothing'}")
    trial.discard("pods", name)
    return dict(json.loads(answers[-1].removeprefix(inside.MARK)))


def running(trial: Trial, name: str) -> Doc:
    """The pod of that name, once its container runs and it has an address."""

    def ready() -> Doc | None:
        document = trial.find("pods", name)
        if document is None:
            return None
        if problem := trouble(document):
            raise Failed(f"pod {name}: {problem}")
        status = document.get("status") or {}
        return document if status.get("phase") == "Running" and status.get("podIP") else None

    return trial.mirror.wait(ready, f"pod {name}", trial.deadline, lambda: _short(trial.find("pods", name)))


def trouble(pod_document: Doc) -> str:
    """Return why a pod can't start, in Kubernetes' words; empty while it may."""
    status = pod_document.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in (*_PULL_PROBLEMS, *_START_PROBLEMS):
            return f"{waiting['reason']}: {waiting.get('message', container.get('image', ''))}"
    return ""


def unschedulable(pod_document: Doc) -> str:
    """Return the scheduler's message on a pod without a node; empty when it has one."""
    for condition in (pod_document.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node found")
    return ""


def _short(pod_document: Doc | None) -> str:
    if pod_document is None:
        return "not yet there"
    phase = (pod_document.get("status") or {}).get("phase", "")
    return f"{name_of(pod_document)} {phase} {unschedulable(pod_document)}".strip()
