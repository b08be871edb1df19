"""Build and commit a clean dataset from a raw one: every raw row is in exactly one of kept and rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..dataset.kinds import ClassChanges, CleanExtra, CleanImage, RawExtra
from ..dataset.manifest import Dataset, File, Manifest, Totals, commit, digest, find_dataset, fingerprint
from ..dataset.shards import READ_THREADS, publish_bytes, read_columns, read_file
from ..engine.ray_job import make_job_config
from ..imaging.pixel_options import COLORS
from ..report.audit import list_pictured, make_page
from ..report.changes import describe_class_changes
from ..report.page import render
from ..report.pictures import Groups, Thumbnail, make_thumbnails
from ..report.words import format_counts, join_names
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import MillError, UserError
from .audit import gather
from .candidates import Candidates, read_candidates
from .config import DECISION_FIELDS, LABEL_FIELDS, VERSION, CleanConfig
from .decide import decide
from .drift import check_drift
from .final_files import KeptCounts, KeptRows, write_final_files
from .labels import (
    compare_class_lists,
    find_base_classes,
    find_unknown_labels,
    make_label_rules,
    read_label_map,
)
from .near_duplicates import check_radius, write_near_duplicates
from .reuse import FinishedWork, clean_or_reuse, estimate_core_seconds
from .slices import CleanedSlice, RowRules, Slice, plan_slices, write_rejected
from .splits import SPLITS


@dataclass(frozen=True)
class Target:
    """The clean dataset of a raw dataset and rules for its rows, at `uri`, whether it exists yet or not.

    `class_changes`: its class list against that of the last run.
    `device`: where a Ray job cleans; the launcher of a RayJob asks every step for it.
    """

    uri: str
    raw: Dataset
    rules: RowRules
    class_changes: ClassChanges
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
        slices = plan_slices(self.raw)
        cleaned = FinishedWork(context.workspace, context.rerun_salt()).find_slices(slices, self.rules)
        missing = [slice_ for slice_ in slices if slice_.key not in cleaned]
        return estimate_core_seconds(sum(slice_.rows for slice_ in missing), sum(slice_.bytes for slice_ in missing))

    def make_job_config(self, context: Context) -> CleanConfig:
        """Return the config of a Ray job that makes this dataset; `ray_job.build_command` gives its command line."""
        files = {name: getattr(self.config, name) for name in ("class_list", "map_labels")}
        absolute: dict[str, Any] = {name: uri and uris.normalize(uri, name) for name, uri in files.items()}
        return make_job_config(replace(self.config, **absolute), self.raw, context)

    def report(self, dataset: Dataset, state: str, context: Context) -> Outcome:
        """Report the numbers of the dataset and its drift, and note it as the latest; return the step's outcome."""
        self._print_class_list(dataset, context)
        print_summary(dataset, context)
        drift = check_drift(dataset, self.name, self.config, context)
        context.note_latest(self.name, dataset)  # after the check: a snapshot stopped by drift adds no classes
        totals = dataset.manifest.totals
        metrics = {"rows_in": self.raw.manifest.totals.rows, "rows": totals.rows, "rejected": totals.rejected}
        return Outcome(dataset.uri, dataset.fingerprint, state, metrics | drift)

    def _print_class_list(self, dataset: Dataset, context: Context) -> None:
        rules = self.rules.labels
        if unknown := find_unknown_labels(rules.label_map, self.raw.manifest.totals.by_class, rules.separator):
            context.say(f"map_labels: no image has the label {join_names(unknown, 8)}")
        for line in describe_class_changes(self.class_changes, dataset.manifest.totals.by_class):
            context.say(f"class list: {line}")


