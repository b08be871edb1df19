"""The page of a run, `report.html`: what was kept and what was not, the training, the scores, the mistakes, and the
verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..dataset.kinds import CleanExtra, EvaluationExtra, ModelExtra, RawExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset, read_dataset
from ..dataset.records import (
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
    Verdict,
)
from ..dataset.workspace import STEPS, Workspace
from ..step.config import METRIC_TITLES
from ..step.progress import format_size
from .audit import describe_balance, make_reason_table
from .audit_facts import Balance
from .charts import draw_training_curves
from .drift import describe_drift
from .mistakes import NearPairs, describe_mistakes, describe_near_pairs, describe_suspects, describe_test_split
from .page import Banner, Block, Charts, Figure, Figures, Page, Paragraph, Section, Table, render
from .pictures import make_thumbnails, read_rejects, sample_classes
from .scores import ChampionComparison, describe_comparison, describe_scores, describe_slices
from .words import (
    capitalize,
    format_gain,
    format_interval,
    format_percent,
    format_score,
    format_seconds,
    pluralize,
    replace_underscores,
)

MAX_SKIPPED = 20
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
    workspace: Workspace,
    run: str,
    name: str,
    lineage: Lineage,
    verdict: Verdict,
    comparison: ChampionComparison | None = None,
    near_pairs: NearPairs | None = None,
) -> str:
    """Write runs/<run>/report.html and return its URI."""
    uri: str = workspace.report_uri(run)
    page = make_page(workspace, run, name, lineage, verdict, comparison, near_pairs)
    workspace.store.put(uri, render(page).encode("utf-8", "replace"))
    return uri


def make_page(
    workspace: Workspace,
    run: str,
    name: str,
    lineage: Lineage,
    verdict: Verdict,
    comparison: ChampionComparison | None,
    near_pairs: NearPairs | None,
) -> Page:
    """Return the page. `comparison`: with the champion, where there was another one."""
    clean, evaluation, extra = lineage.clean, lineage.evaluation, EvaluationExtra.of(lineage.evaluation.manifest)
    is_multi = evaluation.manifest.task == MULTI
    by_split = CleanExtra.of(clean.manifest).by_class_and_split
    by_class = clean.manifest.totals.by_class
    classes = {
        label: {split: counts.get(label, 0) for split, counts in by_split.items()}
        for label in sorted(clean.manifest.classes, key=lambda label: (-by_class.get(label, 0), label))
    }
    sections = [
        Section("steps", "Steps", _describe_steps(workspace, run)),
        Section("ledger", "Ledger", _describe_ledger(lineage)),
        Section("classes", "Classes", describe_balance(Balance(classes))),
        Section("drift", "Drift", describe_drift(workspace, run, name)),
        Section("images", "What the model learned from", _describe_gallery(clean)),
        Section("rejects", "Rejected", _describe_rejects(lineage)),
        Section("training", "Training", _describe_training(lineage.model)),
        Section("scores", "Scores", describe_scores(extra)),
        Section("confusion", "Labels" if is_multi else "Confusion", describe_test_split(evaluation)),
        Section("slices", "Slices", describe_slices(extra)),
        Section("mistakes", "Worst mistakes" if is_multi else "Surest mistakes", describe_mistakes(evaluation, clean)),
        Section("near-pairs", "Test images that training has nearly seen", describe_near_pairs(near_pairs, clean)),
        Section("suspects", "Labels to look at", describe_suspects(evaluation, clean)),
        Section("champion", "Against the champion", describe_comparison(comparison) if comparison else []),
        Section("provenance", "Provenance", _describe_provenance(workspace, lineage)),
    ]
    banners = [make_verdict_banner(verdict, extra.chance.why if extra.chance else "")]
    if extra.baseline and extra.baseline.why:
        banners.insert(0, Banner("warn", "Below the baseline", f"{capitalize(extra.baseline.why)}."))
    date = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return Page(name, f"Run {run} · {date}", sections, banners, _make_tiles(lineage, extra))


def make_verdict_banner(verdict: Verdict, chance: str = "") -> Banner:
    """Return the verdict with its headline, the reason as a sentence, the evidence, and the scores.

    `chance`: why the model may be no better than a guess, or empty.
    """
    text = replace_underscores(verdict.verdict)
    tone, headline = _HEADLINES.get(verdict.verdict, ("neutral", text.capitalize() or "No verdict"))
    if verdict.promoted and tone != "good":
        tone, headline = "good", "Promoted"
    elif tone == "good" and not verdict.promoted:
        tone, headline = "neutral", "Not promoted"
    sentence, _, evidence = verdict.reason.partition("; ")
    if chance:
        tone = "warn"
        if chance not in verdict.reason:
            evidence = f"{evidence}; {chance}" if evidence else chance
    scores = [(format_score(verdict.challenger), f"{METRIC_TITLES.get(verdict.metric, verdict.metric)}, this model")]
    if verdict.challenger is not None and verdict.champion is not None and verdict.verdict != ALREADY_CHAMPION:
        gain = format_gain(verdict.challenger - verdict.champion)
        scores += [(format_score(verdict.champion), "the champion"), (gain, "difference")]
    note = f"{capitalize(evidence)} ({text})" if evidence else capitalize(text)
    return Banner(tone, headline, f"{capitalize(sentence)}." if sentence else "", note, scores)


def _make_tiles(lineage: Lineage, extra: EvaluationExtra) -> list[tuple[str, str, str]]:
    totals, raw, model = lineage.clean.manifest.totals, lineage.raw.manifest, ModelExtra.of(lineage.model.manifest)
    metrics, tested = extra.metrics, lineage.evaluation.manifest.totals.rows
    score = "subset_accuracy" if "subset_accuracy" in metrics else "top1"
    untested = sum(not scores.support for scores in extra.per_class)
    macro = (
        f"Macro-F1 of {len(extra.per_class) - untested:,} of {len(extra.per_class):,} classes"
        if untested
        else "Macro-F1"
    )
    baseline = f"baseline {extra.baseline.scores['macro_f1']:.3f}" if extra.baseline else ""
    notes = filter(None, (format_interval(extra.intervals.get("macro_f1", ())), baseline))
    return [
        ("Top-1 accuracy" if score == "top1" else "Every label right", format_percent(metrics[score]),
         f"{round(metrics[score] * tested):,} of {pluralize(tested, 'test image')}"),
        (macro, format_score(metrics["macro_f1"]), " · ".join(notes)),
        ("Images kept", f"{totals.rows:,}", f"of {raw.totals.rows:,} raw"),
        ("Rejected", f"{totals.rejected:,}", pluralize(len(totals.by_reason), "reason")),
        ("Classes", f"{len(lineage.clean.manifest.classes):,}", ""),
        ("Training", format_seconds(model.seconds), f"{pluralize(model.epochs or 0, 'epoch')} · {model.backbone}"),
    ]  # fmt: skip


def _describe_steps(workspace: Workspace, run: str) -> list[Block]:
    rows = []
    for step in STEPS:
        record = workspace.step_record(run, step)
        state = "this page" if step == "promote" else "not recorded"
        if record:
            state = "failed" if record.exit_code else record.state
        rows.append((step, state, format_seconds(record.seconds if record else None)))
    return [Table(rows, ("step", "state", "time"), "llr")]


def _describe_ledger(lineage: Lineage) -> list[Block]:
    """Account for every file of the source."""
    raw, totals = lineage.raw.manifest, lineage.clean.manifest.totals
    skipped, warnings = RawExtra.of(raw).skipped, CleanExtra.of(lineage.clean.manifest).decoder_warnings
    adds_up = (
        raw.totals.rows == totals.rows + totals.rejected
        and totals.rejected == sum(totals.by_reason.values())
        and totals.rows == sum(totals.by_split.values())
    )
    sum_ = f"{raw.totals.rows:,} raw rows, {totals.rows:,} kept and {totals.rejected:,} rejected"
    splits = " · ".join(f"{split} {number:,}" for split, number in totals.by_split.items())
    text = f"Files in the source {raw.totals.rows + skipped.count:,}; skipped, no images {skipped.count:,}. "
    text += f"Kept: {splits}."
    if warnings:
        text += f" {pluralize(warnings, 'image was', 'images were')} kept though a decoder warned."
    blocks: list[Block] = [
        Paragraph(f"✓ The numbers add up: {sum_}.") if adds_up else Paragraph(f"They do not add up: {sum_}.", "bad"),
        Paragraph(text, "note"),
    ]
    if totals.by_reason:
        blocks.append(make_reason_table(totals.by_reason, raw.totals.rows))
    if skipped.count:
        files = [(file["path"], file["why"]) for file in skipped.files[:MAX_SKIPPED]]
        blocks.append(Table(files, title=f"Skipped files: {len(files)} of {skipped.count:,}", is_folded=True))
    return blocks


def _describe_gallery(clean: Dataset) -> list[Block]:
    sample = sample_classes(clean)
    thumbnails = make_thumbnails(clean, [image_id for ids in sample.values() for image_id in ids], "train")
    figures = [Figure((thumbnails[image_id],), label) for label, ids in sample.items() for image_id in ids]
    note = f"{pluralize(len(figures), 'training image')} of {clean.manifest.totals.by_split.get('train', 0):,}, from "
    note += f"{len(sample)} of {pluralize(len(clean.manifest.classes), 'class', 'classes')}; a sample drawn by chance."
    return [Figures(figures, note=note)]


def _describe_rejects(lineage: Lineage) -> list[Block]:
    totals, rejects = lineage.clean.manifest.totals, read_rejects(lineage.clean)
    thumbnails = make_thumbnails(lineage.raw, [image_id for shown in rejects.values() for image_id, _ in shown])
    blocks: list[Block] = [
        Figures(
            [Figure((thumbnails[image_id],), "", (image_id, detail)) for image_id, detail in shown],
            f"{replace_underscores(reason)}: {len(shown)} of {totals.by_reason[reason]:,}",
        )
        for reason, shown in rejects.items()
    ]
    return blocks or [Paragraph("None: every raw image was kept.", "note")]


def _describe_training(model: Dataset) -> list[Block]:
    extra, config = ModelExtra.of(model.manifest), model.manifest.config
    lines = [*([f"trained {extra.origin}"] if extra.origin else []), *extra.recipe]
    if not extra.recipe and config.get("recipe", "auto") not in ("", "auto"):
        lines = [f"recipe {config['recipe']}"]
    blocks: list[Block] = [Paragraph(line) for line in lines]
    if not extra.history:
        return [*blocks, Paragraph("The model has no training history.", "note")]
    epoch = "the best epoch" if extra.metrics else "the epoch that was kept, since there are no validation images"
    text = f"The dashed line marks {epoch}: {extra.best_epoch}."
    if "macro_f1" in extra.metrics:
        text += f" Macro-F1 on the validation images there: {extra.metrics['macro_f1']:.3f}."
    return [*blocks, Paragraph(text, "note"), Charts(draw_training_curves(extra.history, extra.best_epoch))]


def _describe_provenance(workspace: Workspace, lineage: Lineage) -> list[Block]:
    datasets: Sequence[Dataset] = list(vars(lineage).values())
    rows = []
    for dataset in datasets:
        manifest = dataset.manifest
        files = f"{pluralize(len(manifest.files) + len(manifest.parts), 'file')}, {format_size(dataset.count_bytes())}"
        origin = f"{manifest.created} by imagemill {manifest.code_version}"
        rows.append((workspace.relative(dataset.uri), f"{dataset.manifest_sha256[:16]}…", files, origin))
    text = f"Workspace {workspace.uri}; source {RawExtra.of(lineage.raw.manifest).source}. A dataset is named by what "
    text += "went into it: equal fingerprints mean equal content."
    return [
        Paragraph(text, "note"),
        Table(rows, ("dataset", "sha256 of its manifest", "holds", "made")),
        *(
            Table(
                [(name, str(value)) for name, value in sorted(dataset.manifest.config.items())],
                title=f"Configuration of {dataset.manifest.kind}", is_folded=True,
            )
            for dataset in datasets
            if dataset.manifest.config
        ),
    ]  # fmt: skip
