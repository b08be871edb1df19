"""Argo's controller as it is installed: which failures it tries again itself, and how long it waits between steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .kube import Doc, Kube, KubeError

ON_FAILURE, ON_ERROR = "OnFailure", "OnError"
KFP_DEFAULTS = {"limit": "2", "retryPolicy": ON_ERROR}
"""What Kubeflow Pipelines' own installation says in templateDefaults.retryStrategy."""
_DEPLOYMENT = "workflow-controller"
_CONFIG_MAP = "workflow-controller-configmap"
_RELOAD_S = 10
"""How long the controller may take to read its config map anew."""


@dataclass(frozen=True)
class Controller:
    """`policy` is that of steps which say none themselves; `requeue` is DEFAULT_REQUEUE_TIME, empty for Argo's 10 s."""

    namespace: str
    config_map: str
    policy: str
    requeue: str

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps/{self.config_map}"


def find_controller(kube: Kube, namespace: str) -> Controller | None:
    """The controller that runs in the namespace, or else the cluster's; None where it is out of sight."""
    try:
        deployments = (kube.read("/apis/apps/v1/deployments") or {"items": []})["items"]
        named = [deployment for deployment in deployments if deployment["metadata"]["name"] == _DEPLOYMENT]
        named.sort(key=lambda deployment: deployment["metadata"]["namespace"] != namespace)
        if not named:
            return None
        container = named[0]["spec"]["template"]["spec"]["containers"][0]
        controller_namespace = named[0]["metadata"]["namespace"]
        name = _argument(container, "--configmap") or _CONFIG_MAP
        config_map = kube.read(f"/api/v1/namespaces/{controller_namespace}/configmaps/{name}") or {}
    except KubeError:
        return None
    environment = {variable["name"]: variable.get("value", "") for variable in container.get("env") or ()}
    policy = _policy(_defaults(config_map.get("data") or {}))
    return Controller(controller_namespace, name, policy, environment.get("DEFAULT_REQUEUE_TIME", ""))


def _argument(container: Doc, name: str) -> str:
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == name:
            return str(following)
        if word.startswith(f"{name}="):
            return str(word.partition("=")[2])
    return ""


def _defaults(data: Mapping[str, str]) -> Doc:
    """workflowDefaults of a config map, which has them as a key of its own or all in one key `config`."""
    import yaml

    if "workflowDefaults" in data:
        return dict(yaml.safe_load(data["workflowDefaults"]) or {})
    return dict((yaml.safe_load(data.get("config") or "") or {}).get("workflowDefaults") or {})


def _policy(defaults: Doc) -> str:
    templates = (defaults.get("spec") or {}).get("templateDefaults") or {}
    strategy = templates.get("retryStrategy") or {}
    return str(strategy.get("retryPolicy") or ON_FAILURE)


@contextmanager
def other_policy(kube: Kube, controller: Controller) -> Iterator[str]:
    """Have the controller run by the other one of Argo's own default and KFP's for a while; the policy's name.

    The config map is put back as it was. KubeError without the right to change it.
    """
    import yaml

    data = dict((kube.read(controller.path) or {}).get("data") or {})
    before = data.get("workflowDefaults")
    if before is None and "config" in data:
        raise KubeError(0, f"{controller.path} has all in one key, `config`, which the tests do not change")
    defaults = _defaults(data)
    spec = defaults.setdefault("spec", {})
    policy = ON_ERROR if controller.policy == ON_FAILURE else ON_FAILURE
    if policy == ON_ERROR:
        spec.setdefault("templateDefaults", {})["retryStrategy"] = dict(KFP_DEFAULTS)
    else:
        spec.get("templateDefaults", {}).pop("retryStrategy", None)
    changed: dict[str, Any] = {"data": {"workflowDefaults": yaml.safe_dump(defaults)}}
    kube.merge(controller.path, changed)
    try:
        time.sleep(_RELOAD_S)
        yield policy
    finally:
        kube.merge(controller.path, {"data": {"workflowDefaults": before}})  # null takes the key away
        time.sleep(_RELOAD_S)
