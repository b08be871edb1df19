"""Connections that network policies allow by Kubernetes' rules: policies add up, and one that selects a pod isolates
it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """An end of a connection. Without a namespace it is no pod: the API server, a host of the internet."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    ip: str = "10.244.0.7"


def allowed(policies: Iterable[Json], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Return whether `source` may open a connection to `target`: egress and ingress must both allow it."""
    all_policies = list(policies)
    return _lets(all_policies, "Egress", source, target, port, protocol) and _lets(
        all_policies, "Ingress", target, source, port, protocol
    )


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector (matchLabels, matchExpressions) takes these labels; the empty one takes all."""
    unknown = set(selector) - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions", ()))


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
    specs = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    side = {"Egress": ("egress", "to"), "Ingress": ("ingress", "from")}[direction]
    rules = [rule for spec in specs for rule in spec.get(side[0], ())]
    namespace = pod.namespace
    return not specs or any(_rule(rule, side[1], other, port, protocol, namespace) for rule in rules)


def _rule(rule: Json, side: str, other: Peer, port: int, protocol: str, namespace: str) -> bool:
    unknown = set(rule) - {side, "ports"}
    assert not unknown, unknown
    ports = rule.get("ports")
    if ports and not any((entry.get("protocol", "TCP"), entry["port"]) == (protocol, port) for entry in ports):
        return False
    return side not in rule or any(_peer(entry, other, namespace) for entry in rule[side])


def _peer(entry: Json, other: Peer, namespace: str) -> bool:
    """Return whether an entry of `to` or `from` matches the peer. An ipBlock matches pods, too: networks differ."""
    if block := entry.get("ipBlock"):
        address = ip_address(other.ip)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(inner) for inner in block.get("except", ())
        )
    if not other.namespace:
        return False
    names = {"kubernetes.io/metadata.name": other.namespace}
    is_in_namespace = (
        selects(entry["namespaceSelector"], names) if "namespaceSelector" in entry else other.namespace == namespace
    )
    return is_in_namespace and selects(entry.get("podSelector", {}), other.labels)
