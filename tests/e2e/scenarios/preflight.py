"""Requirements of the other scenarios on the cluster, each with a row of the table."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

from imagemill.components.storage.errors import MillError
from imagemill.pipelines.cluster.cluster_file import UID
from imagemill.pipelines.kfp.client import HOST_VARIABLE

from .. import kfp
from ..access import probe
from ..access.kube import Doc, KubeError, labels_of
from ..options import without_gpus
from ..runs import KFP
from ..scenario import Failed, Skip
from ..session import Session, Trial
from .common import REGISTRY, source
from .retries import controller_of

check = REGISTRY.preflight
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
Check = Callable[[Trial], str]


def in_each_place(body: Check) -> Check:
    """Do a check in each namespace; where there are two, the note says which."""

    @functools.wraps(body)
    def every(trial: Trial) -> str:
        engines = {id(place): engine for engine, place in reversed(trial.session.places.items())}
        if len(engines) == 1:
            return body(trial)
        notes = []
        for engine in reversed(engines.values()):
            inner = Trial(trial.session, trial.scenario, engine, trial.deadline)
            try:
                notes.append(f"{inner.kube.namespace}: {body(inner)}")
            except Failed as error:
                raise Failed(f"{inner.kube.namespace}: {error}") from None
            finally:
                inner.clean()
        return "; ".join(notes)

    return every


@check("api", minutes=1)
@in_each_place
def api(trial: Trial) -> str:
    """The API answers, and one may do there what the tests do."""
    version = str((trial.kube.read("/version") or {}).get("gitVersion", "of unknown version"))
    _note_version(trial.session, "Kubernetes", version)
    missing = []
    has_ray = trial.kube.read("/apis/ray.io/v1") is not None
    for group, resource, verbs in _RIGHTS:
        if group == "ray.io" and not has_ray:
            continue
        for verb in verbs:
            if not _may(trial, group, resource, verb):
                missing.append(f"{verb} {resource}{'.' + group if group else ''}")
    if missing:
        raise Failed(f"you may not, in namespace {trial.kube.namespace}: {', '.join(missing)}")
    return f"Kubernetes {version}"


def _may(trial: Trial, group: str, resource: str, verb: str) -> bool:
    name, _, sub = resource.partition("/")
    attributes = {"namespace": trial.kube.namespace, "group": group, "resource": name, "verb": verb}
    attributes |= {"subresource": sub} if sub else {}
    body = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }  # fmt: skip
    answer = trial.kube.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


@check("pod-security", needs=("api",), minutes=1)
@in_each_place
def pod_security(trial: Trial) -> str:
    """The namespace's Pod Security level takes a pod as the steps' are."""
    document = probe.pod(trial.cluster, trial.name("dry-run"), trial.session.suffix, "cpu", "version", {})
    try:
        trial.kube.create("pods", document, dry_run=True)
    except KubeError as error:
        raise Failed(f"a pod is refused: {error}") from None
    try:
        namespace = trial.kube.read(f"/api/v1/namespaces/{trial.kube.namespace}") or {"metadata": {}}
        level = labels_of(namespace).get(_ENFORCE, "none of its own")
    except KubeError:
        level = "can't be read"
    return f"level enforced: {level}; the pods are made for restricted"


@check("secret", needs=("api",), minutes=1)
@in_each_place
def secret(trial: Trial) -> str:
    """The secret with the store's credentials has the keys that the cluster file names."""
    storage = trial.cluster.storage
    if not storage.secret:
        return "none: workload identity"
    try:
        document = trial.kube.get("secrets", storage.secret)
    except KubeError as error:
        if error.status == 403:
            raise Skip(f"you may not read secrets; whether {storage.secret} is right shows in `store`") from None
        raise
    if document is None:
        raise Failed(f"there is no secret {storage.secret} (storage.secret)")
    missing = {storage.access_key, storage.secret_key} - set(document.get("data") or {})
    if missing:
        raise Failed(f"secret {storage.secret} has no key {', '.join(sorted(missing))}")
    return f"{storage.secret}: {storage.access_key}, {storage.secret_key}"


@check("images", needs=("api", "pod-security"), minutes=20)
@in_each_place
def images(trial: Trial) -> str:
    """The three images can be pulled, and start as the user that they should."""
    versions = []
    pods = {target: probe.begin(trial, "version", {}, target) for target in ("cpu", "ray", "gpu")}
    for target, name in pods.items():
        answer = probe.answer(trial, name)
        if answer["uid"] != UID:
            raise Failed(f"image {target} runs as user {answer['uid']}, not {UID}")
        needed = {"ray": "ray", "gpu": "torch"}.get(target)
        if needed and needed not in answer["has"]:
            raise Failed(f"image {target} ({trial.cluster.image(target)}) has no {needed}")
        versions.append(f"{target} {answer['version']}")
    return ", ".join(versions)


