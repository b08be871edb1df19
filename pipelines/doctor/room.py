"""Check that the nodes, beside the pods on them, have room for the pods that a run has at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...components.dataset.workspace import STEPS
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from ..kuberay import manifest
from ..settings import to_plain
from .site import ERROR, OK, WARNING, Finding, Site, Unseen, get_labels

CHECK = "room"
ENDING_OWNERS = ("Job", "Workflow", "RayCluster", "RayJob")
"""Kinds of owners whose pods end by themselves."""
_CLOUD_LABELS = ("karpenter.sh/", "eks.amazonaws.com/nodegroup", "cloud.google.com/gke-nodepool", "kubernetes.azure.")
"""Prefixes of the labels of nodes to which a cloud may add more."""
_UNITS = {"cpu": (1.0, " cores"), "memory": (2.0**30, " GiB of memory")}
Amounts = dict[str, float]
Stage = tuple[str, list[Json], bool]
"""Name, specs of the pods that run together, and whether every run has it, not only one with much data."""


@dataclass(frozen=True)
class Node:
    """A ready node, with the resources that are free on it."""

    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, Any]]
    free: Amounts

    def takes(self, spec: Json) -> bool:
        """Return whether the pod's selector, tolerations and requests suit the node."""
        selector, tolerations = spec.get("nodeSelector") or {}, spec.get("tolerations") or ()
        hard = (taint for taint in self.taints if taint.get("effect") in ("NoSchedule", "NoExecute"))
        return (
            selector.items() <= self.labels.items()
            and all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in hard)
            and all(value <= self.free.get(name, 0.0) + 1e-9 for name, value in compute_requests([spec]).items())
        )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key", "") in ("", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == (taint.get("value") or ""))


def compute_requests(specs: Iterable[Json]) -> Amounts:
    """Return the sum of what pods request: a limit alone is a request, and an init container counts where it is more
    than those that run later."""
    total: Amounts = {}
    for spec in specs:
        running: Amounts = {}
        for container in spec.get("containers") or ():
            for name, value in _get_requests(container).items():
                running[name] = running.get(name, 0.0) + value
        for container in spec.get("initContainers") or ():
            for name, value in _get_requests(container).items():
                running[name] = max(running.get(name, 0.0), value)
        for name, value in running.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _get_requests(container: Json) -> Amounts:
    resources = to_plain(container.get("resources") or {})
    return _parse_amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _parse_amounts(quantities: Mapping[str, object]) -> Amounts:
    """Return Kubernetes quantities as cores, bytes or pieces; disk is left out, which KFP's pods have no word for."""
    from kubernetes.utils import quantity

    return {
        name: float(quantity.parse_quantity(str(value)))
        for name, value in quantities.items() if name != "ephemeral-storage"
    }  # fmt: skip


def list_stages(cluster: Cluster) -> Iterator[Stage]:
    """Yield the stages of a run: each step's pod, and where a RayJob does its work, that pod beside the RayJob's."""
    for step in STEPS:
        mode = cluster.ray.get_mode(step)
        pod = cluster.small if mode in ("address", "rayjob") else cluster.steps[step]
        own: Json = {
            "containers": [{"resources": pod.resources()}], "nodeSelector": pod.node_selector,
            "tolerations": pod.tolerations,
        }  # fmt: skip
        if mode != "rayjob":
            yield step, [own], True
        if mode in ("rayjob", "auto"):
            yield f"{step} by a RayJob", [own, *_list_rayjob_pods(cluster, step)], mode == "rayjob"


def _list_rayjob_pods(cluster: Cluster, step: str) -> list[Json]:
    """Return the specs of head, submitter and least workers. Sizes do not depend on Ray's version."""
    versioned = replace(cluster, ray=replace(cluster.ray, version=cluster.ray.version or "0.0"))
    spec = manifest.build_rayjob(versioned, step, "doctor", ["python"], "doctor")["spec"]
    ray_cluster = spec["rayClusterSpec"]
    (workers,) = ray_cluster["workerGroupSpecs"]
    head, submitter = ray_cluster["headGroupSpec"]["template"], spec.get("submitterPodTemplate")
    templates = [head, *([submitter] if submitter else []), *[workers["template"]] * max(workers["minReplicas"], 1)]
    return [template["spec"] for template in templates]


