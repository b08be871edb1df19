"""Clean, from a raw dataset to a committed clean dataset: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..dataset.fingerprint import digest, fingerprint
from ..dataset.kinds import RawExtra
from ..dataset.manifest import Dataset, File, commit
from ..engine.ray_job import make_job_config
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from .audit_html import Picture, find_pictures, write_audit
from .candidates import Candidates, read_candidates, read_file_columns
from .config import VERSION, CleanConfig
from .decide import decide
from .drift import check_drift
from .final_files import KeptRows, write_final_files
from .labels import find_base_classes, make_label_rules
from .ledger import check_ledger, check_splits, make_manifest, print_summary
from .reuse import FinishedWork, clean_or_reuse, estimate_core_seconds
from .shard import CleanedShard, RowRules, Slice, plan_slices, write_rejected
from .twins import check_radius, write_twins


@dataclass(frozen=True)
class Target:
    """The clean dataset of a raw dataset, a config and a class list, which may exist or not."""

    uri: str
    raw: Dataset
    rules: RowRules
    device: ClassVar[str] = "cpu"

    @property
    def fingerprint(self) -> str:
        return uris.basename(self.uri)

    @property
    def config(self) -> CleanConfig:
        return self.rules.config

    @property
    def name(self) -> str:
        """The name under which the dataset is noted as the latest."""
        return self.config.name or self.raw.name

    def estimate_core_seconds(self, context: Context) -> float:
        """Return the core-seconds of the slices that no earlier snapshot or attempt has cleaned."""
        parts = plan_slices(self.raw)
        cleaned = FinishedWork(context.workspace, context.rerun_salt()).find_slices(parts, self.rules)
        missing = [part for part in parts if part.key not in cleaned]
        return estimate_core_seconds(sum(part.rows for part in missing), sum(part.bytes for part in missing))

    def make_job_config(self, context: Context) -> CleanConfig:
        """Return the config of a Ray job that makes this dataset; `ray_job.build_command` gives its command line."""
        class_list = self.config.class_list and uris.normalize(self.config.class_list, "class_list")
        return make_job_config(replace(self.config, class_list=class_list), self.raw, context)

    def report(self, dataset: Dataset, state: str, context: Context) -> Outcome:
        """Report the numbers of the dataset and its drift, and note it as the latest; return the step's outcome."""
        print_summary(dataset, context)
        drift = check_drift(dataset, self.name, self.config, context)
        context.note_latest(self.name, dataset)  # not of one that drift stops: its new labels get no ids
        totals = dataset.manifest.totals
        metrics = {"rows_in": self.raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
        return Outcome(dataset.uri, dataset.fingerprint, state, metrics | drift)


def find_target(config: CleanConfig, context: Context) -> Target:
    """Return the target of a config without making it."""
    raw = context.parent("raw", config.raw, "raw")
    check_radius(config, raw.manifest.totals.rows)
    base = find_base_classes(config, context.workspace, config.name or raw.name)
    labels = make_label_rules(raw.manifest.totals.by_class, base, config, RawExtra.of(raw.manifest).source)
    counting = config.fingerprint_values() | {"classes": digest(list(labels.ids))} | context.rerun_salt()
    uri = context.workspace.dataset("clean", fingerprint("clean", VERSION, [raw.fingerprint], counting))
    return Target(uri, raw, RowRules(config, labels))


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset of this raw dataset, config and class list, or build it."""
    target = find_target(config, context)
    existing = context.find(target.uri)
    dataset = existing or _build_dataset(target.raw, target.uri, target.rules, context)
    return target.report(dataset, CACHED if existing else RAN, context)


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