@check("store", needs=("api", "pod-security"), minutes=5)
@in_each_place
def store(trial: Trial) -> str:
    """A pod reaches the object store with the secret's credentials, and writes, lists and reads."""
    answer = probe.ask(trial, "reach", workspace=trial.workspace("reach"))
    trial.place.facts["deletes"] = answer["deletes"]
    if not answer["listed"]:
        raise Failed(f"{trial.cluster.storage.workspace}: what was written is not listed")
    server = answer["server"] or "of unknown version"
    _note_version(trial.session, "Store", server)
    conditional = "" if answer["conditional"] else "; conditional writes are not kept to: the contract holds anyway"
    deletes = "" if answer["deletes"] else "; deleting is forbidden, so the tests' objects stay"
    return f"{trial.cluster.storage.workspace} ({server}){conditional}{deletes}"


@check("dataset", needs=("store",), minutes=5)
@in_each_place
def dataset(trial: Trial) -> str:
    """A small dataset is put into the store, which the runs read."""
    return f"{probe.ask(trial, 'plant', source=source(trial))['images']} images in {source(trial)}"


@check("argo", needs=("api",), minutes=1)
def argo(trial: Trial) -> str:
    """Argo Workflows is installed, of a version that the templates are for, with the service accounts."""
    kinds = {"workflows", "workflowtemplates", "cronworkflows"}
    _require_kinds(trial, "argoproj.io/v1alpha1", kinds, "Argo Workflows")
    version = _note_version(trial.session, "Argo Workflows", _version_of(trial, "workflow-controller"))
    if version and _numbers(version) < OLDEST_ARGO:
        raise Skip(f"Argo Workflows {version} is older than {'.'.join(map(str, OLDEST_ARGO))}; Kubeflow's own may be")
    accounts = trial.cluster.argo
    named = [accounts.service_account, accounts.executor_service_account, accounts.launcher_service_account]
    missing = [name for name in named if name and _is_absent(trial, "serviceaccounts", name)]
    if missing:
        raise Failed(f"no service account {', '.join(missing)}: kubectl apply -k k8s/overlays/…")
    token = f"{accounts.executor_service_account}.service-account-token"
    if accounts.executor_service_account and _is_absent(trial, "secrets", token):
        raise Failed(f"no secret {token}, which Argo's own containers take their token from")
    return f"Argo Workflows {version or 'of unknown version: its deployment is out of sight'}"


def _is_absent(trial: Trial, kind: str, name: str) -> bool:
    """False, too, where one may not look."""
    try:
        return trial.kube.get(kind, name) is None
    except KubeError as error:
        if error.status == 403:
            return False
        raise


@check("controller", needs=("api",), minutes=1)
def controller(trial: Trial) -> str:
    """Which failures Argo's controller tries again by itself, and how long it waits between two steps."""
    argo_controller = controller_of(trial.session)
    if argo_controller is None:
        raise Skip("Argo's controller and its config map are out of sight")
    wait = argo_controller.requeue or "10s, Argo's own; DEFAULT_REQUEUE_TIME=1s in its deployment makes runs shorter"
    loses = "" if argo_controller.policy != "OnFailure" else "; a lost pod ends a run of Kubeflow Pipelines"
    return (
        f"namespace {argo_controller.namespace}: retryPolicy {argo_controller.policy}{loses}; between two steps {wait}"
    )


@check("kuberay", needs=("api",), minutes=1)
def kuberay(trial: Trial) -> str:
    """KubeRay is installed, of a version that the RayJob is for."""
    _require_kinds(trial, "ray.io/v1", {"rayjobs", "rayclusters"}, "KubeRay")
    version = _note_version(trial.session, "KubeRay", _version_of(trial, "kuberay-operator"))
    if version and _numbers(version) < OLDEST_KUBERAY:
        raise Failed(f"KubeRay {version} is older than {'.'.join(map(str, OLDEST_KUBERAY))}")
    return f"KubeRay {version or 'of unknown version: its deployment is out of sight'}"


@check("resizing", needs=("api",), minutes=1)
@in_each_place
def resizing(trial: Trial) -> str:
    """The executor of ray.mode is available."""
    if trial.cluster.ray.mode == "rayjob":
        _require_kinds(trial, "ray.io/v1", {"rayjobs", "rayclusters"}, "KubeRay (ray.mode is rayjob)", missing=Failed)
    return f"ray.mode {trial.cluster.ray.mode}"


