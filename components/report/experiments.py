"""Pages of experiments, a comparison of two configurations and a search; their rows serve the terminal too."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..step.config import METRIC_TITLES
from ..step.progress import format_size
from .charts import draw_differences, draw_trials
from .page import Banner, Block, Charts, Page, Paragraph, Section, Table, render
from .words import format_seconds, replace_underscores

_HEADLINES = {
    "better": ("good", "B is better"), "worse": ("warn", "B is worse"),
    "not_shown_to_differ": ("neutral", "No difference is shown"), "same_models": ("neutral", "A and B are the same"),
}  # fmt: skip
_SEARCH_HEADLINES = {
    "better": ("good", "Better values"), "worse": ("warn", "No better values"),
    "not_shown_to_differ": ("neutral", "No better values are shown"), "base_is_best": ("neutral", "The base is best"),
}  # fmt: skip
Row = tuple[str, ...]
_UNKNOWN = "not measured"


def render_comparison(result: dict[str, Any]) -> str:
    """Return the page of a comparison."""
    sides, parameters = result["configurations"], [tuple(row.values()) for row in result["parameters"]]
    if result["folds"]:
        text = f"Each image is tested once{' for each seed' if len(result['seeds']) > 1 else ''}, in {result['folds']} "
        text += "folds. The interval is over images and training sets, which share images (Nadeau and Bengio's "
        text += "correction); it covers the true difference in 95% of comparisons or more."
    else:
        text = "The interval is over test images and seeds: of other images and other trainings of the same kind. It "
        text += "covers the true difference in 95% of comparisons."
    text += f" {result['won']} of {result['images']} test images are won by B (more of its models are right), "
    text += f"{result['lost']} lost."
    if result["left_out"]:
        text += f" {result['left_out']} more are left out: not in both test splits, or seen in training."
    metric = replace_underscores(METRIC_TITLES[result["metric"]])
    changes = [
        (change["image_id"], change["label"], f"{change['A']:.2f}", f"{change['B']:.2f}")
        for change in result["changes"]
    ]
    configurations: list[Block] = [Table([(side, sides[side]["config"]) for side in ("A", "B")], ("", "from"))]
    if parameters:
        configurations.append(Table(parameters, ("step", "parameter", "A", "B")))
    else:
        configurations.append(Paragraph("They differ in no parameter.", "note"))
    return _render(result, _HEADLINES, [
        Section("difference", "Difference", [
            Charts([("", draw_differences(result["differences"]))]), Paragraph(text, "note"),
            Table(list_scores(result), ("", "A", "B", "B less A")),
        ]),
        Section("configurations", "Configurations", configurations),
        Section("cost", "Cost", [Table(list_costs(result), ("", "A", "B", "B compared with A"))]),
        Section("seeds", "Seeds", [
            Paragraph(f"{metric} of each training.", "note"), Table(list_seeds(result), ("seed", "A", "B", "B less A")),
        ]),
        Section("images", "Images", [
            Paragraph("The largest differences: the share of each configuration's models that are right.", "note"),
            Table(changes, ("image", "label", "A", "B")),
        ] if changes else []),
    ])  # fmt: skip


def render_study(result: dict[str, Any]) -> str:
    """Return the page of a search."""
    text = (
        "Scores are of the validation images, each training's best epoch. The best of many trials owes a part of its "
    )
    text += "score to luck: what counts is how it does with new seeds. Test images were not used."
    new_seeds: list[Block] = []
    if confirmation := result["confirmation"]:
        scores = zip(confirmation["seeds"], confirmation["base"], confirmation["best"], strict=True)
        rows = [(str(seed), f"{base:.4f}", f"{best:.4f}") for seed, base, best in scores]
        new_seeds = [Table(rows, ("seed", "base", f"trial {result['best']}"))]
    notes = [(str(trial["number"]), trial["note"]) for trial in result["trials"] if trial["note"]]
    return _render(result, _SEARCH_HEADLINES, [
        Section("trials", "Trials", [
            Charts([("", draw_trials(result["trials"], result["metric"]))]), Paragraph(text, "note"),
            Table(list_trials(result), ("trial", "state", "validation", "time", "values")),
        ]),
        Section("seeds", "New seeds", new_seeds),
        Section("notes", "Notes", [Table(notes, ("trial", "what its losses or its error say"))] if notes else []),
    ])  # fmt: skip


def _render(result: dict[str, Any], headlines: dict[str, tuple[str, str]], sections: Sequence[Section]) -> str:
    tone, headline = headlines[result["verdict"]]
    date = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    banner = Banner(tone, headline, f"{result['reason']}.")
    return render(Page(result["name"], f"Run {result['run']} · {date}", sections, [banner]))


def list_scores(result: dict[str, Any]) -> list[Row]:
    """Return (score, A, B, B less A) of every metric: means with standard deviations over seeds, and the interval."""
    rows: list[Row] = []
    for metric, difference in result["differences"].items():
        cells = [_format_mean(side["scores"][metric]) for side in result["configurations"].values()]
        low, high = difference["interval"]
        verdict = replace_underscores(difference["verdict"])
        gain = f"{difference['gain']:+.4f} ({low:+.4f} to {high:+.4f}): {verdict}"
        rows.append((METRIC_TITLES[metric], *cells, gain))
    return rows


def list_costs(result: dict[str, Any]) -> list[Row]:
    """Return (what, A, B, factor) of seconds a step, stored bytes, and the network's speed."""
    sides = list(result["configurations"].values())
    rows: list[Row] = []
    for step in sides[0]["seconds"]:
        values = [side["seconds"][step] for side in sides]
        cells = [_UNKNOWN if value is None else format_seconds(value) for value in values]
        factor = "done once for both" if step in sides[0]["shared"] else _format_factor(values)
        rows.append((f"{step}, each seed" if step in ("train", "evaluate") else step, *cells, factor))
    for kind in sides[0]["bytes"]:
        values = [side["bytes"][kind] for side in sides]
        rows.append((f"{kind}, stored", *(format_size(value) for value in values), _format_factor(values)))
    rates = [side["images_per_second"] for side in sides]
    return [*rows, ("network", *(f"{rate:,.0f} images/s" for rate in rates), _format_factor(rates))]


