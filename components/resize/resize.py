"""Resize, from clean to a committed tensors dataset."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..store import uri as uris
from ..store.errors import MillError, error_for_exit_code, wrong
from ..store.filesystem import store_for
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, File, Manifest, Totals, commit, ready
from ..store.progress import Progress, size
from ..store.step import CACHED, RAN, Context, Outcome
from ..store.tensors import JPEG
from .config import VERSION, ResizeConfig
from .on_ray import ray_session, run_jobs
from .plan import Job, plan_jobs
from .statistics import Sums, needs_sums, normalization_of
from .work import Recipe, make_file

SPLITS = ("train", "val", "test")


def resize(config: ResizeConfig, context: Context) -> Outcome:
    """Find the tensors that this clean dataset and config give, or make them."""
    clean = context.parent("clean", config.clean, "clean")
    counting = config.counting() | context.attempt()
    uri = context.workspace.dataset("tensors", fingerprint("tensors", VERSION, [clean.fingerprint], counting))
    there = ready(uri)
    dataset = there or _build(clean, uri, config, context)
    context.workspace.note_latest(config.name or clean.manifest.extra["dataset_name"], dataset, context.run)
    totals, shape = dataset.manifest.totals, dataset.manifest.image["shape"]
    context.say(f"{totals.rows:,} images of {shape[1]} x {shape[0]} x {shape[2]} · {size(totals.bytes)}")
    return Outcome(uri, dataset.fingerprint, CACHED if there else RAN, {"rows": totals.rows, "bytes": totals.bytes})


def _build(clean: Dataset, uri: str, config: ResizeConfig, context: Context) -> Dataset:
    recipe = _recipe(clean, config)
    progress = Progress("resize", total=clean.manifest.totals.rows)
    done: dict[str, Made] = {}
    open_jobs = _open_jobs(clean, uri, recipe, context, done, progress)
    first = next(open_jobs, None)
    if first is not None:
        with ray_session(config.ray_address, config.resize_workers) as slots:
            context.say(f"Ray with {slots} cores")
            progress.restart()
            for job, result in run_jobs(chain([first], open_jobs), make_file, (uri, recipe), slots):
                if "error" in result:
                    raise error_for_exit_code(result["exit_code"], result["error"])
                done[job.key] = Made.from_record(result)
                context.workspace.record_work(uri, job.key, result)
                progress.add(job.rows)
    return commit(uri, _manifest(clean, uri, config, recipe, [done[key] for key in sorted(done)]))


def _recipe(clean: Dataset, config: ResizeConfig) -> Recipe:
    geometry = config.geometry(clean.manifest.image["color"])
    if config.encoding == JPEG and geometry.color in ("ycbcr", "lab"):
        raise wrong("encoding", "raw with this colour, since a JPEG would keep half of its second and third channel",
                    f"{config.encoding} with {geometry.color}")  # fmt: skip
    with_sums = needs_sums(config.normalization, geometry.color, geometry.edges)
    return Recipe(geometry, config.encoding, config.jpeg_quality, config.jpeg_subsampling, with_sums)


@dataclass(frozen=True)
class Made:
    """What one job gave: a tensor file, the bytes of its images, and the sums of its channels where they are wanted."""

    file: File
    image_bytes: int
    sums: Sums | None

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Made:
        return cls(
            File(**record["file"]),
            record["image_bytes"],
            Sums.from_record(record["sums"]) if "sums" in record else None,
        )


def _open_jobs(
    clean: Dataset,
    uri: str,
    recipe: Recipe,
    context: Context,
    done: dict[str, Made],
    progress: Progress,
) -> Iterator[Job]:
    """The jobs that no earlier try finished; what the others gave goes to `done`."""
    for split in SPLITS:
        for job in plan_jobs(clean, split, recipe.row_bytes):
            record = context.workspace.work_record(uri, job.key)
            made = Made.from_record(record) if record else None
            entry = store_for(uri).stat(uris.join(uri, made.file.uri)) if made else None
            whole = made and entry and entry.size == made.file.bytes
            if made and whole and (made.sums or not recipe.with_sums or split != "train"):
                done[job.key] = made
                progress.leave_out(job.rows)
            else:
                yield job


def _manifest(clean: Dataset, uri: str, config: ResizeConfig, recipe: Recipe, made: list[Made]) -> Manifest:
    geometry, totals = recipe.geometry, clean.manifest.totals
    # Stable: within a split the order of the shuffled rows stays.
    files = sorted((one.file for one in made), key=lambda f: SPLITS.index(f.split))
    by_split = {split: sum(f.rows for f in files if f.split == split) for split in SPLITS}
    if sum(by_split.values()) != totals.rows:
        raise MillError(f"the ledger is wrong: {totals.rows} clean rows, {sum(by_split.values())} tensors")
    sums = sum((one.sums for one in made if one.sums), Sums())
    mean, std = normalization_of(config.normalization, geometry.color, geometry.shape[2], sums)
    return Manifest(
        kind="tensors",
        fingerprint=uris.last_part(uri),
        parents=(clean.as_parent(uri),),
        config=config.effective(),
        task=clean.manifest.task,
        classes=clean.manifest.classes,
        files=tuple(files),
        totals=Totals(
            rows=totals.rows,
            bytes=sum(one.image_bytes for one in made),
            by_split=by_split,
            by_class=totals.by_class,
        ),
        image={
            **geometry.to_dict(),
            "dtype": "uint8",
            "encoding": recipe.encoding,
            "mean": mean,
            "std": std,
        },
        extra={"dataset_name": clean.manifest.extra["dataset_name"]},
    )
