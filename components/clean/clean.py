"""Make a committed clean dataset from a raw one: plan, map, decide. Every row of the raw index is kept or rejected.

- *Plan*: the raw parts that are still in the index, each with the key of the clean part that it becomes.
- *Map* (`part.py`): each raw part is cleaned once, on all cores, by what counts for single images.
- *Decide* (`decide.py`): labels, splits, duplicates, leaks and outliers, on the small columns of all parts; the result
  is the index, and a table of rejects. A changed rule, label or fraction makes no image anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import make_clean_index, read_index, write_index
from ..dataset.kinds import ClassChanges, CleanExtra, CleanImage, RawExtra
from ..dataset.manifest import (
    MANIFEST,
    Dataset,
    File,
    Manifest,
    Part,
    Totals,
    commit,
    count_values,
    digest,
    fingerprint,
)
from ..dataset.parts import PartFolder, make_part_key
from ..dataset.shards import Layout, ShardWriter, publish_bytes
from ..dataset.splits import SPLITS
from ..engine.map_parts import map_parts
from ..engine.processes import Processes, Threads
from ..engine.ray_job import make_job_config
from ..engine.ray_session import open_ray_session
from ..engine.tasks import AUTO, PROCESSES, RAY, THREADS, Executor
from ..imaging.pixel_options import COLORS
from ..report.audit import list_pictured, make_page
from ..report.changes import describe_class_changes
from ..report.page import render
from ..report.pictures import encode_thumbnails
from ..report.words import format_counts, join_names
from ..step.progress import Progress, say
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import MillError, UserError
from ..storage.parallel import max_workers
from .audit import gather
from .candidates import Candidates, Reject, RowDecisions, read_candidates
from .config import VERSION, CleanConfig
from .decide import decide
from .drift import check_drift
from .labels import (
    LabelRules,
    compare_class_lists,
    find_base_classes,
    find_unknown_labels,
    make_label_rules,
    read_label_map,
)
from .near_duplicates import check_radius, write_near_duplicates
from .part import CleanTask, clean_part
from .schema import REJECTED

WORKER_BYTES = 2**29
"""Memory of one worker process: its libraries, and a part's cleaned rows, 130 MB."""
WRITING_PROCESSES = 1
"""Processes beside one a core: while one waits for its files to be written, another decodes."""
CONCURRENT_PARTS = 2
"""Parts at a time in threads of this process, for the same reason."""
LITTLE_BYTES = 32 * 2**20
"""Bytes of images that threads clean before processes have started."""
SECONDS_PER_IMAGE, SECONDS_PER_BYTE = 0.1e-3, 46e-9
"""Core-seconds for each image, and for each byte of an image file, with all measures: a line through measurements of
JPEG photographs of 500 to 4,000 pixels, from which it differs by up to 30%."""
TINY_SIDE, TINY_SHARE, TINY_IMAGE_SIZE = 48, 0.95, 64
"""Images with a shorter side of at most so many pixels are tiny. Where nearly all are, larger tensors would hold no
more than those of 64 pixels a side, and training would take as many times longer."""


@dataclass(frozen=True)
class Target:
    """The clean dataset of a raw dataset, a config and label rules, at `uri`, whether it exists yet or not.

    `class_changes`: its class list against that of the last run.
    `device`: where a Ray job cleans; the launcher of a RayJob asks every step for it.
    """

    uri: str
    raw: Dataset
    config: CleanConfig
    labels: LabelRules
    class_changes: ClassChanges
    device: ClassVar[str] = "cpu"

    @property
    def fingerprint(self) -> str:
        return uris.basename(self.uri)

    @property
    def name(self) -> str:
        """The name under which the dataset is noted as the latest."""
        return self.config.name or self.raw.name

    def estimate_core_seconds(self, context: Context) -> float:
        """Return the core-seconds of cleaning the parts that do not exist yet."""
        tasks = plan(self.raw, self.config, context)
        existing = PartFolder.of(context.workspace, "clean").find([task.key for task in tasks])
        return estimate_core_seconds([task.raw for task in tasks if task.key not in existing])

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
        rules = self.labels
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
    return Target(uri, raw, config, labels, changes)


def clean(config: CleanConfig, context: Context) -> Outcome:
    """Find the clean dataset of this raw dataset, config and class list, or make it."""
    target = find_target(config, context)
    existing = context.find(target.uri)
    dataset = existing or _make_dataset(target, context)
    return target.report(dataset, CACHED if existing else RAN, context)


