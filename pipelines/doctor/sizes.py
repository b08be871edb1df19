"""Resource requests of a run's pods, in stages of pods that run at the same time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...components.dataset.workspace import STEPS
from ..cluster.cluster_file import Cluster, Pod
from ..cluster.kube_client import Json
from ..kuberay import manifest

Amounts = dict[str, float]
"""Resource → cores, bytes or a number."""
CPU, MEMORY, DISK, PODS = "cpu", "memory", "ephemeral-storage", "pods"
ARGO, KFP = "argo", "kfp"
_EXECUTOR = {CPU: 0.01, MEMORY: 64 * 2.0**20}
"""Requests of Argo's own container beside each step (argo/templates.py)."""
_UNITS = {CPU: " cores", MEMORY: " GiB of memory", DISK: " GiB of disk"}
_GIB = 2**30


@dataclass(frozen=True)
class PodRequest:
    """The requests of a pod, and the nodes that it may run on."""

    name: str
    requests: Amounts
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Stage:
    """The pods that a run has at the same time. `extra`: the number of optional further pods like the last one;
    `is_certain`: every run has this stage, and not only one with much data.
    """

    name: str
    pods: tuple[PodRequest, ...]
    extra: int = 0
    is_certain: bool = True

    @property
    def total(self) -> Amounts:
        """The sum of the requests of the pods that are not optional."""
        return add_amounts([*(pod.requests for pod in self.pods), {PODS: float(len(self.pods))}])

    def with_extra(self, number: int) -> tuple[PodRequest, ...]:
        return self.pods + self.pods[-1:] * number


def parse_quantity(text: object) -> float:
    """Return a Kubernetes quantity as a number: cores, bytes or pieces."""
    from kubernetes.utils import quantity

    return float(quantity.parse_quantity(str(text)))


def add_amounts(amounts: Iterable[Mapping[str, float]]) -> Amounts:
    """Return the sum of amounts, resource by resource."""
    total: Amounts = {}
    for amount in amounts:
        for name, value in amount.items():
            total[name] = total.get(name, 0.0) + value
    return total


def format_amount(resource: str, value: float, *, round_down: bool = False, unit: bool = True) -> str:
    """Format an amount to a hundredth, rounded up as for a request, or down as for what is free."""
    number = value / _GIB if resource in (MEMORY, DISK) else value
    hundredths = round(number * 100, 6)
    text = f"{(math.floor(hundredths) if round_down else math.ceil(hundredths)) / 100:g}"
    return text + (_UNITS.get(resource, f" {resource}") if unit else "")


def compute_requests(spec: Json) -> Amounts:
    """Return the requests of a pod with this spec, as the scheduler computes them."""
    running = [_get_requests(container) for container in spec.get("containers") or ()]
    sidecars: list[Amounts] = []
    peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        starting = add_amounts([*sidecars, _get_requests(container)])
        peak = {name: max(peak.get(name, 0.0), starting.get(name, 0.0)) for name in peak | starting}
        if container.get("restartPolicy") == "Always":  # a sidecar: it stays
            sidecars.append(_get_requests(container))
    total = add_amounts([*running, *sidecars])
    largest = {name: max(total.get(name, 0.0), peak.get(name, 0.0)) for name in total | peak}
    whole_pod = _get_requests(spec)  # since Kubernetes 1.34
    overhead = {name: parse_quantity(value) for name, value in (spec.get("overhead") or {}).items()}
    return add_amounts([largest | whole_pod, overhead])


def _get_requests(container: Json) -> Amounts:
    """Return a container's requests; where there is only a limit, it is the request."""
    resources = container.get("resources") or {}
    values = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(value) for name, value in values.items()}


def list_stages(cluster: Cluster, target: str) -> list[Stage]:
    """Return the stages of a run that `target` (argo, kfp) starts."""
    return [stage for step in STEPS for stage in _list_step_stages(step, cluster, target)]


def _list_step_stages(step: str, cluster: Cluster, target: str) -> list[Stage]:
    mode = cluster.ray.get_mode(step)
    in_pod = _build_step_request(step, cluster.small if mode == "address" else cluster.steps[step], target)
    if mode in ("pod", "address"):
        return [Stage(step, (in_pod,))]
    if target == ARGO:  # which watches the RayJob itself
        waiting = PodRequest(step, _EXECUTOR)
    else:
        waiting = in_pod if mode == "auto" else _build_step_request(step, cluster.small, target)
    if mode == "auto":
        name = f"{step} by a RayJob"
        return [Stage(step, (in_pod,)), _build_rayjob_stage(step, name, cluster, waiting, is_certain=False)]
    return [_build_rayjob_stage(step, step, cluster, waiting, is_certain=True)]


def _build_step_request(name: str, pod: Pod, target: str) -> PodRequest:
    values = {CPU: pod.cpu, MEMORY: pod.memory}
    if target == ARGO and pod.ephemeral_storage:  # KFP has no word for it
        values[DISK] = pod.ephemeral_storage
    requests = {resource: parse_quantity(value) for resource, value in values.items()}
    if pod.gpu:
        requests[pod.gpu_type] = float(pod.gpu)
    executor = _EXECUTOR if target == ARGO else {}
    return PodRequest(name, add_amounts([requests, executor]), pod.node_selector, pod.tolerations)


def _build_rayjob_stage(step: str, name: str, cluster: Cluster, waiting: PodRequest, *, is_certain: bool) -> Stage:
    """Return the stage of a RayJob: the waiting pod, and from its manifest head, submitter and at least one worker."""
    # Without Ray's version the manifest is refused where no Ray is installed; sizes do not depend on it.
    cluster_with_version = replace(cluster, ray=replace(cluster.ray, version=cluster.ray.version or "0.0"))
    spec = manifest.build_rayjob(cluster_with_version, step, "doctor", ["python"], "doctor")["spec"]
    ray_cluster = spec["rayClusterSpec"]
    (workers,) = ray_cluster["workerGroupSpecs"]
    autoscaler = ray_cluster.get("autoscalerOptions", {}) if ray_cluster.get("enableInTreeAutoscaling") else {}
    head = _build_template_request("Ray's head", ray_cluster["headGroupSpec"]["template"])
    head = replace(head, requests=add_amounts([head.requests, _get_requests(autoscaler)]))
    submitter = (
        [_build_template_request("submitter", spec["submitterPodTemplate"])] if "submitterPodTemplate" in spec else []
    )
    worker = _build_template_request("Ray's worker", workers["template"])
    min_workers = max(workers["minReplicas"], 1)
    pods = (waiting, head, *submitter, *[worker] * min_workers)
    return Stage(name, pods, max(workers["maxReplicas"] - min_workers, 0), is_certain)


def _build_template_request(name: str, template: Json) -> PodRequest:
    spec = template["spec"]
    return PodRequest(
        name, compute_requests(spec), spec.get("nodeSelector") or {}, tuple(spec.get("tolerations") or ())
    )
