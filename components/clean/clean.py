"""Clean, from a raw dataset to a committed clean dataset: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from dataclasses import replace

from ..dataset.fingerprint import digest, fingerprint
from ..dataset.manifest import Dataset, commit
from ..step.progress import Progress
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.filesystem import get_store
from .audit_html import write_audit
from .candidates import read_candidates
from .config import VERSION, CleanConfig
from .decide import decide
from .labels import find_base_classes, make_label_rules
from .ledger import check_ledger, check_splits, make_manifest, print_summary
from .pool import clean_slices
from .shard import CleanedShard, RowRules, plan_slices, write_rejected
from .twins import check_radius, write_twins
from .verdicts import write_final_files


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset of this raw dataset, config and class list, or build it."""
    raw = context.parent("raw", config.raw, "raw")
    check_radius(config, raw.manifest.totals.rows)
    name = config.name or raw.manifest.extra["dataset_name"]
    base = find_base_classes(config, context.workspace, name)
    labels = make_label_rules(raw.manifest.totals.by_class, base, config, raw.manifest.extra["source"])
    counting = config.fingerprint_values() | {"classes": digest(list(labels.ids))} | context.rerun_salt()
    uri = context.workspace.dataset("clean", fingerprint("clean", VERSION, [raw.fingerprint], counting))
    existing = context.find(uri)
    dataset = existing or _build_dataset(raw, uri, RowRules(config, labels), context)
    context.note_latest(name, dataset)
    print_summary(dataset, context)
    totals = dataset.manifest.totals
    metrics = {"rows_in": raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
    return Outcome(uri, dataset.fingerprint, CACHED if existing else RAN, metrics)


def _build_dataset(raw: Dataset, uri: str, rules: RowRules, context: Context) -> Dataset:
    shards = _clean_shards(raw, uri, rules, context)
    candidates = read_candidates(uri, [file for shard in shards for file in shard.data])
    context.say(f"{len(candidates):,} images are valid; looking at all of them together")
    verdicts, twins = decide(candidates, rules.config)
    files = write_final_files(uri, verdicts, rules.layout)
    files += [file for shard in shards for file in shard.rejected]
    if verdicts.dropped:
        files.append(write_rejected(uri, list(verdicts.iterate_rejected())))
    if twins is not None and len(twins):
        files.append(write_twins(uri, verdicts, twins))
    manifest = make_manifest(raw, uri, rules, files, verdicts.findings)
    check_ledger(raw, manifest)
    check_splits(manifest)
    page = write_audit(Dataset(uri, manifest, ""))
    return commit(uri, replace(manifest, files=(*manifest.files, page)))


def _clean_shards(raw: Dataset, uri: str, rules: RowRules, context: Context) -> list[CleanedShard]:
    """Clean every slice of the raw shards, in their order; slices that an earlier attempt finished are reused."""
    progress = Progress("clean", total=raw.manifest.totals.rows)
    parts = plan_slices(raw)
    shards: dict[str, CleanedShard] = {}
    for part in parts:
        record = context.workspace.read_work_record(uri, part.key)
        shard = CleanedShard.from_record(record) if record else None
        if shard is not None and _has_files(uri, shard):
            shards[part.key] = shard
            progress.leave_out(part.rows)
    missing = [part for part in parts if part.key not in shards]
    for part, shard in clean_slices(raw, missing, uri, rules, progress):
        context.workspace.write_work_record(uri, part.key, shard.to_record())
        shards[part.key] = shard
    return [shards[part.key] for part in parts]


def _has_files(uri: str, shard: CleanedShard) -> bool:
    store = get_store(uri)
    entries = [(store.stat(uris.join(uri, file.uri)), file.bytes) for file in shard.data + shard.rejected]
    return all(entry is not None and entry.size == size for entry, size in entries)
