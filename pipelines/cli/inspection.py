"""`imagemill inspect`: print the facts and the contents of a dataset, as text or as one JSON object."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from ...components.dataset.kinds import EvaluationExtra, FeaturesExtra, FileList, ModelExtra, RawExtra, TensorsExtra
from ...components.dataset.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    count_values,
    find_dataset,
    normalize_dataset_uri,
)
from ...components.dataset.workspace import MARKER
from ...components.report.terminal import (
    draw_bar,
    escape_unprintable,
    format_heading,
    format_sections,
    format_table,
    shorten,
    wrap_text,
)
from ...components.report.words import format_number, format_percent, join_names, pluralize
from ...components.step.progress import format_duration, format_size
from ...components.storage import uri as uris
from ...components.storage.errors import wrong
from ...components.storage.store import get_store

MAX_ROWS, MAX_SKIPPED = 30, 8
"""The number of labels or classes, and of skipped files, that are listed; the others are counted."""


def inspect(uri: str, as_json: bool) -> None:
    """Print the facts and the contents of the dataset at `uri`; UserError when there is none."""
    dataset = open_dataset(uri)
    identity = {"kind": dataset.manifest.kind, "uri": dataset.uri, "manifest_sha256": dataset.manifest_sha256}
    facts, text = _inspect_clean(dataset) if dataset.manifest.kind == "clean" else _inspect_manifest(dataset)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal's encoding lacks is replaced
        sys.stdout.reconfigure(errors="replace")
    print(json.dumps(identity | facts) if as_json else "\n".join([*_format_title(dataset), *text]))


def open_dataset(uri: str) -> Dataset:
    """Open the dataset whose folder, or whose manifest, `uri` is; UserError when there is none."""
    if not uri.strip():
        raise wrong("dataset", f"the URI or path of a dataset (a folder with {MANIFEST})", uri)
    place = normalize_dataset_uri(uri, "dataset")
    dataset = find_dataset(place)
    if dataset is None:
        raise wrong("dataset", f"a folder with {MANIFEST}{_suggest_datasets(place)}", uri)
    return dataset


def _suggest_datasets(place: str) -> str:
    """Return a hint that names clean datasets if `place` is a workspace, else an empty text."""
    if get_store(place).stat(uris.join(place, MARKER)) is None:
        return ""
    names = uris.join(place, "names")
    latest = [entry.uri for entry in get_store(names).list(names) if entry.uri.endswith("/latest/clean.json")]
    datasets = []
    for file in latest[:3]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            datasets.append(uris.join(place, json.loads(get_store(file).read(file))["uri"]))
    if not datasets:
        return " (this is a workspace, with none in it)"
    return f" (this is a workspace; in it: {', '.join(datasets)})"


def _format_title(dataset: Dataset) -> list[str]:
    """Return the lines that every dataset has: name, kind, URI, counts, time and version."""
    manifest = dataset.manifest
    name = shorten(manifest.extra.dataset_name, 40)
    counts = [pluralize(manifest.totals.rows, "row")] if manifest.totals.rows else []
    counts += [pluralize(len(manifest.classes), "class", "classes"), pluralize(len(manifest.files), "file")]
    return [
        f"{name or 'dataset'} · {manifest.kind} · {escape_unprintable(manifest.fingerprint)}",
        escape_unprintable(dataset.uri),
        f"{', '.join(counts)} of {format_size(sum(file.bytes for file in manifest.files))};"
        f" made {escape_unprintable(manifest.created) or 'at an unknown time'}"
        f" by imagemill {escape_unprintable(manifest.code_version)}",
        "",
    ]


def _inspect_clean(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    from ...components.clean.audit import gather
    from ...components.report.audit import describe

    audit = gather(dataset)
    pages = [dataset.locate(file) for file in dataset.files("report")]
    lines = format_sections(describe(audit))
    lines += [f"\nThe same with pictures: {escape_unprintable(page)}" for page in pages]
    return dataclasses.asdict(audit) | {"pages": pages}, lines


def _inspect_manifest(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Return (facts, lines) of a manifest; its list of files is summed up by role and split."""
    manifest = dataset.manifest
    facts = {"image": {}} | manifest.to_dict() | manifest.extra.to_dict()
    for name in ("format", "version", "kind", "files", "extra"):
        facts.pop(name, None)
    facts["files"] = _sum_files(dataset)
    formats: dict[str, Callable[[Manifest], list[str]]] = {
        "raw": _format_raw, "tensors": _format_tensors, "features": _format_features, "model": _format_model,
        "evaluation": _format_evaluation,
    }  # fmt: skip
    return facts, formats[manifest.kind](manifest)


