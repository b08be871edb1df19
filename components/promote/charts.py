"""The report's charts: matplotlib's SVG, inline, in the page's own colours (which change with light and dark).

matplotlib draws in marker colours; each is then replaced by a CSS variable of the page. Text stays text.
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

from ..store.manifest import Dataset
from ..store.shards import read_columns

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, TRAIN, VAL, RATE = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
SERIES = ("#070707", "#080808", "#090909", "#0a0a0a", "#0b0b0b")
"""Marker colours of things that are many, in the order of the page's `--r0` and on."""
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", TRAIN: "train", VAL: "val", RATE: "test"}
_VARIABLES |= {color: f"r{number}" for number, color in enumerate(SERIES)}
_RIGHT, _WRONG = (0.20, 0.45, 0.85), (0.88, 0.33, 0.20)
COUNTED_CLASSES, NAMED_CLASSES, CELLS = 15, 40, 200
"""Confusion matrix: with up to so many classes counts are written, classes named, classes not pooled."""

Counts = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Confusion:
    """A sparse confusion matrix over `classes` classes: `truth`, `predicted` and `counts`, int64 [pairs],
    each pair once. Sparse, because 20,000 classes squared would not fit where 20,000 test images do."""

    classes: int
    truth: Counts
    predicted: Counts
    counts: Counts

    @classmethod
    def of(cls, evaluation: Dataset) -> Confusion:
        """Counted from the predictions, a row group at a time."""
        classes = len(evaluation.manifest.classes)
        keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for table in read_columns(evaluation, "data", ["label_id", "predicted_id"]):
            truth = table.column("label_id").to_numpy().astype(np.int64)
            found, number = np.unique(truth * classes + table.column("predicted_id").to_numpy(), return_counts=True)
            keys, inverse = np.unique(np.concatenate([keys, found]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts, number]), len(keys)).astype(np.int64)
        return cls(classes, keys // max(1, classes), keys % max(1, classes), counts)

    @property
    def support(self) -> Counts:
        """Test images of each class, int64 [classes]."""
        return np.bincount(self.truth, self.counts, self.classes).astype(np.int64)

    @property
    def right(self) -> int:
        return int(self.counts[self.truth == self.predicted].sum())

    def mistaken_for(self, class_id: int, most: int = 3) -> list[tuple[int, int]]:
        """(class, number) of what the images of a class were taken for instead, the most frequent first."""
        chosen = (self.truth == class_id) & (self.predicted != class_id)
        pairs = zip(self.predicted[chosen].tolist(), self.counts[chosen].tolist(), strict=True)
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:most]

    def pooled(self, cells: int) -> tuple[Shares, int]:
        """Shares of each class's images, float [n, n] with n <= cells, and how many classes share a cell's side.

        Pooled by the maximum, so that a lone confusion among many classes is still seen.
        """
        side = max(1, -(-self.classes // cells))
        n = max(1, -(-self.classes // side))
        matrix = np.zeros((n, n))
        rows = self.counts / np.maximum(self.support, 1)[self.truth]
        np.maximum.at(matrix, (self.truth // side, self.predicted // side), rows)
        return matrix, side


def curves(history: Sequence[dict[str, Any]], best_epoch: int) -> list[tuple[str, Markup]]:
    """(title, SVG) of the training curves that the history has numbers for; the best epoch is marked."""
    panels = [
        ("Loss", [("train_loss", "train", TRAIN), ("val_loss", "validation", VAL)]),
        ("Validation score", [("val_macro_f1", "macro-F1", VAL), ("val_top1", "top-1", MUTED)]),
        ("Learning rate", [("learning_rate", "", RATE)]),
    ]
    drawn = []
    for title, lines in panels:
        known = [(_series(history, key), label, color) for key, label, color in lines]
        known = [line for line in known if np.isfinite(line[0]).any()]
        if known:
            drawn.append((title, _curve([h["epoch"] for h in history], known, best_epoch)))
    return drawn


def _series(history: Sequence[dict[str, Any]], key: str) -> Shares:
    """One number an epoch, float [epochs]; NaN where there is none."""
    return np.array([np.nan if h.get(key) is None else float(h[key]) for h in history])


def _curve(epochs: list[int], lines: list[tuple[Shares, str, str]], best_epoch: int) -> Markup:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style():
        figure = Figure(figsize=(3.9, 2.6))
        axes = figure.add_axes((0.145, 0.15, 0.83, 0.73))
        plain(axes)
        marker = "o" if len(epochs) <= 30 else None
        for values, label, color in lines:
            axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=3, linewidth=1.6)
            if best_epoch in epochs and np.isfinite(best := values[epochs.index(best_epoch)]):
                axes.plot([best_epoch], [best], marker="o", markersize=6.5, color=color)
        if best_epoch in epochs:
            axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
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
            place: dict[str, Any] = {"bbox_to_anchor": (1.02, 0.99), "borderaxespad": 0.1, "columnspacing": 1.2}
            axes.legend(loc="lower right", ncols=len(lines), frameon=False, labelcolor=INK, handlelength=1.2, **place)
        return svg(figure)


def confusion_chart(confusion: Confusion, classes: Sequence[str]) -> tuple[Markup, int]:
    """The confusion matrix, each row normalized, as SVG, and how many classes share a cell's side.

    Right answers blue, wrong ones red; the strength grows with the root of the share, so that few are seen too.
    """
    from matplotlib.figure import Figure

    shares, pooled = confusion.pooled(CELLS)
    n = len(shares)
    image = np.zeros((n, n, 4))
    image[..., :3] = _WRONG
    image[np.arange(n), np.arange(n), :3] = _RIGHT
    image[..., 3] = np.where(np.eye(n, dtype=bool), shares, np.sqrt(shares))
    named = len(classes) <= NAMED_CLASSES
    inches = min(8.0, max(2.4, 0.48 * n if n <= COUNTED_CLASSES else 0.2 * n))
    with style():
        figure = Figure(figsize=(inches, inches))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(image, interpolation="none", aspect="equal")
        plain(axes)
        axes.grid(False)
        for side in axes.spines.values():
            side.set(visible=True, color=LINE)
        axes.tick_params(length=0)
        axes.xaxis.set_label_position("top")
        axes.xaxis.tick_top()
        axes.set_xlabel("predicted", color=MUTED)
        axes.set_ylabel("true", color=MUTED)
        _name_classes(axes, classes if named else [])
        if len(classes) <= COUNTED_CLASSES:
            _write_counts(axes, confusion, image[..., 3])
        return svg(figure, tight=True), pooled


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    names = [short(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) <= COUNTED_CLASSES else 90, ha="left")
    if len(names) > COUNTED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, ha="center")
    axes.set_yticks(range(len(names)), names)


def _write_counts(axes: Axes, confusion: Confusion, strength: Shares) -> None:
    for truth, predicted, count in zip(confusion.truth, confusion.predicted, confusion.counts, strict=True):
        color = "#ffffff" if strength[truth, predicted] > 0.5 else INK
        axes.text(predicted, truth, f"{count:,}", ha="center", va="center", color=color)


def short(name: str, most: int = 22) -> str:
    """A class name for an axis: no control characters, which SVG can't hold, and not too long."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= most else name[: most - 1] + "…"


@contextmanager
def style() -> Iterator[None]:
    """Small text that stays text; a class name with a dollar sign is no formula; missing glyphs are the browser's."""
    import matplotlib

    rules: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "imagemill", "text.parse_math": False,
        "font.size": 8.5, "font.family": ["DejaVu Sans"], "text.color": INK, "axes.labelcolor": MUTED,
        "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": LINE,
    }  # fmt: skip
    with matplotlib.rc_context(rules), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def plain(axes: Axes) -> None:
    """No frame, a faint grid, no background."""
    axes.patch.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(length=0)


def svg(figure: Figure, tight: bool = False) -> Markup:
    """The figure as an SVG element for HTML: without prolog, metadata and namespaces, in CSS variables."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.patch.set_visible(False)
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight" if tight else None, pad_inches=0.03)
    svg = buffer.getvalue()
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = (float(side) for side in box.groups()) if box else (300.0, 300.0)
    body = svg[svg.index("</defs>") + len("</defs>") :]  # the first defs hold one rule of style, which the page has
    body = re.sub(r'style="[^"]*"', _themed, body)
    pixels = f"width:{width * 4 / 3:.0f}px"
    return Markup(f'<svg role="img" style="{pixels}" viewBox="0 0 {width:.1f} {height:.1f}">{body}')


def _themed(style: re.Match[str]) -> str:
    return re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", style[0])