def find_target(config: CleanConfig, context: Context) -> Target:
    """Return the target of a config without making it."""
    raw = context.parent("raw", config.raw, "raw")
    check_radius(config, raw.manifest.totals.rows)
    base_classes = find_base_classes(config, context.workspace, config.name or raw.name)
    label_map = read_label_map(config)
    source = RawExtra.of(raw.manifest).source
    labels = make_label_rules(raw.manifest.totals.by_class, base_classes, config, source, label_map)
    values = config.fingerprint_values() | {"classes": digest(list(labels.ids))} | context.rerun_salt()
    values |= {"label_map": digest(label_map)} if label_map else {}
    uri = context.workspace.dataset_uri("clean", fingerprint("clean", VERSION, [raw.fingerprint], values))
    changes = compare_class_lists(base_classes, list(labels.ids), label_map)
    return Target(uri, raw, RowRules(config, labels), changes)


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset of this raw dataset, config and class list, or build it."""
    target = find_target(config, context)
    existing = context.find(target.uri)
    if existing is None:
        _report_changed_options(target, context)
    dataset = existing or _build_dataset(target, context)
    return target.report(dataset, CACHED if existing else RAN, context)


def _report_changed_options(target: Target, context: Context) -> None:
    """Say which options of rows differ from those of the last clean dataset, whose images can't be reused then."""
    latest = context.workspace.latest_uri(target.name, "clean")
    if not latest or (dataset := find_dataset(latest)) is None:
        return
    before, now = dataset.manifest.config, target.config.manifest_values()
    names = [name for name in before if name not in (*LABEL_FIELDS, *DECISION_FIELDS) and before[name] != now.get(name)]
    if names:
        context.say(f"options that differ from {context.workspace.relative(latest)}: {', '.join(names)}")


def _build_dataset(target: Target, context: Context) -> Dataset:
    """Clean the slices that no earlier snapshot or attempt has cleaned, decide on all images together, and commit."""
    raw, uri, rules = target.raw, target.uri, target.rules
    finished = FinishedWork(context.workspace, context.rerun_salt())
    slices = plan_slices(raw)
    lost: frozenset[str] = frozenset()
    while True:
        cleaned_slices = clean_or_reuse(raw, slices, rules, finished, lost)
        candidates = _read_candidates(raw, slices, cleaned_slices, finished)
        context.say(f"{len(candidates):,} images are valid; looking at all of them together")
        decisions, near_duplicates = decide(candidates, rules.config)
        final = write_final_files(decisions, finished, rules.layout)
        if not final.lost:
            break
        # gc may delete a file once a rewritten one, without dropped rows, has replaced it. Where other rows are dropped
        # now, the images of that file have to be cleaned again.
        lost |= final.lost
        context.say(f"{len(final.lost):,} files of earlier snapshots are needed and gone; cleaning their images again")
    rejected, rejected_rows = _list_rejected(raw, slices, cleaned_slices, finished)
    rejected_rows += decisions.iterate_rejected()
    files = [finished.list_file(file, uri) for file in final.files + rejected]
    if rejected_rows:
        files.append(write_rejected(uri, rejected_rows))
    files += [finished.list_file(file, uri) for file in candidates.candidate_files]
    if near_duplicates is not None and len(near_duplicates):
        files.append(write_near_duplicates(uri, decisions, near_duplicates))
    kept = KeptRows(decisions, final)
    manifest = make_manifest(target, files, kept.count(rules.labels.separator), decisions.findings)
    check_row_counts(raw, manifest)
    check_splits(manifest)
    draft = Dataset(uri, manifest, "")
    audit = gather(draft, kept.scan())
    thumbnails = _make_thumbnails(raw, draft, list_pictured(audit), kept, slices, cleaned_slices)
    html = render(make_page(audit, thumbnails)).encode("utf-8", "replace")
    page = publish_bytes(uri, html, "audit-", ".html", role="report")
    return commit(uri, replace(manifest, files=(*manifest.files, page)))


