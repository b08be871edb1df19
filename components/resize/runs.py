"""Merging clean files that are too many: runs of them are read in few large pieces.

Where every task reads a little of a thousand files, it reads a whole row group of each: terabytes for 40 GB of data.
So files are first merged, some at a time, into runs in shuffled order with small row groups, and these again where they
are still too many (an external merge sort: Knuth, The Art of Computer Programming 3, 5.4). Runs lie in the tensors'
`_work/runs/`, named by their content, until the tensors are committed. What becomes of an image is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..store import uri as uris
from ..store.errors import DatasetError, MillError
from ..store.filesystem import get_store
from ..store.manifest import File
from ..store.shards import Layout, ShardWriter, open_parquet, read_row_group
from .batches import READ_AT_MOST, amplification, files_a_task, files_held
from .plan import ENCODED_BYTES, Job, Plan, Source

RUNS = "_work/runs"
MERGED_FROM = 2**30
"""Bytes of a split's images: less than that is read from memory however often."""
GROUP_BYTES = 2**20
"""A run's row groups: a task holds one of each run that it reads, and reads half of one too much at either end."""
FILE_BYTES = 64 * 2**20
"""A run is several files of this size: a reader needs the footers of those only that have something for it."""
LEAST_FAN_IN = 8
RUNS_SHARE = 0.5
"""Runs are so few that tasks read at most this part more than they need, where one pass can make them so few."""


@dataclass(frozen=True)
class Merge:
    """One run to make. `inputs`: of each sequence to merge its files, in their order; `columns`: what is kept."""

    key: str
    split: str
    rows: int
    inputs: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]


Merger = Callable[[Sequence[Merge]], dict[str, dict[str, Any]]]
"""Makes runs, or finds those that are there; the records of `merge` by their keys."""


def with_runs(plan: Plan, jobs: Sequence[Job], columns: Sequence[str], dataset_uri: str, merger: Merger) -> Plan:
    """The plan, its rows in so few runs that `jobs` can be done without reading too much. Mostly: as it was."""
    level = 0
    while are_too_many(plan, jobs):
        level += 1
        groups = merge_groups(plan)
        split = plan.jobs[0].split
        merges = [
            Merge(f"run-{split}-{level}-{n:05d}", split, sum(len(s.indices) for s in group),
                  tuple(s.uris for s in group), tuple(columns))
            for n, group in enumerate(groups)
        ]  # fmt: skip
        records = merger(merges)
        runs = (run_of(records[m.key], group, dataset_uri) for m, group in zip(merges, groups, strict=True))
        plan = replace(plan, sources=tuple(runs))
    return plan


def are_too_many(plan: Plan, jobs: Sequence[Job]) -> bool:
    """The sources of a plan, for what reading `jobs` from them would cost."""
    if len(plan.sources) < 2 or plan.rows * plan.mean_bytes < MERGED_FROM:
        return False
    return amplification(plan, jobs, files_a_task(plan, jobs)) > READ_AT_MOST


