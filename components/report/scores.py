"""Sections of a run's page on the scores of the test images: metrics with their intervals, calibration, curves,
classes, slices, and the comparison with the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..dataset.kinds import EvaluationExtra, SliceScores
from .charts import draw_reliability, draw_score_curves
from .page import Bar, Block, Charts, Paragraph, Row, Styled, Table, take_ends
from .words import (
    format_gain,
    format_interval,
    format_percent,
    format_score,
    join_names,
    pluralize,
    replace_underscores,
)

SCORE_TITLES = {
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
PROBABILITY_TITLES = {
    "ece": ("Calibration error", "expected, with the temperature"),
    "ece_uncalibrated": ("Calibration error before", "without the temperature"),
    "nll": ("Negative log-likelihood", "with the temperature"),
    "loss": ("Loss", "negative log-likelihood without the temperature"),
    "brier": ("Brier score", "squared distance from the truth"),
}
NAMES = 20


def describe_scores(extra: EvaluationExtra) -> list[Block]:
    """Return the metrics with their intervals, calibration, threshold curves and each class's scores."""
    notes = []
    if extra.intervals:
        notes.append("The interval of 95% is how far chance in which images were tested could take a score.")
    if extra.throughput:
        speed = extra.throughput
        notes.append(f"{speed.whole:,.0f} images/s in all, {speed.network:,.0f} of the network alone, on {speed.device}"
                     + (f" with test-time augmentation {replace_underscores(speed.tta)}, {speed.network_one_view:,.0f} "
                        "without" if speed.tta != "none" else "") + ".")  # fmt: skip
    if extra.unlike:
        notes.append(
            f"{pluralize(extra.unlike.images, 'test image')} unlike the training images (ood_score above 1); of images "
            f"like the validation images {format_percent(extra.unlike.rate)} are."
        )
    blocks: list[Block] = [Paragraph(text, "bad") for text in list_score_warnings(extra)]
    blocks += [Paragraph(" ".join(notes), "note")] if notes else []
    head = ("metric", "value", "95% interval", "0 to 1", "what it is")
    blocks.append(Table(list_metrics(extra), head, "lrrll"))
    if extra.calibration:
        temperature = extra.calibration.temperature
        fitted = "changes nothing" if temperature == 1 else "was fitted on the validation images"
        blocks.append(Charts([("", draw_reliability(extra.calibration))], "Calibration"))
        blocks.append(Paragraph(
            "On the dashed line the model is right as often as it says. Its logits are divided by a temperature of "
            f"{temperature:.3f}, which {fitted}; larger dots are more images.", "note",
        ))  # fmt: skip
    trust = [(*PROBABILITY_TITLES[key], extra.metrics[key]) for key in PROBABILITY_TITLES if key in extra.metrics]
    if trust:
        blocks.append(Table([(title, format_score(value), words) for title, words, value in trust], alignment="lrl"))
    if extra.curves:
        shown, total = len(extra.curves.classes), sum(c.roc_auc is not None for c in extra.per_class)
        title = "Thresholds: each class against the rest"
        title += f"; of {total:,} classes the {shown} with the lowest PR-AUC" if total > shown else ""
        blocks.append(Charts(draw_score_curves(extra.curves), title))
    return [*blocks, _make_class_table(extra)]


def list_score_warnings(extra: EvaluationExtra) -> list[str]:
    """Return sentences on classes whose scores say little."""
    warnings = []
    if extra.too_narrow:
        classes = pluralize(extra.too_narrow, "class has", "classes have")
        warnings.append(f"Macro-F1's interval is too narrow: {classes} only a few test images beside far larger ones.")
    if untested := [scores.name for scores in extra.per_class if not scores.support]:
        classes = pluralize(len(untested), "class has", "classes have")
        warnings.append(f"{classes} no test image, and no part in means over classes: {join_names(untested, NAMES)}")
    return warnings


