"""Is there room on the nodes for a run at its widest, beside the pods that are there?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster import Cluster
from ..kube import Json
from .findings import ERROR, OK, WARNING, Finding, unseen
from .sizes import CPU, MEMORY, PODS, Amounts, PodRequest, Stage, add, describe, quantity, requests_of, stages
from .view import Refused, View, labels_of

CHECK = "room"
ENDING = ("Job", "Workflow", "RayCluster", "RayJob")
"""Kinds of owners whose pods end by themselves."""
_CLOUD = ("karpenter.sh/", "eks.amazonaws.com/nodegroup", "cloud.google.com/gke-nodepool", "kubernetes.azure.com/")
"""How labels of nodes begin that a cloud may add more of."""


@dataclass(frozen=True)
class Node:
    """A node that pods can be put on, and what is free there."""

    labels: Mapping[str, str]
    taints: tuple[Mapping[str, Any], ...]
    free: Amounts

    def takes(self, pod: PodRequest) -> bool:
        """Whether its labels and taints let the pod on it, whatever its size."""
        return self.has_labels(pod) and not self.untolerated(pod)

    def has_labels(self, pod: PodRequest) -> bool:
        return all(self.labels.get(key) == value for key, value in pod.node_selector.items())

    def untolerated(self, pod: PodRequest) -> list[Mapping[str, Any]]:
        """The taints that keep the pod away."""
        hard = (taint for taint in self.taints if taint.get("effect") in ("NoSchedule", "NoExecute"))
        return [taint for taint in hard if not any(_tolerates(toleration, taint) for toleration in pod.tolerations)]

    def holds(self, pod: PodRequest) -> bool:
        """Whether it has as much free as the pod asks for."""
        return all(value <= self.free.get(name, 0.0) + 1e-9 for name, value in _with_itself(pod).items())


def _with_itself(pod: PodRequest) -> Amounts:
    return pod.requests | {PODS: 1.0}


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    key = toleration.get("key", "")
    if toleration.get("operator") == "Exists":
        return key in ("", taint["key"])
    return bool(key == taint["key"] and toleration.get("value", "") == (taint.get("value") or ""))


def look(view: View, cluster: Cluster, target: str) -> list[Finding]:
    """Whether the nodes hold every stage of a run: one finding, or one for each stage that they don't hold."""
    try:
        documents = view.items("/api/v1/nodes")
    except Refused as error:
        return [unseen(CHECK, f"nodes ({error})", "ask somebody who may list nodes and pods")]
    note = ""
    try:
        pods = view.items("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed")
    except Refused as error:
        pods, note = [], f"; what pods of others take can't be seen ({error})"
    now = nodes_of(documents, pods)
    later = nodes_of(documents, [pod for pod in pods if not _ends(pod)])
    needed = stages(cluster, target)
    findings = [finding for stage in needed if (finding := judge(stage, now, later)) is not None]
    if any(label.startswith(_CLOUD) for document in documents for label in labels_of(document)):
        findings = [
            replace(finding, state=WARNING, mend=f"{finding.mend or 'wait'}; the cloud may add nodes by itself")
            for finding in findings
        ]
    if not findings:
        widest = max(needed, key=lambda stage: stage.total.get(CPU, 0.0))
        findings = [Finding(CHECK, OK, _enough(widest, now))]
    return [replace(finding, seen=finding.seen + note) for finding in findings]


def nodes_of(documents: Iterable[Json], pods: Sequence[Json]) -> list[Node]:
    """The nodes that pods can be put on, with what these pods leave free."""
    nodes = []
    for document in documents:
        spec, status = document.get("spec") or {}, document.get("status") or {}
        ready = [condition["status"] for condition in status.get("conditions") or () if condition["type"] == "Ready"]
        if spec.get("unschedulable") or ready not in ([], ["True"]):
            continue
        name = document["metadata"]["name"]
        placed = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == name]
        taken = add([*(requests_of(pod["spec"]) for pod in placed), {PODS: float(len(placed))}])
        size = {PODS: math.inf} | {key: quantity(value) for key, value in (status.get("allocatable") or {}).items()}
        free = {name: max(value - taken.get(name, 0.0), 0.0) for name, value in size.items()}
        nodes.append(Node(labels_of(document), tuple(spec.get("taints") or ()), free))
    return nodes


def _ends(pod: Json) -> bool:
    return any(owner.get("kind") in ENDING for owner in pod["metadata"].get("ownerReferences") or ())


