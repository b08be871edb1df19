"""Network policies, tried from inside: what pods of each kind must reach answers, and nothing else does.

Each target is also tried from a pod that may reach everything. What does not answer there either proves nothing, and
is left out; where even a pod of a closed policy of the tests' own reaches it, nothing enforces policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from imagemill.components.dataset.workspace import STEPS
from imagemill.pipelines.cluster.cluster_file import LABELS, RUN_LABEL

from ..access import probe
from ..access.kube import Doc, KubeError
from ..access.mirror import say
from ..options import E2E_LABEL
from ..runs import ARGO, KFP
from ..scenario import Failed, Skip
from ..session import Trial
from .common import NEEDS, add

PORT = 18080
"""Of the pod that listens: no policy of ours names it."""
INTERNET = ("1.1.1.1", 443)
PATIENCE_S = 25.0
"""How long a policy may take to hold for a new pod."""
LISTENS_S = 600
_ROLE = "imagemill.io/e2e-role"
_FREE, _CLOSED = "free", "closed"
_RAY = {"ray.io/is-ray-node": "yes", "ray.io/cluster": "e2e"}

Labels = Mapping[str, str]


def labels_by_kind() -> dict[str, dict[str, str]]:
    """Return the labels by which policies select each kind of pod."""
    labels = {step: {**LABELS, probe.COMPONENT: step} for step in (*STEPS, "finish")}
    resize = {**LABELS, probe.COMPONENT: "resize"}
    labels["ray-head"] = {**resize, **_RAY, "ray.io/node-type": "head"}
    labels["ray-worker"] = {**resize, **_RAY, "ray.io/node-type": "worker"}
    labels["ray-submitter"] = {**resize, "batch.kubernetes.io/job-name": "e2e", "job-name": "e2e"}
    return labels


def _enforced(trial: Trial) -> str:
    _find_policies(trial)
    _create_policy(trial, _FREE, [{}])
    _create_policy(trial, _CLOSED, [])
    port = {"port": PORT, "seconds": LISTENS_S}
    listener = probe.running(trial, probe.begin(trial, "listen", port, labels={_ROLE: _FREE}))
    targets = _targets(trial, str(listener["status"]["podIP"]))
    answering = _try(trial, {_ROLE: _FREE}, targets, {})
    if answering["another pod"] != "answers":
        raise Failed(f"a pod that listens on port {PORT} is not reached by one that may: {answering['another pod']}")
    tested = {name for name, outcome in answering.items() if outcome == "answers"} | set(_list_required(trial))
    targets = {name: place for name, place in targets.items() if name in tested}
    if _try(trial, {_ROLE: _CLOSED}, targets, {}, seconds=PATIENCE_S)["another pod"] == "answers":
        raise Skip("nothing enforces network policies here: a pod that may reach nothing reaches another one")
    return _check_kinds(trial, targets, sorted(set(answering) - tested))


def _check_kinds(trial: Trial, targets: Mapping[str, tuple[str, int]], unproven: list[str]) -> str:
    """Failed, naming kind and target, unless each kind reaches what it must and nothing else."""
    expected = {kind: _expected(trial, kind, targets) for kind in labels_by_kind()}
    names = {
        kind: _begin(trial, labels, targets, expected[kind], PATIENCE_S)
        for kind, labels in labels_by_kind().items()
    }  # fmt: skip
    wrong = []
    for kind, name in names.items():
        outcome = probe.answer(trial, name)
        for target, answers in expected[kind].items():
            if answers is not None and (outcome[target] == "answers") != answers:
                wrong.append(f"{kind} → {target}: {outcome[target]}, expected {'an answer' if answers else 'none'}")
    if wrong:
        raise Failed("; ".join(wrong))
    proven = [name for name in targets if name not in _list_required(trial)]
    missing = f"; without proof, for nobody reaches them: {', '.join(unproven)}" if unproven else ""
    return f"{len(names)} kinds of pods reach what they must, and not: {', '.join(proven)}{missing}"


def _find_policies(trial: Trial) -> None:
    """Skip where our policies are not installed, or may not be looked at."""
    try:
        policies = trial.kube.items("networkpolicies")
    except KubeError as error:
        raise Skip(f"network policies can't be listed ({error.status})") from None
    if not any(policy["metadata"]["name"] == "imagemill-default-deny" for policy in policies):
        raise Skip(f"no network policies of imagemill in {trial.kube.namespace}: kubectl apply -k k8s/…")


def _create_policy(trial: Trial, role: str, rules: list[Doc]) -> None:
    """A policy of the session's for pods of one role: all that it lets through, in both directions."""
    body = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": trial.name(role)},
        "spec": {
            "podSelector": {"matchLabels": {_ROLE: role, E2E_LABEL: trial.session.suffix}},
            "policyTypes": ["Ingress", "Egress"], "ingress": rules, "egress": rules,
        },
    }  # fmt: skip
    try:
        trial.create("networkpolicies", body)
    except KubeError as error:
        if error.status == 403:
            raise Skip("you may not create network policies, by which it is told whether any are enforced") from None
        raise


