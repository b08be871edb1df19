"""What the other scenarios need of the cluster: each a line of the table of its own."""

from __future__ import annotations

import os
import re
from typing import Any

from imagemill.components.store.errors import MillError
from imagemill.pipelines.cluster import UID
from imagemill.pipelines.kfp_client import HOST

from . import kfp, probe
from .kube import Doc, KubeError, labels_of
from .options import without_gpus
from .scenario import Failed, Registry, Skip
from .session import Session

REGISTRY = Registry()
check = REGISTRY.scenario
OLDEST_ARGO = (3, 7)
OLDEST_KUBERAY = (1, 4)
_RIGHTS = [
    ("", "pods", ("create", "delete", "get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list", "watch")),
    ("argoproj.io", "workflows", ("create", "delete", "get", "list", "watch")),
    ("argoproj.io", "workflowtemplates", ("create", "delete", "list")),
    ("argoproj.io", "cronworkflows", ("create", "delete", "get", "list", "patch")),
    ("ray.io", "rayjobs", ("delete", "list", "watch")),
    ("ray.io", "rayclusters", ("delete", "list", "watch")),
]
_ENFORCE = "pod-security.kubernetes.io/enforce"


@check("api", minutes=1)
def api(session: Session) -> str:
    """The API answers, and one may do there what the tests do."""
    version = session.kube.read("/version") or {}
    missing = []
    for group, resource, verbs in _RIGHTS:
        if group == "ray.io" and session.cluster.ray.mode != "rayjob":
            continue
        for verb in verbs:
            if not _may(session, group, resource, verb):
                missing.append(f"{verb} {resource}{'.' + group if group else ''}")
    if missing:
        raise Failed(f"you may not, in namespace {session.kube.namespace}: {', '.join(missing)}")
    return f"Kubernetes {version.get('gitVersion', 'of unknown version')}"


def _may(session: Session, group: str, resource: str, verb: str) -> bool:
    name, _, sub = resource.partition("/")
    asked = {"namespace": session.kube.namespace, "group": group, "resource": name, "verb": verb}
    asked |= {"subresource": sub} if sub else {}
    body = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }  # fmt: skip
    found = session.kube.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(found["status"]["allowed"])


@check("pod-security", needs=("api",), minutes=1)
def pod_security(session: Session) -> str:
    """The namespace's Pod Security level takes a pod as the steps' are."""
    name = session.name("dry-run")
    made = probe.pod(session.cluster, name, session.suffix, "cpu", "version", session.cluster.storage.workspace)
    try:
        session.kube.create("pods", made, dry_run=True)
    except KubeError as error:
        raise Failed(f"a pod is refused: {error}") from None
    try:
        namespace = session.kube.read(f"/api/v1/namespaces/{session.kube.namespace}") or {"metadata": {}}
        level = labels_of(namespace).get(_ENFORCE, "none of its own")
    except KubeError:
        level = "can't be read"
    return f"level enforced: {level}; the pods are made for restricted"


@check("secret", needs=("api",), minutes=1)
def secret(session: Session) -> str:
    """The secret with the store's credentials has the keys that the cluster's file names."""
    storage = session.cluster.storage
    if not storage.secret:
        return "none: workload identity"
    try:
        found = session.kube.get("secrets", storage.secret)
    except KubeError as error:
        if error.status == 403:
            raise Skip(f"you may not read secrets; whether {storage.secret} is right shows in `store`") from None
        raise
    if found is None:
        raise Failed(f"there is no secret {storage.secret} (storage.secret)")
    missing = {storage.access_key, storage.secret_key} - set(found.get("data") or {})
    if missing:
        raise Failed(f"secret {storage.secret} has no key {', '.join(sorted(missing))}")
    return f"{storage.secret}: {storage.access_key}, {storage.secret_key}"


@check("images", needs=("api", "pod-security"), minutes=20)
def images(session: Session) -> str:
    """The three images can be pulled, and start as the user that they should."""
    told = []
    for target in ("cpu", "ray", "gpu"):
        found = probe.ask(session, "version", target=target)
        if found["uid"] != UID:
            raise Failed(f"image {target} runs as user {found['uid']}, not {UID}")
        needed = {"ray": "ray", "gpu": "torch"}.get(target)
        if needed and needed not in found["has"]:
            raise Failed(f"image {target} ({session.cluster.image(target)}) has no {needed}")
        told.append(f"{target} {found['version']}")
    return ", ".join(told)


@check("store", needs=("api", "pod-security"), minutes=5)
def store(session: Session) -> str:
    """A pod reaches the object store with the secret's credentials, and writes, lists and reads."""
    found = probe.ask(session, "reach", session.workspace("reach"))
    session.facts["deletes"] = found["deletes"]
    if not found["listed"]:
        raise Failed(f"{session.cluster.storage.workspace}: what was written is not listed")
    conditional = "" if found["conditional"] else "; conditional writes are not kept to: the contract holds anyway"
    deletes = "" if found["deletes"] else "; deleting is forbidden, so the tests' objects stay"
    return f"{session.cluster.storage.workspace}{conditional}{deletes}"


