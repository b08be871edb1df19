"""The result of a run, as `--json` prints it."""

from __future__ import annotations

from typing import Any

from ..components.dataset.workspace import PRODUCTS
from ..components.storage.errors import MillError


def make_failed_result(error: MillError | None = None, partial: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the result, as `--json` prints it, of a run that `error` ended; keys of a `partial` result are kept."""
    result: dict[str, Any] = {"status": "failed", "name": "", **dict.fromkeys(PRODUCTS.values(), ""), "report": ""}
    result |= {"metrics": {}, "promoted": False, "steps": {}} | (partial or {})
    return result | ({"error": str(error), "exit_code": error.exit_code} if error else {})


def read_record_facts(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what the records of a run's steps contribute to the result that `--json` prints; steps may be missing."""
    gate = records.get("promote", {}).get("metrics") or {}
    metrics = records.get("evaluate", {}).get("metrics") or {}
    return {
        **{kind: records.get(step, {}).get("uri", "") for step, kind in PRODUCTS.items()},
        "report": gate.get("report", ""),
        "metrics": {key: value for key, value in metrics.items() if isinstance(value, (int, float))},
        "promoted": bool(gate.get("promoted")),
        "verdict": gate.get("verdict", ""),
        "champion": records.get("promote", {}).get("uri", ""),
        "steps": {step: {"state": record["state"], "seconds": record["seconds"]} for step, record in records.items()},
    }
