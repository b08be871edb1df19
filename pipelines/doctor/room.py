"""Check that the nodes, beside the pods on them, and the quotas have room for every stage of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from .sizes import (
    CPU,
    MEMORY,
    PODS,
    Amounts,
    PodRequest,
    Stage,
    add_amounts,
    compute_requests,
    format_amount,
    list_stages,
    parse_quantity,
)
from .view import ERROR, OK, WARNING, ApiError, ClusterView, Finding, get_labels, make_unseen

CHECK, QUOTA_CHECK = "room", "quota"
ENDING_OWNERS = ("Job", "Workflow", "RayCluster", "RayJob")
"""Kinds of owners whose pods terminate."""
_CLOUD_LABEL_PREFIXES = (
    "karpenter.sh/",
    "eks.amazonaws.com/nodegroup",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/",
)
"""Prefixes of the labels of nodes to which a cloud may add more."""


@dataclass(frozen=True)
class Node:
    """A schedulable node, and the resources that are free on it."""

    labels: Mapping[str, str]
    taints: tuple[Mapping[str, Any], ...]
    free: Amounts

    def accepts(self, pod: PodRequest) -> bool:
        """Return whether its labels and taints allow the pod, whatever its size."""
        return self.matches_selector(pod) and not self.list_untolerated(pod)

    def matches_selector(self, pod: PodRequest) -> bool:
        return all(self.labels.get(key) == value for key, value in pod.node_selector.items())

    def list_untolerated(self, pod: PodRequest) -> list[Mapping[str, Any]]:
        """Return the taints that the pod does not tolerate."""
        hard = (taint for taint in self.taints if taint.get("effect") in ("NoSchedule", "NoExecute"))
        return [taint for taint in hard if not any(_tolerates(toleration, taint) for toleration in pod.tolerations)]

    def has_room_for(self, pod: PodRequest) -> bool:
        """Return whether the pod's requests are free."""
        return all(value <= self.free.get(name, 0.0) + 1e-9 for name, value in _count_pod(pod).items())


def _count_pod(pod: PodRequest) -> Amounts:
    return pod.requests | {PODS: 1.0}


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    key = toleration.get("key", "")
    if toleration.get("operator") == "Exists":
        return key in ("", taint["key"])
    return bool(key == taint["key"] and toleration.get("value", "") == (taint.get("value") or ""))


def check_room(view: ClusterView, cluster: Cluster, target: str) -> list[Finding]:
    """Check that the nodes have room for every stage of a run: one finding, or one for each stage without room."""
    try:
        documents = view.list_items("/api/v1/nodes")
    except ApiError as error:
        return [make_unseen(CHECK, f"nodes ({error})", "ask somebody who may list nodes and pods")]
    note = ""
    try:
        pods = view.list_items("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed")
    except ApiError as error:
        pods, note = [], f"; what pods of others take can't be seen ({error})"
    nodes = build_nodes(documents, pods)
    nodes_after_jobs = build_nodes(documents, [pod for pod in pods if not _has_ending_owner(pod)])
    stages = list_stages(cluster, target)
    findings = [finding for stage in stages if (finding := check_stage(stage, nodes, nodes_after_jobs)) is not None]
    if any(label.startswith(_CLOUD_LABEL_PREFIXES) for document in documents for label in get_labels(document)):
        findings = [
            replace(finding, state=WARNING, mend=f"{finding.mend or 'wait'}; the cloud may add nodes by itself")
            for finding in findings
        ]
    if not findings:
        widest_stage = max(stages, key=lambda stage: stage.total.get(CPU, 0.0))
        findings = [Finding(CHECK, OK, _describe_room(widest_stage, nodes))]
    return [replace(finding, seen=finding.seen + note) for finding in findings]


