"""Report sections on the scores: metrics with their intervals, calibration, curves, slices, classes, and the comparison
with the champion.

What an evaluation of an earlier release lacks is left out.
"""

from __future__ import annotations

from typing import Any

from ..dataset.labels import SINGLE
from ..dataset.manifest import Dataset
from .charts import SERIES, draw_reliability, draw_score_curves
from .pairs import PairedPredictions, has_content_hashes
from .score_difference import METRIC_TITLES, ClassCounts, compute_difference

_SCORE_TITLES = {
    "top1": ("Top-1", "images whose highest class is right"),
    "top5": ("Top-5", "images whose label is among the five highest"),
    "subset_accuracy": ("Every label right", "images with every label right, and no other"),
    "macro_f1": ("Macro-F1", "mean F1 of the classes"),
    "micro_f1": ("Micro-F1", "F1 of all labels together"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "pr_auc": ("PR-AUC", "mean average precision of the classes (mAP)"),
    "micro_pr_auc": ("Micro PR-AUC", "average precision of all labels together"),
    "roc_auc": ("ROC-AUC", "mean of the classes, each against the rest"),
}
_PROBABILITY_TITLES = {
    "ece": ("Calibration error", "expected, with the temperature"),
    "ece_uncalibrated": ("Calibration error before", "without the temperature"),
    "nll": ("Negative log-likelihood", "with the temperature"),
    "loss": ("Loss", "negative log-likelihood without the temperature"),
    "brier": ("Brier score", "squared distance from the truth"),
}
MAX_ROWS, END_ROWS = 40, 15
"""Of more than `MAX_ROWS` classes, a chart shows the first and the last `END_ROWS`."""


def describe_scores(evaluation: Dataset) -> dict[str, Any]:
    """Return the template's variables about an evaluation's scores."""
    extra = evaluation.manifest.extra
    calibration, curves = extra.get("calibration") or {}, extra.get("curves")
    has_reliability = bool(calibration.get("after"))
    metrics = {key: value for key, value in extra["metrics"].items() if value is not None}
    return {
        "measures": list_metrics(extra),
        "intervals": extra.get("intervals", {}),
        "too_narrow": extra.get("too_narrow", 0),
        "trust": [(*_PROBABILITY_TITLES[key], metrics[key]) for key in _PROBABILITY_TITLES if key in metrics],
        "temperature": calibration["temperature"] if has_reliability else None,
        "reliability": draw_reliability(calibration) if has_reliability else None,
        "areas": draw_score_curves(curves) if curves else [],
        "area_classes": curves["classes"][: len(SERIES)] if curves else [],
        "area_total": sum(c.get("roc_auc") is not None for c in extra["per_class"]),
        "slices": group_slices(extra),
        "each_class": list_classes(extra),
        "throughput": extra.get("throughput"),
    }


def list_metrics(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics in [0, 1] as rows, with the positions of value and interval in percent."""
    rows = []
    for key, (name, description) in _SCORE_TITLES.items():
        value = extra["metrics"].get(key)
        if value is None:
            continue
        interval = extra.get("intervals", {}).get(key)
        bar = {"left": 100 * interval[0], "width": 100 * (interval[1] - interval[0])} if interval else {}
        row = {"name": name, "words": description, "value": value, "between": interval, "at": 100 * value}
        rows.append(row | bar)
    return rows


def group_slices(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the slices by column, and the number of those that are significantly below all images."""
    by_column: dict[str, list[dict[str, Any]]] = {}
    slices = extra.get("slices", [])
    for row in slices:
        by_column.setdefault(row["column"], []).append(row | {"width": 100 * row["top1"]})
    below = sum(row["below"] for row in slices)
    return {"columns": by_column, "below": below, "whole": 100 * extra["metrics"]["top1"]}


def list_classes(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the classes with test images in blocks, the lowest average precision first; empty for an evaluation that
    has no areas."""
    rows = [c for c in extra["per_class"] if c["support"] and c.get("pr_auc") is not None]
    rows.sort(key=lambda c: (c["pr_auc"], c["class"]))
    return {"blocks": take_ends(rows) if rows else [], "omitted": max(0, len(rows) - 2 * END_ROWS)}


def take_ends(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return all rows as one block; of more than `MAX_ROWS`, the first and the last `END_ROWS`."""
    return [rows] if len(rows) <= MAX_ROWS else [rows[:END_ROWS], rows[-END_ROWS:]]


def describe_recipe(model: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Return lines about the training, from the model's manifest, else from its config."""
    recipe = model.get("recipe")
    if isinstance(recipe, dict):
        return [f"{str(name).replace('_', ' ')} {value}" for name, value in recipe.items()]
    if isinstance(recipe, list):
        origin = [f"trained {model['origin']}"] if model.get("origin") else []
        return [*origin, *(str(line) for line in recipe)]
    name = recipe or config.get("recipe", "")
    return [f"recipe {name}"] if name and name != "auto" else []


def compare_with_champion(challenger: Dataset, champion: Dataset) -> dict[str, Any]:
    """Return both models' scores on the images that the gate compares them on, and F1 by class, the largest gain first,
    as bars from `zero` (percent of the width); `why` where they can't be compared."""
    empty: dict[str, Any] = {"rows": [], "omitted": 0, "zero": 0.0}
    tasks = {evaluation.manifest.extra.get("model_task", SINGLE) for evaluation in (challenger, champion)}
    if len(tasks) > 1:
        return empty | {"why": "One of them gives an image one label, the other several: they can't be compared."}
    if not all(has_content_hashes(evaluation) for evaluation in (challenger, champion)):
        return empty | {"why": "The champion's evaluation is an earlier release's: they are not compared here."}
    pair = PairedPredictions.read(challenger, champion)
    if not len(pair.labels.classes):
        return empty | {"why": "No test image is left that both can be compared on."}
    counts = ClassCounts.count(pair)
    champion_f1, challenger_f1 = (scores["f1"].tolist() for scores in counts.compute_scores())
    rows: list[dict[str, Any]] = [
        {"label": name, "challenger": new, "champion": old, "gain": new - old}
        for name, new, old, images in zip(pair.classes, challenger_f1, champion_f1, counts.support, strict=True)
        if images
    ]
    rows.sort(key=lambda row: (-row["gain"], row["label"]))
    largest_gain, largest_loss = (max([sign * row["gain"] for row in rows] + [0.0]) for sign in (1, -1))
    span = (largest_gain + largest_loss) or 1.0
    for row in rows:
        row["left"] = 100 * (largest_loss + min(0.0, row["gain"])) / span
        row["width"] = 100 * abs(row["gain"]) / span
    return {
        "images": pair.images,
        "excluded": pair.excluded,
        "new_classes": pair.new_classes,
        "scores": {title: compute_difference(pair, metric) for metric, title in METRIC_TITLES.items()},
        "rows": take_ends(rows),
        "omitted": max(0, len(rows) - 2 * END_ROWS),
        "zero": 100 * largest_loss / span,
        "why": "",
    }