def check_room(site: Site) -> list[Finding]:
    """Check that every stage of a run fits the nodes: a warning where it only waits for other runs to end."""
    documents, note = site.list_items("/api/v1/nodes"), ""
    try:
        pods = site.list_items("/api/v1/pods", fieldSelector="status.phase!=Succeeded,status.phase!=Failed")
    except Unseen as error:
        pods, note = [], f"; what pods of others take can't be seen ({error})"
    nodes = build_nodes(documents, pods)
    lasting = build_nodes(documents, [pod for pod in pods if not _ends_by_itself(pod)])
    may_grow = any(label.startswith(_CLOUD_LABELS) for document in documents for label in get_labels(document))
    findings = []
    for name, specs, is_certain in list_stages(site.cluster):
        if fits(specs, nodes):
            continue
        pods_text = "1 pod" if len(specs) == 1 else f"{len(specs)} pods"
        needs = f"{name} needs {_format_amounts(compute_requests(specs))} at once in {pods_text}"
        mend = "ask for less in the cluster file (steps, ray), add nodes, or see their labels and taints"
        is_error = is_certain and not may_grow and not fits(specs, lasting)
        seen = f"{needs}; free on the {len(nodes)} ready nodes: {_describe_free(nodes)}{note}"
        findings.append(Finding(CHECK, ERROR if is_error else WARNING, seen, mend))
    return findings or [Finding(CHECK, OK, f"for each step, on {len(nodes)} nodes: {_describe_free(nodes)} free{note}")]


def build_nodes(documents: Iterable[Json], pods: Sequence[Json]) -> list[Node]:
    """Return the nodes that are ready, with what these pods leave free."""
    nodes = []
    for document in documents:
        spec, status = document.get("spec") or {}, document.get("status") or {}
        ready = [condition["status"] for condition in status.get("conditions") or () if condition["type"] == "Ready"]
        if spec.get("unschedulable") or ready not in ([], ["True"]):
            continue
        taken = compute_requests(
            pod["spec"] for pod in pods if (pod.get("spec") or {}).get("nodeName") == document["metadata"]["name"]
        )
        size = _parse_amounts(status.get("allocatable") or {})
        free = {name: max(0.0, value - taken.get(name, 0.0)) for name, value in size.items()}
        nodes.append(Node(get_labels(document), tuple(spec.get("taints") or ()), free))
    return nodes


def _ends_by_itself(pod: Json) -> bool:
    return any(owner.get("kind") in ENDING_OWNERS for owner in pod["metadata"].get("ownerReferences") or ())


def fits(specs: Iterable[Json], nodes: Sequence[Node]) -> bool:
    """Return whether all pods fit: the largest is placed first, each on the node where the fewest cores remain."""
    remaining = list(nodes)
    for spec in sorted(specs, key=lambda spec: compute_requests([spec]).get("cpu", 0.0), reverse=True):
        fitting = [index for index, node in enumerate(remaining) if node.takes(spec)]
        if not fitting:
            return False
        index = min(fitting, key=lambda index: remaining[index].free.get("cpu", 0.0))
        taken = compute_requests([spec])
        free = {name: value - taken.get(name, 0.0) for name, value in remaining[index].free.items()}
        remaining[index] = replace(remaining[index], free=free)
    return True


def _describe_free(nodes: Sequence[Node]) -> str:
    names = [name for name in dict.fromkeys(name for node in nodes for name in node.free)
             if name in _UNITS or name.endswith("/gpu")]  # fmt: skip
    return _format_amounts({name: sum(node.free.get(name, 0.0) for node in nodes) for name in names}) or "none"


def _format_amounts(amounts: Amounts) -> str:
    parts = []
    for name, value in sorted(amounts.items()):
        unit, text = _UNITS.get(name, (1.0, f" {name}"))
        parts.append(f"{value / unit:.4g}{text}")
    return ", ".join(parts)
