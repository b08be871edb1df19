"""Clean, from raw to a committed clean dataset: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from collections import Counter, defaultdict

from ..store import uri as uris
from ..store.errors import MillError, UserError
from ..store.filesystem import store_for
from ..store.fingerprint import digest, fingerprint
from ..store.images import COLORS
from ..store.manifest import Dataset, File, Manifest, Totals, commit, ready
from ..store.progress import Progress
from ..store.shards import read_columns
from ..store.step import CACHED, RAN, Context, Outcome
from .classes import base_classes, class_list
from .config import VERSION, CleanConfig
from .duplicates import Duplicate, find_duplicates, without
from .shard import CleanedShard, RowRules, clean_shard, write_rejected
from .splits import SPLITS


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset that this raw, config and class list give, or make it."""
    raw = context.parent("raw", config.raw, "raw")
    name = config.name or raw.manifest.extra["dataset_name"]
    classes = _classes(raw, config, context, name)
    counting = config.counting() | {"classes": digest(list(classes))} | context.attempt()
    uri = context.workspace.dataset("clean", fingerprint("clean", VERSION, [raw.fingerprint], counting))
    there = ready(uri)
    dataset = there or _build(raw, uri, classes, config, context)
    context.workspace.note_latest(name, dataset, context.run)
    _say_what_is_there(dataset, context)
    totals = dataset.manifest.totals
    metrics = {"rows_in": raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
    return Outcome(uri, dataset.fingerprint, CACHED if there else RAN, metrics)


def _classes(raw: Dataset, config: CleanConfig, context: Context, name: str) -> tuple[str, ...]:
    labels = [label for label in raw.manifest.totals.by_class if label]
    if len(labels) < 2:
        found = f"only {labels[0]!r}" if labels else "no label"
        raise UserError(
            f"label: expected images of at least two classes, found {found} in {raw.manifest.extra['source']}"
        )
    return class_list(labels, base_classes(config, context.workspace, name))


def _build(raw: Dataset, uri: str, classes: tuple[str, ...], config: CleanConfig, context: Context) -> Dataset:
    rules = RowRules(config, {name: number for number, name in enumerate(classes)})
    shards = _clean_shards(raw, uri, rules, context)
    candidates = [f for shard in shards for f in shard.data]
    duplicates = find_duplicates(uri, candidates)
    data = _without_duplicates(uri, candidates, duplicates)
    rejected = [f for shard in shards for f in shard.rejected]
    if duplicates:
        rejected.append(write_rejected(uri, [d.rejected for d in duplicates]))
    manifest = _manifest(raw, uri, classes, config, data, rejected)
    _check_ledger(raw, manifest)
    _check_splits(manifest)
    return commit(uri, manifest)


def _clean_shards(raw: Dataset, uri: str, rules: RowRules, context: Context) -> list[CleanedShard]:
    """Every raw shard, one after another (each on all cores); what an earlier try finished is taken over."""
    progress = Progress("clean", total=raw.manifest.totals.rows)
    shards = []
    for file in raw.files():
        key = file.sha256[:16]
        record = context.workspace.work_record(uri, key)
        shard = CleanedShard.from_record(record) if record else None
        if shard is None or not _is_there(uri, shard):
            shard = clean_shard(raw, file, uri, rules, progress)
            context.workspace.record_work(uri, key, shard.to_record())
        else:
            progress.total -= file.rows
        shards.append(shard)
    return shards


def _is_there(uri: str, shard: CleanedShard) -> bool:
    store = store_for(uri)
    found = [(store.stat(uris.join(uri, f.uri)), f.bytes) for f in shard.data + shard.rejected]
    return all(entry is not None and entry.size == size for entry, size in found)


def _without_duplicates(uri: str, files: list[File], duplicates: list[Duplicate]) -> list[File]:
    by_file: defaultdict[str, list[str]] = defaultdict(list)
    for duplicate in duplicates:
        by_file[duplicate.file.uri].append(duplicate.image_id)
    kept = [without(uri, f, by_file[f.uri]) if f.uri in by_file else f for f in files]
    return sorted((f for f in kept if f), key=lambda f: (SPLITS.index(f.split), f.uri))


def _manifest(
    raw: Dataset, uri: str, classes: tuple[str, ...], config: CleanConfig, data: list[File], rejected: list[File]
) -> Manifest:
    """Totals are counted from the files that will be listed, not from what was meant to be in them."""
    draft = Dataset(uri, Manifest("clean", uris.last_part(uri), files=(*data, *rejected)), "")
    by_class_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    size, warnings = 0, 0
    for table in read_columns(draft, "data", ["label", "split", "image_bytes", "decoder_warning"]):
        for label, split in zip(table.column("label").to_pylist(), table.column("split").to_pylist(), strict=True):
            by_class_split[split][label] += 1
        size += sum(table.column("image_bytes").to_pylist())
        warnings += table.num_rows - table.column("decoder_warning").null_count
    reasons: Counter[str] = Counter()
    for table in read_columns(draft, "rejected", ["reason"]):
        reasons.update(table.column("reason").to_pylist())
    by_class = {name: sum(by_class_split[s][name] for s in SPLITS) for name in classes}
    return Manifest(
        kind="clean",
        fingerprint=uris.last_part(uri),
        parents=(raw.as_parent(uri),),
        config=config.effective(),
        classes=classes,
        files=(*data, *rejected),
        totals=Totals(
            rows=sum(f.rows for f in data),
            bytes=size,
            rejected=sum(f.rows for f in rejected),
            by_split={split: sum(by_class_split[split].values()) for split in SPLITS},
            by_class=by_class,
            by_reason=dict(sorted(reasons.items())),
        ),
        image={"color": config.color, "channels": COLORS[config.color]},
        extra={
            "dataset_name": raw.manifest.extra["dataset_name"],
            "by_class_and_split": {split: {c: by_class_split[split][c] for c in classes} for split in SPLITS},
            "decoder_warnings": warnings,
        },
    )


def _check_ledger(raw: Dataset, manifest: Manifest) -> None:
    rows, totals = raw.manifest.totals.rows, manifest.totals
    if rows != totals.rows + totals.rejected:
        raise MillError(f"the ledger is wrong: {rows} raw rows, {totals.rows} kept and {totals.rejected} rejected")


def _check_splits(manifest: Manifest) -> None:
    totals = manifest.totals
    if not totals.rows:
        raise UserError(
            f"source: expected images that decode and have labels, found none; rejected: {_listed(totals.by_reason)}"
        )
    for split, hint in (("train", "val_fraction and test_fraction"), ("test", "test_fraction or the declared splits")):
        if not totals.by_split[split]:
            raise UserError(f"split: expected at least one {split} image of {totals.rows}, found none; see {hint}")
    trained = [name for name, number in manifest.extra["by_class_and_split"]["train"].items() if number]
    if len(trained) < 2:
        raise UserError(
            f"label: expected training images of at least two classes, found only {trained[0]!r} after cleaning; "
            f"rejected: {_listed(totals.by_reason)}"
        )


def _say_what_is_there(dataset: Dataset, context: Context) -> None:
    totals, extra = dataset.manifest.totals, dataset.manifest.extra
    context.say(
        f"{totals.rows + totals.rejected:,} rows in · {totals.rows:,} kept · {totals.rejected:,} rejected · "
        + " · ".join(f"{split} {number:,}" for split, number in totals.by_split.items())
    )
    if totals.by_reason:
        context.say(f"rejected: {_listed(totals.by_reason)}")
    for split, numbers in extra["by_class_and_split"].items():
        without_any = [name for name, number in numbers.items() if not number and totals.by_class[name]]
        if without_any:
            shown = ", ".join(without_any[:8]) + (f" and {len(without_any) - 8} more" if len(without_any) > 8 else "")
            context.say(f"no {split} image of: {shown}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"
