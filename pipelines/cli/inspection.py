"""`imagemill inspect`: print the facts and the contents of a dataset, as text or as one JSON object."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from typing import Any

from ...components.dataset.kinds import EvaluationExtra, FeaturesExtra, FileList, ModelExtra, RawExtra
from ...components.dataset.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    count_values,
    find_dataset,
    normalize_dataset_uri,
)
from ...components.dataset.workspace import MARKER
from ...components.report.page import Bar, Block, Paragraph, Row, Section, Table, take_ends
from ...components.report.terminal import escape_unprintable, format_sections, shorten
from ...components.report.words import (
    format_counts,
    format_number,
    format_percent,
    join_names,
    pluralize,
    replace_underscores,
)
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
    counts += [
        pluralize(len(manifest.classes), "class", "classes"),
        pluralize(len(manifest.files) + len(manifest.parts), "file"),
    ]
    return [
        f"{name or 'dataset'} · {manifest.kind} · {escape_unprintable(manifest.fingerprint)}",
        escape_unprintable(dataset.uri),
        f"{', '.join(counts)} of {format_size(dataset.count_bytes())};"
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
    for name in ("format", "version", "kind", "files", "parts", "extra"):
        facts.pop(name, None)
    facts["files"] = _sum_files(dataset)
    sections = {
        "raw": _describe_raw, "tensors": _describe_tensors, "features": _describe_features, "model": _describe_model,
        "evaluation": _describe_evaluation,
    }  # fmt: skip
    titled = [Section("", title, blocks) for title, blocks in sections[manifest.kind](manifest).items() if blocks]
    return facts, format_sections(titled)


def _sum_files(dataset: Dataset) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    files = [("parts", part) for part in dataset.manifest.parts] + [
        (file.role, file) for file in dataset.manifest.files
    ]
    for role, file in files:
        entry = sums.setdefault(
            (role, file.split), {"role": role, "split": file.split, "files": 0, "rows": 0, "bytes": 0}
        )
        entry["files"] += 1
        entry["rows"] += file.rows
        entry["bytes"] += file.bytes
    return list(sums.values())


def _describe_raw(manifest: Manifest) -> dict[str, list[Block]]:
    totals, extra = manifest.totals, RawExtra.of(manifest)
    facts = {
        "source": extra.source or "not recorded",
        "images": f"{totals.rows:,}, {format_size(totals.bytes)}",
        "splits as declared": format_counts(totals.by_split),
        "without a label": totals.by_class.get("", 0),
    }
    skipped: list[Block] = [_list_files(extra.skipped, ("path", "why"), "files that are no images")]
    if extra.missing_masks:
        skipped.append(_list_files(extra.missing_masks, ("mask", "why"), "masks that are not there"))
    planted = count_values(str(fault.get("kind", "")) for fault in extra.planted or ())
    return {
        "Images": [_list_values(facts)],
        "Labels": [_draw_bars({name: count for name, count in totals.by_class.items() if name})],
        "Skipped": skipped,
        "Planted faults": [_draw_bars(planted)] if planted else [],
    }


def _describe_tensors(manifest: Manifest) -> dict[str, list[Block]]:
    totals = manifest.totals
    values = _list_image(manifest) | {"task": manifest.task, "pixels": format_size(totals.bytes)}
    return {
        "Tensors": [_list_values(values)],
        "Rows by split": [_draw_bars(totals.by_split)],
        "Rows by class": [_draw_bars(totals.by_class)],
    }


def _list_image(manifest: Manifest) -> dict[str, Any]:
    """Return the values of the manifest's `image` that say something."""
    values = manifest.image.to_dict() if manifest.image else {}
    return {name: value for name, value in values.items() if value not in ("", [], None)}


def _describe_features(manifest: Manifest) -> dict[str, list[Block]]:
    totals, numbers = manifest.totals, {"dimensions": FeaturesExtra.of(manifest).dimensions}
    values = manifest.config | numbers | {"size": format_size(totals.bytes)}
    bars = _draw_bars(totals.by_split)
    return {"Features of a frozen network": [_list_values(values)], "Rows by split": [bars]}


_EPOCH_COLUMNS = {
    "epoch": "epoch", "train_loss": "loss", "val_loss": "val loss", "val_top1": "val top1", "val_macro_f1": "macro F1",
    "learning_rate": "rate", "images_per_second": "images/s", "waiting": "waiting", "seconds": "seconds",
}  # fmt: skip
"""The values of an epoch that are printed, and their titles; the others are in the manifest."""


def _describe_model(manifest: Manifest) -> dict[str, list[Block]]:
    extra = ModelExtra.of(manifest)
    facts, history = extra.to_dict(), extra.history
    for name in ("metrics", "history", "recipe"):
        del facts[name]
    if extra.seconds is not None:
        facts["seconds"] = format_duration(extra.seconds)
    names = [name for name in _EPOCH_COLUMNS if name in history[-1]] or list(history[-1]) if history else []
    epochs = [[_format_value(epoch.get(name, "")) for name in names] for epoch in history[-MAX_ROWS:]]
    head = [_EPOCH_COLUMNS.get(name, name) for name in names]
    no_scores = Paragraph("none: there were no validation images")
    return {
        "Model": [_list_values({name: value for name, value in facts.items() if value != ""})],
        "Recipe": [Paragraph(line) for line in extra.recipe],
        "Validation": [_list_values(extra.metrics) if extra.metrics else no_scores],
        "Input": [_list_values(_list_image(manifest))],
        "Epochs": [Table(epochs, head, "r" * len(names))] if history else [],
        "Classes": [Paragraph(join_names(manifest.classes, MAX_ROWS))],
    }


def _describe_evaluation(manifest: Manifest) -> dict[str, list[Block]]:
    extra = EvaluationExtra.of(manifest)
    tested = sorted((scores for scores in extra.per_class if scores.support), key=lambda s: (s.f1, s.name))
    rows: list[Row] = [
        (scores.name, f"{scores.support:,}", f"{scores.precision:.3f}", f"{scores.recall:.3f}", f"{scores.f1:.3f}",
         Bar(((scores.f1, "train"),)))
        for scores in tested
    ]  # fmt: skip
    head = ("class", "images", "precision", "recall", "F1", "")
    classes: list[Block] = [Table(take_ends(rows, "classes"), head, "lrrrrl")]
    if untested := [scores.name for scores in extra.per_class if not scores.support]:
        classes.append(Paragraph(f"without a test image: {join_names(untested, MAX_ROWS)}"))
    return {"Metrics": [_list_values(extra.metrics)], "Classes, the hardest first": classes}


def _draw_bars(counts: dict[str, int]) -> Table:
    """Return a table of counts with bars, the largest first."""
    largest, total = max([*counts.values(), 1]), sum(counts.values())
    rows: list[Row] = [
        (name, f"{count:,}", format_percent(count, total), Bar(((count / largest, "train"),)))
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table(take_ends(rows, "rows"), alignment="lrrl")


def _list_files(group: FileList, keys: tuple[str, str], title: str) -> Table:
    """Return a table of the first files of a group."""
    rows = [[file.get(key, "") for key in keys] for file in group.files[:MAX_SKIPPED]]
    more = f", {len(rows)} of them shown" if group.count > len(rows) else ""
    return Table(rows, title=f"{title}: {group.count:,}{more}")


def _list_values(values: dict[str, Any]) -> Table:
    return Table([(replace_underscores(name), _format_value(value)) for name, value in values.items()])


def _format_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(part)}" for name, part in value.items())
    if isinstance(value, list):
        return join_names([_format_value(element) for element in value], 12)
    return format_number(value)
