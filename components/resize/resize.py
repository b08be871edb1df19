"""Resize, from clean to a committed tensors dataset."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from ..store import uri as uris
from ..store.errors import MillError, error_for_exit_code
from ..store.filesystem import store_for
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, File, Manifest, Totals, commit, ready
from ..store.progress import Progress, size
from ..store.resample import Geometry
from ..store.step import CACHED, RAN, Context, Outcome
from .config import VERSION, ResizeConfig
from .on_ray import ray_session, run_jobs
from .plan import Job, plan_jobs
from .work import make_file

SPLITS = ("train", "val", "test")
MEAN_STD = {
    "rgb": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    # The luma weights of ITU-R 601 applied to the three channels' means; the spread is that of the luma.
    "gray": ([0.458], [0.226]),
}
"""Mean and standard deviation of ImageNet's training images, in [0, 1]: what pretrained weights expect."""


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
    geometry = Geometry(config.image_size, config.resize_mode, clean.manifest.image["color"])
    row_bytes = int(np.prod(geometry.shape))
    progress = Progress("resize", total=clean.manifest.totals.rows)
    files: dict[str, File] = {}
    open_jobs = _open_jobs(clean, uri, row_bytes, context, files, progress)
    first = next(open_jobs, None)
    if first is not None:
        with ray_session(config.ray_address, config.resize_workers) as slots:
            context.say(f"Ray with {slots} cores")
            progress.restart()
            for job, result in run_jobs(chain([first], open_jobs), make_file, (uri, geometry), slots):
                if "error" in result:
                    raise error_for_exit_code(result["exit_code"], result["error"])
                files[job.key] = File(**result["file"])
                context.workspace.record_work(uri, job.key, result)
                progress.add(job.rows)
    return commit(uri, _manifest(clean, uri, config, geometry, [files[key] for key in sorted(files)]))


def _open_jobs(
    clean: Dataset, uri: str, row_bytes: int, context: Context, files: dict[str, File], progress: Progress
) -> Iterator[Job]:
    """The jobs that no earlier try finished; the files of the others go to `files`."""
    for split in SPLITS:
        for job in plan_jobs(clean, split, row_bytes):
            record = context.workspace.work_record(uri, job.key)
            file = File(**record["file"]) if record else None
            entry = store_for(uri).stat(uris.join(uri, file.uri)) if file else None
            if file and entry and entry.size == file.bytes:
                files[job.key] = file
                progress.total -= job.rows
            else:
                yield job


def _manifest(clean: Dataset, uri: str, config: ResizeConfig, geometry: Geometry, files: list[File]) -> Manifest:
    totals = clean.manifest.totals
    files.sort(key=lambda f: SPLITS.index(f.split))  # stable: within a split the order of the shuffled rows stays
    by_split = {split: sum(f.rows for f in files if f.split == split) for split in SPLITS}
    if sum(by_split.values()) != totals.rows:
        raise MillError(f"the ledger is wrong: {totals.rows} clean rows, {sum(by_split.values())} tensors")
    mean, std = MEAN_STD[geometry.color]
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
            bytes=totals.rows * int(np.prod(geometry.shape)),
            by_split=by_split,
            by_class=totals.by_class,
        ),
        image={
            "shape": list(geometry.shape),
            "dtype": "uint8",
            "encoding": "raw",
            "color": geometry.color,
            "mean": mean,
            "std": std,
            "mode": geometry.mode,
        },
        extra={"dataset_name": clean.manifest.extra["dataset_name"]},
    )
