"""Clean, from raw to a committed clean dataset: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from dataclasses import replace

from ..store import uri as uris
from ..store.filesystem import get_store
from ..store.fingerprint import digest, fingerprint
from ..store.manifest import Dataset, commit
from ..store.progress import Progress
from ..store.step import CACHED, RAN, Context, Outcome
from .audit_html import write_audit
from .classes import base_classes
from .config import VERSION, CleanConfig
from .decide import decide
from .labels import label_rules
from .ledger import check_ledger, check_splits, make_manifest, say_what_is_there
from .pool import clean_slices
from .rewrite import final_files
from .shard import CleanedShard, RowRules, write_rejected
from .slices import slices
from .table import read_table
from .twins import check_radius, write_twins


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset that this raw, config and class list give, or make it."""
    raw = context.parent("raw", config.raw, "raw")
    check_radius(config, raw.manifest.totals.rows)
    name = config.name or raw.manifest.extra["dataset_name"]
    base = base_classes(config, context.workspace, name)
    labels = label_rules(raw.manifest.totals.by_class, base, config, raw.manifest.extra["source"])
    counting = config.fingerprint_values() | {"classes": digest(list(labels.ids))} | context.attempt()
    uri = context.workspace.dataset("clean", fingerprint("clean", VERSION, [raw.fingerprint], counting))
    there = context.find(uri)
    dataset = there or _build(raw, uri, RowRules(config, labels), context)
    context.note_latest(name, dataset)
    say_what_is_there(dataset, context)
    totals = dataset.manifest.totals
    metrics = {"rows_in": raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
    return Outcome(uri, dataset.fingerprint, CACHED if there else RAN, metrics)


def _build(raw: Dataset, uri: str, rules: RowRules, context: Context) -> Dataset:
    shards = _clean_shards(raw, uri, rules, context)
    table = read_table(uri, [f for shard in shards for f in shard.data])
    context.say(f"{len(table):,} images are valid; looking at all of them together")
    verdicts, twins = decide(table, rules.config)
    files = final_files(uri, verdicts, rules.layout())
    files += [f for shard in shards for f in shard.rejected]
    if verdicts.dropped:
        files.append(write_rejected(uri, list(verdicts.rejected())))
    if twins is not None and len(twins):
        files.append(write_twins(uri, verdicts, twins))
    manifest = make_manifest(raw, uri, rules, files, verdicts.found)
    check_ledger(raw, manifest)
    check_splits(manifest)
    page = write_audit(Dataset(uri, manifest, ""))
    return commit(uri, replace(manifest, files=(*manifest.files, page)))


def _clean_shards(raw: Dataset, uri: str, rules: RowRules, context: Context) -> list[CleanedShard]:
    """Every slice of the raw shards, in their order; what an earlier try finished is taken over."""
    progress = Progress("clean", total=raw.manifest.totals.rows)
    parts = slices(raw)
    there: dict[str, CleanedShard] = {}
    for part in parts:
        record = context.workspace.read_work_record(uri, part.key)
        shard = CleanedShard.from_record(record) if record else None
        if shard is not None and _is_there(uri, shard):
            there[part.key] = shard
            progress.leave_out(part.rows)
    missing = [part for part in parts if part.key not in there]
    for part, shard in clean_slices(raw, missing, uri, rules, progress):
        context.workspace.write_work_record(uri, part.key, shard.to_record())
        there[part.key] = shard
    return [there[part.key] for part in parts]


def _is_there(uri: str, shard: CleanedShard) -> bool:
    store = get_store(uri)
    found = [(store.stat(uris.join(uri, f.uri)), f.bytes) for f in shard.data + shard.rejected]
    return all(entry is not None and entry.size == size for entry, size in found)
