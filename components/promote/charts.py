"""Draw the report's charts: matplotlib's SVG, inline, in the page's own colors (which change with light and dark).

matplotlib draws in placeholder colors; each is then replaced by a CSS variable of the page. Text stays text.
"""

from __future__ import annotations

import io
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

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    def support(self) -> Counts:
        """Test images of each class, int64 [classes]."""
        return np.bincount(self.labels, self.counts, self.classes).astype(np.int64)

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
        shares = self.counts / np.maximum(self.support, 1)[self.labels]
        np.maximum.at(matrix, (self.labels // side, self.predicted // side), shares)
        return matrix, side


def draw_training_curves(history: Sequence[dict[str, Any]], best_epoch: int) -> list[tuple[str, Markup]]:
    """Return (title, SVG) of the training curves that the history has numbers for; the best epoch is marked."""
    panels = [
        ("Loss", [("train_loss", "train", TRAIN), ("val_loss", "validation", VAL)]),
        ("Validation score", [("val_macro_f1", "macro-F1", VAL), ("val_top1", "top-1", MUTED)]),
        ("Learning rate", [("learning_rate", "", RATE)]),
    ]
    charts = []
    for title, curves in panels:
        lines = [(_read_series(history, key), label, color) for key, label, color in curves]
        lines = [line for line in lines if np.isfinite(line[0]).any()]
        if lines:
            charts.append((title, _draw_lines([h["epoch"] for h in history], lines, best_epoch)))
    return charts


def _read_series(history: Sequence[dict[str, Any]], key: str) -> Shares:
    """Return one number an epoch, float [epochs]; NaN where there is none."""
    return np.array([np.nan if h.get(key) is None else float(h[key]) for h in history])


def _draw_lines(epochs: list[int], lines: list[tuple[Shares, str, str]], best_epoch: int) -> Markup:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with use_style():
        figure = Figure(figsize=(3.9, 2.6))
        axes = figure.add_axes((0.145, 0.15, 0.83, 0.73))
        clear_frame(axes)
        marker = "o" if len(epochs) <= 30 else None
        for values, label, color in lines:
            axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=3, linewidth=1.6)
            if best_epoch in epochs and np.isfinite(best := values[epochs.index(best_epoch)]):
                axes.plot([best_epoch], [best], marker="o", markersize=6.5, color=color)
        if best_epoch in epochs:
            axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
        axes.margins(x=0.04, y=0.1)
        if len(epochs) == 1:  # a point has no extent for margins to grow with
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
            highest = max((float(np.nanmax(v)) for v, _, _ in lines if np.isfinite(v).any()), default=1.0)
            axes.set_ylim(0, 1.2 * highest or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlabel("epoch", loc="right", labelpad=1)
        if any(label for _, label, _ in lines):
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.02, 0.99), borderaxespad=0.1, columnspacing=1.2, ncols=len(lines),
                frameon=False, labelcolor=INK, handlelength=1.2,
            )  # fmt: skip
        return to_svg(figure)


def draw_confusion_matrix(confusion: ConfusionMatrix, classes: Sequence[str]) -> tuple[Markup, int]:
    """Return the confusion matrix, each row normalized, as SVG, and the number of classes along a cell's side.

    Right predictions are blue, wrong ones red; the opacity of these is the root of the share, so that few are seen too.
    """
    from matplotlib.figure import Figure

    shares, side_classes = confusion.pool(MAX_CELLS)
    n = len(shares)
    image = np.zeros((n, n, 4))
    image[..., :3] = _WRONG
    image[np.arange(n), np.arange(n), :3] = _RIGHT
    image[..., 3] = np.where(np.eye(n, dtype=bool), shares, np.sqrt(shares))
    inches = min(8.0, max(2.4, 0.48 * n if n <= COUNTED_CLASSES else 0.2 * n))
    with use_style():
        figure = Figure(figsize=(inches, inches))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(image, interpolation="none", aspect="equal")
        clear_frame(axes)
        axes.grid(False)
        for side in axes.spines.values():
            side.set(visible=True, color=LINE)
        axes.tick_params(length=0)
        axes.xaxis.set_label_position("top")
        axes.xaxis.tick_top()
        axes.set_xlabel("predicted", color=MUTED)
        axes.set_ylabel("true", color=MUTED)
        _label_axes(axes, classes if len(classes) <= NAMED_CLASSES else [])
        if len(classes) <= COUNTED_CLASSES:
            _write_counts(axes, confusion, image[..., 3])
        return to_svg(figure, tight=True), side_classes


