"""A pod of the tests' own: it answers a question from inside the cluster, and shows whether an image can be pulled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagemill.pipelines import pods
from imagemill.pipelines.cluster import LABELS, SCRATCH, UID, Cluster
from imagemill.pipelines.settings import plain

from . import inside
from .kube import Doc, name_of
from .options import E2E_LABEL
from .scenario import Deadline, Failed

if TYPE_CHECKING:
    from .session import Session

_SOURCE = Path(inside.__file__)
_PULL_PROBLEMS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_START_PROBLEMS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def pod(cluster: Cluster, name: str, suffix: str, target: str, question: str, workspace: str) -> Doc:
    """A pod as the steps' are: same user, same restrictions, same credentials, same labels for network policies."""
    command = ["python", "-c", _SOURCE.read_text(encoding="utf-8"), question, workspace]
    container = {
        "name": "main",
        "image": cluster.image(target),
        "imagePullPolicy": cluster.images.pull_policy,
        "command": command,
        "env": pods.storage_env(cluster),
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": pods.container_security(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 1800,
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
    labels = {**cluster.labels, **LABELS, "app.kubernetes.io/component": "e2e-probe", **off, E2E_LABEL: suffix}
    metadata = {"name": name, "labels": labels, "annotations": off}
    made: Doc = plain({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return made


def ask(
    session: Session, question: str, workspace: str = "", target: str = "cpu", deadline: Deadline | None = None
) -> Doc:
    """The answer of one of inside.py's questions. Failed says how the pod went wrong; its objects are the session's."""
    name = session.name(f"probe-{question}")
    made = pod(session.cluster, name, session.suffix, target, question, workspace or session.cluster.storage.workspace)
    session.create("pods", made)
    until = deadline or session.deadline

    def ended() -> Doc | None:
        found = session.find("pods", name)
        if found is None:
            return None
        if problem := trouble(found):
            raise Failed(f"pod {name}: {problem}")
        return found if (found.get("status") or {}).get("phase") in ("Succeeded", "Failed") else None

    what = f"the answer of pod {name} ({session.cluster.image(target)})"
    done = session.mirror.wait(ended, what, until, lambda: _short(session.find("pods", name)))
    log = session.kube.log(name, "main")
    answers = [line for line in log.splitlines() if line.startswith(inside.MARK)]
    if done["status"]["phase"] != "Succeeded" or not answers:
        tail = " / ".join(log.strip().splitlines()[-3:])
        raise Failed(f"pod {name} ended {done['status']['phase']} without an answer: {tail or 'it wrote nothing'}")
    session.discard("pods", name)
    return dict(json.loads(answers[-1].removeprefix(inside.MARK)))


def trouble(found: Doc) -> str:
    """Why a pod can't start, in Kubernetes' words; empty while it may."""
    status = found.get("status") or {}
    for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in (*_PULL_PROBLEMS, *_START_PROBLEMS):
            return f"{waiting['reason']}: {waiting.get('message', one.get('image', ''))}"
    return ""


def unschedulable(found: Doc) -> str:
    """The scheduler's word on a pod that it finds no node for; empty when it found one."""
    for condition in (found.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "no node found")
    return ""


def _short(found: Doc | None) -> str:
    if found is None:
        return "not yet there"
    phase = (found.get("status") or {}).get("phase", "")
    return f"{name_of(found)} {phase} {unschedulable(found)}".strip()
