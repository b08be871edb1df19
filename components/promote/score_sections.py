"""Report sections on the scores: metrics with their intervals, calibration, curves, slices, classes, the comparison
with the champion, and drift: what clean found when it compared its dataset with the champion's of then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from ..dataset.kinds import ClassScores, EvaluationExtra, ModelExtra, SliceScores
from ..dataset.manifest import Dataset
from ..dataset.workspace import Workspace
from ..step.config import METRIC_TITLES
from .charts import MUTED, SERIES, TRAIN, VAL, clear_frame, draw_reliability, draw_score_curves, to_svg, use_style
from .pairs import PairedPredictions
from .score_difference import ClassCounts, ScoreDifference, compute_difference

if TYPE_CHECKING:
    from markupsafe import Markup

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
T = TypeVar("T")
MAX_ROWS, END_ROWS = 40, 15
"""Of more than `MAX_ROWS` classes, a chart shows the first and the last `END_ROWS`."""


def describe_scores(evaluation: Dataset) -> dict[str, Any]:
    """Return the template's variables about an evaluation's scores."""
    extra = EvaluationExtra.of(evaluation.manifest)
    metrics, calibration, curves = extra.metrics, extra.calibration, extra.curves
    return {
        "measures": list_metrics(extra),
        "intervals": extra.intervals,
        "baseline": extra.baseline,
        "too_narrow": extra.too_narrow,
        "trust": [(*_PROBABILITY_TITLES[key], metrics[key]) for key in _PROBABILITY_TITLES if key in metrics],
        "temperature": calibration.temperature if calibration else None,
        "reliability": draw_reliability(calibration) if calibration else None,
        "areas": draw_score_curves(curves) if curves else [],
        "area_classes": curves.classes[: len(SERIES)] if curves else [],
        "area_total": sum(c.roc_auc is not None for c in extra.per_class),
        "slices": group_slices(extra),
        "each_class": list_classes(extra),
        "throughput": extra.throughput,
        "unlike": extra.unlike,
    }


class MetricRow(NamedTuple):
    """A metric in [0, 1], what it is in words, and its 95% interval where it has one."""

    name: str
    words: str
    value: float
    interval: list[float] | None


def list_metrics(extra: EvaluationExtra) -> list[MetricRow]:
    """Return the metrics in [0, 1] as rows."""
    rows = []
    for key, (name, description) in _SCORE_TITLES.items():
        value = extra.metrics.get(key)
        if value is None:
            continue
        if extra.baseline and key in extra.baseline.scores:
            description += f"; of the baseline, {extra.baseline.name}, {extra.baseline.scores[key]:.3f}"
        if extra.cross_validation and key in extra.cross_validation.scores:
            low, high = extra.cross_validation.intervals[key]
            description += (
                f"; of such probes, cross-validated on all {extra.cross_validation.images:,} images, "
                f"{extra.cross_validation.scores[key]:.3f} ({low:.3f} to {high:.3f})"
            )
        rows.append(MetricRow(name, description, value, extra.intervals.get(key)))
    return rows


def group_slices(extra: EvaluationExtra) -> dict[str, list[SliceScores]]:
    """Return the slices by column."""
    by_column: dict[str, list[SliceScores]] = {}
    for scores in extra.slices:
        by_column.setdefault(scores.column, []).append(scores)
    return by_column


@dataclass(frozen=True)
class Ends(Generic[T]):
    """The rows of a chart: all as one block or, of more than `MAX_ROWS`, the first and the last `END_ROWS`, with the
    number that is `omitted` between them."""

    blocks: list[list[T]] = field(default_factory=list)
    omitted: int = 0

    @classmethod
    def take(cls, rows: list[T]) -> Ends[T]:
        if len(rows) <= MAX_ROWS:
            return cls([rows] if rows else [])
        return cls([rows[:END_ROWS], rows[-END_ROWS:]], len(rows) - 2 * END_ROWS)


def list_classes(extra: EvaluationExtra) -> Ends[ClassScores]:
    """Return the classes with test images, the lowest average precision first; none for an evaluation without areas."""
    rows = [c for c in extra.per_class if c.support and c.pr_auc is not None]
    rows.sort(key=lambda c: (c.pr_auc, c.name))
    return Ends.take(rows)


def describe_recipe(model: ModelExtra, config: dict[str, Any]) -> list[str]:
    """Return lines about the training, from the model's manifest, else from its config."""
    if model.recipe:
        return [*([f"trained {model.origin}"] if model.origin else []), *model.recipe]
    name = config.get("recipe", "")
    return [f"recipe {name}"] if name and name != "auto" else []


class ClassGain(NamedTuple):
    """F1 of both models on one class, and the difference."""

    label: str
    challenger: float
    champion: float
    gain: float


@dataclass(frozen=True)
class ChampionComparison:
    """Both models' scores on the images that the gate compares them on, and F1 by class, the largest gain first, as
    bars from `zero`, of a chart that is `span` wide; `why` they can't be compared, or empty."""

    why: str = ""
    images: int = 0
    excluded: int = 0
    scores: dict[str, ScoreDifference] = field(default_factory=dict)
    rows: Ends[ClassGain] = field(default_factory=Ends)
    zero: float = 0.0
    span: float = 1.0


def compare_with_champion(challenger: Dataset, champion: Dataset) -> ChampionComparison:
    tasks = {EvaluationExtra.of(evaluation.manifest).model_task for evaluation in (challenger, champion)}
    if len(tasks) > 1:
        return ChampionComparison("One of them gives an image one label, the other several: they can't be compared.")
    pair = PairedPredictions.read(challenger, champion)
    if not len(pair.labels.classes):
        return ChampionComparison("No test image is left that both can be compared on.")
    counts = ClassCounts.count(pair)
    champion_f1, challenger_f1 = (scores["f1"].tolist() for scores in counts.compute_scores())
    rows = [
        ClassGain(name, new, old, new - old)
        for name, new, old, images in zip(pair.classes, challenger_f1, champion_f1, counts.support, strict=True)
        if images
    ]
    rows.sort(key=lambda row: (-row.gain, row.label))
    largest_gain, largest_loss = (max([sign * row.gain for row in rows] + [0.0]) for sign in (1, -1))
    scores = {title: compute_difference(pair, metric) for metric, title in METRIC_TITLES.items()}
    span = (largest_gain + largest_loss) or 1.0
    return ChampionComparison("", pair.images, pair.excluded, scores, Ends.take(rows), largest_loss, span)


SCOPES = ("all", "new")
MAX_CLASSES = 20
_UNITS = {"width": "pixels", "height": "pixels", "aspect_ratio": "width : height", "entropy": "bits"}


def describe_drift(workspace: Workspace, run: str, name: str) -> dict[str, Any] | None:
    """Return the template's variables of the section; None where clean compared nothing in this run."""
    record = workspace.step_record(run, "clean")
    metrics = record.metrics if record else {}
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
    metrics = record.metrics if record else {}
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
