"""The programs of the cluster that a run needs: Argo Workflows, KubeRay, Kubeflow Pipelines; versions and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from ...components.store.errors import MillError
from ..cluster import Cluster
from ..kfp_client import HELP, Connection, Service
from ..kfp_server import knows_whole_runs
from ..kube import Json
from .findings import ERROR, OK, WARNING, Finding, unseen
from .run_namespace import RunNamespace
from .sizes import ARGO
from .view import Refused, View

ARGO_API, ARGO_KINDS = "argoproj.io/v1alpha1", ("workflows", "workflowtemplates", "cronworkflows")
RAY_API, RAY_KINDS = "ray.io/v1", ("rayjobs", "rayclusters")
OLDEST_ARGO = (3, 7)
OLDEST_KUBERAY, KUBERAY_WITH_DEADLINES = (1, 4), (1, 6)
CONTROLLER, KFP_SERVER = "workflow-controller", "ml-pipeline-api-server"
_INSTALL_ARGO = (
    "kubectl apply --server-side -n argo -f "
    "https://github.com/argoproj/argo-workflows/releases/download/v4.1.2/install.yaml"
)
_INSTALL_KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator -n kuberay-operator --create-namespace"


def missing_kinds(view: View, api: str, kinds: Iterable[str]) -> list[str]:
    """Those of the kinds that the API does not have. Raises Refused."""
    known = {resource["name"] for resource in (view.read(f"/apis/{api}") or {}).get("resources", ())}
    return [kind for kind in kinds if kind not in known]


def version_of(view: View, name: str, namespace: str = "") -> str:
    """The version that an operator's image is tagged with; empty where it has none. Raises Refused."""
    for deployment in deployments(view, name, namespace):
        for container in containers(deployment):
            tag = str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[2]
            if _is_named(container, name) and re.search(r"\d+\.\d+", tag):
                return tag
    return ""


def deployments(view: View, name: str, namespace: str = "") -> list[Json]:
    """The deployments with a container, or an image, of that name. Raises Refused."""
    documents = view.items(f"/apis/apps/v1{namespace and f'/namespaces/{namespace}'}/deployments")
    return [document for document in documents if any(_is_named(part, name) for part in containers(document))]


def containers(deployment: Json) -> list[Json]:
    return list(deployment["spec"]["template"]["spec"]["containers"])


def _is_named(container: Json, name: str) -> bool:
    image = str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[0]
    return name in (container["name"], image)


def numbers(version: str) -> tuple[int, ...]:
    """Major and minor number of a version: (4, 1) of v4.1.2."""
    match = re.search(r"(\d+)\.(\d+)", version)
    assert match, version
    return int(match[1]), int(match[2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def argo(view: View, runs: RunNamespace) -> list[Finding]:
    """Argo Workflows is there, of a version that the templates are for. Kubeflow brings its own."""
    if missing := missing_kinds(view, ARGO_API, ARGO_KINDS):
        return [Finding("argo", ERROR, f"the cluster has no {', '.join(missing)} ({ARGO_API})", _INSTALL_ARGO)]
    try:
        version = version_of(view, CONTROLLER)
    except Refused as error:
        return [unseen("argo", f"its version ({error})")]
    if version and runs.target == ARGO and numbers(version) < OLDEST_ARGO:
        seen = f"Argo Workflows {version}; the templates are for {_dotted(OLDEST_ARGO)} or later"
        return [Finding("argo", ERROR, seen, _INSTALL_ARGO)]
    return [Finding("argo", OK, f"Argo Workflows {version or 'of an unknown version'}")]


def controller_of(view: View) -> Json | None:
    """The deployment of the Argo controller that looks at the namespace; None where there is none. Raises Refused."""
    serving = [deployment for deployment in deployments(view, CONTROLLER) if _serves(deployment, view.namespace)]
    # A controller of the namespace itself comes before one of the whole cluster.
    return min(serving, key=lambda deployment: deployment["metadata"]["namespace"] != view.namespace, default=None)


def _serves(controller: Json, namespace: str) -> bool:
    if "--namespaced" not in _words(controller):
        return True
    return namespace == (option(controller, "--managed-namespace") or controller["metadata"]["namespace"])


def _words(deployment: Json) -> list[str]:
    lists = [container.get(name) or () for container in containers(deployment) for name in ("command", "args")]
    return [str(word) for words in lists for word in words]


def option(deployment: Json, flag: str) -> str:
    """The value of a flag on the command line, `--flag value` or `--flag=value`; empty where it is not given."""
    words = _words(deployment)
    joined = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    return next((value for name, value in [*pairwise(words), *joined] if name == flag), "")


def kuberay(view: View, cluster: Cluster) -> list[Finding]:
    """KubeRay is there where runs make RayJobs, of a version that knows all that is asked of it."""
    if not cluster.ray.makes_rayjobs:
        return [Finding("kuberay", OK, f"not needed: ray.mode is {cluster.ray.mode}")]
    if missing := missing_kinds(view, RAY_API, RAY_KINDS):
        seen = f"ray.mode is {cluster.ray.mode}, and the cluster has no {', '.join(missing)} ({RAY_API})"
        # With mode auto runs of little data make none.
        state = ERROR if cluster.ray.mode == "rayjob" else WARNING
        return [Finding("kuberay", state, seen, f"{_INSTALL_KUBERAY}; or ray.mode: pod")]
    try:
        version = version_of(view, "kuberay-operator")
    except Refused as error:
        return [unseen("kuberay", f"its version ({error})")]
    upgrade = f"upgrade it to {_dotted(KUBERAY_WITH_DEADLINES)} or later"
    if version and numbers(version) < OLDEST_KUBERAY:
        return [Finding("kuberay", ERROR, f"KubeRay {version} is older than {_dotted(OLDEST_KUBERAY)}", upgrade)]
    if version and numbers(version) < KUBERAY_WITH_DEADLINES:
        seen = f"KubeRay {version} knows no deadline for a RayJob that waits for nodes (ray.pending_seconds)"
        return [Finding("kuberay", WARNING, seen, upgrade)]
    return [Finding("kuberay", OK, f"KubeRay {version or 'of an unknown version'}")]


def kubeflow(view: View | None, runs: RunNamespace, cluster: Cluster, connection: Connection) -> list[Finding]:
    """Kubeflow Pipelines answers, and is of the release that packages are compiled for."""
    try:
        service = Service(connection)
    except MillError as error:
        return [Finding("kfp", ERROR, str(error).replace(HELP, "").strip(), HELP)]
    answers = Finding("kfp", OK, f"{service.host} answers")
    try:
        version = version_of(view, KFP_SERVER, runs.kubeflow) if view else ""
    except Refused as error:
        return [answers, unseen("kfp", f"its version ({error})")]
    if not version:
        return [answers]
    release = _dotted(numbers(version))
    if knows_whole_runs(cluster.kfp.version) and not knows_whole_runs(release):
        seen = (
            f"Kubeflow Pipelines {version}, and kfp.version says {cluster.kfp.version}: it would ignore the pods' "
            "settings, credentials among them"
        )
        return [Finding("kfp", ERROR, seen, f'kfp: {{version: "{release}"}} in the cluster\'s file')]
    return [Finding("kfp", OK, f"Kubeflow Pipelines {version}; {service.host} answers")]