def _sum_files(dataset: Dataset) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for file in dataset.manifest.files:
        empty = {"role": file.role, "split": file.split, "files": 0, "rows": 0, "bytes": 0}
        entry = sums.setdefault((file.role, file.split), empty)
        entry["files"] += 1
        entry["rows"] += file.rows - len(dataset.removed_ids(file))
        entry["bytes"] += file.bytes
    return list(sums.values())


def _format_raw(manifest: Manifest) -> list[str]:
    totals, extra = manifest.totals, RawExtra.of(manifest)
    labels = {name: count for name, count in totals.by_class.items() if name}
    lines = [
        *format_table([["source", extra.source or "not recorded"]], "ll"),
        *format_table([["images", f"{totals.rows:,}, {format_size(totals.bytes)}"]], "ll"),
        *wrap_text("splits as declared: " + (_format_counts(totals.by_split) or "none")),
        *wrap_text(f"without a label: {totals.by_class.get('', 0):,}"),
    ]
    lines += ["", format_heading("Labels"), *_format_bars(labels)]
    lines += [
        "",
        format_heading("Skipped"),
        *_format_examples(extra.skipped, ("path", "why"), "files that are no images"),
    ]
    if extra.missing_masks:
        lines += _format_examples(extra.missing_masks, ("mask", "why"), "masks that are not there")
    if extra.planted:
        lines += [
            "",
            format_heading("Planted faults"),
            *_format_bars(count_values(str(fault.get("kind", "")) for fault in extra.planted)),
        ]
    return lines


def _format_tensors(manifest: Manifest) -> list[str]:
    totals = manifest.totals
    image = _list_image(manifest)
    lines = [
        format_heading("Tensors"),
        *_format_values(image | {"task": manifest.task, "pixels": format_size(totals.bytes)}),
    ]
    lines += ["", format_heading("Rows by split"), *_format_bars(totals.by_split)]
    generations: dict[str, int] = {}
    for file in manifest.files:
        number = TensorsExtra.of(manifest).generation(file.uri)
        name = f"added {number}" if number else "built"
        generations[name] = generations.get(name, 0) + file.rows
    if len(generations) > 1:
        lines += ["", format_heading("Rows by generation"), *_format_bars(generations)]
    return [*lines, "", format_heading("Rows by class"), *_format_bars(totals.by_class)]


def _list_image(manifest: Manifest) -> dict[str, Any]:
    """Return the values of the manifest's `image` that say something."""
    values = manifest.image.to_dict() if manifest.image else {}
    return {name: value for name, value in values.items() if value not in ("", [], None)}


def _format_features(manifest: Manifest) -> list[str]:
    totals, numbers = manifest.totals, {"dimensions": FeaturesExtra.of(manifest).dimensions}
    values = manifest.config | numbers | {"size": format_size(totals.bytes)}
    heading = format_heading("Features of a frozen network")
    return [heading, *_format_values(values), "", format_heading("Rows by split"), *_format_bars(totals.by_split)]


_EPOCH_COLUMNS = {
    "epoch": "epoch", "train_loss": "loss", "val_loss": "val loss", "val_top1": "val top1", "val_macro_f1": "macro F1",
    "learning_rate": "rate", "images_per_second": "images/s", "waiting": "waiting", "seconds": "seconds",
}  # fmt: skip
"""The values of an epoch that are printed, and their titles; the others are in the manifest."""


