"""Quotas of the namespace: do they leave room for a run, and do they ask for what its pods don't have?"""

from __future__ import annotations

from ..cluster import Cluster
from .findings import ERROR, WARNING, Finding, unseen
from .sizes import CPU, Amounts, Stage, describe, quantity, stages
from .view import Refused, View

CHECK = "quota"


def look(view: View, cluster: Cluster, target: str) -> list[Finding]:
    """What is wrong with the namespace's quotas; nothing where there are none."""
    namespace = f"/api/v1/namespaces/{view.namespace}"
    try:
        quotas, ranges = view.items(f"{namespace}/resourcequotas"), view.items(f"{namespace}/limitranges")
    except Refused as error:
        return [unseen(CHECK, str(error))]
    limits = [limit for limit_range in ranges for limit in limit_range["spec"].get("limits") or ()]
    has_default = any((limit.get("default") or {}).get(CPU) for limit in limits)
    findings = []
    for quota in quotas:
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        hard = {key: quantity(value) for key, value in (status.get("hard") or {}).items()}
        used = {key: quantity(value) for key, value in (status.get("used") or {}).items()}
        for stage in stages(cluster, target):
            findings += _judge(name, stage, hard, used)
        if "limits.cpu" in hard and not has_default:
            seen = f"{name} refuses pods whose containers have no limit of cores"
            findings.append(Finding(CHECK, ERROR, seen, "a LimitRange with a default limit of cpu in the namespace"))
    return findings


def _judge(quota: str, stage: Stage, hard: Amounts, used: Amounts) -> list[Finding]:
    """What a stage lacks of a quota: for good, or until other pods end."""
    for name, value in stage.total.items():
        for key in (name, f"requests.{name}"):
            left = hard.get(key, value) - used.get(key, 0.0) if key in hard else value
            if value > left:
                rest = describe(name, max(left, 0.0), round_down=True, unit=False)
                seen = f"{stage.name} needs {describe(name, value)} at once, quota {quota} leaves {rest}"
                state = ERROR if value > hard[key] else WARNING
                return [Finding(CHECK, state, seen, "ask for less in the cluster's file, or for a larger quota")]
    return []
