"""Write the run's report: gather facts from the manifests and step records, and render them as one HTML page.

The page refers to nothing outside itself and runs no script. Image ids, labels and details come from the source,
so the template escapes everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..dataset.kinds import CleanExtra, EvaluationExtra, ModelExtra, RawExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset, read_dataset
from ..dataset.workspace import STEPS, Workspace
from ..step.progress import format_duration, format_size
from .charts import draw_training_curves
from .gate import (
    ALREADY_CHAMPION,
    BETTER,
    FIRST,
    NO_BETTER_THAN_CHANCE,
    NOT_BETTER,
    NOT_COMPARABLE,
    NOT_WORSE,
    REFUSED,
    ROLLED_BACK,
    WORSE,
)
from .mistakes import describe_suspects, describe_test_split, make_highest_losses
from .near_pairs import describe_near_pairs
from .score_sections import Ends, compare_with_champion, describe_drift, describe_recipe, describe_scores
from .thumbnails import read_rejects, sample_classes

SPLITS = ("train", "val", "test")
PRODUCTS = dict(zip(STEPS, ("raw", "clean", "tensors", "model", "evaluation", "verdict"), strict=True))
MAX_SKIPPED = 20
_MISSING = "\N{EN DASH}"

_HEADLINES = {
    BETTER: ("good", "Promoted"),
    NOT_WORSE: ("good", "Promoted"),
    FIRST: ("good", "First champion"),
    NOT_BETTER: ("warn", "Champion kept"),
    WORSE: ("warn", "Champion kept"),
    REFUSED: ("warn", "Champion kept"),
    NOT_COMPARABLE: ("warn", "Not comparable"),
    NO_BETTER_THAN_CHANCE: ("warn", "No champion"),
    ALREADY_CHAMPION: ("neutral", "Already the champion"),
    ROLLED_BACK: ("neutral", "Not promoted"),
}


@dataclass(frozen=True)
class Lineage:
    """An evaluation's datasets, back to raw."""

    raw: Dataset
    clean: Dataset
    tensors: Dataset
    model: Dataset
    evaluation: Dataset

    @classmethod
    def read(cls, evaluation: Dataset) -> Lineage:
        """Follow the parents; UserError where one no longer exists."""
        model = read_dataset(evaluation.parent_uri("model"), "model")
        clean = read_dataset(evaluation.parent_uri("clean"), "clean")
        tensors = read_dataset(model.parent_uri("tensors"), "tensors")
        return cls(read_dataset(clean.parent_uri("raw"), "raw"), clean, tensors, model, evaluation)


def write_report(
    workspace: Workspace, run: str, evaluation: Dataset, verdict: dict[str, Any], champion: Dataset | None
) -> str:
    """Write runs/<run>/report.html and return its URI."""
    uri: str = workspace.report_uri(run)
    facts = gather_facts(workspace, run, evaluation, verdict, champion)
    workspace.store.put(uri, render_page(facts).encode("utf-8", "replace"))
    return uri


def gather_facts(
    workspace: Workspace, run: str, evaluation: Dataset, verdict: dict[str, Any], champion: Dataset | None
) -> dict[str, Any]:
    """Return the template's variables, section by section."""
    lineage = Lineage.read(evaluation)
    clean, extra = lineage.clean, EvaluationExtra.of(evaluation.manifest)
    model = ModelExtra.of(lineage.model.manifest)
    datasets = [lineage.raw, clean, lineage.tensors, lineage.model, evaluation]
    if champion is not None and champion.uri == evaluation.uri:
        champion = None
    gallery, rejects = sample_classes(clean), read_rejects(lineage.raw, clean)
    test_split = describe_test_split(evaluation, clean)
    name = verdict.get("name") or clean.name
    return {
        "name": name,
        "run": run,
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "gate": describe_verdict(verdict, extra.chance.why if extra.chance else ""),
        "metrics": extra.metrics,
        "multi": evaluation.manifest.task == MULTI,
        "untested": [c.name for c in extra.per_class if not c.support],
        "per_class": len(extra.per_class),
        "model": model.to_dict(),
        "totals": clean.manifest.totals,
        "classes": clean.manifest.classes,
        "steps": {step: workspace.step_record(run, step) for step in STEPS},
        "products": PRODUCTS,
        "ledger": count_source_files(lineage),
        "balance": count_class_images(clean),
        "drift": describe_drift(workspace, run, name),
        "gallery": gallery,
        "gallery_shown": sum(len(group.thumbnails) for group in gallery),
        "rejects": rejects,
        "rejects_shown": sum(len(rows) for _, _, rows in rejects),
        "recipe": describe_recipe(model, lineage.model.manifest.config),
        "curves": draw_training_curves(model.history, -1 if model.best_epoch is None else model.best_epoch),
        **describe_scores(evaluation),
        **test_split,
        "losses": make_highest_losses(evaluation, clean, {m.image_id for m in test_split["mistakes"]}),
        "near_pairs": describe_near_pairs(lineage.model, lineage.tensors, clean),
        "suspects": describe_suspects(evaluation, clean),
        "comparison": compare_with_champion(evaluation, champion) if champion else None,
        "provenance": list_datasets(workspace, datasets, champion),
        "workspace": workspace.uri,
    }


