"""Checks by pods like the steps': a dry run, and with `--probe` one pod of each image, which are deleted again."""

from __future__ import annotations

import contextlib
import secrets
import time

from ..cluster import pod_fields
from ..cluster.cluster_file import LABELS, SCRATCH, Cluster
from ..cluster.kube_client import Json
from ..settings import to_plain
from .checks import MODULES, PULL_PROBLEMS, get_statuses, get_waiting, read_program
from .site import ERROR, OK, Finding, Site, Unseen

PROBE_TIMEOUT_S, POLL_S = 600.0, 1.0
START_PROBLEMS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", *PULL_PROBLEMS)


def build_pod(cluster: Cluster, name: str, target: str) -> Json:
    """Return a pod with the user, restrictions, credentials and labels (for network policies) of the steps' pods."""
    container = {
        "name": "main", "image": cluster.image(target), "imagePullPolicy": cluster.images.pull_policy,
        "command": ["python", "-c", read_program()], "args": [MODULES[target], cluster.storage.workspace],
        "env": pod_fields.build_storage_env(cluster),
        "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": pod_fields.build_container_security_context(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }  # fmt: skip
    spec = {
        "restartPolicy": "Never", "activeDeadlineSeconds": round(PROBE_TIMEOUT_S),
        "automountServiceAccountToken": False, "enableServiceLinks": False,
        "securityContext": pod_fields.build_pod_security_context(), "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
        "imagePullSecrets": [{"name": secret} for secret in cluster.images.pull_secrets],
    }  # fmt: skip
    labels = {**cluster.labels, **LABELS, "app.kubernetes.io/component": "doctor", **pod_fields.NO_SIDECAR}
    metadata = {"name": name, "labels": labels, "annotations": pod_fields.NO_SIDECAR}
    document: Json = to_plain({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return document


def check_pods(site: Site) -> list[Finding]:
    """Check by a dry run that the API takes a pod like the steps', past Pod Security, quotas and webhooks."""
    if not site.is_allowed("", "", "pods", "create"):
        raise Unseen(f"you may not make pods in {site.namespace}, not even for a trial")
    path = f"/api/v1/namespaces/{site.namespace}/pods?dryRun=All"
    try:
        site.request("POST", path, build_pod(site.cluster, "imagemill-doctor-trial", "cpu"))
    except Unseen as error:
        mend = "let the namespace take pods that Pod Security `restricted` takes, and quotas have room"
        return [Finding("pods", ERROR, f"a pod as the steps' are is refused: {error}", mend)]
    return [Finding("pods", OK, "a pod as the steps' are would be taken")]


def check_by_pods(site: Site) -> list[Finding]:
    """Start a pod of each image, which imports what it has to have and writes to the store; delete them again."""
    path, suffix = f"/api/v1/namespaces/{site.namespace}/pods", secrets.token_hex(3)
    names = {target: f"imagemill-doctor-{suffix}-{target}" for target in MODULES}
    errors: dict[str, str] = {}
    try:
        for target, name in names.items():
            site.request("POST", path, build_pod(site.cluster, name, target))
        give_up_at = time.monotonic() + PROBE_TIMEOUT_S
        while len(errors) < len(names):
            for target in names.keys() - errors.keys():
                if (error := _read_result(site, f"{path}/{names[target]}")) is not None:
                    errors[target] = error
                elif time.monotonic() > give_up_at:
                    errors[target] = f"no answer within {PROBE_TIMEOUT_S:g} s"
            time.sleep(POLL_S)
    finally:
        for name in names.values():
            with contextlib.suppress(Unseen):  # never made
                site.request("DELETE", f"{path}/{name}", {"kind": "DeleteOptions", "apiVersion": "v1"})
    mend = "correct what the message names: image, pull secret, storage, or network policies"
    return [
        Finding("probe", ERROR, f"a pod of images.{target}: {errors[target]}", mend) if errors[target]
        else Finding("probe", OK, f"a pod of images.{target} starts, has its modules, and uses the store")
        for target in MODULES
    ]  # fmt: skip


def _read_result(site: Site, path: str) -> str | None:
    """Return the error of a pod, empty where it succeeded; None while it goes on."""
    pod = site.request("GET", path)
    if pod is None:
        return "the pod was deleted"
    phase = (pod.get("status") or {}).get("phase")
    if phase == "Succeeded":
        return ""
    if problem := next((text for status in get_statuses(pod) if (text := get_waiting(status, START_PROBLEMS))), ""):
        return problem
    if phase != "Failed":
        return None
    lines = site.request_text("GET", f"{path}/log?tailLines=5").strip().splitlines()
    return lines[-1] if lines else str(pod["status"].get("message") or "it failed without a word")