def build_nodes(documents: Iterable[Json], pods: Sequence[Json]) -> list[Node]:
    """Return the schedulable nodes, with the resources that these pods leave free."""
    nodes = []
    for document in documents:
        spec, status = document.get("spec") or {}, document.get("status") or {}
        ready = [condition["status"] for condition in status.get("conditions") or () if condition["type"] == "Ready"]
        if spec.get("unschedulable") or ready not in ([], ["True"]):
            continue
        name = document["metadata"]["name"]
        placed = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == name]
        taken = add_amounts([*(compute_requests(pod["spec"]) for pod in placed), {PODS: float(len(placed))}])
        size = {PODS: math.inf} | {
            key: parse_quantity(value) for key, value in (status.get("allocatable") or {}).items()
        }
        free = {name: max(value - taken.get(name, 0.0), 0.0) for name, value in size.items()}
        nodes.append(Node(get_labels(document), tuple(spec.get("taints") or ()), free))
    return nodes


def _has_ending_owner(pod: Json) -> bool:
    return any(owner.get("kind") in ENDING_OWNERS for owner in pod["metadata"].get("ownerReferences") or ())


def check_stage(stage: Stage, nodes: Sequence[Node], nodes_after_jobs: Sequence[Node]) -> Finding | None:
    """Return a warning for a stage that has to wait for other runs, an error for one that never has room, else None.

    `nodes_after_jobs`: the nodes without the pods that terminate.
    """
    if fits(stage.pods, nodes):
        return None
    if fits(stage.pods, nodes_after_jobs):
        return Finding(CHECK, WARNING, f"{_describe_lack(stage, nodes)}; it waits until other runs and jobs end")
    fields = "ray.head, ray.workers" if len(stage.pods) > 1 else f"steps.{stage.name}"
    remedy = f"ask for less in the cluster file ({fields}), or add nodes"
    if stage.is_certain:
        return Finding(CHECK, ERROR, _describe_lack(stage, nodes_after_jobs), remedy)
    field = "ray.clean" if stage.name.startswith("clean") else "ray.mode"
    observation = f"{_describe_lack(stage, nodes_after_jobs)}; that is for much data (ray.auto_seconds)"
    return Finding(CHECK, WARNING, observation, f"{remedy}; or {field}: pod")


def fits(pods: Iterable[PodRequest], nodes: Sequence[Node]) -> bool:
    """Return whether all pods fit: the largest is placed first, each on the node where the fewest cores remain."""
    remaining = list(nodes)
    largest_first = sorted(pods, key=lambda pod: (pod.requests.get(CPU, 0.0), pod.requests.get(MEMORY, 0.0)))[::-1]
    for pod in largest_first:
        fitting = [index for index, node in enumerate(remaining) if node.accepts(pod) and node.has_room_for(pod)]
        if not fitting:
            return False
        index = min(fitting, key=lambda index: remaining[index].free.get(CPU, 0.0))
        taken = _count_pod(pod)
        free = {name: value - taken.get(name, 0.0) for name, value in remaining[index].free.items()}
        remaining[index] = replace(remaining[index], free=free)
    return True


def count_fitting_extra(stage: Stage, nodes: Sequence[Node]) -> int:
    """Return how many of the optional pods of a stage have room."""
    return max((number for number in range(stage.extra + 1) if fits(stage.with_extra(number), nodes)), default=0)


def _describe_lack(stage: Stage, nodes: Sequence[Node]) -> str:
    """Describe what the nodes lack for a stage: for one of its pods, for their sum, or for their distribution."""
    for pod in {pod.name: pod for pod in stage.pods}.values():
        if lack := _describe_pod_lack(pod, nodes):
            return lack if pod.name == stage.name else f"{stage.name}: {lack}"
    free = add_amounts(node.free for node in nodes)
    for name, value in stage.total.items():
        if value > free.get(name, 0.0):
            available = format_amount(name, free.get(name, 0.0), round_down=True, unit=False)
            pods = _describe_pods(stage, name)
            return f"{stage.name} needs {format_amount(name, value)} at once, {available} are free ({pods})"
    needed = " and ".join(format_amount(name, stage.total.get(name, 0.0)) for name in (CPU, MEMORY))
    pods = _describe_pods(stage, CPU)
    return f"{stage.name} needs {needed} at once, and what is free is spread over too many nodes ({pods})"


