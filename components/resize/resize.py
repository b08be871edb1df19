"""Make a committed tensors dataset from a clean one: the tensors of each clean part are made once, and the index says
which of their rows the dataset holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.index import list_part_rows, make_tensors_index, read_index, write_index
from ..dataset.kinds import CleanExtra, StoredCopies, TensorsExtra
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import (
    MANIFEST,
    Dataset,
    Manifest,
    Part,
    Totals,
    commit,
    find_intact_dataset,
)
from ..dataset.parts import PartFolder, PartRecord
from ..dataset.shards import READ_THREADS, read_file
from ..dataset.splits import SPLITS
from ..engine.map_parts import map_parts
from ..engine.processes import Processes, Threads
from ..engine.ray_job import build_with_ray_job
from ..engine.ray_session import WORKER_BYTES, RaySession, open_ray_session
from ..engine.tasks import AUTO, RAY, THREADS, Executor
from ..step.progress import Progress
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import MillError
from ..storage.parallel import map_ordered, max_workers
from .config import ResizeConfig
from .device import CPU, count_local_gpus
from .statistics import ChannelSums, compute_normalization
from .target import Target, estimate_core_seconds, find_target
from .tensor_part import ResizeTask, TensorSpec, read_channel_sums, write_tensors

RAY_START_S = 8.0
"""Seconds that Ray takes to start on two cores (measured: 6 to 10 s with its first workers)."""


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
            return build_with_ray_job(target.make_job_config(context), address, target.uri, context)
        return _build(target, context)
    except MillError:
        if (committed := find_intact_dataset(target.uri)) is None:  # by another run meanwhile
            raise
        return committed


def _build(target: Target, context: Context) -> Dataset:
    """Make the parts that do not exist, and commit the index of all."""
    clean, folder = target.clean, PartFolder.of(context.workspace, "tensors")
    clean_folder = PartFolder.of(context.workspace, "clean")
    spec = target.make_spec(target.copies.publish_listing(folder.uri))
    tasks = target.plan(context)

    def open_executor(missing: Sequence[ResizeTask]) -> Any:
        return _open_executor(target, missing)

    progress = Progress("resize", total=sum(task.rows for task in tasks))
    arguments = (clean_folder, spec, _count_threads(target.config, len(tasks)))
    records = map_parts(folder, tasks, write_tensors, arguments, open_executor, progress)

    rows = _find_rows(clean, [records[task.key] for task in tasks], folder, spec)
    originals = int((rows.index.column("copy").to_numpy() == 0).sum())
    if originals != clean.manifest.totals.rows:
        raise MillError(
            f"internal error: row counts do not add up: {clean.manifest.totals.rows} clean rows, {originals} tensors"
        )
    return commit(target.uri, _make_manifest(target, spec, rows))


@contextmanager
def restored_library_threads() -> Iterator[None]:
    """Give torch its threads back after the block, whose work uses one thread a core."""
    import torch

    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)


def _count_threads(config: ResizeConfig, num_tasks: int) -> int:
    """Return the threads of one task, where there are fewer tasks than cores of this machine."""
    if config.ray_address or config.copies or config.device != CPU:
        return 1  # the libraries that augment copies keep global state
    workers = config.resize_workers or max_workers(WORKER_BYTES)
    return max(1, workers // max(1, min(workers, num_tasks)))


@contextmanager
def _open_executor(target: Target, missing: Sequence[ResizeTask]) -> Iterator[Executor]:
    """Open the executor for these tasks."""
    config = target.config
    workers = config.resize_workers or max_workers(WORKER_BYTES)
    kind = _choose_executor(config, missing, workers)
    if kind != RAY:
        with restored_library_threads(), (Threads if kind == THREADS else Processes)("resize", workers) as local:
            yield local
        return
    gpus = {"gpus": count_local_gpus()} if config.device != CPU and not config.ray_address else {}
    probe_uri = uris.join(target.clean.uri, MANIFEST)
    with open_ray_session("resize", config.ray_address, config.resize_workers, probe_uri, **gpus) as session:
        if config.device == CPU or not isinstance(session, RaySession):
            yield session
            return
        from .gpu import GpuActors

        with GpuActors(session, config.gpu_share, config.device) as actors:
            yield actors


def _choose_executor(config: ResizeConfig, tasks: Sequence[ResizeTask], workers: int) -> str:
    if config.ray_address or config.device != CPU:  # GPUs are used by Ray's actors
        return RAY
    if config.executor != AUTO:
        return config.executor
    # Copies can't be made on threads: the libraries that augment them keep global state.
    core_seconds = estimate_core_seconds((task.clean for task in tasks), config.copies)
    return THREADS if not config.copies and core_seconds <= RAY_START_S * workers else RAY


@dataclass(frozen=True)
class _TensorRows:
    """The rows that a tensors dataset holds: its index, the parts that it names, the bytes of their images, and the
    channel sums of the training images without their copies."""

    index: pa.Table
    parts: tuple[Part, ...]
    image_bytes: int
    sums: ChannelSums


def _find_rows(clean: Dataset, records: Sequence[PartRecord], folder: PartFolder, spec: TensorSpec) -> _TensorRows:
    """Find the rows of the clean index in the tensors of its parts; `records` are in the order of these."""
    label = label_column(clean.manifest.task)
    index = read_index(clean, ["image_id", "part", "row", label, "split"])
    by_part = dict(zip((part.key for part in clean.manifest.parts), records, strict=True))
    tables: list[pa.Table] = []
    parts: list[Part] = []
    image_bytes, sums = 0, ChannelSums()
    columns = ["source_row", *(["copy"] if spec.copies else []), *(["channel_sums"] if spec.with_sums else [])]
    schema = make_tensors_index(clean.manifest.task)

    def read_small(part: Part) -> pa.Table:
        return pa.concat_tables(read_file(folder.locate(part.key), columns))

    for split in SPLITS:
        pairs = [
            (rows, file)
            for rows in list_part_rows(clean, index)
            for file in by_part[rows.part.key].files
            if file.split == split
        ]
        small = map_ordered([file for _, file in pairs], read_small, READ_THREADS, lambda part: 100 * part.rows)
        for (rows, file), table in zip(pairs, small, strict=True):
            places = np.full(rows.part.rows, -1, np.int64)
            places[rows.rows] = np.arange(len(rows.rows))
            numbers = places[np.asarray(table.column("source_row"))]
            held = np.flatnonzero(numbers >= 0)
            if not len(held):
                continue
            taken = rows.index.take(pa.array(numbers[held]))
            copies = np.asarray(table.column("copy"))[held] if spec.copies else np.zeros(len(held), np.int32)
            tables.append(_make_index(taken, file, held, copies, split, label, schema))
            parts.append(file)
            image_bytes += _count_bytes(by_part[rows.part.key], file, len(held), spec)
            if spec.with_sums and split == "train":
                values = read_channel_sums(table.column("channel_sums"), spec.geometry.shape[2])[held[copies == 0]]
                sums += ChannelSums.of(values, spec.row_bytes // spec.geometry.shape[2])
    return _TensorRows(pa.concat_tables(tables) if tables else schema.empty_table(), tuple(parts), image_bytes, sums)


def _make_index(
    taken: pa.Table, file: Part, rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int32], split: str, label: str,
    schema: pa.Schema,
) -> pa.Table:  # fmt: skip
    """Return the index of rows of one file of tensors; `taken`: their rows of the clean index."""
    columns: Mapping[str, Any] = {
        "image_id": taken.column("image_id"),
        "part": pa.repeat(file.key, len(rows)),
        "row": pa.array(rows, pa.int32()),
        "copy": pa.array(copies, pa.int32()),
        label: taken.column(label),
        "split": pa.repeat(split, len(rows)),
    }
    return pa.table([columns[field.name] for field in schema], schema=schema)


def _count_bytes(record: PartRecord, file: Part, rows: int, spec: TensorSpec) -> int:
    """Return the bytes of so many images of a file: of JPEGs by their mean."""
    return round(int(record.facts["image_bytes"][file.split]) * rows / file.rows)


def _make_manifest(target: Target, spec: TensorSpec, rows: _TensorRows) -> Manifest:
    clean, config, geometry = target.clean, target.config, spec.geometry
    copies, splits = np.asarray(rows.index.column("copy")), rows.index.column("split").to_pylist()
    mean, std = compute_normalization(config.normalization, geometry.color, geometry.shape[2], rows.sums)
    by_class = count_classes(rows.index, clean.manifest.task, clean.manifest.classes)
    stored = None
    if spec.copies:
        with_copies = int((copies == 1).sum())
        without = clean.manifest.totals.by_split["train"] - with_copies if spec.copies.needs_masks else None
        stored = StoredCopies(spec.copies.policy, spec.copies.per_image, int((copies > 0).sum()), without)
    return Manifest(
        kind="tensors",
        fingerprint=target.fingerprint,
        parents=(clean.as_parent(target.uri),),
        config=config.manifest_values(),
        task=clean.manifest.task,
        classes=clean.manifest.classes,
        parts=rows.parts,
        files=tuple(write_index(target.uri, rows.index)),
        totals=Totals(
            rows=rows.index.num_rows,
            bytes=rows.image_bytes,
            by_split={split: splits.count(split) for split in SPLITS},
            by_class=by_class,
        ),
        image=geometry.describe(spec.encoding, mean, std),
        extra=TensorsExtra(
            dataset_name=clean.name,
            copies=stored,
            device=config.device if config.device != CPU else None,
            epochs=CleanExtra.of(clean.manifest).epochs,
        ),
    )


def count_classes(index: pa.Table, task: str, classes: Sequence[str]) -> dict[str, int]:
    """Return the rows of each class of an index."""
    column = index.column(label_column(task)).combine_chunks()
    ids = np.asarray(column.flatten() if task == MULTI else column)
    return dict(zip(classes, np.bincount(ids, minlength=len(classes)).tolist(), strict=True))