@check("argo", needs=("api",), minutes=1)
def argo(session: Session) -> str:
    """Argo Workflows is installed, of a version that the templates are for, with the service accounts."""
    kinds = {"workflows", "workflowtemplates", "cronworkflows"}
    _require_kinds(session, "argoproj.io/v1alpha1", kinds, "Argo Workflows")
    version = _version_of(session, "workflow-controller")
    if version and _numbers(version) < OLDEST_ARGO:
        raise Skip(f"Argo Workflows {version} is older than {'.'.join(map(str, OLDEST_ARGO))}; Kubeflow's own may be")
    accounts = session.cluster.argo
    named = [accounts.service_account, accounts.executor_service_account, accounts.launcher_service_account]
    missing = [name for name in named if name and _is_absent(session, "serviceaccounts", name)]
    if missing:
        raise Failed(f"no service account {', '.join(missing)}: kubectl apply -k k8s/overlays/…")
    token = f"{accounts.executor_service_account}.service-account-token"
    if accounts.executor_service_account and _is_absent(session, "secrets", token):
        raise Failed(f"no secret {token}, which Argo's own containers take their token from")
    return f"Argo Workflows {version or 'of unknown version: its deployment is out of sight'}"


def _is_absent(session: Session, kind: str, name: str) -> bool:
    """False, too, where one may not look."""
    try:
        return session.kube.get(kind, name) is None
    except KubeError as error:
        if error.status == 403:
            return False
        raise


@check("kuberay", needs=("api",), minutes=1)
def kuberay(session: Session) -> str:
    """KubeRay is installed, of a version that the RayJob is for."""
    if session.cluster.ray.mode != "rayjob":
        raise Skip(f"ray.mode is {session.cluster.ray.mode}")
    _require_kinds(session, "ray.io/v1", {"rayjobs", "rayclusters"}, "KubeRay")
    version = _version_of(session, "kuberay-operator")
    if version and _numbers(version) < OLDEST_KUBERAY:
        raise Failed(f"KubeRay {version} is older than {'.'.join(map(str, OLDEST_KUBERAY))}")
    return f"KubeRay {version or 'of unknown version: its deployment is out of sight'}"


@check("resizing", needs=("api",), minutes=1)
def resizing(session: Session) -> str:
    """What ray.mode asks for is there."""
    if session.cluster.ray.mode == "rayjob":
        _require_kinds(session, "ray.io/v1", {"rayjobs", "rayclusters"}, "KubeRay (ray.mode is rayjob)", missing=Failed)
    return f"ray.mode {session.cluster.ray.mode}"


@check("kfp", needs=("api",), minutes=1)
def kubeflow(session: Session) -> str:
    """Kubeflow Pipelines' API answers."""
    try:
        found = kfp.service(session)
    except MillError as error:
        if session.options.submit or os.environ.get(HOST) or _has_kubeflow(session):
            raise Failed(str(error)) from None
        raise Skip(f"no Kubeflow Pipelines here: no service ml-pipeline, no address given ({error})") from None
    return f"{found.host}{', namespace ' + found.namespace if found.namespace else ''}"


def _has_kubeflow(session: Session) -> bool:
    try:
        return session.kube.read("/api/v1/namespaces/kubeflow/services/ml-pipeline") is not None
    except KubeError:
        return True  # out of sight: better to say what does not answer


@check("gpus", needs=("api",), minutes=1)
def gpus(session: Session) -> str:
    """Nodes have the GPUs that the train step asks for."""
    if problem := session.facts["no_gpus"]:
        raise Skip(f"{problem}: train and evaluate are run on CPUs")
    return str(session.facts["gpus"])


def look_for_gpus(session: Session) -> None:
    """Take the GPUs out of the session's cluster where no node has them, or none can be seen."""
    kind = session.cluster.steps["train"].gpu_type
    count = 0
    try:
        nodes = (session.kube.read("/api/v1/nodes") or {}).get("items", [])
        count = sum(int(_allocatable(node).get(kind, 0)) for node in nodes)
        problem = "" if count else f"no node has {kind}"
    except KubeError as error:
        problem = f"nodes can't be listed ({error.status})"
    session.facts |= {"no_gpus": problem, "gpus": f"{count} of {kind}"}
    if problem:
        session.cluster = without_gpus(session.cluster)


def _allocatable(node: Doc) -> dict[str, Any]:
    return dict((node.get("status") or {}).get("allocatable") or {})


def _require_kinds(
    session: Session, group: str, kinds: set[str], product: str, missing: type[Exception] = Skip
) -> None:
    found = session.kube.read(f"/apis/{group}") or {"resources": []}
    absent = kinds - {one["name"] for one in found["resources"]}
    if absent:
        raise missing(f"no {product} here: the API has no {', '.join(sorted(absent))} of {group}")


def _version_of(session: Session, container: str) -> str:
    """The version that an operator's image is tagged with; empty where it can't be seen."""
    try:
        found = session.kube.read("/apis/apps/v1/deployments") or {"items": []}
    except KubeError:
        return ""
    for one in found["items"]:
        for part in one["spec"]["template"]["spec"]["containers"]:
            image = str(part["image"]).partition("@")[0]
            if container in (part["name"], image.rpartition("/")[2].partition(":")[0]):
                tag = image.rpartition("/")[2].partition(":")[2]
                return tag if re.search(r"\d+\.\d+", tag) else ""
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)", version)
    assert found, version
    return int(found[1]), int(found[2])
