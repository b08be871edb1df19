"""Checks of the operators that a run needs: Argo Workflows, KubeRay, Kubeflow Pipelines; versions and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from ...components.storage.errors import MillError
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from ..kfp.client import CONNECTION_HELP, Connection, KfpService
from ..kfp.pods import supports_run_settings
from .access import RunNamespace
from .sizes import ARGO, KFP
from .view import ERROR, OK, WARNING, ApiError, ClusterView, Finding, make_unseen

ARGO_API, ARGO_KINDS = "argoproj.io/v1alpha1", ("workflows", "workflowtemplates", "cronworkflows")
RAY_API, RAY_KINDS = "ray.io/v1", ("rayjobs", "rayclusters")
OLDEST_ARGO = (3, 7)
OLDEST_KUBERAY, KUBERAY_WITH_DEADLINES = (1, 4), (1, 6)
CONTROLLER, KFP_SERVER = "workflow-controller", "ml-pipeline-api-server"
REQUEUE_VARIABLE, DEFAULT_REQUEUE_S = "DEFAULT_REQUEUE_TIME", 10.0
"""The variable of the seconds after which the controller processes a workflow again, and Argo's default."""
_CONFIG_MAP = "workflow-controller-configmap"
ON_FAILURE = "OnFailure"
"""Argo's default retryPolicy."""
_POLICY_EFFECTS = {
    ON_FAILURE: "a step that fails is tried again, one whose pod is deleted or whose node is drained may end the run",
    "OnError": "a step whose pod is lost is tried again, one that fails by itself (exit code 75, memory) ends the run",
    "OnTransientError": "what Argo takes for a transient error is tried again, a step that fails ends the run",
    "Always": "steps that fail and steps whose pod is lost are tried again",
}
"""Argo's retryPolicy → its effect on KFP's steps, which have a number of retries and no policy."""
_KFP_DEFAULTS = 'spec: {templateDefaults: {retryStrategy: {limit: "2", retryPolicy: OnError}}}'
"""The workflow defaults of Kubeflow Pipelines' own installation."""
_INSTALL_ARGO = (
    "kubectl apply --server-side -n argo -f "
    "https://github.com/argoproj/argo-workflows/releases/download/v4.1.2/install.yaml"
)
_INSTALL_KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator -n kuberay-operator --create-namespace"


def list_missing_kinds(view: ClusterView, api: str, kinds: Iterable[str]) -> list[str]:
    """Return the kinds that the API does not have. Raises ApiError."""
    kinds_of_api = {resource["name"] for resource in (view.read(f"/apis/{api}") or {}).get("resources", ())}
    return [kind for kind in kinds if kind not in kinds_of_api]


def find_version(view: ClusterView, name: str, namespace: str = "") -> str:
    """Return the version in the tag of an operator's image; empty where it has none. Raises ApiError."""
    for deployment in list_deployments(view, name, namespace):
        for container in get_containers(deployment):
            tag = str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[2]
            if _is_named(container, name) and re.search(r"\d+\.\d+", tag):
                return tag
    return ""


def list_deployments(view: ClusterView, name: str, namespace: str = "") -> list[Json]:
    """Return the deployments with a container, or an image, of that name. Raises ApiError."""
    documents = view.list_items(f"/apis/apps/v1{namespace and f'/namespaces/{namespace}'}/deployments")
    return [document for document in documents if any(_is_named(part, name) for part in get_containers(document))]


def get_containers(deployment: Json) -> list[Json]:
    return list(deployment["spec"]["template"]["spec"]["containers"])


def _is_named(container: Json, name: str) -> bool:
    image = str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")[0]
    return name in (container["name"], image)


def parse_version(version: str) -> tuple[int, ...]:
    """Return the major and minor number of a version: (4, 1) for v4.1.2."""
    match = re.search(r"(\d+)\.(\d+)", version)
    assert match, version
    return int(match[1]), int(match[2])


def _format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_argo(view: ClusterView, runs: RunNamespace) -> list[Finding]:
    """Check that Argo Workflows is installed, in a version that the templates are for. Kubeflow installs its own."""
    if missing := list_missing_kinds(view, ARGO_API, ARGO_KINDS):
        return [Finding("argo", ERROR, f"the cluster has no {', '.join(missing)} ({ARGO_API})", _INSTALL_ARGO)]
    try:
        version = find_version(view, CONTROLLER)
    except ApiError as error:
        return [make_unseen("argo", f"its version ({error})")]
    if version and runs.target == ARGO and parse_version(version) < OLDEST_ARGO:
        observation = f"Argo Workflows {version}; the templates are for {_format_version(OLDEST_ARGO)} or later"
        return [Finding("argo", ERROR, observation, _INSTALL_ARGO)]
    return [Finding("argo", OK, f"Argo Workflows {version or 'of an unknown version'}")]