def judge(stage: Stage, now: Sequence[Node], later: Sequence[Node]) -> Finding | None:
    """What is wrong with a stage's room: nothing, as long as other runs go on, or for good.

    `later`: the nodes without the pods that end by themselves.
    """
    if fit(stage.pods, now):
        return None
    if fit(stage.pods, later):
        return Finding(CHECK, WARNING, f"{_lack(stage, now)}; it waits until other runs and jobs end")
    fields = "ray.head, ray.workers" if len(stage.pods) > 1 else f"steps.{stage.name}"
    mend = f"ask for less in the cluster's file ({fields}), or add nodes"
    if stage.is_certain:
        return Finding(CHECK, ERROR, _lack(stage, later), mend)
    seen = f"{_lack(stage, later)}; that is for much data (ray.auto_seconds)"
    return Finding(CHECK, WARNING, seen, f"{mend}; or ray.mode: pod")


def fit(pods: Iterable[PodRequest], nodes: Sequence[Node]) -> bool:
    """Whether all the pods find a node: the largest first, each where the fewest cores are left over."""
    remaining = list(nodes)
    largest_first = sorted(pods, key=lambda pod: (pod.requests.get(CPU, 0.0), pod.requests.get(MEMORY, 0.0)))[::-1]
    for pod in largest_first:
        fitting = [index for index, node in enumerate(remaining) if node.takes(pod) and node.holds(pod)]
        if not fitting:
            return False
        index = min(fitting, key=lambda index: remaining[index].free.get(CPU, 0.0))
        taken = _with_itself(pod)
        free = {name: value - taken.get(name, 0.0) for name, value in remaining[index].free.items()}
        remaining[index] = replace(remaining[index], free=free)
    return True


def count_extra(stage: Stage, nodes: Sequence[Node]) -> int:
    """How many of the pods that a stage may add have room."""
    return max((number for number in range(stage.extra + 1) if fit(stage.with_extra(number), nodes)), default=0)


def _lack(stage: Stage, nodes: Sequence[Node]) -> str:
    """What the nodes lack for a stage: for one of its pods, for all together, or for each in its place."""
    for pod in {pod.name: pod for pod in stage.pods}.values():
        if lack := _lack_of_one(pod, nodes):
            return lack if pod.name == stage.name else f"{stage.name}: {lack}"
    free = add(node.free for node in nodes)
    for name, value in stage.total.items():
        if value > free.get(name, 0.0):
            left = describe(name, free.get(name, 0.0), round_down=True, unit=False)
            return f"{stage.name} needs {describe(name, value)} at once, {left} are free ({_parts(stage, name)})"
    needed = " and ".join(describe(name, stage.total.get(name, 0.0)) for name in (CPU, MEMORY))
    return f"{stage.name} needs {needed} at once, and what is free is spread over too many nodes ({_parts(stage, CPU)})"


def _lack_of_one(pod: PodRequest, nodes: Sequence[Node]) -> str:
    """What the nodes lack for one pod alone; empty where one of them takes it."""
    taking = [node for node in nodes if node.takes(pod)]
    if not taking:
        return f"no node takes {pod.name}: {_refusals(pod, nodes)}"
    if any(node.holds(pod) for node in taking):
        return ""
    for name, value in pod.requests.items():
        largest = max(node.free.get(name, 0.0) for node in taking)
        if value > largest:
            left = describe(name, largest, round_down=True, unit=False) if largest else "none"
            return f"{pod.name} asks for {describe(name, value)} on one node, at most {left} are free on any"
    return f"no node has all at once that {pod.name} asks for"


def _refusals(pod: PodRequest, nodes: Sequence[Node]) -> str:
    """Why none of the nodes takes a pod, whatever its size."""
    if not nodes:
        return "none is ready"
    taints = Counter(str(taint["key"]) for node in nodes for taint in node.untolerated(pod))
    parts = [f"{number} have the taint {name}" for name, number in taints.items()]
    if unlike := sum(not node.has_labels(pod) for node in nodes):
        parts.append(f"{unlike} have not the labels of its node_selector")
    return f"of {len(nodes)}, {', '.join(parts)}"


def _enough(stage: Stage, nodes: Sequence[Node]) -> str:
    free = add(node.free for node in nodes)
    needed = " and ".join(describe(name, stage.total.get(name, 0.0)) for name in (CPU, MEMORY))
    left = " and ".join(describe(name, free.get(name, 0.0), round_down=True) for name in (CPU, MEMORY))
    where = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    text = f"{stage.name}, the widest, needs {needed} at once; {left} are free on {where}"
    if stage.extra:
        least = sum(pod == stage.pods[-1] for pod in stage.pods)
        text += f"; room for {least + count_extra(stage, nodes)} of at most {least + stage.extra} workers"
    return text


def _parts(stage: Stage, resource: str) -> str:
    """Pods of a stage with what each asks for."""
    sizes = {pod.name: describe(resource, pod.requests.get(resource, 0.0), unit=False) for pod in stage.pods}
    numbers = Counter(pod.name for pod in stage.pods)
    return ", ".join(f"{f'{numbers[name]} of ' * (numbers[name] > 1)}{name} {size}" for name, size in sizes.items())
