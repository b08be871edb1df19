"""Group consecutive tensor shards into tasks, so that the rows that they need are read once, and merge too many files.

The rows of a shard lie in all clean files of a split, some in each, and only whole row groups can be read. The more
rows a task covers, the less is read that it does not need. The grouping changes nothing of what the shards hold.

Where every task reads a few rows of a thousand files, it reads a whole row group of each: terabytes for 40 GB of data.
So files are first merged, some at a time, into files in shuffled order with small row groups, and these again while
they are too many (an external merge sort: Knuth, The Art of Computer Programming 3, 5.4). Merged files lie in the
tensors' `_work/runs/`, named by their content, until the tensors are committed. The images' bytes stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.shards import Layout, ShardWriter
from ..storage import uri as uris
from ..storage.errors import DatasetError, MillError
from ..storage.store import get_store
from .plan import (
    MAX_TASK_ENCODED_BYTES,
    RowSlice,
    ShardPlan,
    SortedRows,
    SplitPlan,
    count_rows_read,
    get_index_ranges,
    locate_rows,
)
from .tensor_shards import Kernel, Row, TensorSpec, decode_on_cpu, read_rows, read_tables, write_shard

MAX_READ_AMPLIFICATION = 2.5
"""Rows read for each row that is needed: beyond it tasks grow, and then clean files are merged."""
TASK_ENCODED_BYTES = 48 * 2**20
"""Bytes of encoded images that a task of several shards holds, by the dataset's mean."""
ENOUGH_TASKS = 64
"""Tasks that keep many cores busy: beyond it they grow as far as they may."""
TAIL_FACTOR = 4
"""A task has at most 1/4 of the shards that are left of its split, so that the last ones are short."""


@dataclass(frozen=True)
class ResizeTask:
    """Consecutive tensor shards that one task writes, and where their rows lie."""

    shards: tuple[ShardPlan, ...]
    slices: tuple[RowSlice, ...]

    @property
    def key(self) -> str:
        """The split and range of indices, in the form of `ShardPlan.key`."""
        return f"{self.shards[0].split}-{self.shards[0].low:016x}-{self.shards[-1].high:016x}"

    @property
    def rows(self) -> int:
        """Number of images that are read."""
        return sum(shard.rows for shard in self.shards)


def write_shards(
    task: ResizeTask, dataset_uri: str, spec: TensorSpec, kernel: Kernel = decode_on_cpu
) -> dict[str, Any]:
    """Write the shards of a task; return their records by key (see `write_shard`)."""
    rows = read_rows(task.slices, spec.required_columns(task.shards[0]))
    rows.reverse()
    return {
        shard.key: write_shard(shard, dataset_uri, spec, _pop_rows_below(rows, shard.high), kernel)
        for shard in task.shards
    }


def _pop_rows_below(rows: list[Row], high: int) -> list[Row]:
    """Remove the rows with an index below `high` from the end of `rows`, which are in descending order; return them."""
    popped = []
    while rows and rows[-1]["shuffle_index"] < high:
        popped.append(rows.pop())
    return popped


def plan_tasks(plan: SplitPlan, shards: Sequence[ShardPlan]) -> Iterator[ResizeTask]:
    """Yield tasks for some shards of a plan, in their order: a function of the plan and of these shards."""
    groups = group_shards(shards, choose_shards_per_task(plan, shards))
    for group, slices in zip(groups, locate_rows(plan.sources, get_index_ranges(groups)), strict=True):
        yield ResizeTask(group, slices)


