"""What the report says of an evaluation beyond its mistakes: metrics with their intervals, calibration, curves, slices.

An evaluation of an earlier release says less; what it does not say is left out.
"""

from __future__ import annotations

import heapq
from typing import Any

from ..store.labels import MULTI
from ..store.manifest import Dataset
from ..store.shards import open_parquet, read_columns
from . import diagrams, pictures
from .charts import SERIES
from .pictures import Mistake, Picture

_METRICS = {
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
_TRUST = {
    "ece": ("Calibration error", "expected, with the temperature"),
    "ece_uncalibrated": ("Calibration error before", "without the temperature"),
    "nll": ("Negative log-likelihood", "with the temperature"),
    "loss": ("Loss", "negative log-likelihood without the temperature"),
    "brier": ("Brier score", "squared distance from the truth"),
}
LOSSES_SHOWN = 12
BARS, BAR_ENDS = 40, 15
"""With more than `BARS` classes a chart shows only so many at either end."""


def quality(evaluation: Dataset) -> dict[str, Any]:
    """What the template's sections about the evaluation show."""
    extra = evaluation.manifest.extra
    calibration, curves = extra.get("calibration"), extra.get("curves")
    drawn = bool(calibration and calibration.get("after"))
    return {
        "measures": measures(extra),
        "intervals": extra.get("intervals", {}),
        "too_narrow": extra.get("too_narrow", 0),
        "trust": [(*_TRUST[k], extra["metrics"][k]) for k in _TRUST if extra["metrics"].get(k) is not None],
        "temperature": calibration["temperature"] if calibration and drawn else None,
        "reliability": diagrams.reliability_chart(calibration) if calibration and drawn else None,
        "areas": diagrams.curve_charts(curves) if curves else [],
        "area_classes": curves["classes"][: len(SERIES)] if curves else [],
        "area_total": sum(c.get("roc_auc") is not None for c in extra["per_class"]),
        "slices": slices(extra),
        "each_class": each_class(extra),
        "throughput": extra.get("throughput"),
    }


def measures(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics in [0, 1], in their order, with the interval and its place in percent where there is one."""
    rows = []
    for key, (name, words) in _METRICS.items():
        value = extra["metrics"].get(key)
        if value is None:
            continue
        between = extra.get("intervals", {}).get(key)
        bar = {"left": 100 * between[0], "width": 100 * (between[1] - between[0])} if between else {}
        rows.append({"name": name, "words": words, "value": value, "between": between, "at": 100 * value} | bar)
    return rows


def slices(extra: dict[str, Any]) -> dict[str, Any]:
    """The slices by column, and how many of them are surely below the whole."""
    by_column: dict[str, list[dict[str, Any]]] = {}
    for one in extra.get("slices", []):
        by_column.setdefault(one["column"], []).append(one | {"width": 100 * one["top1"]})
    below = sum(one["below"] for one in extra.get("slices", []))
    return {"columns": by_column, "below": below, "whole": 100 * extra["metrics"]["top1"]}


def each_class(extra: dict[str, Any]) -> dict[str, Any]:
    """Every class with test images, the lowest area under its precision-recall curve first, in one block or, of many,
    in two; empty for an evaluation that has no areas."""
    rows = [c for c in extra["per_class"] if c["support"] and c.get("pr_auc") is not None]
    rows.sort(key=lambda c: (c["pr_auc"], c["class"]))
    return {"blocks": ends(rows) if rows else [], "omitted": max(0, len(rows) - 2 * BAR_ENDS)}


def ends(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """All rows as one block; of more than `BARS`, the first and the last `BAR_ENDS`."""
    return [rows] if len(rows) <= BARS else [rows[:BAR_ENDS], rows[-BAR_ENDS:]]


def columns_of(evaluation: Dataset) -> set[str]:
    """The columns of the predictions, which earlier releases had fewer of."""
    files = evaluation.files("data")
    if not files:
        return set()
    with open_parquet(evaluation.locate(files[0])) as parquet:
        return set(parquet.schema_arrow.names)


def highest_losses(evaluation: Dataset, clean: Dataset, shown: set[str], most: int = LOSSES_SHOWN) -> list[Mistake]:
    """The images that the model finds the least likely to be what they are labelled, but for those that are `shown`
    already; none where predictions have no loss. Holds `most` rows at a time."""
    several = evaluation.manifest.task == MULTI
    names = ("label_ids", "predicted_ids") if several else ("label_id", "predicted_id")
    worst: list[tuple[float, str, Any, Any]] = []
    for table in (
        read_columns(evaluation, "data", ["image_id", "loss", *names]) if "loss" in columns_of(evaluation) else ()
    ):
        rows = [
            (r["loss"], r["image_id"], r[names[0]], r[names[1]]) for r in table.to_pylist() if r["loss"] is not None
        ]
        kept = [row for row in rows if row[1] not in shown and row[0] > 0]
        worst = heapq.nsmallest(most, [*worst, *kept], key=lambda row: (-row[0], row[1]))
    files = clean.files("data", "test") or clean.files("data")
    found = pictures.look_up(clean, files, {row[1]: "" for row in worst})
    classes = evaluation.manifest.classes

    def named(ids: Any) -> str:
        return (", ".join(classes[i] for i in ids) or "(none)") if several else classes[ids]

    return [
        Mistake(image_id, named(truth), named(said), f"loss {loss:.2f}", found.get(image_id) or Picture(image_id))
        for loss, image_id, truth, said in worst
    ]


def recipe(model: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What training did, as lines: by what the model says itself, else by its config."""
    said = model.get("recipe")
    if isinstance(said, dict):
        return [f"{str(name).replace('_', ' ')} {value}" for name, value in said.items()]
    if isinstance(said, list):
        return [str(line) for line in said]
    name = said or config.get("recipe", "")
    return [f"recipe {name}"] if name and name != "auto" else []
