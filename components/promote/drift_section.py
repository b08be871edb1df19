"""The report's section on drift: the comparison that clean made of its dataset with the one of the champion of then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..dataset.workspace import Workspace
from .charts import MUTED, TRAIN, VAL, clear_frame, to_svg, use_style

if TYPE_CHECKING:
    from markupsafe import Markup

SCOPES = ("all", "new")
MAX_CLASSES = 20
_UNITS = {"width": "pixels", "height": "pixels", "aspect_ratio": "width : height", "entropy": "bits"}


def describe_drift(workspace: Workspace, run: str, name: str) -> dict[str, Any] | None:
    """Return the template's variables of the section; None where clean compared nothing in this run."""
    record = workspace.step_record(run, "clean")
    metrics = record["metrics"] if record else {}
    comparison = workspace.drift(name, metrics["drift_comparison"]) if "drift_comparison" in metrics else None
    if comparison is None:
        return None
    threshold, balance = metrics["drift_warning"], comparison["classes"]
    features, lines = _read_feature_drift(workspace, run, name, threshold)
    return {
        "comparison": comparison,
        "promotion": metrics["drift_promotion"],
        "warning": threshold,
        "findings": [*metrics["drift"], *lines],
        "has_new": any("new" in numbers for numbers in (balance, *comparison["measures"].values(), features or {})),
        "features": features,
        "balance": _mark(balance, threshold) if balance else None,
        "measures": [
            {
                "name": title.replace("_", " "), "unit": _UNITS.get(title, ""), "chart": draw_histograms(numbers),
                "medians": {sample: quartiles[1] for sample, quartiles in numbers["quartiles"].items()},
                "scopes": _mark(numbers, threshold),
            }
            for title, numbers in comparison["measures"].items()
        ],
        "classes": [_describe_class(entry) for entry in balance.get("classes", [])[:MAX_CLASSES]],
    }  # fmt: skip


def _read_feature_drift(
    workspace: Workspace, run: str, name: str, threshold: float
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the comparison of features that evaluate made in this run, and its lines; (None, []) without one."""
    record = workspace.step_record(run, "evaluate")
    metrics = record["metrics"] if record else {}
    key = metrics.get("feature_drift_comparison")
    comparison = workspace.drift(name, key) if key else None
    if comparison is None:
        return None, []
    return {"backbone": comparison["backbone"]} | _mark(comparison, threshold), metrics["feature_drift"]


def _mark(numbers: dict[str, Any], threshold: float) -> dict[str, dict[str, Any]]:
    """Return the numbers by scope, each with whether it is drift."""
    return {
        scope: numbers[scope] | {"is_drift": numbers[scope]["is_significant"] and numbers[scope]["psi"] > threshold}
        for scope in SCOPES
        if scope in numbers
    }


def _describe_class(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a class's shares; a change is marked where zero is outside of its 95% interval."""
    scopes = {
        scope: entry[scope] | {"is_clear": abs(entry[scope]["change"]) > entry[scope]["error"]}
        for scope in SCOPES
        if scope in entry
    }
    return {"label": entry["class"], "then": entry["then"], "scopes": scopes}


def draw_histograms(numbers: dict[str, Any]) -> Markup:
    """Draw a measure's shares of images by bin: then (filled), all images now, and the new ones (dashed)."""
    from matplotlib.figure import Figure

    histogram = numbers["histogram"]
    shares = {name: np.array(counts) / max(1, sum(counts)) for name, counts in histogram["counts"].items()}
    edges = np.linspace(histogram["low"], histogram["high"], len(shares["then"]) + 1)
    with use_style():
        figure = Figure(figsize=(2.9, 1.5))
        axes = figure.add_axes((0.03, 0.16, 0.94, 0.8))
        clear_frame(axes)
        axes.grid(False)
        axes.stairs(shares["then"], edges, fill=True, color=MUTED, alpha=0.35)
        axes.stairs(shares["all"], edges, color=TRAIN, linewidth=1.6)
        if "new" in numbers:
            axes.stairs(shares["new"], edges, color=VAL, linewidth=1.4, linestyle=(0, (3, 2)))
        axes.set_yticks([])
        axes.set_ylim(0, 1.05 * max(float(values.max()) for values in shares.values()) or 1)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        return to_svg(figure)
