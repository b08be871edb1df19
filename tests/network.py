"""What network policies let through, by Kubernetes' rules: they add up, and one that selects a pod closes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """One end of a connection. Without a namespace it is no pod: the API server, a host of the internet."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    ip: str = "10.244.0.7"


def allowed(policies: Iterable[Json], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `target`: its egress and the other's ingress must both let it."""
    known = list(policies)
    return _lets(known, "Egress", source, target, port, protocol) and _lets(
        known, "Ingress", target, source, port, protocol
    )


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) takes these labels; the empty one takes all."""
    unknown = set(selector) - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Json, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values", ())
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[expression["operator"]]


def _lets(policies: list[Json], direction: str, pod: Peer, other: Peer, port: int, protocol: str) -> bool:
    if not pod.namespace:
        return True
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    side = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[direction]
    rules = [rule for spec in mine for rule in spec.get(side[0], ())]
    namespace = pod.namespace
    return not mine or any(_rule(rule, side[1], other, port, protocol, namespace) for rule in rules)


def _rule(rule: Json, side: str, other: Peer, port: int, protocol: str, namespace: str) -> bool:
    unknown = set(rule) - {side, "ports"}
    assert not unknown, unknown
    ports = rule.get("ports")
    if ports and not any((one.get("protocol", "TCP"), one["port"]) == (protocol, port) for one in ports):
        return False
    return side not in rule or any(_peer(one, other, namespace) for one in rule[side])


def _peer(one: Json, other: Peer, namespace: str) -> bool:
    """Whether one entry of `to` or `from` is the other end. A pod is matched by an ipBlock too, as networks differ."""
    if block := one.get("ipBlock"):
        address = ip_address(other.ip)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(inner) for inner in block.get("except", ())
        )
    if not other.namespace:
        return False
    names = {"kubernetes.io/metadata.name": other.namespace}
    here = selects(one["namespaceSelector"], names) if "namespaceSelector" in one else other.namespace == namespace
    return here and selects(one.get("podSelector", {}), other.labels)
