"""The reports of experiments: one HTML page each, which refers to nothing outside itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import tables
from .charts import draw_differences, draw_search

_HEADLINES = {
    "better": ("good", "B is better"), "worse": ("warn", "B is worse"),
    "not_shown_to_differ": ("calm", "No difference is shown"), "same_models": ("calm", "A and B are the same"),
}  # fmt: skip
_SEARCH_HEADLINES = {
    "better": ("good", "Better values"), "worse": ("warn", "No better values"),
    "not_shown_to_differ": ("calm", "No better values are shown"), "base_is_best": ("calm", "The base is best"),
}  # fmt: skip


def render_comparison(result: dict[str, Any]) -> str:
    """Return the page of a comparison."""
    tone, headline = _HEADLINES[result["verdict"]]
    return render_page("comparison.html.j2", {
        "result": result, "tone": tone, "headline": headline, "chart": draw_differences(result),
        "scores": tables.list_scores(result), "costs": tables.list_costs(result), "seeds": tables.list_seeds(result),
        "parameters": [list(row.values()) for row in result["parameters"]],
    })  # fmt: skip


def render_study(result: dict[str, Any]) -> str:
    """Return the page of a search."""
    tone, headline = _SEARCH_HEADLINES[result["verdict"]]
    return render_page("study.html.j2", {
        "result": result, "tone": tone, "headline": headline, "chart": draw_search(result),
        "trials": tables.list_trials(result), "notes": [trial for trial in result["trials"] if trial["note"]],
    })  # fmt: skip


def render_page(template: str, facts: dict[str, Any]) -> str:
    """Return a page, in which everything is escaped but the charts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    facts["date"] = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return str(pages.get_template(template).render(facts))
