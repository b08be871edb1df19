"""Reports of experiments: rows of text, for the terminal too, charts, and HTML pages that refer to nothing outside
themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.promote.charts import INK, MUTED, TRAIN, VAL, clear_frame, to_svg, use_style
from ...components.step.config import METRIC_TITLES
from ...components.step.progress import format_duration, format_size

if TYPE_CHECKING:
    from markupsafe import Markup

_HEADLINES = {
    "better": ("good", "B is better"), "worse": ("warn", "B is worse"),
    "not_shown_to_differ": ("neutral", "No difference is shown"), "same_models": ("neutral", "A and B are the same"),
}  # fmt: skip
_SEARCH_HEADLINES = {
    "better": ("good", "Better values"), "worse": ("warn", "No better values"),
    "not_shown_to_differ": ("neutral", "No better values are shown"), "base_is_best": ("neutral", "The base is best"),
}  # fmt: skip
Row = tuple[str, str, str, str]
_UNKNOWN = "not measured"


def render_comparison(result: dict[str, Any]) -> str:
    """Return the page of a comparison."""
    css_class, headline = _HEADLINES[result["verdict"]]
    return render_page("comparison.html.j2", {
        "result": result, "css_class": css_class, "headline": headline, "chart": draw_differences(result),
        "scores": list_scores(result), "costs": list_costs(result), "seeds": list_seeds(result),
        "parameters": [list(row.values()) for row in result["parameters"]],
    })  # fmt: skip


def render_study(result: dict[str, Any]) -> str:
    """Return the page of a search."""
    css_class, headline = _SEARCH_HEADLINES[result["verdict"]]
    return render_page("study.html.j2", {
        "result": result, "css_class": css_class, "headline": headline, "chart": draw_search(result),
        "trials": list_trials(result), "failed": [trial for trial in result["trials"] if trial["note"]],
    })  # fmt: skip


def render_page(template: str, facts: dict[str, Any]) -> str:
    """Return a page, in which everything is escaped but the charts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    facts["date"] = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return str(pages.get_template(template).render(facts))


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


def list_scores(result: dict[str, Any]) -> list[Row]:
    """Return (score, A, B, B less A) of every metric: means with standard deviations over seeds, and the interval."""
    rows = []
    for metric, difference in result["differences"].items():
        cells = [_format_mean(side["scores"][metric]) for side in result["configurations"].values()]
        low, high = difference["interval"]
        verdict = difference["verdict"].replace("_", " ")
        gain = f"{difference['gain']:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}"
        rows.append((METRIC_TITLES[metric], *cells, gain))
    return rows  # type: ignore[return-value]


def list_costs(result: dict[str, Any]) -> list[Row]:
    """Return (what, A, B, factor) of seconds a step, stored bytes, and the network's speed."""
    sides = list(result["configurations"].values())
    rows: list[Row] = []
    for step in sides[0]["seconds"]:
        values = [side["seconds"][step] for side in sides]
        cells = [_UNKNOWN if value is None else _format_seconds(value) for value in values]
        is_shared = step in sides[0]["shared"]
        rows.append((f"{step}, each seed" if step in ("train", "evaluate") else step, *cells,
                     "done once for both" if is_shared else _format_factor(values)))  # type: ignore[arg-type]  # fmt: skip
    for kind in sides[0]["bytes"]:
        values = [side["bytes"][kind] for side in sides]
        rows.append((f"{kind}, stored", *(format_size(value) for value in values), _format_factor(values)))  # type: ignore[arg-type]
    rates = [side["images_per_second"] for side in sides]
    rows.append(("network", *(f"{rate:,.0f} images/s" for rate in rates), _format_factor(rates)))  # type: ignore[arg-type]
    return rows


def list_seeds(result: dict[str, Any]) -> list[Row]:
    """Return (seed, A, B, B less A) of the metric that decides."""
    metric = result["metric"]
    sides = [side["scores"][metric]["by_seed"] for side in result["configurations"].values()]
    gains = result["differences"][metric]["by_seed"]
    rows = zip(result["seeds"], *sides, gains, strict=True)
    return [(str(seed), f"{a:.4f}", f"{b:.4f}", f"{gain:+.4f}") for seed, a, b, gain in rows]


def _format_mean(scores: dict[str, Any]) -> str:
    return f"{scores['mean']:.4f}" + (f" ± {scores['sd']:.4f}" if scores["sd"] is not None else "")


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)


def _format_factor(values: Sequence[float | None]) -> str:
    """Return how many times the first value the second is; empty where one is unknown."""
    first, second = values
    return f"{second / first:.2f} times" if first and second is not None else ""


def list_trials(result: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return (number, state, score, time, values) of a search's trials, the best first."""
    trials = sorted(result["trials"], key=lambda trial: (trial["state"] != "complete", -(trial["score"] or 0.0)))
    return [
        (
            str(trial["number"]),
            trial["state"],
            "" if trial["score"] is None else f"{trial['score']:.4f}",
            "" if trial["seconds"] is None else _format_seconds(trial["seconds"]),
            ", ".join(f"{name} {value}" for name, value in trial["values"].items()) or "the base",
        )
        for trial in trials
    ]