def list_metrics(extra: EvaluationExtra) -> list[Row]:
    """Return (name, value, interval, bar, what it is) of the metrics in [0, 1]."""
    rows: list[Row] = []
    for key, (name, words) in SCORE_TITLES.items():
        value, interval = extra.metrics.get(key), extra.intervals.get(key)
        if value is None:
            continue
        if extra.baseline and key in extra.baseline.scores:
            words += f"; of the baseline, {extra.baseline.name}, {extra.baseline.scores[key]:.3f}"
        if extra.cross_validation and key in extra.cross_validation.scores:
            low, high = extra.cross_validation.intervals[key]
            words += (
                f"; of such probes, cross-validated on all {extra.cross_validation.images:,} images, "
                f"{extra.cross_validation.scores[key]:.3f} ({low:.3f} to {high:.3f})"
            )
        low, high = interval or (0.0, value)
        bar = Bar(((high - low, "train"),), start=low, mark=value)
        rows.append((name, Styled(format_score(value), "strong"), format_interval(interval or ()), bar, words))
    return rows


def _make_class_table(extra: EvaluationExtra) -> Table:
    """Return the scores of each class that has test images, the lowest average precision or F1 first."""
    classes = sorted(
        (scores for scores in extra.per_class if scores.support),
        key=lambda scores: (scores.f1 if scores.pr_auc is None else scores.pr_auc, scores.name),
    )
    rows: list[Row] = [
        (scores.name, format_score(scores.pr_auc), format_score(scores.roc_auc), format_score(scores.f1),
         format_percent(scores.precision), format_percent(scores.recall), f"{scores.support:,}")
        for scores in classes
    ]  # fmt: skip
    head = ("class", "PR-AUC", "ROC-AUC", "F1", "precision", "recall", "test images")
    return Table(take_ends(rows, "classes"), head, "lrrrrrr", "Each class", is_folded=True)


def describe_slices(extra: EvaluationExtra) -> list[Block]:
    """Return top-1 of parts of the test images, a table for each column."""
    by_column: dict[str, list[SliceScores]] = {}
    for scores in extra.slices:
        by_column.setdefault(scores.column, []).append(scores)
    if not by_column:
        return []
    top1, below = extra.metrics["top1"], sum(scores.below for scores in extra.slices)
    text = f"Top-1 of parts of the test images; the line is that of all, {format_percent(top1)}. "
    text += f"Red: {pluralize(below, 'slice')} significantly below it" if below else "None is significantly below it"
    tables = [
        Table(
            [
                (scores.slice, Bar(((scores.top1, "bad" if scores.below else "train"),), mark=top1),
                 Styled(format_percent(scores.top1), "bad" if scores.below else ""),
                 f"{format_percent(scores.low)} to {format_percent(scores.high)}", f"macro-F1 {scores.macro_f1:.3f}",
                 pluralize(scores.images, "image"))
                for scores in rows
            ], alignment="llrrrr", title=replace_underscores(column),
        )
        for column, rows in by_column.items()
    ]  # fmt: skip
    return [Paragraph(f"{text} (95% for all slices together).", "bad" if below else "note"), *tables]


@dataclass(frozen=True)
class ChampionComparison:
    """Both models' scores on the images that the gate compares them on, and F1 by class: (champion, challenger) each.
    `why` they can't be compared, or empty."""

    why: str = ""
    images: int = 0
    excluded: int = 0
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    classes: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def describe_comparison(comparison: ChampionComparison) -> list[Block]:
    """Return the section on the champion: F1 by class, the largest gain first."""
    if comparison.why:
        return [Paragraph(comparison.why)]
    scores = ", ".join(f"{title} {new:.3f} against {old:.3f}" for title, (old, new) in comparison.scores.items())
    excluded = f", without {comparison.excluded:,} that one of them has seen in training" if comparison.excluded else ""
    gains = {name: new - old for name, (old, new) in comparison.classes.items()}
    highest, lowest = max([0.0, *gains.values()]), min([0.0, *gains.values()])
    span = (highest - lowest) or 1.0
    rows: list[Row] = []
    for name in sorted(gains, key=lambda name: (-gains[name], name)):
        old, new = comparison.classes[name]
        color = "good" if gains[name] > 0 else "bad"
        bar = Bar(((abs(gains[name]) / span, color),), (min(0.0, gains[name]) - lowest) / span, -lowest / span)
        tone = color if abs(gains[name]) > 0.0005 else ""
        rows.append((name, format_score(old), format_score(new), Styled(format_gain(gains[name]), tone), bar))
    head = ("class", "F1 of the champion", "of this model", "difference", "")
    return [
        Paragraph(f"On {pluralize(comparison.images, 'test image')}{excluded}: {scores}."),
        Table(take_ends(rows, "classes"), head, "lrrrl"),
    ]
