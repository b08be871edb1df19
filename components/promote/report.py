"""The run's one report: every fact gathered from the manifests and step records, then rendered as one HTML page.

The page refers to nothing outside itself and runs no script. Image ids, labels and details come from the source,
so the template escapes everything.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..store.config import STEPS
from ..store.labels import MULTI
from ..store.manifest import Dataset, read_dataset
from ..store.progress import format_duration, format_size
from ..store.shards import read_columns
from ..store.workspace import Workspace
from . import charts, multi_label, pictures, quality, suspects
from .charts import Confusion
from .gate import (
    ALREADY_CHAMPION,
    BETTER,
    FIRST,
    NO_BETTER_THAN_CHANCE,
    NOT_COMPARABLE,
    NOT_SHOWN_BETTER,
    ROLLED_BACK,
    TOO_FEW_IMAGES,
    WORSE,
)
from .pictures import Mistake, Picture
from .quality import BAR_ENDS, ends
from .rivals import rivals

SPLITS = ("train", "val", "test")
MADE = dict(zip(STEPS, ("raw", "clean", "tensors", "model", "evaluation", "verdict"), strict=True))
WORST_CLASSES, SKIPPED_SHOWN = 12, 20
_NONE = "\N{EN DASH}"

_HEADLINES = {
    BETTER: ("good", "Promoted", "This model is credibly better, and the new champion."),
    FIRST: ("good", "First champion", "There was none before, so this model is it."),
    NOT_SHOWN_BETTER: ("warn", "Champion kept", "This model is not shown to be better."),
    WORSE: ("warn", "Champion kept", "This model is credibly worse."),
    NOT_COMPARABLE: ("warn", "Not comparable", "It can't be measured against the champion, which stays."),
    TOO_FEW_IMAGES: ("warn", "Champion kept", "There are too few test images to compare on."),
    NO_BETTER_THAN_CHANCE: ("warn", "No champion", "This model is not shown to be better than a guess."),
    ALREADY_CHAMPION: ("calm", "Already the champion", "This very model was promoted before."),
    ROLLED_BACK: ("calm", "Not promoted", "This model was champion, and was taken back."),
}


@dataclass(frozen=True)
class Chain:
    """The datasets a verdict stands on, from the evaluation back to raw."""

    raw: Dataset
    clean: Dataset
    tensors: Dataset
    model: Dataset
    evaluation: Dataset

    @classmethod
    def behind(cls, evaluation: Dataset) -> Chain:
        """Read by way of the parents; UserError when one is gone."""
        model = read_dataset(evaluation.parent_uri("model"), "model")
        clean = read_dataset(evaluation.parent_uri("clean"), "clean")
        tensors = read_dataset(model.parent_uri("tensors"), "tensors")
        return cls(read_dataset(clean.parent_uri("raw"), "raw"), clean, tensors, model, evaluation)

    def datasets(self) -> tuple[Dataset, ...]:
        return (self.raw, self.clean, self.tensors, self.model, self.evaluation)


def write_report(
    workspace: Workspace, run: str, evaluation: Dataset, verdict: dict[str, Any], champion: Dataset | None
) -> str:
    """Render runs/<run>/report.html and return its URI."""
    uri: str = workspace.report(run)
    facts = gather(workspace, run, evaluation, verdict, champion)
    workspace.store.put(uri, render(facts).encode("utf-8", "replace"))
    return uri


def gather(
    workspace: Workspace, run: str, evaluation: Dataset, verdict: dict[str, Any], champion: Dataset | None
) -> dict[str, Any]:
    """What the template shows, section by section."""
    chain = Chain.behind(evaluation)
    model = {"metrics": {}} | chain.model.manifest.extra
    rival = champion if champion is not None and champion.uri != evaluation.uri else None
    return {
        "name": verdict.get("name") or chain.clean.manifest.extra["dataset_name"],
        "run": run,
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "gate": gate(verdict, evaluation.manifest.extra.get("chance", {}).get("why", "")),
        "metrics": evaluation.manifest.extra["metrics"],
        "multi": evaluation.manifest.task == MULTI,
        "untested": [c["class"] for c in evaluation.manifest.extra["per_class"] if not c["support"]],
        "per_class": len(evaluation.manifest.extra["per_class"]),
        "model": model,
        "totals": chain.clean.manifest.totals,
        "classes": chain.clean.manifest.classes,
        "steps": steps(workspace, run),
        "ledger": ledger(chain),
        "balance": balance(chain.clean),
        "gallery": (groups := pictures.class_gallery(chain.clean)),
        "gallery_shown": sum(len(group.pictures) for group in groups),
        "rejects": (rejects := pictures.rejects(chain.raw, chain.clean)),
        "rejects_shown": sum(len(rows) for _, _, rows in rejects),
        "recipe": quality.recipe(model, chain.model.manifest.config),
        "curves": charts.curves(model.get("history") or [], model.get("best_epoch", -1)),
        **quality.quality(evaluation),
        **(found := tested(evaluation, chain.clean)),
        "losses": quality.highest_losses(evaluation, chain.clean, {m.image_id for m in found["mistakes"]}),
        "suspects": suspects.found(evaluation, chain.clean),
        "rivals": rivals(evaluation, rival) if rival else None,
        "provenance": provenance(workspace, [*chain.datasets(), *([rival] if rival else [])]),
        "workspace": workspace.uri,
    }


def tested(evaluation: Dataset, clean: Dataset) -> dict[str, Any]:
    """What came of the test split: images, those that are right, the hardest classes, mistakes; and the confusion
    matrix as (SVG, classes a cell), None where images have several labels."""
    counted = len(evaluation.manifest.classes) <= charts.COUNTED_CLASSES
    if evaluation.manifest.task == MULTI:
        review = multi_label.Review.of(evaluation)
        return {
            "tested": review.rows,
            "right": review.right,
            "confusion": None,
            "counted": counted,
            "worst": multi_label.worst_classes(evaluation, review, WORST_CLASSES),
            "mistakes": multi_label.mistakes(evaluation, clean, review),
        }
    confusion = Confusion.of(evaluation)
    return {
        "tested": int(confusion.counts.sum()),
        "right": confusion.right,
        "confusion": charts.confusion_chart(confusion, evaluation.manifest.classes),
        "counted": counted,
        "worst": worst_classes(evaluation, confusion),
        "mistakes": mistakes(evaluation, clean),
    }


def gate(verdict: dict[str, Any], doubt: str = "") -> dict[str, Any]:
    """The verdict with a tone, a headline and the gain; `doubt` says why the model may be no better than chance."""
    word = str(verdict.get("verdict", ""))
    said = word.replace("_", " ")
    tone, headline, sentence = _HEADLINES.get(word, ("calm", said.capitalize() or "No verdict", ""))
    if verdict.get("promoted") and tone != "good":
        tone, headline, sentence = "good", "Promoted", f"Promoted all the same: {said}."
    elif tone == "good" and not verdict.get("promoted"):
        tone, headline, sentence = "calm", "Not promoted", "Promotion is switched off for this run."
    reason = str(verdict.get("reason", ""))
    if doubt:
        tone, reason = "warn", reason if doubt in reason else f"{reason}; {doubt}"
    challenger = verdict.get("challenger")
    champion = None if word == ALREADY_CHAMPION else verdict.get("champion")  # it would be compared with itself
    gain = None if challenger is None or champion is None else challenger - champion
    return {"metric": "", "min_gain": None} | verdict | {
        "reason": reason, "tone": tone, "headline": headline, "sentence": sentence, "gain": gain,
        "challenger": challenger, "champion": champion,
    }  # fmt: skip


def steps(workspace: Workspace, run: str) -> list[dict[str, Any]]:
    """Each step's state and seconds, with its share of the longest; the report itself is written by promote."""
    records = {step: workspace.step_record(run, step) for step in STEPS}
    longest = max([float(r["seconds"]) for r in records.values() if r] or [0.0]) or 1.0
    shown = []
    for step, record in records.items():
        state = "now" if step == "promote" else "none"
        if record:
            state = "failed" if record["exit_code"] else str(record["state"])
        seconds = float(record["seconds"]) if record else None
        share = 100 * seconds / longest if seconds is not None else 0
        shown.append({"step": step, "made": MADE[step], "state": state, "seconds": seconds, "share": share})
    return shown


