"""`imagemill inspect`: what a dataset is and what is in it, as text or as one JSON object."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from typing import Any

from ..components.clean.audit_layout import (
    bar,
    heading,
    listed,
    number,
    percent,
    plain,
    plural,
    short,
    table,
    wrapped,
)
from ..components.store import uri as uris
from ..components.store.errors import wrong
from ..components.store.filesystem import store_for
from ..components.store.manifest import MANIFEST, Dataset, Manifest, count, find_dataset, place_of
from ..components.store.progress import duration, size
from ..components.store.workspace import MARKER

SHOWN, SKIPPED = 30, 8
"""So many labels or classes, and so many skipped files, are listed; of the others it is said how many there are."""


def inspect(uri: str, as_json: bool) -> None:
    """Print what the dataset at `uri` holds; UserError when there is none."""
    dataset = open_dataset(uri)
    about = {"kind": dataset.manifest.kind, "uri": dataset.uri, "manifest_sha256": dataset.manifest_sha256}
    facts, text = _clean(dataset) if dataset.manifest.kind == "clean" else _other(dataset)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows another in its place
        sys.stdout.reconfigure(errors="replace")
    print(json.dumps(about | facts) if as_json else "\n".join([*title(dataset), *text]))


def open_dataset(uri: str) -> Dataset:
    """The dataset whose folder, or whose manifest, `uri` is."""
    if not uri.strip():
        raise wrong("dataset", f"the URI or path of a dataset (a folder with {MANIFEST})", uri)
    where = place_of(uri, "dataset")
    found = find_dataset(where)
    if found is None:
        raise wrong("dataset", f"a folder with {MANIFEST}{_hint(where)}", uri)
    return found


def _hint(where: str) -> str:
    """What may have been meant where a whole workspace was named."""
    if store_for(where).stat(uris.join(where, MARKER)) is None:
        return ""
    names = uris.join(where, "names")
    latest = [e.uri for e in store_for(names).list(names) if e.uri.endswith("/latest/clean.json")]
    found = []
    for one in latest[:3]:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(uris.join(where, json.loads(store_for(one).read(one))["uri"]))
    return f" (this is a workspace; in it: {', '.join(found)})" if found else " (this is a workspace, with none in it)"


def title(dataset: Dataset) -> list[str]:
    """The lines about any dataset: what it is, where, and how it came to be."""
    manifest = dataset.manifest
    name = short(str(manifest.extra.get("dataset_name", "")), 40)
    held = [plural(manifest.totals.rows, "row")] if manifest.totals.rows else []
    held += [plural(len(manifest.classes), "class", "classes"), plural(len(manifest.files), "file")]
    return [
        f"{name or 'dataset'} · {manifest.kind} · {plain(manifest.fingerprint)}",
        plain(dataset.uri),
        f"{', '.join(held)} of {size(sum(f.bytes for f in manifest.files))};"
        f" made {plain(manifest.created) or 'at an unknown time'} by imagemill {plain(manifest.code_version)}",
        "",
    ]


def _clean(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    from ..components.clean.audit import gather
    from ..components.clean.audit_text import text

    audit = gather(dataset)
    pages = [dataset.locate(file) for file in dataset.files("report")]
    lines = [text(audit), *(f"\nThe same with pictures: {plain(page)}" for page in pages)]
    return dataclasses.asdict(audit) | {"pages": pages}, lines


def _other(dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """The manifest without its list of files, which is summed up by role and split."""
    manifest = dataset.manifest
    facts = dataclasses.asdict(manifest) | manifest.extra
    del facts["kind"], facts["files"], facts["extra"]
    facts["files"] = _files(manifest)
    text: dict[str, Callable[[Manifest], list[str]]] = {
        "raw": _raw, "tensors": _tensors, "model": _model, "evaluation": _evaluation,
    }  # fmt: skip
    return facts, text[manifest.kind](manifest)


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in manifest.files:
        empty = {"role": file.role, "split": file.split, "files": 0, "rows": 0, "bytes": 0}
        one = found.setdefault((file.role, file.split), empty)
        one["files"] += 1
        one["rows"] += file.rows
        one["bytes"] += file.bytes
    return list(found.values())


def _raw(manifest: Manifest) -> list[str]:
    totals, extra = manifest.totals, manifest.extra
    labels = {name: count for name, count in totals.by_class.items() if name}
    lines = [
        *table([["source", str(extra.get("source", "not recorded"))]], "ll"),
        *table([["images", f"{totals.rows:,}, {size(totals.bytes)}"]], "ll"),
        *wrapped("splits as declared: " + (_counts(totals.by_split) or "none")),
        *wrapped(f"without a label: {totals.by_class.get('', 0):,}"),
    ]
    lines += ["", heading("Labels"), *_bars(labels)]
    skipped, masks = extra.get("skipped") or {}, extra.get("missing_masks") or {}
    lines += ["", heading("Skipped"), *_named(skipped, ("path", "why"), "files that are no images")]
    if masks:
        lines += _named(masks, ("mask", "why"), "masks that are not there")
    if planted := extra.get("planted"):
        lines += ["", heading("Planted faults"), *_bars(count(str(one.get("kind", "")) for one in planted))]
    return lines


def _tensors(manifest: Manifest) -> list[str]:
    totals = manifest.totals
    image = {name: value for name, value in manifest.image.items() if value not in ("", [], None)}
    lines = [heading("Tensors"), *_values(image | {"task": manifest.task, "pixels": size(totals.bytes)})]
    lines += ["", heading("Rows by split"), *_bars(totals.by_split)]
    return [*lines, "", heading("Rows by class"), *_bars(totals.by_class)]


_OF_AN_EPOCH = {
    "epoch": "epoch", "train_loss": "loss", "val_loss": "val loss", "val_top1": "val top1", "val_macro_f1": "macro F1",
    "learning_rate": "rate", "images_per_second": "images/s", "waiting": "waiting", "seconds": "seconds",
}  # fmt: skip
"""What is shown of an epoch, and its title; the rest is in the manifest."""


def _model(manifest: Manifest) -> list[str]:
    extra = dict(manifest.extra)
    metrics, history = extra.pop("metrics", None) or {}, extra.pop("history", None) or []
    recipe = extra.pop("recipe", None) or []
    if "seconds" in extra:
        extra["seconds"] = duration(extra["seconds"])
    lines = [heading("Model"), *_values({name: value for name, value in extra.items() if value != ""})]
    if isinstance(recipe, list):
        lines += ["", heading("Recipe"), *(part for line in recipe for part in wrapped(str(line)))]
    lines += ["", heading("Validation"), *(_values(metrics) or ["  none: there were no validation images"])]
    image = {name: value for name, value in manifest.image.items() if value not in ("", [], None)}
    lines += ["", heading("Input"), *_values(image)]
    if history and all(isinstance(one, dict) for one in history):
        names = [name for name in _OF_AN_EPOCH if name in history[-1]] or list(history[-1])
        titles = [_OF_AN_EPOCH.get(name, name) for name in names]
        rows = [titles, *([_value(one.get(name, "")) for name in names] for one in history[-SHOWN:])]
        lines += ["", heading("Epochs"), *table(rows, "r" * len(names))]
    return [*lines, "", heading("Classes"), *wrapped(listed(manifest.classes, SHOWN))]


def _evaluation(manifest: Manifest) -> list[str]:
    extra = manifest.extra
    lines = [heading("Metrics"), *_values(extra.get("metrics") or {})]
    classes = [one for one in extra.get("per_class") or [] if one["support"]]
    classes.sort(key=lambda one: (one["f1"], one["class"]))
    rows = [["class", "images", "precision", "recall", "F1", ""]]
    for one in classes[:SHOWN]:
        numbers = [f"{one[name]:.3f}" for name in ("precision", "recall", "f1")]
        rows.append([one["class"], f"{one['support']:,}", *numbers, bar(one["f1"], 24)])
    lines += ["", heading("Classes, the hardest first"), *table(rows, "lrrrrl"), *_more(len(classes))]
    if untested := [one["class"] for one in extra.get("per_class") or [] if not one["support"]]:
        lines += wrapped(f"without a test image: {listed(untested, SHOWN)}")
    return lines


def _bars(counts: dict[str, int]) -> list[str]:
    """The largest first, with bars."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    largest, total = max([*counts.values(), 1]), sum(counts.values())
    rows = [[name, f"{n:,}", percent(n, total), bar(n / largest, 30)] for name, n in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        last, least = ordered[-1]
        return [*table(rows, "lrrl"), *_more(len(ordered)), *wrapped(f"the smallest: {short(last, 40)} {least:,}")]
    return table(rows, "lrrl") or ["  none"]


def _more(total: int) -> list[str]:
    return [f"  and {total - SHOWN:,} more"] if total > SHOWN else []


def _named(found: dict[str, Any], keys: tuple[str, str], what: str) -> list[str]:
    """What was counted and, of it, what was named."""
    total, files = found.get("count", 0), found.get("files") or []
    rows = [[str(one.get(key, "")) for key in keys] for one in files[:SKIPPED]]
    lines = [f"  {what}: {total:,}", *table(rows, "ll", 4)]
    return [*lines, f"    and {total - len(rows):,} more"] if total > len(rows) else lines


def _values(values: dict[str, Any]) -> list[str]:
    return table([[name.replace("_", " "), _value(value)] for name, value in values.items()], "ll")


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | list | dict):
        return str(value)
    if isinstance(value, dict):
        return _counts(value)
    if isinstance(value, list):
        return listed([_value(one) for one in value], 12)
    return number(value)


def _counts(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())
