"""Make a committed tensors dataset from a clean one: find it by its fingerprint, or plan, run and commit the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..dataset.kinds import CleanExtra, StoredCopies, TensorsExtra
from ..dataset.manifest import MANIFEST, Dataset, File, Manifest, Totals, commit, find_intact_dataset
from ..engine.finished import FinishedParts
from ..engine.processes import Processes, Threads
from ..engine.ray_job import build_with_ray_job
from ..engine.ray_session import WORKER_BYTES, RaySession, open_ray_session
from ..engine.tasks import AUTO, RAY, THREADS, Executor, run_tasks
from ..imaging.pixel_options import JPEG
from ..step.progress import Progress
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import MillError, wrong
from ..storage.parallel import max_workers
from .config import ResizeConfig
from .copies import CopyPolicy
from .device import CPU, count_local_gpus
from .estimate import RAY_START_S, SECONDS_PER_COPIED_BYTE, estimate_core_seconds
from .generations import Growth, RewriteTask, plan_growth, write_remaining
from .gpu import run_on_gpus
from .plan import ShardPlan, SplitPlan, plan_split
from .statistics import ChannelSums, compute_normalization, needs_sums
from .target import Target, find_target
from .tasks import MergeTask, ResizeTask, merge_sources, plan_tasks, remove_merged_files, write_merged, write_shards
from .tensor_shards import CopyCounts, FinishedShard, TensorSpec

SPLITS = ("train", "val", "test")
Planned = TypeVar("Planned", ShardPlan, RewriteTask)
"""A tensor shard to write."""


def resize(config: ResizeConfig, context: Context) -> Outcome:
    """Return the tensors of a clean dataset and a config, made if they do not exist."""
    target = find_target(config, context)
    existing = context.find(target.uri)
    dataset = existing or _make_dataset(target, context)
    return target.report(dataset, CACHED if existing else RAN, context)


def _make_dataset(target: Target, context: Context) -> Dataset:
    address = target.config.ray_address
    try:
        if uris.is_http(address):
            dataset = build_with_ray_job(target.make_job_config(context), address, target.uri, context)
        else:
            dataset = _build(target, context)
    except MillError:
        # Another run may have committed the same meanwhile, and removed the merged files that this one was reading.
        if (committed := find_intact_dataset(target.uri)) is None:
            raise
        dataset = committed
    remove_merged_files(target.uri)
    return dataset


def _build(target: Target, context: Context) -> Dataset:
    """Plan the tensor shards, write those that no earlier attempt finished, and commit."""
    clean, config = target.clean, target.config
    spec = _make_spec(clean, config, target.copies.publish_listing(target.uri))
    growth = plan_growth(target, spec, context)
    added, key_prefix = (growth.added, growth.prefix) if growth else (None, "")
    plans = [plan_split(clean, split, spec.row_bytes, config.copies, added, key_prefix) for split in SPLITS]
    rewrites = growth.rewrites if growth else []
    rows = sum(plan.rows for plan in plans)
    build = _TensorsBuild(target.uri, spec, context, Progress("resize", total=rows + sum(t.rows for t in rewrites)))
    if growth:
        _report_growth(growth, clean, context)
    unfinished = [build.skip_finished(plan.shards) for plan in plans]
    unfinished_rewrites = build.skip_finished(rewrites)
    if any(unfinished) or unfinished_rewrites:
        core_seconds = estimate_core_seconds(clean.manifest.totals) * rows / max(1, clean.manifest.totals.rows)
        core_seconds += sum(task.rows for task in unfinished_rewrites) * spec.row_bytes * SECONDS_PER_COPIED_BYTE
        with _open_executor(clean, config, core_seconds) as executor:
            if unfinished_rewrites:
                build.rewrite(unfinished_rewrites, executor)
            if any(unfinished):
                gpu_share = config.gpu_share if config.device != CPU else 0.0
                build.write_unfinished(plans, unfinished, executor, gpu_share)
    shards = growth.collect(build.finished) if growth else []
    generation = growth.generation if growth else 0
    shards += [replace(build.finished[shard.key], generation=generation) for plan in plans for shard in plan.shards]
    return commit(target.uri, _make_manifest(target, spec, shards))


def _report_growth(growth: Growth, clean: Dataset, context: Context) -> None:
    rows, added = clean.manifest.totals.rows, growth.added_rows
    earlier = context.workspace.relative(growth.tensors.uri)
    context.say(f"{rows:,} images: {rows - added:,} as in {earlier}, {added:,} new, {growth.num_removed:,} removed")


@contextmanager
def _open_executor(clean: Dataset, config: ResizeConfig, core_seconds: float) -> Iterator[Executor]:
    """Open the executor for about `core_seconds` of work."""
    workers = config.resize_workers or max_workers(WORKER_BYTES)
    kind = _choose_executor(config, core_seconds, workers)
    if kind != RAY:
        with (Threads if kind == THREADS else Processes)("resize", workers) as local:
            yield local
        return
    gpus = {"gpus": count_local_gpus()} if config.device != CPU and not config.ray_address else {}
    probe_uri = uris.join(clean.uri, MANIFEST)
    with open_ray_session("resize", config.ray_address, config.resize_workers, probe_uri, **gpus) as session:
        yield session


def _choose_executor(config: ResizeConfig, core_seconds: float, workers: int) -> str:
    if config.ray_address or config.device != CPU:  # GPUs are used by Ray's actors
        return RAY
    if config.executor != AUTO:
        return config.executor
    # Copies can't be made on threads: the libraries that augment them keep global state.
    return THREADS if not config.copies and core_seconds <= RAY_START_S * workers else RAY


def _make_spec(clean: Dataset, config: ResizeConfig, copies: CopyPolicy | None) -> TensorSpec:
    geometry = config.geometry(clean.manifest.color)
    if config.encoding == JPEG and geometry.color in ("ycbcr", "lab"):
        raise wrong("encoding", "raw with this color, since a JPEG would keep half of its second and third channel",
                    f"{config.encoding} with {geometry.color}")  # fmt: skip
    with_sums = needs_sums(config.normalization, geometry.color, geometry.edges)
    return TensorSpec(geometry, config.encoding, config.jpeg_quality, config.jpeg_subsampling, with_sums, copies)


@dataclass
class _TensorsBuild:
    """Work on one tensors dataset. `finished`: its written shards by key, of this attempt and of earlier ones."""

    uri: str
    spec: TensorSpec
    context: Context
    progress: Progress
    finished: dict[str, FinishedShard] = field(default_factory=dict)

    @property
    def parts(self) -> FinishedParts:
        return FinishedParts(self.context.workspace, self.uri)

    def skip_finished(self, shards: Sequence[Planned]) -> list[Planned]:
        """Return the shards that no earlier attempt finished; the others are added to `finished`."""
        records = self.parts.find({shard.key: shard.key for shard in shards}, lambda record: [File(**record["file"])])
        unfinished = []
        for shard in shards:
            result = FinishedShard.from_record(records[shard.key]) if shard.key in records else None
            # A shard that was recorded without channel sums can't give the normalization.
            if result and (result.sums or not self.spec.with_sums or shard.split != "train"):
                self.finished[shard.key] = result
                self.progress.leave_out(shard.rows)
            else:
                unfinished.append(shard)
        return unfinished

    def write_unfinished(
        self,
        plans: Sequence[SplitPlan],
        unfinished: Sequence[Sequence[ShardPlan]],
        executor: Executor,
        gpu_share: float,
    ) -> None:
        """Write the unfinished shards of all splits; clean files are merged first if they are too many.

        `gpu_share`: of a GPU, for each worker; 0 for workers on the CPU.
        """

        def run_merges(tasks: Sequence[MergeTask]) -> dict[str, dict[str, Any]]:
            return self._run_merges(tasks, executor)

        plans = [
            merge_sources(plan, shards, self.spec.required_columns(shards[0]), self.uri, run_merges) if shards else plan
            for plan, shards in zip(plans, unfinished, strict=True)
        ]
        self.progress.restart()
        tasks = (
            task for plan, shards in zip(plans, unfinished, strict=True) if shards for task in plan_tasks(plan, shards)
        )
        if gpu_share and isinstance(executor, RaySession):
            self._record_finished(run_on_gpus(tasks, (self.uri, self.spec), executor, gpu_share))
        else:
            self._record_finished(run_tasks(tasks, write_shards, (self.uri, self.spec), executor))

    def rewrite(self, tasks: Sequence[RewriteTask], executor: Executor) -> None:
        """Write earlier shards without the rows that were removed."""
        self._record_finished(run_tasks(tasks, write_remaining, (self.uri, self.spec), executor))

    def _record_finished(self, results: Iterable[tuple[ResizeTask | RewriteTask, dict[str, Any]]]) -> None:
        """Record the shards that tasks have written."""
        for task, records in self.parts.record_results(results):
            self.finished |= {key: FinishedShard.from_record(record) for key, record in records.items()}
            self.progress.add(task.rows)

    def _run_merges(self, tasks: Sequence[MergeTask], executor: Executor) -> dict[str, dict[str, Any]]:
        """Run merge tasks except those that an earlier attempt finished; return the records of all by their keys."""
        keys = {task.key: task.key for task in tasks}
        records = self.parts.find(keys, lambda record: [File(**file) for file in record["files"]])
        sources = sum(len(task.inputs) for task in tasks)
        self.context.say(f"{tasks[0].split}: {sources:,} files are merged to {len(tasks):,}, which are read faster")
        unfinished = [task for task in tasks if task.key not in records]
        progress = Progress("resize", "images merged", sum(task.rows for task in unfinished))
        for task, record in run_tasks(unfinished, write_merged, (self.uri,), executor):
            records[task.key] = record
            self.parts.add(task.key, record)
            progress.add(task.rows)
        return records


def _describe_copies(policy: CopyPolicy | None, counts: CopyCounts) -> StoredCopies | None:
    """Return the manifest's entry on copies; None without any."""
    if policy is None:
        return None
    return StoredCopies(policy.policy, policy.per_image, counts.rows, counts.without if policy.needs_masks else None)