def ledger(chain: Chain) -> dict[str, Any]:
    """What became of every file of the source. `adds_up`: raw rows = kept + rejected, in all and by reason."""
    raw, totals = chain.raw.manifest, chain.clean.manifest.totals
    skipped = raw.extra.get("skipped", {"count": 0, "files": []})
    reasons = sorted(totals.by_reason.items(), key=lambda item: (-item[1], item[0]))
    return {
        "found": raw.totals.rows + skipped["count"],
        "skipped": skipped["count"],
        "skipped_files": skipped["files"][:SKIPPED_SHOWN],
        "rows": raw.totals.rows,
        "bytes": raw.totals.bytes,
        "reasons": reasons,
        "rejected": totals.rejected,
        "kept": totals.rows,
        "by_split": totals.by_split,
        "warnings": chain.clean.manifest.extra.get("decoder_warnings", 0),
        "adds_up": raw.totals.rows == totals.rows + totals.rejected
        and totals.rejected == sum(totals.by_reason.values())
        and totals.rows == sum(totals.by_split.values()),
    }


def balance(clean: Dataset) -> dict[str, Any]:
    """Images of each class in each split, the largest class first, with their widths in percent of the largest."""
    by_split = clean.manifest.extra["by_class_and_split"]
    numbers = {c: [by_split.get(split, {}).get(c, 0) for split in SPLITS] for c in clean.manifest.classes}
    ordered = sorted(numbers.items(), key=lambda item: (-sum(item[1]), item[0]))
    largest = max([sum(n) for _, n in ordered] or [0]) or 1
    bars = [
        {"label": name, "total": sum(n), "parts": list(zip(SPLITS, n, (100 * x / largest for x in n), strict=True))}
        for name, n in ordered
    ]
    return {"rows": ends(bars), "classes": len(bars), "omitted": max(0, len(bars) - 2 * BAR_ENDS)}