def _make_thumbnails(
    raw: Dataset,
    dataset: Dataset,
    ids: Sequence[str],
    kept: KeptRows,
    slices: list[Slice],
    cleaned_slices: list[CleanedSlice],
) -> dict[str, Thumbnail]:
    """Make thumbnails of images in the final files, or in raw where their rows were dropped."""
    rows = kept.candidates.find_rows(ids)
    places = kept.locate(dataset, rows.items())
    with_candidates = [slice_ for slice_, part in zip(slices, cleaned_slices, strict=True) if part.candidates]
    own_slices = {
        image_id: with_candidates[kept.candidates.find_candidate_file(row)]
        for image_id, row in rows.items()
        if image_id not in places
    }
    raw_places = {image_id: (slice_.file, range(slice_.first, slice_.last)) for image_id, slice_ in own_slices.items()}
    no_limit = float("inf")
    return make_thumbnails(dataset, places, groups=_list_groups(dataset, places), max_read=no_limit) | make_thumbnails(
        raw, raw_places, groups=_list_groups(raw, raw_places), max_read=no_limit
    )


def _list_groups(dataset: Dataset, places: Mapping[str, tuple[File, range]]) -> Groups:
    """Yield the data files that hold images, in their order, and the row groups to look into."""
    groups: dict[str, set[int]] = {}
    for file, numbers in places.values():
        groups.setdefault(file.uri, set()).update(numbers)
    return ((file, sorted(groups[file.uri])) for file in dataset.files() if file.uri in groups)


def _read_candidates(
    raw: Dataset, slices: list[Slice], cleaned_slices: list[CleanedSlice], finished: FinishedWork
) -> Candidates:
    """Read the valid rows of all slices, without those that have left the source."""
    with_rows = [(slice_, part) for slice_, part in zip(slices, cleaned_slices, strict=True) if part.candidates]
    tables = [file for _, part in with_rows for file in part.candidates]
    data = [file for _, part in with_rows for file in part.data]
    removed = {number: raw.removed_ids(slice_.file) for number, (slice_, _) in enumerate(with_rows)}
    return read_candidates(finished.uri, tables, data, removed)


def _list_rejected(
    raw: Dataset, slices: list[Slice], cleaned_slices: list[CleanedSlice], finished: FinishedWork
) -> tuple[list[File], list[dict[str, Any]]]:
    """Return the files of rejected rows that stay as they are, and the remaining rows of files of which images left
    the source."""
    files: list[File] = []
    rows: list[dict[str, Any]] = []
    for slice_, part in zip(slices, cleaned_slices, strict=True):
        removed = raw.removed_ids(slice_.file)
        for file in part.rejected:
            tables = read_file(uris.join(finished.uri, file.uri)) if removed else ()
            content = [row for table in tables for row in table.to_pylist()]
            remaining = [row for row in content if row["image_id"] not in removed]
            if len(remaining) == len(content):
                files.append(file)
            else:
                rows += remaining
    return files, rows


def make_manifest(target: Target, files: list[File], kept: KeptCounts, findings: dict[str, Any]) -> Manifest:
    """Make the manifest of a clean dataset."""
    raw, uri, rules = target.raw, target.uri, target.rules
    classes, config = tuple(rules.labels.ids), rules.config
    draft = Dataset(uri, Manifest("clean", uris.basename(uri), files=tuple(files)), "")
    by_split, by_class_split = kept.by_split, kept.by_class_split
    reasons: Counter[str] = Counter()
    for table in read_columns(draft, "rejected", ["reason"], threads=READ_THREADS):
        reasons.update(table.column("reason").to_pylist())
    color = config.stored_color
    return Manifest(
        kind="clean",
        fingerprint=uris.basename(uri),
        parents=(raw.as_parent(uri),),
        config=config.manifest_values(),
        task="multi" if rules.labels.is_multi_label else "single",
        classes=classes,
        files=tuple(files),
        totals=Totals(
            rows=sum(by_split.values()),
            bytes=kept.bytes,
            rejected=sum(reasons.values()),
            by_split={split: by_split[split] for split in SPLITS},
            by_class={name: sum(by_class_split[split][name] for split in SPLITS) for name in classes},
            by_reason=dict(sorted(reasons.items())),
        ),
        image=CleanImage(color, COLORS[color]),
        extra=CleanExtra(
            dataset_name=raw.name,
            by_class_and_split={split: {name: by_class_split[split][name] for name in classes} for split in SPLITS},
            decoder_warnings=kept.warnings,
            rows_in=raw.manifest.totals.rows,
            found=findings,
            label_map=dict(rules.labels.label_map),
            class_changes=target.class_changes,
            image_size=RawExtra.of(raw.manifest).image_size or kept.recommend_image_size(),
            epochs=RawExtra.of(raw.manifest).epochs,
        ),
    )