def _targets(trial: Trial, listener: str) -> dict[str, tuple[str, int]]:
    """Return (host, port) of all targets by name. The cluster's DNS is tried with each name."""
    store = urlsplit(trial.cluster.storage.endpoint)
    default = 443 if store.scheme == "https" else 80
    targets = {
        "the internet": INTERNET,
        "another pod": (listener, PORT),
        "the metadata server": ("169.254.169.254", 80),
    }
    if store.hostname:
        targets["the store"] = (store.hostname, store.port or default)
    targets["the API server"] = ("kubernetes.default.svc", 443)
    targets["KFP's API"] = ("ml-pipeline.kubeflow.svc", 8888)
    targets["KFP's metadata store"] = ("metadata-grpc-service.kubeflow.svc", 8080)
    targets["KFP's MySQL"] = ("mysql.kubeflow.svc", 3306)
    targets["KFP's pages"] = ("ml-pipeline-ui.kubeflow.svc", 80)
    for node in _node_addresses(trial):
        targets["a node's kubelet"] = (node, 10250)
    return targets


def _node_addresses(trial: Trial) -> list[str]:
    try:
        nodes = (trial.kube.read("/api/v1/nodes") or {}).get("items", [])
    except KubeError:
        return []
    addresses = [address for node in nodes for address in node.get("status", {}).get("addresses", ())]
    return [address["address"] for address in addresses if address["type"] == "InternalIP"][:1]


def _list_required(trial: Trial) -> tuple[str, ...]:
    """Return the targets that a step's pod must reach: for Argo's own container, and for KFP's launcher."""
    kfp = ("KFP's API", "KFP's metadata store") if trial.engine == KFP else ()
    return ("the store", "the API server", *kfp)


def _expected(trial: Trial, kind: str, targets: Mapping[str, tuple[str, int]]) -> dict[str, bool | None]:
    """Return whether each target answers; None: a step that fetches from public addresses may reach the internet."""
    reached = set(_list_required(trial))
    if kind in ("ray-worker", "ray-submitter"):
        reached -= {"the API server"}
    if kind.startswith("ray-"):
        reached -= {"KFP's API", "KFP's metadata store"}
    expected: dict[str, bool | None] = {name: name in reached for name in targets}
    if kind in ("download", "train") and "the internet" in expected:
        expected["the internet"] = None
    return expected


def _try(
    trial: Trial, labels: Labels, targets: Mapping[str, tuple[str, int]], expected: Mapping[str, bool | None],
    seconds: float = 5.0,
) -> dict[str, Any]:  # fmt: skip
    return probe.answer(trial, _begin(trial, labels, targets, expected, seconds))


def _begin(
    trial: Trial, labels: Labels, targets: Mapping[str, tuple[str, int]], expected: Mapping[str, bool | None],
    seconds: float,
) -> str:  # fmt: skip
    """A pod with these labels tries all targets, each until it comes out as expected; the pod's name."""
    closed = labels.get(_ROLE) == _CLOSED
    words = [
        {"name": name, "host": host, "port": port, "answers": bool(expected.get(name, not closed))}
        for name, (host, port) in targets.items()
    ]
    say(f"{labels.get(probe.COMPONENT) or labels.get(_ROLE)} tries {len(words)} targets")
    own = {**labels, RUN_LABEL: trial.session.options.stem}
    return probe.begin(trial, "connect", {"targets": words, "seconds": seconds}, labels=own)


def register() -> None:
    for engine in (KFP, ARGO):
        description = "network policies: pods reach what they must and nothing else"
        add(engine, "policies", description, _enforced, NEEDS[engine], minutes=10)