def list_seeds(result: dict[str, Any]) -> list[Row]:
    """Return (seed, A, B, B less A) of the metric that decides."""
    metric = result["metric"]
    sides = [side["scores"][metric]["by_seed"] for side in result["configurations"].values()]
    rows = zip(result["seeds"], *sides, result["differences"][metric]["by_seed"], strict=True)
    return [(str(seed), f"{a:.4f}", f"{b:.4f}", f"{gain:+.4f}") for seed, a, b, gain in rows]


def _format_mean(scores: dict[str, Any]) -> str:
    return f"{scores['mean']:.4f}" + (f" ± {scores['sd']:.4f}" if scores["sd"] is not None else "")


def _format_factor(values: Sequence[float | None]) -> str:
    """Return how many times the first value the second is; empty where one is unknown."""
    first, second = values
    return f"{second / first:.2f} times" if first and second is not None else ""


def list_trials(result: dict[str, Any]) -> list[Row]:
    """Return (number, state, score, time, values) of a search's trials, the best first."""
    trials = sorted(result["trials"], key=lambda trial: (trial["state"] != "complete", -(trial["score"] or 0.0)))
    return [
        (
            str(trial["number"]),
            trial["state"],
            "" if trial["score"] is None else f"{trial['score']:.4f}",
            "" if trial["seconds"] is None else format_seconds(trial["seconds"]),
            ", ".join(f"{name} {value}" for name, value in trial["values"].items()) or "the base",
        )
        for trial in trials
    ]