def _make_dataset(target: Target, context: Context) -> Dataset:
    raw, config, uri = target.raw, target.config, target.uri
    folder = PartFolder.of(context.workspace, "clean")

    tasks = plan(raw, config, context)
    parts = map_clean(tasks, folder, raw, config, context)

    index = read_index(raw)
    candidates, rejects = read_candidates(raw, index, parts, folder, target.labels, config)
    context.say(f"{len(candidates):,} images are valid; looking at all of them together")
    decisions, near_duplicates = decide(candidates, config)
    rejects += decisions.list_rejects()

    kept = np.flatnonzero(decisions.is_kept)
    files = write_index(uri, make_index(decisions, kept, target.labels, config))
    if rejects:
        files.append(write_rejected(uri, index, rejects))
    if near_duplicates is not None and len(near_duplicates):
        files.append(write_near_duplicates(uri, decisions, near_duplicates))
    manifest = make_manifest(target, files, decisions, kept, rejects)
    check_row_counts(raw, manifest)
    check_splits(manifest)
    return commit(uri, replace(manifest, files=(*files, _publish_page(Dataset(uri, manifest, ""), candidates))))


# Plan and map


def plan(raw: Dataset, config: CleanConfig, context: Context) -> list[CleanTask]:
    """Return a task for each raw part that has a row in the index, in the order of the manifest."""
    values = config.select_row_options().fingerprint_values() | context.rerun_salt()
    return [CleanTask(make_part_key("clean", VERSION, part.key, values), part) for part in raw.manifest.parts]