def find_controller(view: ClusterView) -> Json | None:
    """Return the deployment of the Argo controller that watches the namespace, or None. Raises ApiError."""
    serving = [
        deployment
        for deployment in list_deployments(view, CONTROLLER)
        if _watches_namespace(deployment, view.namespace)
    ]
    # A controller of the namespace itself comes before one of the whole cluster.
    return min(serving, key=lambda deployment: deployment["metadata"]["namespace"] != view.namespace, default=None)


def _watches_namespace(controller: Json, namespace: str) -> bool:
    if "--namespaced" not in _get_command_line(controller):
        return True
    return namespace == (get_option(controller, "--managed-namespace") or controller["metadata"]["namespace"])


def _get_command_line(deployment: Json) -> list[str]:
    word_lists = [container.get(name) or () for container in get_containers(deployment) for name in ("command", "args")]
    return [str(word) for words in word_lists for word in words]


def get_option(deployment: Json, flag: str) -> str:
    """Return the value of a flag on the command line, `--flag value` or `--flag=value`; empty without the flag."""
    words = _get_command_line(deployment)
    joined = [(name, value) for name, _, value in (word.partition("=") for word in words)]
    return next((value for name, value in [*pairwise(words), *joined] if name == flag), "")


def check_kuberay(view: ClusterView, cluster: Cluster) -> list[Finding]:
    """Check that KubeRay is installed where runs create RayJobs, in a version that has the fields of ours."""
    if not cluster.ray.makes_rayjobs:
        return [Finding("kuberay", OK, f"not needed: ray.mode is {cluster.ray.mode}")]
    if missing := list_missing_kinds(view, RAY_API, RAY_KINDS):
        ray = cluster.ray
        field, mode = ("ray.mode", ray.mode) if ray.may_make_rayjob("resize") else ("ray.clean", ray.clean)
        observation = f"{field} is {mode}, and the cluster has no {', '.join(missing)} ({RAY_API})"
        # With auto runs of little data make none.
        state = ERROR if "rayjob" in (ray.mode, ray.clean) else WARNING
        return [Finding("kuberay", state, observation, f"{_INSTALL_KUBERAY}; or {field}: pod")]
    try:
        version = find_version(view, "kuberay-operator")
    except ApiError as error:
        return [make_unseen("kuberay", f"its version ({error})")]
    upgrade = f"upgrade it to {_format_version(KUBERAY_WITH_DEADLINES)} or later"
    if version and parse_version(version) < OLDEST_KUBERAY:
        return [
            Finding("kuberay", ERROR, f"KubeRay {version} is older than {_format_version(OLDEST_KUBERAY)}", upgrade)
        ]
    if version and parse_version(version) < KUBERAY_WITH_DEADLINES:
        observation = f"KubeRay {version} knows no deadline for a RayJob that waits for nodes (ray.pending_seconds)"
        return [Finding("kuberay", WARNING, observation, upgrade)]
    return [Finding("kuberay", OK, f"KubeRay {version or 'of an unknown version'}")]


def check_kubeflow(
    view: ClusterView | None, runs: RunNamespace, cluster: Cluster, connection: Connection
) -> list[Finding]:
    """Check that Kubeflow Pipelines answers, and is of the release that packages are compiled for."""
    try:
        service = KfpService(connection)
    except MillError as error:
        return [Finding("kfp", ERROR, str(error).replace(CONNECTION_HELP, "").strip(), CONNECTION_HELP)]
    reachable = Finding("kfp", OK, f"{service.host} answers")
    try:
        version = find_version(view, KFP_SERVER, runs.kubeflow) if view else ""
    except ApiError as error:
        return [reachable, make_unseen("kfp", f"its version ({error})")]
    if not version:
        return [reachable]
    release = _format_version(parse_version(version))
    if supports_run_settings(cluster.kfp.version) and not supports_run_settings(release):
        observation = (
            f"Kubeflow Pipelines {version}, and kfp.version says {cluster.kfp.version}: it would ignore the pods' "
            "settings, credentials among them"
        )
        return [Finding("kfp", ERROR, observation, f'kfp: {{version: "{release}"}} in the cluster\'s file')]
    return [Finding("kfp", OK, f"Kubeflow Pipelines {version}; {service.host} answers")]


def check_controller(view: ClusterView, runs: RunNamespace, cluster: Cluster) -> list[Finding]:
    """Check the controller that watches the runs' namespace: how soon it goes on, and what it makes of a pod."""
    try:
        controller = find_controller(view)
    except ApiError as error:
        return [make_unseen("argo settings", f"Argo's controller ({error})")]
    if controller is None:
        observation = f"no controller of Argo's looks at the namespace {view.namespace}"
        return [Finding("argo settings", WARNING, observation, "install one, or let it manage the namespace")]
    of_target = (
        _check_retry_policy(view, controller) if runs.target == KFP else _check_layout(view, controller, cluster)
    )
    return [_check_requeue_time(controller), *of_target]


