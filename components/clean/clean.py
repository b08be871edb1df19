"""Clean, from a raw dataset to a committed clean dataset: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..dataset.fingerprint import digest, fingerprint
from ..dataset.kinds import RawExtra
from ..dataset.manifest import Dataset, File, commit
from ..step.step import CACHED, RAN, Context, Outcome
from .audit_html import write_audit
from .audit_pictures import Picture, find_pictures
from .candidates import Candidates, read_candidates, read_file_columns
from .config import VERSION, CleanConfig
from .decide import decide
from .drift import check_drift
from .final_files import write_final_files
from .kept_rows import KeptRows
from .labels import find_base_classes, make_label_rules
from .ledger import check_ledger, check_splits, make_manifest, print_summary
from .reuse import FinishedWork, clean_or_reuse
from .shard import CleanedShard, RowRules, Slice, plan_slices, write_rejected
from .twins import check_radius, write_twins


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset of this raw dataset, config and class list, or build it."""
    raw = context.parent("raw", config.raw, "raw")
    check_radius(config, raw.manifest.totals.rows)
    name = config.name or raw.name
    base = find_base_classes(config, context.workspace, name)
    labels = make_label_rules(raw.manifest.totals.by_class, base, config, RawExtra.of(raw.manifest).source)
    counting = config.fingerprint_values() | {"classes": digest(list(labels.ids))} | context.rerun_salt()
    uri = context.workspace.dataset("clean", fingerprint("clean", VERSION, [raw.fingerprint], counting))
    existing = context.find(uri)
    dataset = existing or _build_dataset(raw, uri, RowRules(config, labels), context)
    print_summary(dataset, context)
    drift = check_drift(dataset, name, config, context)
    context.note_latest(name, dataset)  # not of one that drift stops: its new labels get no ids
    totals = dataset.manifest.totals
    metrics = {"rows_in": raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
    return Outcome(uri, dataset.fingerprint, CACHED if existing else RAN, metrics | drift)


def _build_dataset(raw: Dataset, uri: str, rules: RowRules, context: Context) -> Dataset:
    """Clean what no earlier snapshot or attempt has cleaned, decide on all images, and list their files."""
    finished = FinishedWork(context.workspace, context.rerun_salt())
    parts = plan_slices(raw)
    lost: frozenset[str] = frozenset()
    while True:
        shards = clean_or_reuse(raw, parts, rules, finished, lost)
        candidates = _read_candidates(raw, parts, shards, finished)
        context.say(f"{len(candidates):,} images are valid; looking at all of them together")
        decisions, twins = decide(candidates, rules.config)
        final = write_final_files(decisions, finished, rules.layout)
        if not final.lost:
            break
        # gc has deleted original files that rewritten ones, without dropped rows, had replaced. Now a different set of
        # rows is dropped, so the originals are needed again.
        lost |= final.lost
        context.say(f"{len(final.lost):,} files of earlier snapshots are needed and gone; cleaning their images again")
    rejected, rejected_rows = _list_rejected(raw, parts, shards, finished)
    rejected_rows += decisions.iterate_rejected()
    files = [finished.list_file(file, uri) for file in final.files + rejected]
    if rejected_rows:
        files.append(write_rejected(uri, rejected_rows))
    files += [finished.list_file(file, uri) for file in candidates.candidate_files]
    if twins is not None and len(twins):
        files.append(write_twins(uri, decisions, twins))
    kept = KeptRows(decisions, final)
    manifest = make_manifest(raw, uri, rules, files, kept.count(rules.labels.separator), decisions.findings)
    check_ledger(raw, manifest)
    check_splits(manifest)
    draft = Dataset(uri, manifest, "")
    page = write_audit(draft, kept.scan(), lambda ids: _find_pictures(draft, ids, kept, parts, shards))
    return commit(uri, replace(manifest, files=(*manifest.files, page)))


def _find_pictures(
    dataset: Dataset, ids: Sequence[str], kept: KeptRows, parts: list[Slice], shards: list[CleanedShard]
) -> dict[str, Picture]:
    """Find the pictures of images where the decision has put them: in the final files, or in raw only."""
    rows = kept.candidates.find_rows(ids)
    places = kept.locate(dataset, rows.items())
    of_table = [part for part, shard in zip(parts, shards, strict=True) if shard.candidates]
    dropped = {image_id: of_table[kept.candidates.find_candidate_file(row)] for image_id, row in rows.items()}
    raw_places = {image_id: (part.file, range(part.first, part.last)) for image_id, part in dropped.items()}
    return find_pictures(dataset, ids, places, raw_places)


def _read_candidates(
    raw: Dataset, parts: list[Slice], shards: list[CleanedShard], finished: FinishedWork
) -> Candidates:
    """Read the valid rows of all slices, without those that have left the source."""
    with_rows = [(part, shard) for part, shard in zip(parts, shards, strict=True) if shard.candidates]
    tables = [file for _, shard in with_rows for file in shard.candidates]
    data = [file for _, shard in with_rows for file in shard.data]
    removed = {number: raw.removed_ids(part.file) for number, (part, _) in enumerate(with_rows)}
    return read_candidates(finished.uri, tables, data, removed)


def _list_rejected(
    raw: Dataset, parts: list[Slice], shards: list[CleanedShard], finished: FinishedWork
) -> tuple[list[File], list[dict[str, Any]]]:
    """Return the files of rejected rows, and apart from them the rows of files that hold one which left the source."""
    files: list[File] = []
    rows: list[dict[str, Any]] = []
    for part, shard in zip(parts, shards, strict=True):
        removed = raw.removed_ids(part.file)
        for file in shard.rejected:
            tables = read_file_columns(finished.uri, file, None) if removed else ()
            content = [row for table in tables for row in table.to_pylist()]
            remaining = [row for row in content if row["image_id"] not in removed]
            if len(remaining) == len(content):
                files.append(file)
            else:
                rows += remaining
    return files, rows
