"""Settings of Argo's controller: how soon it goes on after a step, and when it tries KFP's steps again."""

from __future__ import annotations

import re
from typing import Any

from ..kube import Json
from .findings import OK, WARNING, Finding, unseen
from .operators import containers, controller_of, option
from .run_namespace import RunNamespace
from .sizes import KFP
from .view import Refused, View

REQUEUE, REQUEUE_S = "DEFAULT_REQUEUE_TIME", 10.0
"""The variable, and Argo's own value: seconds between two looks at a workflow."""
_CONFIG_MAP = "workflow-controller-configmap"
ON_FAILURE = "OnFailure"
"""Argo's own retryPolicy, where none is set."""
_TRIED_AGAIN = {
    ON_FAILURE: "a step that fails is tried again, one whose pod is deleted or whose node is drained may end the run",
    "OnError": "a step whose pod is lost is tried again, one that fails by itself (exit code 75, memory) ends the run",
    "OnTransientError": "what Argo takes for a transient error is tried again, a step that fails ends the run",
    "Always": "steps that fail and steps whose pod is lost are tried again",
}
"""Argo's retryPolicy → what becomes of KFP's steps, which have a number of retries and name no policy."""
_KFP_DEFAULTS = 'spec: {templateDefaults: {retryStrategy: {limit: "2", retryPolicy: OnError}}}'
"""What Kubeflow Pipelines' own installation sets."""


def look(view: View, runs: RunNamespace) -> list[Finding]:
    """Findings of the controller that looks at the runs' namespace."""
    try:
        controller = controller_of(view)
    except Refused as error:
        return [unseen("argo settings", f"Argo's controller ({error})")]
    if controller is None:
        seen = f"no controller of Argo's looks at the namespace {view.namespace}"
        return [Finding("argo settings", WARNING, seen, "install one, or let it manage the namespace")]
    return [_requeue(controller), *(_retries(view, controller) if runs.target == KFP else ())]


def _requeue(controller: Json) -> Finding:
    """The pause that Argo's controller makes between two looks at a workflow."""
    variables = [variable for container in containers(controller) for variable in container.get("env") or ()]
    value = next((str(variable.get("value") or "") for variable in variables if variable["name"] == REQUEUE), "")
    seconds = duration(value) if value else REQUEUE_S
    if seconds <= 1:
        return Finding("argo settings", OK, f"the controller goes on within {seconds:g} s of a step's end")
    where = f"-n {controller['metadata']['namespace']} deployment/{controller['metadata']['name']}"
    seen = f"the controller waits up to {seconds:g} s after each step"
    return Finding("argo settings", WARNING, seen, f"kubectl set env {where} {REQUEUE}=1s")


def duration(text: str) -> float:
    """A duration of Go's, such as 1m30s or 500ms, in seconds; Argo's own value for what is none."""
    factors = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
    parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
    return sum(float(number) * factors[unit] for number, unit in parts) if parts else REQUEUE_S


def _retries(view: View, controller: Json) -> list[Finding]:
    """The policy that Argo gives to the retries of KFP's steps, which name none of their own."""
    namespace = controller["metadata"]["namespace"]
    name = option(controller, "--configmap") or _CONFIG_MAP
    try:
        policy = retry_policy((view.get("configmaps", name, namespace) or {}).get("data") or {})
    except Refused as error:
        return [unseen("retries", f"the settings of Argo's controller ({error})")]
    except ValueError as error:
        return [Finding("retries", WARNING, f"ConfigMap {namespace}/{name}: {error}", "correct it")]
    source = "of its templateDefaults" if policy else "its own, for none is set"
    policy = policy or ON_FAILURE
    seen = f"Argo's retryPolicy is {policy}, {source}: {_TRIED_AGAIN.get(policy, 'what it does is not known here')}"
    if policy != ON_FAILURE:
        return [Finding("retries", OK, seen)]
    mend = f"in ConfigMap {namespace}/{name}, as KFP's own installation has it: workflowDefaults: {_KFP_DEFAULTS}"
    return [Finding("retries", WARNING, seen, mend)]


def retry_policy(data: dict[str, str]) -> str:
    """The policy in the controller's settings, empty where they name none. Each setting has a key of its own, or all
    are in one, `config`. ValueError for what is no YAML of that form."""
    import yaml

    try:
        defaults: Any = yaml.safe_load(data.get("workflowDefaults") or "")
        if defaults is None:
            defaults = (yaml.safe_load(data.get("config") or "") or {}).get("workflowDefaults")
        for key in ("spec", "templateDefaults", "retryStrategy"):
            defaults = (defaults or {}).get(key)
        return str((defaults or {}).get("retryPolicy") or "")
    except (yaml.YAMLError, AttributeError):
        raise ValueError("workflowDefaults are no mapping in YAML") from None