def describe_verdict(verdict: dict[str, Any], chance: str = "") -> dict[str, Any]:
    """Return the verdict with a CSS class, a headline, and the reason as a sentence and its evidence.

    `chance`: why the model may be no better than a guess, or empty.
    """
    result = str(verdict.get("verdict", ""))
    text = result.replace("_", " ")
    css_class, headline = _HEADLINES.get(result, ("neutral", text.capitalize() or "No verdict"))
    if verdict.get("promoted") and css_class != "good":
        css_class, headline = "good", "Promoted"
    elif css_class == "good" and not verdict.get("promoted"):
        css_class, headline = "neutral", "Not promoted"
    sentence, _, evidence = str(verdict.get("reason", "")).partition("; ")
    if chance:
        css_class = "warn"
        if chance not in f"{sentence}; {evidence}":
            evidence = f"{evidence}; {chance}" if evidence else chance
    challenger = verdict.get("challenger")
    champion = None if result == ALREADY_CHAMPION else verdict.get("champion")  # it would be compared with itself
    gain = None if challenger is None or champion is None else challenger - champion
    sentence, evidence = (f"{text[:1].upper()}{text[1:]}" for text in (sentence, evidence))
    return {"metric": ""} | verdict | {
        "sentence": f"{sentence}." if sentence else "", "evidence": evidence,
        "css_class": css_class, "headline": headline, "gain": gain, "challenger": challenger, "champion": champion,
    }  # fmt: skip


def count_source_files(lineage: Lineage) -> dict[str, Any]:
    """Return the number of the source's files by outcome. `adds_up`: raw rows = kept + rejected, in all and by
    reason."""
    raw, totals = lineage.raw.manifest, lineage.clean.manifest.totals
    skipped = RawExtra.of(raw).skipped
    reasons = sorted(totals.by_reason.items(), key=lambda item: (-item[1], item[0]))
    return {
        "found": raw.totals.rows + skipped.count,
        "skipped": skipped.count,
        "skipped_files": skipped.files[:MAX_SKIPPED],
        "rows": raw.totals.rows,
        "bytes": raw.totals.bytes,
        "reasons": reasons,
        "rejected": totals.rejected,
        "kept": totals.rows,
        "by_split": totals.by_split,
        "warnings": CleanExtra.of(lineage.clean.manifest).decoder_warnings,
        "adds_up": raw.totals.rows == totals.rows + totals.rejected
        and totals.rejected == sum(totals.by_reason.values())
        and totals.rows == sum(totals.by_split.values()),
    }


class ClassImages(NamedTuple):
    """The images of a class, in all and by split: (split, images, width in percent of the largest class's bar)."""

    label: str
    total: int
    parts: list[tuple[str, int, float]]


def count_class_images(clean: Dataset) -> Ends[ClassImages]:
    """Return the images of each class by split, the largest class first."""
    by_split = CleanExtra.of(clean.manifest).by_class_and_split
    counts = {c: [by_split.get(split, {}).get(c, 0) for split in SPLITS] for c in clean.manifest.classes}
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    largest = max([sum(n) for _, n in ordered] or [0]) or 1
    return Ends.take([
        ClassImages(name, sum(n), list(zip(SPLITS, n, (100 * x / largest for x in n), strict=True)))
        for name, n in ordered
    ])  # fmt: skip


def list_datasets(
    workspace: Workspace, datasets: Sequence[Dataset], champion: Dataset | None
) -> list[tuple[str, str, Dataset]]:
    """Return (title, URI in the workspace, dataset) of the datasets that the report is about."""
    titles = {d.uri: d.manifest.kind for d in datasets}
    if champion:
        titles[champion.uri] = "evaluation of the champion"
    listed = (*datasets, *([champion] if champion else []))
    return [(titles[d.uri], workspace.relative(d.uri), d) for d in listed]


def render_page(facts: dict[str, Any]) -> str:
    """Return the page, in which everything is escaped but the charts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "num": _format_number, "pct": _format_percent, "score": _format_score, "gain": _format_gain,
        "took": _format_seconds, "size": format_size, "file": _format_file_name,
    }  # fmt: skip
    return str(page.get_template("report.html.j2").render(facts))


def _format_file_name(image_id: str, limit: int = 25) -> str:
    """Return the file's name for two lines below a thumbnail; the beginning and the end of a long one."""
    name = image_id.rstrip("/").rpartition("/")[2]
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2) :]}"


def _format_number(value: float) -> str:
    return f"{value:,}"


def _format_percent(share: float | None) -> str:
    return _MISSING if share is None else f"{100 * share:.1f}%"


def _format_score(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.3f}"


def _format_gain(value: float | None) -> str:
    return _MISSING if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return _MISSING
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)
