"""The result of a comparison as rows of text, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...components.promote.score_difference import METRIC_TITLES
from ...components.step.progress import format_duration, format_size

Row = tuple[str, str, str, str]
_UNKNOWN = "not measured"


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