def _check_requeue_time(controller: Json) -> Finding:
    """Check how long Argo's controller waits before it processes a workflow again."""
    variables = [variable for container in get_containers(controller) for variable in container.get("env") or ()]
    value = next(
        (str(variable.get("value") or "") for variable in variables if variable["name"] == REQUEUE_VARIABLE), ""
    )
    seconds = parse_duration(value) if value else DEFAULT_REQUEUE_S
    if seconds <= 1:
        return Finding("argo settings", OK, f"the controller goes on within {seconds:g} s of a step's end")
    where = f"-n {controller['metadata']['namespace']} deployment/{controller['metadata']['name']}"
    observation = f"the controller waits up to {seconds:g} s after each step"
    return Finding("argo settings", WARNING, observation, f"kubectl set env {where} {REQUEUE_VARIABLE}=1s")


def parse_duration(text: str) -> float:
    """Return a Go duration, such as 1m30s or 500ms, in seconds; Argo's default for an invalid one."""
    factors = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    return sum(float(number) * factors[unit] for number, unit in parts) if parts else DEFAULT_REQUEUE_S


def _check_layout(view: ClusterView, controller: Json, cluster: Cluster) -> list[Finding]:
    """Check that the templates are for the containers that Argo makes: else the API server refuses every pod."""
    config_map, expected = _get_config_map(controller), cluster.argo.initless
    try:
        is_initless = bool((get_setting(_read_settings(view, controller), "initlessPod") or {}).get("enabled"))
    except (ApiError, ValueError, AttributeError) as error:
        return [make_unseen("argo settings", f"initlessPod of ConfigMap {config_map} ({error})")] if expected else []
    if is_initless == expected:
        return []
    observation = f"initlessPod is {'on' if is_initless else 'off'} in ConfigMap {config_map}, and argo.initless says "
    remedy = f"argo: {{initless: {str(is_initless).lower()}}} in the cluster file, and compile again"
    return [Finding("argo settings", ERROR, f"{observation}{str(expected).lower()}: no pod could start", remedy)]


def _get_config_map(controller: Json) -> str:
    """Return the ConfigMap with the controller's settings as `<namespace>/<name>`."""
    return f"{controller['metadata']['namespace']}/{get_option(controller, '--configmap') or _CONFIG_MAP}"


def _read_settings(view: ClusterView, controller: Json) -> dict[str, str]:
    namespace, _, name = _get_config_map(controller).partition("/")
    return (view.get("configmaps", name, namespace) or {}).get("data") or {}


def _check_retry_policy(view: ClusterView, controller: Json) -> list[Finding]:
    """Check the policy of Argo for the retries of KFP's steps, which have none of their own."""
    config_map = _get_config_map(controller)
    try:
        policy = get_retry_policy(_read_settings(view, controller))
    except ApiError as error:
        return [make_unseen("retries", f"the settings of Argo's controller ({error})")]
    except ValueError as error:
        return [Finding("retries", WARNING, f"ConfigMap {config_map}: {error}", "correct it")]
    source = "of its templateDefaults" if policy else "its own, for none is set"
    policy = policy or ON_FAILURE
    observation = (
        f"Argo's retryPolicy is {policy}, {source}: {_POLICY_EFFECTS.get(policy, 'what it does is not known here')}"
    )
    if policy != ON_FAILURE:
        return [Finding("retries", OK, observation)]
    remedy = f"in ConfigMap {config_map}, as KFP's own installation has it: workflowDefaults: {_KFP_DEFAULTS}"
    return [Finding("retries", WARNING, observation, remedy)]


def get_retry_policy(data: dict[str, str]) -> str:
    """Return the retry policy of the controller's settings, empty where they have none. ValueError for invalid YAML."""
    defaults = get_setting(data, "workflowDefaults")
    try:
        for key in ("spec", "templateDefaults", "retryStrategy"):
            defaults = (defaults or {}).get(key)
        return str((defaults or {}).get("retryPolicy") or "")
    except AttributeError:
        raise ValueError("workflowDefaults are no mapping in YAML") from None


def get_setting(data: dict[str, str], name: str) -> Any:
    """Return a setting of the controller's ConfigMap, None where it has none: each has a key of its own, or all are in
    one, `config`. ValueError for invalid YAML."""
    import yaml

    try:
        value = yaml.safe_load(data.get(name) or "")
        return value if value is not None else (yaml.safe_load(data.get("config") or "") or {}).get(name)
    except (yaml.YAMLError, AttributeError):
        raise ValueError(f"{name}: no mapping in YAML") from None