def choose_shards_per_task(plan: SplitPlan, shards: Sequence[ShardPlan]) -> int:
    """Return the least number that `MAX_READ_AMPLIFICATION` allows, more where tasks are many, and never more than a
    task may hold."""
    upper = compute_max_shards_per_task(plan)
    lower = min(upper, max(1, len(shards) // ENOUGH_TASKS))
    sizes = (n for n in range(lower, upper) if compute_read_amplification(plan, shards, n) <= MAX_READ_AMPLIFICATION)
    return next(sizes, upper)


def compute_max_shards_per_task(plan: SplitPlan) -> int:
    """Return the number of shards whose encoded images a task may hold."""
    return max(1, TASK_ENCODED_BYTES // (max((shard.rows for shard in plan.shards), default=1) * plan.mean_bytes))


def compute_read_amplification(plan: SplitPlan, shards: Sequence[ShardPlan], max_shards: int) -> float:
    """Return the rows that tasks of up to `max_shards` read for some shards of a plan, per row of the whole plan."""
    return count_rows_read(plan.sources, get_index_ranges(group_shards(shards, max_shards))) / max(1, plan.rows)


def group_shards(shards: Sequence[ShardPlan], max_shards: int) -> list[tuple[ShardPlan, ...]]:
    """Group adjacent shards, at most `max_shards` each; shards that an earlier attempt finished separate groups."""
    groups: list[tuple[ShardPlan, ...]] = []
    begin = 0
    while begin < len(shards):
        end = begin + max(1, min(max_shards, (len(shards) - begin) // TAIL_FACTOR))
        end = next((n for n in range(begin + 1, end) if shards[n].low != shards[n - 1].high), end)
        groups.append(tuple(shards[begin:end]))
        begin = end
    return groups


MERGED_FOLDER = "_work/runs"
MIN_BYTES_TO_MERGE = 2**30
"""Bytes of a split's images: less than that is read from memory however often."""
MERGED_GROUP_BYTES = 2**20
"""Row group of a merged file: a task holds one of each file that it reads, and reads half of one too much at either
end."""
MERGED_FILE_BYTES = 64 * 2**20
"""A merged sequence is several files of this size: a reader needs the footers of those only that hold rows for it."""
MIN_FAN_IN = 8
MAX_EXTRA_READ = 0.5
"""Merged sequences are so few that tasks read at most this part more than they need, where one pass can make them so
few."""


@dataclass(frozen=True)
class MergeTask:
    """One merged sequence to write. `inputs`: where each sequence to merge lies; `columns`: those to keep."""

    key: str
    split: str
    rows: int
    inputs: tuple[tuple[RowSlice, ...], ...]
    columns: tuple[str, ...]


RunMerges = Callable[[Sequence[MergeTask]], dict[str, dict[str, Any]]]
"""Runs merge tasks, except those that are finished; returns the records of `write_merged` by their keys."""


def merge_sources(
    plan: SplitPlan, shards: Sequence[ShardPlan], columns: Sequence[str], dataset_uri: str, run_merges: RunMerges
) -> SplitPlan:
    """Return the plan with so few sources that `shards` can be written without reading too much: mostly as it was."""
    level = 0
    while needs_merging(plan, shards):
        level += 1
        groups = group_sources(plan)
        split = plan.shards[0].split
        tasks = [
            MergeTask(f"{plan.prefix}run-{split}-{level}-{n:05d}", split, sum(len(s.indices) for s in group),
                      tuple(tuple(s.locate(0, len(s.indices))) for s in group), tuple(columns))
            for n, group in enumerate(groups)
        ]  # fmt: skip
        records = run_merges(tasks)
        merged = (
            describe_merged(records[task.key], group, dataset_uri) for task, group in zip(tasks, groups, strict=True)
        )
        plan = replace(plan, sources=tuple(merged))
    return plan


def needs_merging(plan: SplitPlan, shards: Sequence[ShardPlan]) -> bool:
    """Return whether reading `shards` from the plan's sources would read too many rows that are not needed."""
    if len(plan.sources) < 2 or plan.rows * plan.mean_bytes < MIN_BYTES_TO_MERGE:
        return False
    return compute_read_amplification(plan, shards, choose_shards_per_task(plan, shards)) > MAX_READ_AMPLIFICATION


def group_sources(plan: SplitPlan) -> list[tuple[SortedRows, ...]]:
    """Group consecutive sources to merge: as few in each as give few enough sequences, and as memory allows."""
    count = len(plan.sources)
    task_bytes = compute_max_shards_per_task(plan) * max(shard.rows for shard in plan.shards) * plan.mean_bytes
    max_sequences = max(1, int(MAX_EXTRA_READ * task_bytes / MERGED_GROUP_BYTES))
    num_row_groups = sum(len(source.starts) - 1 for source in plan.sources)
    group_bytes = max(1, plan.rows * plan.mean_bytes // max(1, num_row_groups))
    fan_in = max(2, min(MAX_TASK_ENCODED_BYTES // group_bytes, max(MIN_FAN_IN, -(-count // max_sequences))))
    number = -(-count // fan_in)
    return [plan.sources[count * n // number : count * (n + 1) // number] for n in range(number)]


def describe_merged(record: dict[str, Any], group: Sequence[SortedRows], dataset_uri: str) -> SortedRows:
    """Return the merged sequence of a group by the record of `write_merged`, without reading its files."""
    indices = np.sort(np.concatenate([source.indices for source in group]))
    lengths = [rows for file in record["groups"] for rows in file]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    if starts[-1] != len(indices):
        raise MillError(f"internal error: a merged run has {starts[-1]} rows, its sources {len(indices)}")
    files = tuple(uris.join(dataset_uri, file["uri"]) for file in record["files"])
    return SortedRows(files, indices, starts, (0, *accumulate(len(file) for file in record["groups"])))


def remove_merged_files(dataset_uri: str) -> None:
    """Remove merged files after the commit: they are as large as the data, and not read again."""
    folder = uris.join(dataset_uri, *MERGED_FOLDER.split("/"))
    for entry in list(get_store(folder).list(folder)):
        get_store(folder).discard(entry.uri)


def write_merged(task: MergeTask, dataset_uri: str) -> dict[str, Any]:
    """Write one merged sequence; return the entries of its `files`, and of each the rows of its row groups (`groups`).

    Memory holds one row group of each input, and a few of the output.
    """
    inputs = [_read_tables(slices, list(task.columns)) for slices in task.inputs]
    sequences = [(table, rest) for rest in inputs if (table := next(rest, None)) is not None]
    schema = pa.unify_schemas([table.schema for table, _ in sequences])
    tables = rechunk(merge_sorted(sequences, schema))
    files: list[dict[str, Any]] = []
    groups: list[list[int]] = []
    table = next(tables, None)
    while table is not None:
        with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
            rows, size = [], 0
            while table is not None and size < MERGED_FILE_BYTES:
                writer.add_table(table)
                rows.append(table.num_rows)
                size += table.nbytes
                table = next(tables, None)
            files.append(asdict(writer.publish(f"{MERGED_FOLDER}/{task.split}", "data", task.split)))
            groups.append(rows)
    return {"files": files, "groups": groups}


def _read_tables(slices: Sequence[RowSlice], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of some slices, a row group at a time."""
    for row_slice in slices:
        for table in read_tables(row_slice, columns):
            if table.num_rows:
                yield table.replace_schema_metadata(None)


def merge_sorted(sequences: Sequence[tuple[pa.Table, Iterator[pa.Table]]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Merge sequences in the order of shuffle_index; yield tables of rows sorted by (shuffle_index, image_id).

    `sequences`: the first table of each, and an iterator over the others. Rows of one index may come in several tables,
    in any order: a task sorts what it reads.
    """
    heads = [(table, _get_indices(table), rest) for table, rest in sequences]
    while heads:
        bound = min(indices[-1] for _, indices, _ in heads)
        parts, remaining = [schema.empty_table()], []
        for table, indices, rest in heads:
            rows = int(np.searchsorted(indices, bound, side="right"))
            parts.append(table.slice(0, rows))
            if rows < table.num_rows:
                remaining.append((table.slice(rows), indices[rows:], rest))
            elif (following := next(rest, None)) is not None:
                remaining.append((following, _get_indices(following), rest))
        heads = remaining
        merged = pa.concat_tables(parts, promote_options="default").combine_chunks()
        if not merged.num_rows:
            raise DatasetError("expected rows in the order of shuffle_index to merge, found others")
        order = pc.sort_indices(merged, [("shuffle_index", "ascending"), ("image_id", "ascending")])
        yield merged.take(order)


def _get_indices(table: pa.Table) -> Any:
    return table.column("shuffle_index").to_numpy()


def rechunk(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about `MERGED_GROUP_BYTES`."""
    pending: list[pa.Table] = []
    size = 0
    for table in tables:
        pending.append(table)
        size += table.nbytes
        if size < MERGED_GROUP_BYTES:
            continue
        combined = pa.concat_tables(pending).combine_chunks()
        step = max(1, combined.num_rows * MERGED_GROUP_BYTES // size)
        full = combined.num_rows - combined.num_rows % step
        for start in range(0, full, step):
            yield combined.slice(start, step)
        pending = [combined.slice(full)]
        size = pending[0].nbytes
    if any(table.num_rows for table in pending):
        yield pa.concat_tables(pending).combine_chunks()
