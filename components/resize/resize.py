"""Resize, from clean to a committed tensors dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..store import uri as uris
from ..store.choices import JPEG
from ..store.errors import MillError, error_for_exit_code, wrong
from ..store.filesystem import get_store
from ..store.fingerprint import fingerprint
from ..store.manifest import MANIFEST, Dataset, File, Manifest, Totals, commit, find_intact_dataset
from ..store.parallel import max_workers
from ..store.progress import Progress, format_size
from ..store.step import CACHED, RAN, Context, Outcome
from .actors import run_on_gpus
from .batches import batches, make_files
from .config import VERSION, ResizeConfig
from .copies import CopyPolicy, Planned, planned
from .device import CPU, choose_device, gpus_here
from .estimate import say_estimate
from .on_ray import WORKER_BYTES, Cluster, Slots, ray_session, run_jobs
from .plan import Job, Plan, plan_split
from .ray_job import build_by_job, for_job
from .runs import Merge, is_whole, merge, remove_runs, with_runs
from .statistics import Sums, needs_sums, normalization_of
from .threads import RAY_START_S, Threads, work_seconds
from .work import Copied, Recipe

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Target:
    """Where the tensors of a clean dataset and a config lie, or will lie: known before they are made.

    `config`: with the device that it comes to, so that whoever makes them there need not decide again.
    """

    uri: str
    clean: Dataset
    config: ResizeConfig
    copies: Planned

    @property
    def fingerprint(self) -> str:
        return uris.basename(self.uri)

    def for_job(self, context: Context) -> ResizeConfig:
        """The config that a job of a Ray cluster makes these tensors with (`ray_job.command` is its command line)."""
        return for_job(self.clean, self.config, context)


def find(config: ResizeConfig, context: Context, gpus: int | None = None) -> Target:
    """The tensors that this clean dataset and config give; nothing is made. `gpus`: as `choose_device` takes them."""
    clean = context.parent("clean", config.clean, "clean")
    config = config.for_images(clean.manifest.extra)
    copies = planned(config, clean)
    device = choose_device(config, clean, context.say, gpus)
    counting = copies.fingerprint_values(config) | context.attempt() | ({"device": device} if device != CPU else {})
    uri = context.workspace.dataset("tensors", fingerprint("tensors", VERSION, [clean.fingerprint], counting))
    return Target(uri, clean, replace(config, device=device), copies)


def resize(config: ResizeConfig, context: Context) -> Outcome:
    """Find the tensors that this clean dataset and config give, or make them."""
    target = find(config, context)
    there = context.find(target.uri)
    dataset = there or _built(target.clean, target.uri, target.config, context, target.copies)
    return outcome(target, dataset, CACHED if there else RAN, context)


def outcome(target: Target, dataset: Dataset, state: str, context: Context) -> Outcome:
    """Say what the tensors are, and note them as the latest of their name."""
    context.note_latest(target.config.name or target.clean.manifest.extra["dataset_name"], dataset)
    totals, shape = dataset.manifest.totals, dataset.manifest.image["shape"]
    context.say(f"{totals.rows:,} images of {shape[1]} x {shape[0]} x {shape[2]} · {format_size(totals.bytes)}")
    _say_copies(dataset, context)
    return Outcome(dataset.uri, dataset.fingerprint, state, {"rows": totals.rows, "bytes": totals.bytes})


def _built(clean: Dataset, uri: str, config: ResizeConfig, context: Context, copies: Planned) -> Dataset:
    try:
        if uris.is_http(config.ray_address):
            dataset = build_by_job(clean, uri, config, context)
        else:
            dataset = _build(clean, uri, config, context, copies)
    except MillError:
        # Another run may have committed the same meanwhile, and removed the runs that this one was reading.
        if (winner := find_intact_dataset(uri)) is None:
            raise
        dataset = winner
    remove_runs(uri)
    return dataset


def _build(clean: Dataset, uri: str, config: ResizeConfig, context: Context, copies: Planned) -> Dataset:
    recipe = _recipe(clean, config, copies.sent(uri))
    made = _Work(uri, recipe, context, Progress("resize", total=clean.manifest.totals.rows))
    plans = [plan_split(clean, split, recipe.row_bytes, config.copies) for split in SPLITS]
    left = [made.leave_out_finished(plan.jobs) for plan in plans]
    if any(left):
        say_estimate(clean, config, recipe, context)
        with _slots(clean, config) as slots:
            share = config.gpu_share if config.device != CPU else 0.0
            made.do(plans, left, slots, share)
    return commit(uri, _manifest(clean, uri, config, recipe, [made.done[key] for key in sorted(made.done)]))


@contextmanager
def _slots(clean: Dataset, config: ResizeConfig) -> Iterator[Slots]:
    """Where the jobs run: in threads of this process, or on Ray."""
    if _uses_threads(clean, config):
        yield Threads(config.resize_workers or max_workers(WORKER_BYTES))
        return
    gpus = {"gpus": gpus_here()} if config.device != CPU and not config.ray_address else {}
    with ray_session(config.ray_address, config.resize_workers, uris.join(clean.uri, MANIFEST), **gpus) as cluster:
        yield cluster


def _uses_threads(clean: Dataset, config: ResizeConfig) -> bool:
    """GPUs are used by Ray's actors; copies are drawn with libraries that have one state for all threads."""
    if config.ray_address or config.device != CPU or config.copies or config.executor == "ray":
        return False
    workers = config.resize_workers or max_workers(WORKER_BYTES)
    return config.executor == "threads" or work_seconds(clean.manifest.totals) <= RAY_START_S * workers


