"""Charts: matplotlib's SVG, inline, in the page's own colors (which change with light and dark).

matplotlib draws in placeholder colors; each is then replaced by a CSS variable of the page. Text stays text.
"""

from __future__ import annotations

import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import Calibration, ScoreCurves
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..metrics.classification import ConfusionCounts
from ..step.config import METRIC_TITLES

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

INK, MUTED, LINE, TRAIN, VAL, RATE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
"""Placeholder colors of categories, in the order of the page's `--r0` and on."""
_CSS_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", TRAIN: "train", VAL: "val", RATE: "test"}
_CSS_VARIABLES |= {color: f"r{number}" for number, color in enumerate(SERIES)}
_RIGHT, _WRONG = (0.20, 0.45, 0.85), (0.88, 0.33, 0.20)
COUNTED_CLASSES, NAMED_CLASSES, MAX_CELLS = 15, 40, 200
"""Confusion matrix: with up to so many classes counts are written, classes named, classes not pooled."""
_DASHED = (0, (3, 3))

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@contextmanager
def use_style() -> Iterator[None]:
    """Set matplotlib to small text that stays text; class names with dollar signs are no formulas."""
    import matplotlib

    rules: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "imagemill", "text.parse_math": False,
        "font.size": 8.5, "font.family": ["DejaVu Sans"], "text.color": INK, "axes.labelcolor": MUTED,
        "xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False, "legend.labelcolor": INK,
    }  # fmt: skip
    with matplotlib.rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # browsers have more fonts
        yield


def _make_axes(width: float, height: float, x_label: str = "", y_label: str = "") -> Axes:
    """Return axes of so many inches, without a frame and with a faint grid."""
    from matplotlib.figure import Figure

    axes: Axes = Figure(figsize=(width, height)).add_subplot()
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(length=0)
    axes.set_xlabel(x_label, loc="right")
    axes.set_ylabel(y_label, loc="top")
    return axes


def _to_svg(axes: Axes) -> Markup:
    """Return the figure as an SVG element for HTML: without prolog, metadata and namespaces, in CSS variables."""
    from markupsafe import Markup

    buffer, figure = io.StringIO(), axes.figure
    figure.patch.set_visible(False)
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.03)  # type: ignore[union-attr]
    document = buffer.getvalue()
    view_box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', document)
    width, height = (float(side) for side in view_box.groups()) if view_box else (300.0, 300.0)
    body = document[document.index("</defs>") + len("</defs>") :]  # the first defs hold a style rule that the page has
    colors = "|".join(_CSS_VARIABLES)
    body = re.sub(
        r'style="[^"]*"',
        lambda style: re.sub(colors, lambda color: f"var(--{_CSS_VARIABLES[color[0]]})", style[0]),
        body,
    )
    return Markup(f'<svg role="img" style="width:{width * 4 / 3:.0f}px" viewBox="0 0 {width:.1f} {height:.1f}">{body}')


def draw_training_curves(history: Sequence[dict[str, Any]], best_epoch: int | None) -> list[tuple[str, Markup]]:
    """Return (title, SVG) of the training curves that the history has numbers for; the best epoch is marked."""
    panels = [
        ("Loss", [("train_loss", "train", TRAIN), ("val_loss", "validation", VAL)]),
        ("Validation score", [("val_macro_f1", "macro-F1", VAL), ("val_top1", "top-1", MUTED)]),
        ("Learning rate", [("learning_rate", "", RATE)]),
    ]
    charts = []
    for title, curves in panels:
        lines = [([epoch.get(key) for epoch in history], label, color) for key, label, color in curves]
        lines = [line for line in lines if any(value is not None for value in line[0])]
        if lines:
            charts.append((title, _draw_epochs([epoch["epoch"] for epoch in history], lines, best_epoch)))
    return charts