def map_clean(
    tasks: Sequence[CleanTask], folder: PartFolder, raw: Dataset, config: CleanConfig, context: Context
) -> list[Part]:
    """Return the clean part of each task, made where it does not exist: by threads, processes or Ray."""
    workers = config.clean_workers or max_workers(WORKER_BYTES)
    raw_folder = PartFolder.of(context.workspace, "raw")

    existing = folder.find([task.key for task in tasks])
    missing = [task for task in tasks if task.key not in existing]
    kind = _choose_executor(config, [task.raw for task in missing], workers)
    processes = max(1, min(workers + WRITING_PROCESSES, len(missing)))
    threads = {THREADS: workers, PROCESSES: max(1, workers // processes), RAY: 1}[kind]

    def open_executor(_: Sequence[CleanTask]) -> AbstractContextManager[Executor]:
        if kind == RAY:
            probe_uri = uris.join(raw.uri, MANIFEST)
            return open_ray_session("clean", _get_ray_address(config), config.clean_workers, probe_uri)
        return Processes("clean", processes) if kind == PROCESSES else Threads("clean", CONCURRENT_PARTS)

    if done := sum(task.rows for task in tasks if task.key in existing):
        context.say(f"{done:,} of {sum(task.rows for task in tasks):,} images were cleaned before")
    arguments = (raw_folder, config.select_row_options(), threads)
    progress = Progress("clean", total=sum(task.rows for task in tasks))
    records = map_parts(folder, tasks, clean_part, arguments, open_executor, progress)
    return [records[task.key].files[0] for task in tasks]


def _choose_executor(config: CleanConfig, parts: Sequence[Part], workers: int) -> str:
    if _get_ray_address(config) or config.executor == RAY:
        if find_spec("ray"):
            return RAY
        # The options are resize's as well; the image of clean's pods and containers has no Ray.
        say("clean", "Ray is not installed here (pip install 'imagemill[resize]'): processes of this machine clean")
        return PROCESSES
    if config.executor != AUTO:
        return config.executor
    is_little = workers < 2 or len(parts) < 2 or sum(part.bytes for part in parts) <= LITTLE_BYTES
    return THREADS if is_little else PROCESSES


def _get_ray_address(config: CleanConfig) -> str:
    """Return the address of the Ray cluster that cleans; empty where it only takes jobs, which are resize's."""
    return "" if uris.is_http(config.ray_address) else config.ray_address


def estimate_core_seconds(parts: Iterable[Part]) -> float:
    """Return the core-seconds of cleaning raw parts."""
    return sum(part.rows * SECONDS_PER_IMAGE + part.bytes * SECONDS_PER_BYTE for part in parts)


# The index and the manifest


def make_index(decisions: RowDecisions, kept: np.ndarray[Any, Any], rules: LabelRules, config: CleanConfig) -> pa.Table:
    """Return the clean index of the kept candidates, int64 [K], ascending."""
    candidates = decisions.candidates
    codes = candidates.label_codes[kept]
    ids = candidates.raw.select(["image_id"]).take(pa.array(candidates.raw_rows[kept]))
    part_numbers = np.searchsorted(candidates.starts, kept, side="right") - 1
    label_ids = candidates.label_ids
    columns: dict[str, Any] = {
        "image_id": ids.column("image_id"),
        "part": _take_texts([part.key for part in candidates.parts], part_numbers),
        "row": pa.array(candidates.rows[kept]),
        "label": _take_texts(candidates.labels, codes),
        "split": _take_texts(SPLITS, decisions.splits[kept]),
        "shuffle_index": pa.array(candidates.shuffle_index[kept]),
    }
    if rules.is_multi_label:
        columns["label_ids"] = pa.array(label_ids, pa.list_(pa.int32())).take(pa.array(codes))
    else:
        columns["label_id"] = pa.array([first for first, *_ in label_ids], pa.int32()).take(pa.array(codes))
    is_one_hot = config.label_encoding == "one_hot"
    if is_one_hot:
        rows = [[int(number in row) for number in range(len(rules.ids))] for row in label_ids]
        columns["label_one_hot"] = pa.array(rows, pa.list_(pa.uint8())).take(pa.array(codes))
    schema = make_clean_index("multi" if rules.is_multi_label else "single", is_one_hot)
    return pa.table([_cast(columns[field.name], field.type) for field in schema], schema=schema)


def _take_texts(texts: Sequence[str], codes: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(codes))


def _cast(column: Any, kind: pa.DataType) -> Any:
    return column if column.type == kind else pc.cast(column, kind)


def write_rejected(uri: str, index: pa.Table, rejects: Sequence[Reject]) -> File:
    """Write one file of the rejected rows, sorted by image_id. `index`: raw's."""
    rows = index.select(["image_id", "sha256"]).take(pa.array([reject.raw_row for reject in rejects], pa.int64()))
    rows = rows.append_column("reason", pa.array([reject.reason for reject in rejects], pa.string()))
    rows = rows.append_column("detail", pa.array([reject.detail for reject in rejects], pa.string()))
    with ShardWriter(uri, Layout(REJECTED)) as writer:
        writer.add_table(rows.sort_by("image_id").combine_chunks().cast(REJECTED))
        return writer.publish("rejected", "rejected")


def make_manifest(
    target: Target, files: Sequence[File], decisions: RowDecisions, kept: np.ndarray[Any, Any],
    rejects: Sequence[Reject],
) -> Manifest:  # fmt: skip
    """Make the manifest of a clean dataset."""
    raw, config, candidates = target.raw, target.config, decisions.candidates
    classes = tuple(target.labels.ids)
    by_class_split = count_classes(decisions, kept, classes)
    splits = np.bincount(decisions.splits[kept], minlength=len(SPLITS)).tolist()
    has_rows = np.histogram(kept, candidates.starts)[0] > 0 if len(kept) else np.zeros(len(candidates.parts), bool)
    short = np.minimum(candidates.width[kept], candidates.height[kept])
    is_tiny = len(kept) > 0 and (short <= TINY_SIDE).mean() >= TINY_SHARE
    color = config.stored_color
    return Manifest(
        kind="clean",
        fingerprint=target.fingerprint,
        parents=(raw.as_parent(target.uri),),
        config=config.manifest_values(),
        task="multi" if target.labels.is_multi_label else "single",
        classes=classes,
        parts=tuple(part for part, has in zip(candidates.parts, has_rows.tolist(), strict=True) if has),
        files=tuple(files),
        totals=Totals(
            rows=len(kept),
            bytes=int(candidates.image_bytes[kept].sum()),
            rejected=len(rejects),
            by_split=dict(zip(SPLITS, splits, strict=True)),
            by_class={name: sum(by_class_split[split][name] for split in SPLITS) for name in classes},
            by_reason=count_values(reject.reason for reject in rejects),
        ),
        image=CleanImage(color, COLORS[color]),
        extra=CleanExtra(
            dataset_name=raw.name,
            by_class_and_split={split: {name: by_class_split[split][name] for name in classes} for split in SPLITS},
            decoder_warnings=int(candidates.has_warning[kept].sum()),
            rows_in=raw.manifest.totals.rows,
            found=decisions.findings,
            label_map=dict(target.labels.label_map),
            class_changes=target.class_changes,
            image_size=RawExtra.of(raw.manifest).image_size or (TINY_IMAGE_SIZE if is_tiny else None),
            epochs=RawExtra.of(raw.manifest).epochs,
        ),
    )


def count_classes(
    decisions: RowDecisions, kept: np.ndarray[Any, Any], classes: Sequence[str]
) -> dict[str, Counter[str]]:
    """Count the kept images by split and class; an image with several labels counts for each."""
    candidates = decisions.candidates
    pairs, counts = np.unique(
        np.stack([decisions.splits[kept].astype(np.int64), candidates.label_codes[kept]]), axis=1, return_counts=True
    )
    by_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for split, code, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        for class_id in candidates.label_ids[code]:
            by_split[SPLITS[split]][classes[class_id]] += count
    return by_split


def _publish_page(draft: Dataset, candidates: Candidates) -> File:
    """Publish the dataset's page, with pictures of images that were kept or dropped."""
    audit = gather(draft)
    ids = list_pictured(audit)
    names = {row: image_id for image_id, row in candidates.find_rows(ids).items()}
    tables = candidates.read(np.array(sorted(names), np.int64), ["image.bytes"]) if names else ()
    images = (
        (names[row], image["bytes"])
        for rows, table in tables
        for row, image in zip(rows.tolist(), table.column("image").to_pylist(), strict=True)
    )
    html = render(make_page(audit, encode_thumbnails(ids, images))).encode("utf-8", "replace")
    return publish_bytes(draft.uri, html, "audit-", ".html", role="report")


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