def _label_axes(axes: Axes, classes: Sequence[str]) -> None:
    names = [shorten(name) for name in classes]
    rotation, alignment = (45, "left") if len(names) <= COUNTED_CLASSES else (90, "center")
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha=alignment)
    axes.set_yticks(range(len(names)), names)


def _write_counts(axes: Axes, confusion: ConfusionMatrix, opacity: Shares) -> None:
    for label, predicted, count in zip(confusion.labels, confusion.predicted, confusion.counts, strict=True):
        color = "#ffffff" if opacity[label, predicted] > 0.5 else INK
        axes.text(predicted, label, f"{count:,}", ha="center", va="center", color=color)


def shorten(name: str, limit: int = 22) -> str:
    """Shorten a class name for an axis, and remove control characters, which SVG can't hold."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


def draw_reliability(calibration: Calibration) -> Markup:
    """Draw accuracy against confidence, calibrated and uncalibrated; larger dots are more images."""
    with use_style():
        figure, axes = _make_square_axes("how sure it is", "how often it is right")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
        curves = [(calibration.after, TRAIN, "with its temperature")]
        if calibration.before != calibration.after:
            curves.insert(0, (calibration.before, SERIES[1], "without"))
        for points, color, label in curves:
            confidence, accuracy, images = (
                np.array([point[key] for point in points]) for key in ("confidence", "accuracy", "images")
            )
            axes.plot(confidence, accuracy, color=color, linewidth=1.6, label=label if len(curves) > 1 else None)
            axes.scatter(confidence, accuracy, s=6 + 90 * images / images.sum(), color=color, linewidths=0)
        if len(curves) > 1:
            axes.legend(loc="upper left", frameon=False, labelcolor=INK, handlelength=1.2, borderaxespad=0.2)
        return to_svg(figure)


def draw_score_curves(curves: ScoreCurves) -> list[tuple[str, Markup]]:
    """Return (title, SVG) of the precision-recall and ROC curves: the macro mean, and those of the hardest classes."""
    panels = [
        ("Precision and recall", "recall", "precision", "recall", "precision"),
        ("ROC", "false_positive_rate", "true_positive_rate", "share of others taken for it", "share of it found"),
    ]
    charts = []
    for title, x, y, x_label, y_label in panels:
        with use_style():
            figure, axes = _make_square_axes(x_label, y_label)
            if title == "ROC":
                axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
            for class_curves, color in zip(curves.classes, SERIES, strict=False):
                axes.plot(getattr(curves, x), getattr(class_curves, y), color=color, linewidth=1.1)
            axes.plot(getattr(curves, x), getattr(curves.macro, y), color=TRAIN, linewidth=2.2)
            charts.append((title, to_svg(figure)))
    return charts


def _make_square_axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return axes from 0 to 1 both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7, 3.3))
    axes = figure.add_axes((0.14, 0.125, 0.83, 0.85))
    clear_frame(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
    axes.set_xlabel(x_label, loc="right", labelpad=2)
    axes.set_ylabel(y_label, loc="top", labelpad=2)
    return figure, axes


@contextmanager
def use_style() -> Iterator[None]:
    """Set matplotlib to small text that stays text; class names with dollar signs are no formulas."""
    import matplotlib

    rules: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "imagemill", "text.parse_math": False,
        "font.size": 8.5, "font.family": ["DejaVu Sans"], "text.color": INK, "axes.labelcolor": MUTED,
        "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": LINE,
    }  # fmt: skip
    with matplotlib.rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # browsers have more fonts
        yield


def clear_frame(axes: Axes) -> None:
    """Remove frame and background, and add a faint grid."""
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(length=0)


def to_svg(figure: Figure, tight: bool = False) -> Markup:
    """Return the figure as an SVG element for HTML: without prolog, metadata and namespaces, in CSS variables."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.patch.set_visible(False)
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight" if tight else None, pad_inches=0.03)
    document = buffer.getvalue()
    view_box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', document)
    width, height = (float(side) for side in view_box.groups()) if view_box else (300.0, 300.0)
    body = document[document.index("</defs>") + len("</defs>") :]  # the first defs hold a style rule that the page has
    body = re.sub(r'style="[^"]*"', _use_css_variables, body)
    return Markup(f'<svg role="img" style="width:{width * 4 / 3:.0f}px" viewBox="0 0 {width:.1f} {height:.1f}">{body}')


def _use_css_variables(style: re.Match[str]) -> str:
    return re.sub("|".join(_CSS_VARIABLES), lambda color: f"var(--{_CSS_VARIABLES[color[0]]})", style[0])