def merge_groups(plan: Plan) -> list[tuple[Source, ...]]:
    """Which consecutive sources become one run each: as few at a time as give few enough runs, as memory allows."""
    count = len(plan.sources)
    held = files_held(plan) * max(job.rows for job in plan.jobs) * plan.mean_bytes
    wanted = max(1, int(RUNS_SHARE * held / GROUP_BYTES))
    row_groups = sum(len(source.starts) - 1 for source in plan.sources)
    group_bytes = max(1, plan.rows * plan.mean_bytes // max(1, row_groups))
    fan_in = max(2, min(ENCODED_BYTES // group_bytes, max(LEAST_FAN_IN, -(-count // wanted))))
    number = -(-count // fan_in)
    return [plan.sources[count * n // number : count * (n + 1) // number] for n in range(number)]


def run_of(record: dict[str, Any], group: Sequence[Source], dataset_uri: str) -> Source:
    """The run that was made of some sources, by its record; its indices are known from theirs."""
    indices = np.sort(np.concatenate([source.indices for source in group]))
    lengths = [rows for file in record["groups"] for rows in file]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    if starts[-1] != len(indices):
        raise MillError(f"the ledger is wrong: a run of {starts[-1]} rows, made of {len(indices)}")
    files = tuple(uris.join(dataset_uri, file["uri"]) for file in record["files"])
    return Source(files, indices, starts, (0, *accumulate(len(file) for file in record["groups"])))


def is_whole(record: dict[str, Any], dataset_uri: str) -> bool:
    """The files of a run that was recorded are there."""
    found = {file["uri"]: get_store(dataset_uri).stat(uris.join(dataset_uri, file["uri"])) for file in record["files"]}
    return all((entry := found[file["uri"]]) and entry.size == file["bytes"] for file in record["files"])


def remove_runs(dataset_uri: str) -> None:
    """After the commit: they are as large as the data, and nobody reads them again."""
    folder = uris.join(dataset_uri, *RUNS.split("/"))
    for entry in list(get_store(folder).list(folder)):
        get_store(folder).discard(entry.uri)


def merge(task: Merge, dataset_uri: str) -> dict[str, Any]:
    """Make one run: the entries of its `files`, and of each the rows of its row groups (`groups`); or `error` and
    `exit_code`. Memory holds one row group of each input, and a few of the run's."""
    try:
        files, groups = _write(task, dataset_uri)
    except MillError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    return {"files": [asdict(file) for file in files], "groups": groups}


def _write(task: Merge, dataset_uri: str) -> tuple[list[File], list[list[int]]]:
    inputs = [_tables(files, list(task.columns)) for files in task.inputs]
    sequences = [(table, rest) for rest in inputs if (table := next(rest, None)) is not None]
    schema = pa.unify_schemas([table.schema for table, _ in sequences])
    tables = row_groups(merged(sequences, schema))
    files: list[File] = []
    groups: list[list[int]] = []
    table = next(tables, None)
    while table is not None:
        with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
            rows, size = [], 0
            while table is not None and size < FILE_BYTES:
                writer.add_table(table)
                rows.append(table.num_rows)
                size += table.nbytes
                table = next(tables, None)
            files.append(writer.publish(f"{RUNS}/{task.split}", "data", task.split))
            groups.append(rows)
    return files, groups


def _tables(files: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
    """The row groups of some files, one at a time."""
    for uri in files:
        with open_parquet(uri) as parquet:
            for group in range(parquet.num_row_groups):
                table = read_row_group(parquet, group, uri, columns)
                if table.num_rows:
                    yield table.replace_schema_metadata(None)


def merged(sequences: Sequence[tuple[pa.Table, Iterator[pa.Table]]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Sequences in shuffled order, each as its first table and the others, as one: tables of rows by (shuffle_index,
    image_id). Copies of one index may come in several tables, in any order: a task sorts what it reads."""
    waiting = [(table, _indices(table), rest) for table, rest in sequences]
    while waiting:
        bound = min(indices[-1] for _, indices, _ in waiting)
        taken, left = [schema.empty_table()], []
        for table, indices, rest in waiting:
            rows = int(np.searchsorted(indices, bound, side="right"))
            taken.append(table.slice(0, rows))
            if rows < table.num_rows:
                left.append((table.slice(rows), indices[rows:], rest))
            elif (following := next(rest, None)) is not None:
                left.append((following, _indices(following), rest))
        waiting = left
        together = pa.concat_tables(taken, promote_options="default").combine_chunks()
        if not together.num_rows:
            raise DatasetError("expected rows in the order of shuffle_index to merge, found others")
        order = pc.sort_indices(together, [("shuffle_index", "ascending"), ("image_id", "ascending")])
        yield together.take(order)


def _indices(table: pa.Table) -> Any:
    return table.column("shuffle_index").to_numpy()


def row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about `GROUP_BYTES`."""
    pending: list[pa.Table] = []
    size = 0
    for table in tables:
        pending.append(table)
        size += table.nbytes
        if size < GROUP_BYTES:
            continue
        whole = pa.concat_tables(pending).combine_chunks()
        step = max(1, whole.num_rows * GROUP_BYTES // size)
        full = whole.num_rows - whole.num_rows % step
        for start in range(0, full, step):
            yield whole.slice(start, step)
        pending = [whole.slice(full)]
        size = pending[0].nbytes
    if any(table.num_rows for table in pending):
        yield pa.concat_tables(pending).combine_chunks()
