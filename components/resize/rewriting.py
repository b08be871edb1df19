"""Write a tensor shard again without some of its rows: from its own pixels, so that nothing is decoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import ImageSpec
from ..dataset.labels import SINGLE, label_column
from ..dataset.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..imaging.choices import RAW
from ..imaging.tensors import decode_column
from ..storage.errors import DatasetError
from .statistics import ChannelSums, add_histogram
from .tensor_shards import CopyCounts, TensorSpec, count_copies


@dataclass(frozen=True)
class RewriteTask:
    """One tensor shard to write without the rows that were removed from the dataset.

    Args:
        uri: of the shard as it is, absolute.
        rows: number of rows that stay, augmented copies included.
        removed_ids: the image_ids of the others.
        generation: of the shard.
    """

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
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer, open_parquet(task.uri) as parquet:
        for index in range(parquet.num_row_groups):
            table = read_row_group(parquet, index, task.uri, schema.names)
            table = table.filter(pc.invert(pc.is_in(table.column("image_id"), value_set=removed_ids))).combine_chunks()
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