@use_style()
def _draw_epochs(epochs: list[int], lines: list[tuple[list[Any], str, str]], best_epoch: int | None) -> Markup:
    from matplotlib.ticker import MaxNLocator

    axes = _make_axes(3.7, 2.4, "epoch")
    for values, label, color in lines:
        numbers = np.array([np.nan if value is None else float(value) for value in values])
        axes.plot(epochs, numbers, color=color, label=label, marker="o" if len(epochs) <= 30 else None, markersize=3)
    if best_epoch in epochs:
        axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.ticklabel_format(axis="y", useOffset=False)
    if lines[0][1]:
        axes.legend(loc="best")
    return _to_svg(axes)


@dataclass(frozen=True)
class ConfusionMatrix:
    """A sparse confusion matrix: `labels`, `predicted` and `counts`, int64 [pairs], each pair once. Sparse, because
    20,000 classes squared would not fit where 20,000 test images do."""

    classes: int
    labels: Counts
    predicted: Counts
    counts: Counts

    @classmethod
    def read(cls, evaluation: Dataset) -> ConfusionMatrix:
        """Count the predictions, a row group at a time."""
        pairs = ConfusionCounts(len(evaluation.manifest.classes))
        for table in read_columns(evaluation, "data", ["label_id", "predicted_id"]):
            pairs.add(table.column("label_id").to_numpy(), table.column("predicted_id").to_numpy())
        return cls(pairs.classes, *pairs.cells())

    @property
    def num_right(self) -> int:
        return int(self.counts[self.labels == self.predicted].sum())

    def find_confusions(self, class_id: int, limit: int = 3) -> list[tuple[int, int]]:
        """Return (class, number) of the wrong predictions for images of a class, the most frequent first."""
        is_wrong = (self.labels == class_id) & (self.predicted != class_id)
        pairs = zip(self.predicted[is_wrong].tolist(), self.counts[is_wrong].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def pool(self, cells: int) -> tuple[Shares, int]:
        """Return the shares of each class's images, float [n, n] with n <= cells, and the number of classes along a
        cell's side.

        Max-pooled, so that a lone confusion among many classes is still seen.
        """
        side = max(1, -(-self.classes // cells))
        n = max(1, -(-self.classes // side))
        matrix = np.zeros((n, n))
        support = np.bincount(self.labels, self.counts, self.classes)
        np.maximum.at(
            matrix, (self.labels // side, self.predicted // side), self.counts / np.maximum(support, 1)[self.labels]
        )
        return matrix, side


@use_style()
def draw_confusion_matrix(confusion: ConfusionMatrix, classes: Sequence[str]) -> Markup:
    """Draw the confusion matrix, each row normalized.

    Right predictions are blue, wrong ones red; the opacity of these is the root of the share, so that few are seen too.
    """
    shares, _ = confusion.pool(MAX_CELLS)
    n = len(shares)
    image = np.zeros((n, n, 4))
    image[..., :3] = _WRONG
    image[np.arange(n), np.arange(n), :3] = _RIGHT
    image[..., 3] = np.where(np.eye(n, dtype=bool), shares, np.sqrt(shares))
    inches = min(8.0, max(2.4, 0.48 * n if n <= COUNTED_CLASSES else 0.2 * n))
    axes = _make_axes(inches, inches, "predicted", "true")
    axes.imshow(image, interpolation="none", aspect="equal")
    axes.grid(False)
    names = [shorten_name(name) for name in classes] if len(classes) <= NAMED_CLASSES else []
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    if len(classes) <= COUNTED_CLASSES:
        for label, predicted, count in zip(confusion.labels, confusion.predicted, confusion.counts, strict=True):
            color = "#ffffff" if image[label, predicted, 3] > 0.5 else INK
            axes.text(predicted, label, f"{count:,}", ha="center", va="center", color=color)
    return _to_svg(axes)


def shorten_name(name: str, limit: int = 22) -> str:
    """Shorten a class name for an axis, and remove control characters, which SVG can't hold."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


@use_style()
def draw_reliability(calibration: Calibration) -> Markup:
    """Draw accuracy against confidence, calibrated and uncalibrated; larger dots are more images."""
    axes = _make_axes(3.4, 3.2, "how sure it is", "how often it is right")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
    curves = [(calibration.after, TRAIN, "with its temperature")]
    if calibration.before != calibration.after:
        curves.insert(0, (calibration.before, SERIES[1], "without"))
    for points, color, label in curves:
        confidence, accuracy, images = (
            np.array([point[key] for point in points]) for key in ("confidence", "accuracy", "images")
        )
        axes.plot(confidence, accuracy, color=color, linewidth=1.6, label=label)
        axes.scatter(confidence, accuracy, s=6 + 90 * images / images.sum(), color=color, linewidths=0)
    axes.legend(loc="upper left")
    return _to_svg(axes)


@use_style()
def draw_score_curves(curves: ScoreCurves) -> list[tuple[str, Markup]]:
    """Return (title, SVG) of the precision-recall and ROC curves: the macro mean, and those of the hardest classes."""
    panels = [
        ("Precision and recall", "recall", "precision", "recall", "precision"),
        ("ROC", "false_positive_rate", "true_positive_rate", "share of others taken for it", "share of it found"),
    ]
    charts = []
    for title, x, y, x_label, y_label in panels:
        axes = _make_axes(3.4, 3.2, x_label, y_label)
        for class_curves, color in zip(curves.classes, SERIES, strict=False):
            name = shorten_name(class_curves.name)
            axes.plot(getattr(curves, x), getattr(class_curves, y), color=color, linewidth=1.1, label=name)
        axes.plot(getattr(curves, x), getattr(curves.macro, y), color=TRAIN, linewidth=2.2, label="mean of all classes")
        axes.legend(loc="lower left" if title != "ROC" else "lower right")
        charts.append((title, _to_svg(axes)))
    return charts


@use_style()
def draw_differences(differences: dict[str, Any]) -> Markup:
    """Draw the differences of a comparison with their intervals, by metric, and those of each seed as dots."""
    axes = _make_axes(7.4, 0.75 + 0.55 * len(differences), "B less A: mean and 95% interval; dots are single seeds")
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=0)
    for row, difference in enumerate(differences.values()):
        color = VAL if difference["verdict"] == "not_shown_to_differ" else TRAIN
        axes.plot(difference["interval"], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot([difference["gain"]], [row], marker="o", markersize=7, color=color)
        gains = difference["by_seed"]
        axes.scatter(gains, [row + 0.22] * len(gains), s=11, color=MUTED, linewidths=0)
    axes.set_yticks(range(len(differences)), [METRIC_TITLES[metric] for metric in differences], color=INK)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    return _to_svg(axes)


@use_style()
def draw_trials(trials: Sequence[dict[str, Any]], metric: str) -> Markup:
    """Draw the validation score of each trial of a search, and the best one so far, against the base's."""
    from matplotlib.ticker import MaxNLocator

    axes = _make_axes(7.4, 3.0, "trial; 0 is the base, the dashed line", f"validation {METRIC_TITLES[metric]}")
    scored = [trial for trial in trials if trial["score"] is not None]
    complete = [trial for trial in scored if trial["state"] == "complete"]
    axes.axhline(complete[0]["score"], color=MUTED, linewidth=1.0, linestyle=_DASHED, zorder=0)
    pruned = [trial for trial in scored if trial["state"] != "complete"]
    for shown, color, label in ((complete, TRAIN, "complete"), (pruned, MUTED, "pruned")):
        if shown:
            numbers, scores = ([trial[key] for trial in shown] for key in ("number", "score"))
            axes.scatter(numbers, scores, s=22, color=color, label=label, linewidths=0)
    best = list(itertools.accumulate((trial["score"] for trial in complete), max))
    numbers = [trial["number"] for trial in complete]
    axes.step([*numbers, trials[-1]["number"]], [*best, best[-1]], where="post", color=VAL, label="best")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.legend(loc="lower right")
    return _to_svg(axes)