def _describe_pod_lack(pod: PodRequest, nodes: Sequence[Node]) -> str:
    """Describe what the nodes lack for one pod alone; empty where one of them has room."""
    taking = [node for node in nodes if node.accepts(pod)]
    if not taking:
        return f"no node takes {pod.name}: {_describe_refusals(pod, nodes)}"
    if any(node.has_room_for(pod) for node in taking):
        return ""
    for name, value in pod.requests.items():
        largest = max(node.free.get(name, 0.0) for node in taking)
        if value > largest:
            available = format_amount(name, largest, round_down=True, unit=False) if largest else "none"
            return f"{pod.name} asks for {format_amount(name, value)} on one node, at most {available} are free on any"
    return f"no node has all at once that {pod.name} asks for"


def _describe_refusals(pod: PodRequest, nodes: Sequence[Node]) -> str:
    """Describe why no node accepts a pod, whatever its size."""
    if not nodes:
        return "none is ready"
    taints = Counter(str(taint["key"]) for node in nodes for taint in node.list_untolerated(pod))
    parts = [f"{number} have the taint {name}" for name, number in taints.items()]
    if num_without_labels := sum(not node.matches_selector(pod) for node in nodes):
        parts.append(f"{num_without_labels} have not the labels of its node_selector")
    return f"of {len(nodes)}, {', '.join(parts)}"


def _describe_room(stage: Stage, nodes: Sequence[Node]) -> str:
    free = add_amounts(node.free for node in nodes)
    needed = " and ".join(format_amount(name, stage.total.get(name, 0.0)) for name in (CPU, MEMORY))
    free_text = " and ".join(format_amount(name, free.get(name, 0.0), round_down=True) for name in (CPU, MEMORY))
    nodes_text = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    text = f"{stage.name}, the widest, needs {needed} at once; {free_text} are free on {nodes_text}"
    if stage.extra:
        min_workers = sum(pod == stage.pods[-1] for pod in stage.pods)
        num_workers = min_workers + count_fitting_extra(stage, nodes)
        text += f"; room for {num_workers} of at most {min_workers + stage.extra} workers"
    return text


def _describe_pods(stage: Stage, resource: str) -> str:
    """List the pods of a stage with their requests."""
    sizes = {pod.name: format_amount(resource, pod.requests.get(resource, 0.0), unit=False) for pod in stage.pods}
    numbers = Counter(pod.name for pod in stage.pods)
    return ", ".join(f"{f'{numbers[name]} of ' * (numbers[name] > 1)}{name} {size}" for name, size in sizes.items())


def check_quotas(view: ClusterView, cluster: Cluster, target: str) -> list[Finding]:
    """Return the problems with the namespace's quotas; none where there are no quotas."""
    namespace = f"/api/v1/namespaces/{view.namespace}"
    try:
        quotas, ranges = view.list_items(f"{namespace}/resourcequotas"), view.list_items(f"{namespace}/limitranges")
    except ApiError as error:
        return [make_unseen(QUOTA_CHECK, str(error))]
    limits = [limit for limit_range in ranges for limit in limit_range["spec"].get("limits") or ()]
    has_default = any((limit.get("default") or {}).get(CPU) for limit in limits)
    findings = []
    for quota in quotas:
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        hard = {key: parse_quantity(value) for key, value in (status.get("hard") or {}).items()}
        used = {key: parse_quantity(value) for key, value in (status.get("used") or {}).items()}
        for stage in list_stages(cluster, target):
            findings += _check_quota(name, stage, hard, used)
        if "limits.cpu" in hard and not has_default:
            observation = f"{name} refuses pods whose containers have no limit of cores"
            findings.append(
                Finding(QUOTA_CHECK, ERROR, observation, "a LimitRange with a default limit of cpu in the namespace")
            )
    return findings


def _check_quota(quota: str, stage: Stage, hard: Amounts, used: Amounts) -> list[Finding]:
    """Check that a quota has room for a stage: an error if it never has, a warning if other pods use it."""
    for name, value in stage.total.items():
        for key in (name, f"requests.{name}"):
            available = hard.get(key, value) - used.get(key, 0.0) if key in hard else value
            if value > available:
                left_text = format_amount(name, max(available, 0.0), round_down=True, unit=False)
                observation = (
                    f"{stage.name} needs {format_amount(name, value)} at once, quota {quota} leaves {left_text}"
                )
                state = ERROR if value > hard[key] else WARNING
                return [
                    Finding(QUOTA_CHECK, state, observation, "ask for less in the cluster file, or for a larger quota")
                ]
    return []