def _make_manifest(target: Target, spec: TensorSpec, shards: list[FinishedShard]) -> Manifest:
    """Return the manifest of shards, which are in order within each split."""
    clean, config = target.clean, target.config
    geometry, totals = spec.geometry, clean.manifest.totals
    # The sort is stable: within a split the generations, and the shuffled order of their shards, stay.
    files = sorted((shard.file for shard in shards), key=lambda file: SPLITS.index(file.split))
    by_split = {split: sum(file.rows for file in files if file.split == split) for split in SPLITS}
    copies = CopyCounts.sum(shard.copies for shard in shards)
    if sum(by_split.values()) != totals.rows + copies.rows:
        raise MillError(
            f"internal error: row counts do not add up: {totals.rows} clean rows + {copies.rows} copies, "
            f"{sum(by_split.values())} tensors"
        )
    sums = sum((shard.sums for shard in shards if shard.sums), ChannelSums())
    mean, std = compute_normalization(config.normalization, geometry.color, geometry.shape[2], sums)
    return Manifest(
        kind="tensors",
        fingerprint=target.fingerprint,
        parents=(clean.as_parent(target.uri),),
        config=config.manifest_values(),
        task=clean.manifest.task,
        classes=clean.manifest.classes,
        files=tuple(files),
        totals=Totals(
            rows=totals.rows + copies.rows,
            bytes=sum(shard.image_bytes for shard in shards),
            by_split=by_split,
            by_class=copies.add_to(totals.by_class, clean.manifest.classes),
        ),
        image=geometry.describe(spec.encoding, mean, std),
        extra=TensorsExtra(
            dataset_name=clean.name,
            shards={shard.file.uri: shard.to_entry() for shard in shards},
            copies=_describe_copies(spec.copies, copies),
            device=config.device if config.device != CPU else None,
            epochs=CleanExtra.of(clean.manifest).epochs,
        ),
    )