def _format_model(manifest: Manifest) -> list[str]:
    extra = ModelExtra.of(manifest)
    facts, history = extra.to_dict(), extra.history
    for name in ("metrics", "history", "recipe"):
        del facts[name]
    if extra.seconds is not None:
        facts["seconds"] = format_duration(extra.seconds)
    lines = [format_heading("Model"), *_format_values({name: value for name, value in facts.items() if value != ""})]
    lines += ["", format_heading("Recipe"), *(part for line in extra.recipe for part in wrap_text(line))]
    lines += [
        "",
        format_heading("Validation"),
        *(_format_values(extra.metrics) or ["  none: there were no validation images"]),
    ]
    lines += ["", format_heading("Input"), *_format_values(_list_image(manifest))]
    if history:
        names = [name for name in _EPOCH_COLUMNS if name in history[-1]] or list(history[-1])
        titles = [_EPOCH_COLUMNS.get(name, name) for name in names]
        rows = [titles, *([_format_value(epoch.get(name, "")) for name in names] for epoch in history[-MAX_ROWS:])]
        lines += ["", format_heading("Epochs"), *format_table(rows, "r" * len(names))]
    return [*lines, "", format_heading("Classes"), *wrap_text(join_names(manifest.classes, MAX_ROWS))]


def _format_evaluation(manifest: Manifest) -> list[str]:
    extra = EvaluationExtra.of(manifest)
    lines = [format_heading("Metrics"), *_format_values(extra.metrics)]
    tested = sorted(
        (scores for scores in extra.per_class if scores.support), key=lambda scores: (scores.f1, scores.name)
    )
    rows = [["class", "images", "precision", "recall", "F1", ""]]
    for scores in tested[:MAX_ROWS]:
        numbers = [f"{value:.3f}" for value in (scores.precision, scores.recall, scores.f1)]
        rows.append([scores.name, f"{scores.support:,}", *numbers, draw_bar(scores.f1, 24)])
    lines += [
        "",
        format_heading("Classes, the hardest first"),
        *format_table(rows, "lrrrrl"),
        *_format_rest(len(tested)),
    ]
    if untested := [scores.name for scores in extra.per_class if not scores.support]:
        lines += wrap_text(f"without a test image: {join_names(untested, MAX_ROWS)}")
    return lines


def _format_bars(counts: dict[str, int]) -> list[str]:
    """Return a table of counts with bars, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    largest, total = max([*counts.values(), 1]), sum(counts.values())
    rows = [
        [name, f"{value:,}", format_percent(value, total), draw_bar(value / largest, 30)]
        for name, value in ordered[:MAX_ROWS]
    ]
    if len(ordered) > MAX_ROWS:
        name, smallest = ordered[-1]
        rest = [*_format_rest(len(ordered)), *wrap_text(f"the smallest: {shorten(name, 40)} {smallest:,}")]
        return [*format_table(rows, "lrrl"), *rest]
    return format_table(rows, "lrrl") or ["  none"]


def _format_rest(total: int) -> list[str]:
    return [f"  and {total - MAX_ROWS:,} more"] if total > MAX_ROWS else []


def _format_examples(group: FileList, keys: tuple[str, str], title: str) -> list[str]:
    """Return the count of a group of files, and a table of its examples."""
    total = group.count
    rows = [[file.get(key, "") for key in keys] for file in group.files[:MAX_SKIPPED]]
    lines = [f"  {title}: {total:,}", *format_table(rows, "ll", 4)]
    return [*lines, f"    and {total - len(rows):,} more"] if total > len(rows) else lines


def _format_values(values: dict[str, Any]) -> list[str]:
    return format_table([[name.replace("_", " "), _format_value(value)] for name, value in values.items()], "ll")


def _format_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return str(value)
    if isinstance(value, dict):
        return _format_counts(value)
    if isinstance(value, list):
        return join_names([_format_value(element) for element in value], 12)
    return format_number(value)


def _format_counts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_format_value(value)}" for name, value in values.items())
