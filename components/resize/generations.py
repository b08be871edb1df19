"""Tensors of a dataset that has grown: the shards of its last tensors are listed again, and only new rows are resized.

The shards of one run of resize are a generation: number 0 those of a build from nothing, and each run that continues
earlier tensors adds one with its new rows. Rows that were removed from the dataset are dropped by writing their shard
again without them, from its own pixels; a row that has changed is removed and added. When the generations above 0 are
many or large, everything is built anew.

The plan is a function of the clean dataset and of the tensors that are continued. These are chosen once: by the first
process that plans, which records its choice in the work in progress, where a retry and a job in another pod find it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import ImageSpec, TensorsExtra
from ..dataset.labels import SINGLE, label_column
from ..dataset.manifest import Dataset, File, digest
from ..dataset.shards import Layout, ShardWriter, read_file, row_groups
from ..imaging.pixel_options import RAW
from ..imaging.tensors import decode_column
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import DatasetError
from ..storage.parallel import map_ordered
from .plan import INDEX_THREADS, Indices
from .statistics import ChannelSums, add_histogram
from .target import Target, choose_base_tensors, count_by_generation, find_comparable_clean, must_compact
from .tensor_shards import CopyCounts, FinishedShard, TensorSpec, count_copies


@dataclass(frozen=True)
class RewriteTask:
    """One tensor shard, at an absolute `uri`, to write without the rows that were removed from the dataset; `rows`
    stay, augmented copies included."""

    key: str
    split: str
    rows: int
    uri: str
    removed_ids: tuple[str, ...]
    generation: int
    task: str = SINGLE


def write_remaining(task: RewriteTask, dataset_uri: str, spec: TensorSpec) -> dict[str, Any]:
    """Write the rows of a shard that stay, in their order; return its record by its key, as `write_shards`.

    Memory holds one row group. The sums of raw pixels are exactly those of a shard that never had the other rows.
    """
    schema, removed_ids = spec.schema(task.task), pa.array(task.removed_ids, pa.string())
    is_summed = spec.with_sums and task.split == "train"
    histogram = np.zeros((spec.geometry.shape[2], 256), np.int64) if is_summed else None
    kept, image_bytes = [], 0
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for rows in read_file(task.uri, schema.names):
            table = rows.filter(pc.invert(pc.is_in(rows.column("image_id"), value_set=removed_ids))).combine_chunks()
            if not table.num_rows:
                continue
            image_bytes += _count_image_bytes(table, spec)
            if histogram is not None:
                originals = table.filter(pc.equal(table.column("copy"), 0)) if spec.copies else table
                image = ImageSpec(spec.geometry.shape, encoding=RAW)
                for pixels in decode_column(originals.column("image"), image) if originals.num_rows else ():
                    add_histogram(histogram, pixels)
            kept.append(table.drop_columns("image"))
            writer.add_table(table.cast(schema))
        file = writer.publish(f"data/{task.split}", "data", task.split)
    if file.rows != task.rows:
        raise DatasetError(f"{task.uri}: expected {task.rows} rows to keep, found {file.rows}")
    record: dict[str, Any] = {"file": asdict(file), "rows": file.rows, "image_bytes": image_bytes}
    record["generation"] = task.generation
    if spec.has_copies(task.split):
        record["copies"] = asdict(_count_copies(kept, task.task))
    if histogram is not None:
        record["sums"] = asdict(ChannelSums.from_histogram(histogram))
    return {task.key: record}


def _count_image_bytes(table: pa.Table, spec: TensorSpec) -> int:
    if spec.encoding == RAW:
        return int(table.num_rows * spec.row_bytes)
    return int(pc.sum(pc.binary_length(table.column("image"))).as_py())


def _count_copies(tables: list[pa.Table], task: str) -> CopyCounts:
    rows = [row for table in tables for row in table.to_pylist()]
    with_copies = {row["image_id"] for row in rows if row["copy"]}
    counts = CopyCounts(without=len({row["image_id"] for row in rows} - with_copies))
    count_copies(counts, rows, label_column(task))
    return counts


CONTENT_COLUMNS = ("image_id", "split", "sha256", "pixel_hash", "format", "width", "height", "image_bytes")
"""Columns of a clean row that, with its labels and the options of pixel operations, decide its tensor."""
_KEY_BYTES = 16


@dataclass(frozen=True)
class Growth:
    """The work that makes tensors from earlier ones.

    Args:
        tensors: the earlier ones.
        added: of each clean file, by its URI in the manifest, its new rows: int64, ascending; files with some only.
        shards: the earlier shards in their order: listed again, or to be written without removed rows.
        num_removed: number of images of the earlier tensors that are no longer in the clean dataset.
        generation: of the new rows.
    """

    tensors: Dataset
    added: dict[str, Indices]
    shards: tuple[FinishedShard | RewriteTask, ...]
    num_removed: int
    generation: int

    @property
    def prefix(self) -> str:
        """The prefix of the keys of finished work, which depends on the tensors that are continued."""
        return make_prefix(self.tensors)

    @property
    def rewrites(self) -> list[RewriteTask]:
        return [shard for shard in self.shards if isinstance(shard, RewriteTask)]

    @property
    def added_rows(self) -> int:
        return sum(len(rows) for rows in self.added.values())

    def collect(self, finished: Mapping[str, FinishedShard]) -> list[FinishedShard]:
        """Return the earlier shards as the new tensors list them. `finished`: the written ones, by their keys."""
        return [finished[shard.key] if isinstance(shard, RewriteTask) else shard for shard in self.shards]


def make_prefix(tensors: Dataset) -> str:
    return f"{digest([tensors.fingerprint, tensors.manifest_sha256])[:8]}-"


def plan_growth(target: Target, spec: TensorSpec, context: Context) -> Growth | None:
    """Return the plan to continue the name's last tensors; None where everything has to be built.

    That is so where there are none of the same config, or they or their clean dataset are damaged; where the rows that
    were added since the last build of everything are too many; and where copies are made from masks, which are not
    compared, or rows were removed whose share in the sums of all pixels was lost with their JPEG.
    """
    tensors = choose_base_tensors(target, context)
    if tensors is None or (spec.copies and spec.copies.needs_masks):
        return None
    earlier = find_comparable_clean(tensors, target.clean)
    if earlier is None or (earlier.manifest.task != target.clean.manifest.task):
        return None
    try:
        added, removed_ids = compare_rows(earlier, target.clean)
        shards = _plan_shards(tensors, removed_ids, target.uri)
    except DatasetError as error:
        context.say(f"{tensors.uri} is not continued: {error}")
        return None
    rewrites = [shard for shard in shards if isinstance(shard, RewriteTask)]
    if spec.with_sums and spec.encoding != RAW and any(task.split == "train" for task in rewrites):
        return None
    generation = max((shard.generation for shard in shards), default=0) + 1
    growth = Growth(tensors, added, tuple(shards), sum(map(len, removed_ids.values())), generation)
    rows = count_by_generation((shard.rows, shard.generation) for shard in shards)
    if added:
        rows[growth.generation] = growth.added_rows * (1 + target.config.copies)
    return None if must_compact(rows) else growth


def compare_rows(earlier: Dataset, clean: Dataset) -> tuple[dict[str, Indices], dict[str, set[str]]]:
    """Compare two clean datasets; return the rows that only `clean` has, and those that only `earlier` has.

    The first by the file's URI, as positions, int64 ascending; the others as image_ids, by split. Files that both list
    are not read, of the others only small columns.
    """
    listed = [{(file.sha256, file.split) for file in dataset.files()} for dataset in (earlier, clean)]
    others = [file for file in earlier.files() if (file.sha256, file.split) not in listed[1]]
    files = [file for file in clean.files() if (file.sha256, file.split) not in listed[0]]
    earlier_keys, keys = _read_keys(earlier, others), _read_keys(clean, files)
    added = {}
    for file, is_new in zip(files, _find_absent(keys, earlier_keys), strict=True):
        if is_new.any():
            added[file.uri] = np.flatnonzero(is_new).astype(np.int64)
    removed_ids: dict[str, set[str]] = {}
    for file, is_gone in zip(others, _find_absent(earlier_keys, keys), strict=True):
        if is_gone.any():
            image_ids = _read_ids(earlier, file).filter(pa.array(is_gone)).to_pylist()
            removed_ids.setdefault(file.split, set()).update(image_ids)
    return added, removed_ids


def _read_keys(clean: Dataset, files: Sequence[File]) -> list[pa.Array]:
    """Return of each clean file a hash of each row, of all that its tensor depends on: binary(16) [rows]."""
    columns = [*CONTENT_COLUMNS, label_column(clean.manifest.task)]

    def read(file: File) -> pa.Array:
        hashes: list[bytes] = []
        for table in row_groups(clean, file, columns):
            if missing := set(columns) - set(table.column_names):
                raise DatasetError(f"{clean.locate(file)}: expected columns {', '.join(sorted(missing))}, found none")
            rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
            hashes += [hashlib.blake2b(repr(row).encode(), digest_size=_KEY_BYTES).digest() for row in rows]
        return pa.array(hashes, pa.binary(_KEY_BYTES))

    return list(map_ordered(files, read, INDEX_THREADS, lambda file: 0))


def _find_absent(keys: Sequence[pa.Array], others: Sequence[pa.Array]) -> list[npt.NDArray[np.bool_]]:
    """Return of each array of keys which of them are in none of the other arrays: bool [keys]."""
    all_keys, all_others = (pa.chunked_array(part, pa.binary(_KEY_BYTES)).combine_chunks() for part in (keys, others))
    is_absent = pc.invert(pc.is_in(all_keys, value_set=all_others)).to_numpy(zero_copy_only=False)
    return np.split(is_absent, np.cumsum([len(part) for part in keys])[:-1]) if keys else []


def _read_ids(dataset: Dataset, file: File) -> pa.Array:
    columns = [table.column("image_id").combine_chunks() for table in row_groups(dataset, file, ["image_id"])]
    return pa.chunked_array(columns, pa.string()).combine_chunks()


def _plan_shards(tensors: Dataset, removed_ids: Mapping[str, set[str]], uri: str) -> list[FinishedShard | RewriteTask]:
    """Return the shards of `tensors` as the tensors at `uri` continue them, without those of which no row stays."""
    removed = {split: pa.array(sorted(image_ids), pa.string()) for split, image_ids in removed_ids.items()}
    entries, prefix = TensorsExtra.of(tensors.manifest).shards, make_prefix(tensors)

    def plan(file: File) -> FinishedShard | RewriteTask | None:
        located = tensors.locate(file)
        record = entries[file.uri] | {"file": asdict(replace(file, uri=uris.relpath(located, uri)))}
        shard = FinishedShard.from_record(record)
        if file.split not in removed:
            return shard
        ids = _read_ids(tensors, file)
        gone = ids.filter(pc.is_in(ids, value_set=removed[file.split]))
        rows = file.rows - len(gone)
        if not len(gone) or not rows:
            return shard if rows else None
        key, image_ids = f"{prefix}{file.split}-{file.sha256[:16]}", tuple(gone.unique().to_pylist())
        return RewriteTask(key, file.split, rows, located, image_ids, shard.generation, tensors.manifest.task)

    planned = map_ordered(tensors.files(), plan, INDEX_THREADS, lambda file: 0)
    return [shard for shard in planned if shard is not None]