def check_row_counts(raw: Dataset, manifest: Manifest) -> None:
    """Raise MillError unless every raw row is kept or rejected."""
    rows, totals = raw.manifest.totals.rows, manifest.totals
    if rows != totals.rows + totals.rejected:
        raise MillError(
            f"internal error: row counts do not add up: {rows} raw, {totals.rows} kept + {totals.rejected} rejected"
        )


def check_splits(manifest: Manifest) -> None:
    """Raise UserError unless there are training images of two classes, and test images."""
    totals = manifest.totals
    if not totals.rows:
        reasons = format_counts(totals.by_reason)
        raise UserError(f"source: expected images that decode and have labels, found none; rejected: {reasons}")
    for split, hint in (("train", "val_fraction and test_fraction"), ("test", "test_fraction or the declared splits")):
        if not totals.by_split[split]:
            raise UserError(f"split: expected at least one {split} image of {totals.rows}, found none; see {hint}")
    train_classes = [name for name, number in CleanExtra.of(manifest).by_class_and_split["train"].items() if number]
    if len(train_classes) < 2:
        raise UserError(
            f"label: expected training images of at least two classes, found only {train_classes[0]!r} after cleaning; "
            f"rejected: {format_counts(totals.by_reason)}"
        )


def print_summary(dataset: Dataset, context: Context) -> None:
    """Print the numbers of a clean dataset: rows, rejects, classes without images, findings."""
    totals, extra = dataset.manifest.totals, CleanExtra.of(dataset.manifest)
    context.say(
        f"{totals.rows + totals.rejected:,} rows in · {totals.rows:,} kept · {totals.rejected:,} rejected · "
        + " · ".join(f"{split} {number:,}" for split, number in totals.by_split.items())
    )
    if totals.by_reason:
        context.say(f"rejected: {format_counts(totals.by_reason)}")
    if empty := [name for name, number in totals.by_class.items() if not number]:
        context.say(f"no image at all of: {join_names(empty, 8)}")
    for split, numbers in extra.by_class_and_split.items():
        if missing := [name for name, number in numbers.items() if not number and totals.by_class[name]]:
            context.say(f"no {split} image of: {join_names(missing, 8)}")
    _print_findings(extra.found, context)
    for page in dataset.files("report"):
        context.say(f"audit: {dataset.locate(page)}")


def _print_findings(findings: dict[str, Any], context: Context) -> None:
    """Print duplicates, leaks, label conflicts and outliers, whatever the policies did about them."""
    near, leakage = findings.get("near_duplicates"), findings.get("leakage")
    if near and near["pairs"]:
        context.say(
            f"near-duplicates: {near['pairs']:,} pairs of {near['images']:,} images, {near['dropped']:,} dropped"
        )
    if near and not near["complete"]:
        context.say("near-duplicates: there are too many candidates; the largest groups of look-alikes were left out")
    if leakage and (leakage["dropped"] or leakage["kept"]):
        context.say(
            f"leakage: {leakage['test_images_with_twin_in_train']:,} test images have a near-duplicate in train, "
            f"{leakage['test_images_with_twin_in_val']:,} in val; of those {leakage['dropped']:,} dropped, "
            f"{leakage['kept']:,} kept" + (" (leakage=drop drops them)" if leakage["kept"] else "")
        )
    if leaked := findings["duplicates"]["declared_test_images_in_declared_train"]:
        context.say(f"leakage: {leaked:,} images that the source declares as test are in its training part, too")
    if conflicts := findings["duplicates"]["conflicts"] + (near["conflicts"] if near else 0):
        context.say(f"labels: {conflicts:,} groups or pairs of equal or almost equal images have different labels")
    if outliers := {name: outlier["count"] for name, outlier in findings["outliers"].items()}:
        context.say(f"outliers: {format_counts(outliers)}")