@check("kfp", needs=("api",), minutes=1)
def kubeflow(trial: Trial) -> str:
    """Kubeflow Pipelines' API answers, and its runs are where they are looked for."""
    place = trial.session.places[KFP]
    try:
        with kfp.service(trial.options, place.cluster.namespace) as service:
            host, profile = service.host, service.namespace
    except MillError as error:
        if trial.options.submit or os.environ.get(HOST_VARIABLE) or _has_kubeflow(trial):
            raise Failed(str(error)) from None
        raise Skip(f"no Kubeflow Pipelines here: no service ml-pipeline, no address given ({error})") from None
    _note_version(trial.session, "Kubeflow Pipelines", _version_of(trial, "ml-pipeline-api-server"))
    runs_in = profile or _namespace_of(trial, "ml-pipeline") or place.kube.namespace
    if runs_in != place.kube.namespace:
        raise Failed(
            f"Kubeflow Pipelines runs steps in the namespace {runs_in}, and the cluster file says "
            f"{place.kube.namespace}: --kfp-cluster names a file for {runs_in}"
        )
    return f"{host}, runs in {runs_in}"


def _has_kubeflow(trial: Trial) -> bool:
    try:
        return trial.kube.read("/api/v1/namespaces/kubeflow/services/ml-pipeline") is not None
    except KubeError:
        return True  # out of sight: better to say what does not answer


@check("gpus", needs=("api",), minutes=1)
def gpus(trial: Trial) -> str:
    """Nodes have the GPUs that the train step asks for."""
    if problem := trial.session.facts["no_gpus"]:
        raise Skip(f"{problem}: train and evaluate are run on CPUs")
    return str(trial.session.facts["gpus"])


def look_at_nodes(session: Session) -> None:
    """Count cores and GPUs; take the GPUs out of each place's cluster where no node has them, or none can be seen."""
    try:
        nodes = (session.first.kube.read("/api/v1/nodes") or {}).get("items", [])
        problem = ""
    except KubeError as error:
        nodes, problem = [], f"nodes can't be listed ({error.status})"
    session.facts["cores"] = sum(_cores(node) for node in nodes)
    for place in session.distinct_places():
        kind = place.cluster.steps["train"].gpu_type
        count = sum(int(_allocatable(node).get(kind, 0)) for node in nodes)
        lacking = problem or ("" if count else f"no node has {kind}")
        session.facts |= {"no_gpus": lacking, "gpus": f"{count} of {kind}"}
        if lacking:
            place.cluster = without_gpus(place.cluster)


def _cores(node: Doc) -> float:
    from imagemill.pipelines.settings import parse_quantity

    return parse_quantity(str(_allocatable(node).get("cpu", "0")))


def _allocatable(node: Doc) -> dict[str, Any]:
    return dict((node.get("status") or {}).get("allocatable") or {})


def _require_kinds(trial: Trial, group: str, kinds: set[str], product: str, missing: type[Exception] = Skip) -> None:
    api_resources = trial.kube.read(f"/apis/{group}") or {"resources": []}
    absent = kinds - {resource["name"] for resource in api_resources["resources"]}
    if absent:
        raise missing(f"no {product} here: the API has no {', '.join(sorted(absent))} of {group}")


def _deployments(trial: Trial) -> list[Doc]:
    try:
        return list((trial.kube.read("/apis/apps/v1/deployments") or {"items": []})["items"])
    except KubeError:
        return []


def _namespace_of(trial: Trial, deployment: str) -> str:
    """Return the namespace of a deployment, empty where it can't be seen."""
    metadata = [
        document["metadata"] for document in _deployments(trial) if document["metadata"].get("name") == deployment
    ]
    return str(metadata[0].get("namespace", "")) if metadata else ""


def _version_of(trial: Trial, container: str) -> str:
    """The version that a container's image is tagged with; empty where it can't be seen."""
    for deployment in _deployments(trial):
        for part in deployment["spec"]["template"]["spec"]["containers"]:
            image = str(part["image"]).partition("@")[0]
            if container in (part["name"], image.rpartition("/")[2].partition(":")[0]):
                tag = image.rpartition("/")[2].partition(":")[2]
                return tag if re.search(r"\d+\.\d+", tag) else ""
    return ""


def _note_version(session: Session, product: str, version: str) -> str:
    """Remember a version for the results; the same."""
    with session.lock:
        versions = session.facts.setdefault("versions", {})
        noted = versions.get(product, "")
        versions[product] = noted if not version or version in noted else ", ".join(filter(None, [noted, version]))
    return version


def _numbers(version: str) -> tuple[int, ...]:
    numbers = re.search(r"(\d+)\.(\d+)", version)
    assert numbers, version
    return int(numbers[1]), int(numbers[2])
