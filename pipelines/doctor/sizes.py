"""Requests of a run's pods, stage by stage: those that are there at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...components.store.config import STEPS
from .. import rayjob
from ..cluster import Cluster, Pod
from ..kube import Json

Amounts = dict[str, float]
"""Resource → cores, bytes or a number."""
CPU, MEMORY, DISK, PODS = "cpu", "memory", "ephemeral-storage", "pods"
ARGO, KFP = "argo", "kfp"
_EXECUTOR = {CPU: 0.01, MEMORY: 64 * 2.0**20}
"""Requests of Argo's own container beside each step (argo_templates.py)."""
_UNITS = {CPU: " cores", MEMORY: " GiB of memory", DISK: " GiB of disk"}
_GIB = 2**30


@dataclass(frozen=True)
class PodRequest:
    """One pod that a run needs: its requests, and which nodes it takes."""

    name: str
    requests: Amounts
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Stage:
    """Pods that a run has at once. It can do without `extra` further ones like the last.

    `is_certain`: every run has this stage, and not only one of much data.
    """

    name: str
    pods: tuple[PodRequest, ...]
    extra: int = 0
    is_certain: bool = True

    @property
    def total(self) -> Amounts:
        """The requests of all pods that it can't do without."""
        return add([*(pod.requests for pod in self.pods), {PODS: float(len(self.pods))}])

    def with_extra(self, number: int) -> tuple[PodRequest, ...]:
        return self.pods + self.pods[-1:] * number


def quantity(text: object) -> float:
    """A quantity of Kubernetes' as a number: cores, bytes or pieces."""
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(str(text)))


def add(amounts: Iterable[Mapping[str, float]]) -> Amounts:
    """The sum of amounts, resource by resource."""
    total: Amounts = {}
    for amount in amounts:
        for name, value in amount.items():
            total[name] = total.get(name, 0.0) + value
    return total


def describe(resource: str, value: float, *, round_down: bool = False, unit: bool = True) -> str:
    """An amount in words, to a hundredth: what is asked for is rounded up, what is free is to be rounded down."""
    number = value / _GIB if resource in (MEMORY, DISK) else value
    hundredths = round(number * 100, 6)
    text = f"{(math.floor(hundredths) if round_down else math.ceil(hundredths)) / 100:g}"
    return text + (_UNITS.get(resource, f" {resource}") if unit else "")


def requests_of(spec: Json) -> Amounts:
    """What a pod with this spec is promised of its node, as the scheduler counts it."""
    running = [_requests(container) for container in spec.get("containers") or ()]
    sidecars: list[Amounts] = []
    peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        starting = add([*sidecars, _requests(container)])
        peak = {name: max(peak.get(name, 0.0), starting.get(name, 0.0)) for name in peak | starting}
        if container.get("restartPolicy") == "Always":  # a sidecar: it stays
            sidecars.append(_requests(container))
    total = add([*running, *sidecars])
    largest = {name: max(total.get(name, 0.0), peak.get(name, 0.0)) for name in total | peak}
    whole_pod = _requests(spec)  # since Kubernetes 1.34
    overhead = {name: quantity(value) for name, value in (spec.get("overhead") or {}).items()}
    return add([largest | whole_pod, overhead])


def _requests(container: Json) -> Amounts:
    """Requests; a limit without one is the request as well."""
    resources = container.get("resources") or {}
    values = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(value) for name, value in values.items()}


def stages(cluster: Cluster, target: str) -> list[Stage]:
    """The stages of a run that `target` (argo, kfp) starts, each with the pods that it needs at once."""
    return [stage for step in STEPS for stage in _stages_of(step, cluster, target)]


def _stages_of(step: str, cluster: Cluster, target: str) -> list[Stage]:
    mode = cluster.ray.mode if step == "resize" else "pod"
    in_pod = _step_pod(step, cluster.small if mode == "address" else cluster.steps[step], target)
    if mode in ("pod", "address"):
        return [Stage(step, (in_pod,))]
    if target == ARGO:  # which watches the RayJob itself
        waiting = PodRequest("resize", _EXECUTOR)
    else:
        waiting = in_pod if mode == "auto" else _step_pod(step, cluster.small, target)
    if mode == "auto":
        return [Stage(step, (in_pod,)), _rayjob("resize by a RayJob", cluster, waiting, is_certain=False)]
    return [_rayjob(step, cluster, waiting, is_certain=True)]


def _step_pod(name: str, pod: Pod, target: str) -> PodRequest:
    values = {CPU: pod.cpu, MEMORY: pod.memory}
    if target == ARGO and pod.ephemeral_storage:  # KFP has no word for it
        values[DISK] = pod.ephemeral_storage
    requests = {resource: quantity(value) for resource, value in values.items()}
    if pod.gpu:
        requests[pod.gpu_type] = float(pod.gpu)
    executor = _EXECUTOR if target == ARGO else {}
    return PodRequest(name, add([requests, executor]), pod.node_selector, pod.tolerations)


def _rayjob(name: str, cluster: Cluster, waiting: PodRequest, *, is_certain: bool) -> Stage:
    """The pod that waits, the head, the submitter and one worker at least: read from the RayJob itself."""
    # Without Ray's version the manifest is refused where no Ray is installed; sizes do not depend on it.
    versioned = replace(cluster, ray=replace(cluster.ray, version=cluster.ray.version or "0.0"))
    spec = rayjob.manifest(versioned, "doctor", ["python"], "doctor")["spec"]
    ray_cluster = spec["rayClusterSpec"]
    (workers,) = ray_cluster["workerGroupSpecs"]
    autoscaler = ray_cluster.get("autoscalerOptions", {}) if ray_cluster.get("enableInTreeAutoscaling") else {}
    head = _template_pod("Ray's head", ray_cluster["headGroupSpec"]["template"])
    head = replace(head, requests=add([head.requests, _requests(autoscaler)]))
    submitter = [_template_pod("submitter", spec["submitterPodTemplate"])] if "submitterPodTemplate" in spec else []
    worker = _template_pod("Ray's worker", workers["template"])
    least = max(workers["minReplicas"], 1)
    pods = (waiting, head, *submitter, *[worker] * least)
    return Stage(name, pods, max(workers["maxReplicas"] - least, 0), is_certain)


def _template_pod(name: str, template: Json) -> PodRequest:
    spec = template["spec"]
    return PodRequest(name, requests_of(spec), spec.get("nodeSelector") or {}, tuple(spec.get("tolerations") or ()))
