"""The report's charts of probabilities: are they what they say, and what a threshold on them would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .charts import INK, LINE, MUTED, SERIES, TRAIN, plain, style, svg

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHED = (0, (3, 3))


def _square(across: str, up: str) -> tuple[Figure, Axes]:
    """Axes from 0 to 1 both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.7, 3.3))
    axes = figure.add_axes((0.14, 0.125, 0.83, 0.85))
    plain(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015))
    axes.set_xlabel(across, loc="right", labelpad=2)
    axes.set_ylabel(up, loc="top", labelpad=2)
    return figure, axes


def reliability_chart(calibration: dict[str, Any]) -> Markup:
    """How often the model is right against how sure it is, with its temperature and without; where there are more
    images the dots are larger."""
    with style():
        figure, axes = _square("how sure it is", "how often it is right")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
        both = [(calibration["after"], TRAIN, "with its temperature")]
        if calibration["before"] != calibration["after"]:
            both.insert(0, (calibration["before"], SERIES[1], "without"))
        for points, color, label in both:
            sure, right, images = (np.array([p[k] for p in points]) for k in ("confidence", "accuracy", "images"))
            axes.plot(sure, right, color=color, linewidth=1.6, label=label if len(both) > 1 else None)
            axes.scatter(sure, right, s=6 + 90 * images / images.sum(), color=color, linewidths=0)
        if len(both) > 1:
            axes.legend(loc="upper left", frameon=False, labelcolor=INK, handlelength=1.2, borderaxespad=0.2)
        return svg(figure)


def curve_charts(curves: dict[str, Any]) -> list[tuple[str, Markup]]:
    """(title, SVG) of the precision-recall and ROC curves: the mean of all classes, and the hardest ones' own."""
    panels = [
        ("Precision and recall", "recall", "recall", "precision"),
        ("ROC", "false_positive_rate", "share of others taken for it", "true_positive_rate"),
    ]
    drawn = []
    for title, across, words, up in panels:
        with style():
            figure, axes = _square(words, "share of it found" if title == "ROC" else up)
            if title == "ROC":
                axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=0)
            for one, color in zip(curves["classes"], SERIES, strict=False):
                axes.plot(curves[across], one[up], color=color, linewidth=1.1)
            axes.plot(curves[across], curves["macro"][up], color=TRAIN, linewidth=2.2)
            drawn.append((title, svg(figure)))
    return drawn
