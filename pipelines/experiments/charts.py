"""Charts of the experiments' reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...components.promote.charts import INK, MUTED, TRAIN, VAL, clear_frame, to_svg, use_style
from ...components.promote.score_difference import METRIC_TITLES

if TYPE_CHECKING:
    from markupsafe import Markup


def draw_differences(result: dict[str, Any]) -> Markup:
    """Return the differences of a comparison with their intervals, and those of each seed as dots."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    differences = result["differences"]
    with use_style():
        figure = Figure(figsize=(7.6, 0.75 + 0.55 * len(differences)))
        axes = figure.add_subplot()
        clear_frame(axes)
        axes.axvline(0, color=MUTED, linewidth=1.0, zorder=0)
        for row, difference in enumerate(differences.values()):
            color = VAL if difference["verdict"] == "not_shown_to_differ" else TRAIN
            axes.plot(difference["interval"], [row, row], color=color, linewidth=2.2, solid_capstyle="butt")
            axes.plot([difference["gain"]], [row], marker="o", markersize=7, color=color)
            gains = difference["by_seed"]
            axes.scatter(gains, [row + 0.22] * len(gains), s=11, color=MUTED, linewidths=0)
        axes.set_yticks(range(len(differences)), [METRIC_TITLES[metric] for metric in differences], color=INK)
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.set_xlabel("B less A: mean and 95% interval; dots are single seeds", loc="right")
        return to_svg(figure, tight=True)


def draw_search(result: dict[str, Any]) -> Markup:
    """Return the validation score of each trial, and the best one so far, against the base's."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    trials = [trial for trial in result["trials"] if trial["score"] is not None]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    with use_style():
        figure = Figure(figsize=(7.6, 3.0))
        axes = figure.add_subplot()
        clear_frame(axes)
        axes.axhline(complete[0]["score"], color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)), zorder=0)
        pruned = [trial for trial in trials if trial["state"] != "complete"]
        for shown, color, label in ((complete, TRAIN, "complete"), (pruned, MUTED, "pruned")):
            if shown:
                numbers, scores = ([trial[key] for trial in shown] for key in ("number", "score"))
                axes.scatter(numbers, scores, s=22, color=color, label=label, linewidths=0)
        numbers, best = [trial["number"] for trial in complete], list(_running_maximum(complete))
        axes.step([*numbers, result["trials"][-1]["number"]], [*best, best[-1]], where="post", color=VAL, label="best")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("trial; 0 is the base, the dashed line", loc="right")
        axes.set_ylabel(f"validation {METRIC_TITLES[result['metric']]}", loc="top")
        axes.legend(loc="lower right", frameon=False, labelcolor=INK)
        return to_svg(figure, tight=True)


def _running_maximum(trials: list[dict[str, Any]]) -> Iterator[float]:
    best = float("-inf")
    for trial in trials:
        best = max(best, trial["score"])
        yield best