def worst_classes(evaluation: Dataset, confusion: Confusion) -> dict[str, Any]:
    """The classes with the lowest recall, of the `imperfect` ones, and what they are mistaken for."""
    classes = evaluation.manifest.classes
    ids = {name: number for number, name in enumerate(classes)}
    present = [c for c in evaluation.manifest.extra["per_class"] if c["support"] and c["recall"] < 1]
    present.sort(key=lambda c: (c["recall"], -c["support"], c["class"]))
    rows = [
        {"label": c["class"], **{key: c[key] for key in ("precision", "recall", "f1", "support")}}
        | {"mistaken_for": [(classes[other], n) for other, n in confusion.mistaken_for(ids[c["class"]])]}
        for c in present[:WORST_CLASSES]
    ]
    return {"rows": rows, "imperfect": len(present)}


def mistakes(evaluation: Dataset, clean: Dataset) -> list[Mistake]:
    """The wrong predictions with the highest confidence, with thumbnails from clean's test files."""
    rows = surest_mistakes(evaluation, pictures.MISTAKES_SHOWN)
    files = clean.files("data", "test") or clean.files("data")
    found = pictures.look_up(clean, files, {image_id: "" for _, image_id, _, _ in rows})
    names = evaluation.manifest.classes
    return [
        Mistake(
            image_id, names[truth], names[predicted], f"{_percent(sure)} sure", found.get(image_id) or Picture(image_id)
        )
        for sure, image_id, truth, predicted in rows
    ]


def surest_mistakes(evaluation: Dataset, most: int) -> list[tuple[float, str, int, int]]:
    """(confidence, image_id, label_id, predicted_id) of the surest wrong rows; holds `most` of them at a time."""
    best: list[tuple[float, str, int, int]] = []
    for table in read_columns(evaluation, "data", ["image_id", "label_id", "predicted_id", "confidence"]):
        columns = [table.column(name).to_numpy() for name in ("label_id", "predicted_id", "confidence")]
        truth, predicted, confidence = columns
        wrong = np.flatnonzero(truth != predicted)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")[:most]]
        for row in wrong.tolist():
            image_id = table.column("image_id")[row].as_py()
            best.append((float(confidence[row]), image_id, int(truth[row]), int(predicted[row])))
        best = heapq.nsmallest(most, best, key=lambda found: (-found[0], found[1]))
    return best


def provenance(workspace: Workspace, datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """Where each dataset is, what it is called, and what it was made with."""
    titles = [d.manifest.kind for d in datasets[:5]] + ["evaluation of the champion"] * (len(datasets) - 5)
    return [
        {
            "title": title,
            "uri": workspace.relative(d.uri),
            "fingerprint": d.fingerprint,
            "sha256": d.manifest_sha256,
            "created": d.manifest.created,
            "version": d.manifest.code_version,
            "files": len(d.manifest.files),
            "bytes": sum(f.bytes for f in d.manifest.files),
            "source": d.manifest.extra.get("source", "") if d.manifest.kind == "raw" else "",
            "image": d.manifest.image if d.manifest.kind == "tensors" else {},
            "config": dict(sorted(d.manifest.config.items())),
        }
        for title, d in zip(titles, datasets, strict=True)
    ]


def render(facts: dict[str, Any]) -> str:
    """The page, everything escaped but the charts, which are ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "num": _number,
        "pct": _percent,
        "score": _score,
        "gain": _gain,
        "took": _took,
        "size": format_size,
    }
    page.filters["file"] = _file
    return str(page.get_template("report.html.j2").render(facts))


def _file(image_id: str, most: int = 25) -> str:
    """The file's name, for two lines below a thumbnail: of a long one the beginning and the end, which counts."""
    name = image_id.rstrip("/").rpartition("/")[2]
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2) :]}"


def _number(value: float) -> str:
    return f"{value:,}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.1f}%"


def _score(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _gain(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _took(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)