def _recipe(clean: Dataset, config: ResizeConfig, copies: CopyPolicy | None) -> Recipe:
    geometry = config.geometry(clean.manifest.image["color"])
    if config.encoding == JPEG and geometry.color in ("ycbcr", "lab"):
        raise wrong("encoding", "raw with this colour, since a JPEG would keep half of its second and third channel",
                    f"{config.encoding} with {geometry.color}")  # fmt: skip
    with_sums = needs_sums(config.normalization, geometry.color, geometry.edges)
    return Recipe(geometry, config.encoding, config.jpeg_quality, config.jpeg_subsampling, with_sums, copies)


@dataclass(frozen=True)
class Made:
    """What one job gave: a tensor file, the bytes of its images, the sums of its channels where they are wanted, and
    what is known of its copies."""

    file: File
    image_bytes: int
    sums: Sums | None
    copied: Copied = field(default_factory=Copied)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Made:
        return cls(
            File(**record["file"]),
            record["image_bytes"],
            Sums.from_record(record["sums"]) if "sums" in record else None,
            Copied(**record.get("copies", {})),
        )


@dataclass
class _Work:
    """What is done of a dataset, by this try and by earlier ones."""

    uri: str
    recipe: Recipe
    context: Context
    progress: Progress
    done: dict[str, Made] = field(default_factory=dict)

    def leave_out_finished(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that no earlier try finished; what the others gave goes to `done`."""
        left = []
        for job in jobs:
            record = self.context.workspace.work_record(self.uri, job.key)
            made = Made.from_record(record) if record else None
            entry = get_store(self.uri).stat(uris.join(self.uri, made.file.uri)) if made else None
            whole = made and entry and entry.size == made.file.bytes
            if made and whole and (made.sums or not self.recipe.with_sums or job.split != "train"):
                self.done[job.key] = made
                self.progress.leave_out(job.rows)
            else:
                left.append(job)
        return left

    def do(self, plans: Sequence[Plan], left: Sequence[Sequence[Job]], slots: Slots, gpu_share: float) -> None:
        """All jobs that are left, of all splits; clean files are merged first where they are too many.

        `gpu_share`: of a GPU, for each worker; 0 for workers on the CPU.
        """

        def merger(merges: Sequence[Merge]) -> dict[str, dict[str, Any]]:
            return self._merge(merges, slots)

        plans = [
            with_runs(plan, jobs, self.recipe.columns(jobs[0]), self.uri, merger) if jobs else plan
            for plan, jobs in zip(plans, left, strict=True)
        ]
        self.progress.restart()
        tasks = (batch for plan, jobs in zip(plans, left, strict=True) if jobs for batch in batches(plan, jobs))
        arguments = (self.uri, self.recipe)
        if gpu_share and isinstance(slots, Cluster):
            results = run_on_gpus(tasks, arguments, slots, gpu_share)
        else:
            results = run_jobs(tasks, make_files, arguments, slots)
        for batch, result in results:
            for key, record in result["files"].items():
                self.done[key] = Made.from_record(record)
                self.context.workspace.record_work(self.uri, key, record)
            _raise_error_of(result)
            self.progress.add(batch.rows)

    def _merge(self, merges: Sequence[Merge], slots: Slots) -> dict[str, dict[str, Any]]:
        """The records of some runs, each made unless an earlier try did."""
        workspace = self.context.workspace
        recorded = {m.key: workspace.work_record(self.uri, m.key) for m in merges}
        found = {key: record for key, record in recorded.items() if record and is_whole(record, self.uri)}
        rows, sources = sum(m.rows for m in merges), sum(len(m.inputs) for m in merges)
        self.context.say(f"{merges[0].split}: {sources:,} pieces are merged to {len(merges):,}, so as to read less")
        progress = Progress("resize", "images merged", rows - sum(m.rows for m in merges if m.key in found))
        for task, result in run_jobs((m for m in merges if m.key not in found), merge, (self.uri,), slots):
            _raise_error_of(result)
            found[task.key] = result
            workspace.record_work(self.uri, task.key, result)
            progress.add(task.rows)
        return found


def _raise_error_of(result: dict[str, Any]) -> None:
    if "error" in result:
        raise error_for_exit_code(result["exit_code"], result["error"])


def _about_copies(policy: CopyPolicy | None, copied: Copied) -> dict[str, Any]:
    """What a manifest says of the copies, if there are any."""
    if policy is None:
        return {}
    about = {"policy": policy.policy, "per_image": policy.number, "rows": copied.rows}
    return {"copies": about | ({"images_without_mask": copied.without} if policy.masked else {})}


def _say_copies(dataset: Dataset, context: Context) -> None:
    if copies := dataset.manifest.extra.get("copies"):
        context.say(f"{copies['rows']:,} of them copies of training images ({copies['policy']})")
        if without := copies.get("images_without_mask"):
            context.say(f"{without:,} training images have no mask, or none with a foreground: no copies of them")


def _manifest(clean: Dataset, uri: str, config: ResizeConfig, recipe: Recipe, made: list[Made]) -> Manifest:
    geometry, totals = recipe.geometry, clean.manifest.totals
    # Stable: within a split the order of the shuffled rows stays.
    files = sorted((one.file for one in made), key=lambda f: SPLITS.index(f.split))
    by_split = {split: sum(f.rows for f in files if f.split == split) for split in SPLITS}
    copied = Copied.sum_of(one.copied for one in made)
    if sum(by_split.values()) != totals.rows + copied.rows:
        raise MillError(
            f"the ledger is wrong: {totals.rows} clean rows and {copied.rows} copies, {sum(by_split.values())} tensors"
        )
    sums = sum((one.sums for one in made if one.sums), Sums())
    mean, std = normalization_of(config.normalization, geometry.color, geometry.shape[2], sums)
    return Manifest(
        kind="tensors",
        fingerprint=uris.basename(uri),
        parents=(clean.as_parent(uri),),
        config=config.manifest_values(),
        task=clean.manifest.task,
        classes=clean.manifest.classes,
        files=tuple(files),
        totals=Totals(
            rows=totals.rows + copied.rows,
            bytes=sum(one.image_bytes for one in made),
            by_split=by_split,
            by_class=copied.added_to(totals.by_class, clean.manifest.classes),
        ),
        image={
            **geometry.to_dict(),
            "dtype": "uint8",
            "encoding": recipe.encoding,
            "mean": mean,
            "std": std,
        },
        extra={"dataset_name": clean.manifest.extra["dataset_name"]}
        | _about_copies(recipe.copies, copied)
        | ({"device": config.device} if config.device != CPU else {}),
    )
