"""Plan of tensor files: rows of each file and tasks, for any files, sizes and copies of an index."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.resize import tasks
from imagemill.components.resize.plan import (
    MAX_SHARD_ROWS,
    Indices,
    RowSlice,
    ShardPlan,
    SortedRows,
    SplitPlan,
    compute_max_rows_per_shard,
    count_rows_read,
    cut,
    get_index_ranges,
    locate_rows,
)
from imagemill.components.resize.tasks import (
    MERGED_GROUP_BYTES,
    MergeTask,
    choose_shards_per_task,
    compute_read_amplification,
    group_shards,
    merge_sources,
    plan_tasks,
)

MEGABYTE = 2**20
MAX_INDEX = 2**63 - 1


def make_source(name: str, indices: Indices, group: int, files: int = 1) -> SortedRows:
    """Return a sequence of rows in row groups of `group` rows, spread over some files."""
    lengths = [min(group, len(indices) - at) for at in range(0, len(indices), group)]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    first_groups = tuple(len(lengths) * n // files for n in range(files + 1))
    return SortedRows(tuple(f"{name}.{n}" for n in range(files)), indices, starts, first_groups)


def read_slices(sources: list[SortedRows], slices: tuple[RowSlice, ...]) -> list[tuple[int, str, int]]:
    """Return (index, source, row) of each row of the slices, read as `read_rows` does."""
    rows = []
    for row_slice in slices:
        owner = next(s for s in sources if row_slice.uri in s.uris)
        first = owner.first_groups[owner.uris.index(row_slice.uri)]
        positions: list[int] = []
        for group in row_slice.groups:
            positions += range(int(owner.starts[first + group]), int(owner.starts[first + group + 1]))
        positions = positions[row_slice.skip : row_slice.skip + row_slice.rows]
        assert len(positions) == row_slice.rows, "a slice is all there"
        positions = positions if row_slice.chosen is None else [positions[offset] for offset in row_slice.chosen]
        rows += [(index_at(owner, row), owner.uris[0], row) for row in positions]
    return rows


def index_at(owner: SortedRows, position: int) -> int:
    """Return the index of the row at a position in the files."""
    number = position if owner.positions is None else owner.positions.tolist().index(position)
    return int(owner.indices[number])


@st.composite
def some_sources(draw: st.DrawFn) -> list[SortedRows]:
    """Up to 6 sequences of up to 40 rows; few indices, so that many occur twice, and the largest possible one."""
    index = st.one_of(st.integers(0, 30), st.sampled_from([MAX_INDEX - 1, MAX_INDEX]))
    sources = []
    for number in range(draw(st.integers(1, 6))):
        indices = np.array(sorted(draw(st.lists(index, max_size=40))), np.int64)
        chosen = draw(st.one_of(st.none(), st.sets(st.integers(0, max(0, len(indices) - 1)), max_size=len(indices))))
        rows = make_source(
            f"s{number}", indices, draw(st.integers(1, 9)), draw(st.integers(1, 3)) if chosen is None else 1
        )
        if chosen is not None:
            positions = np.array(sorted(chosen), np.int64)
            rows = replace(rows, indices=indices[positions], positions=positions)
        sources.append(rows)
    return sources


def make_jobs(sources: list[SortedRows], max_rows: int) -> list[ShardPlan]:
    cuts = cut([source.indices for source in sources], max_rows)
    return [ShardPlan(f"{low:016x}-{high:016x}", "train", rows, (), low, high) for low, high, rows in cuts]


def list_positions(rows: SortedRows) -> list[int]:
    """Return the positions of a source's rows in its files."""
    return list(range(len(rows.indices))) if rows.positions is None else rows.positions.tolist()


@given(some_sources(), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_every_row_is_in_one_file_in_order(sources: list[SortedRows], max_rows: int, files: int) -> None:
    jobs = make_jobs(sources, max_rows)
    expected = sorted(
        (int(i), s.uris[0], position) for s in sources for position, i in zip(list_positions(s), s.indices, strict=True)
    )
    by_job = [
        sorted(read_slices(sources, slices))
        for slices in locate_rows(sources, get_index_ranges([(job,) for job in jobs]))
    ]
    assert [row for rows in by_job for row in rows] == expected, "each once, files one after the other"
    assert [len(rows) for rows in by_job] == [job.rows for job in jobs]
    assert all(before.high == after.low for before, after in pairwise(jobs)), "nothing is between two files"
    for job, rows in zip(jobs, by_job, strict=True):
        assert job.low == rows[0][0] and rows[-1][0] < job.high
        assert len(rows) <= max_rows or rows[0][0] == rows[-1][0], "too long only for copies of one index"
    groups = group_shards(jobs, files)
    together = [sorted(read_slices(sources, slices)) for slices in locate_rows(sources, get_index_ranges(groups))]
    assert [row for rows in together for row in rows] == expected
    assert [job for group in groups for job in group] == jobs and max(map(len, groups), default=0) <= files


@given(some_sources(), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_count_of_rows_read_equals_the_rows_read(sources: list[SortedRows], max_rows: int) -> None:
    jobs = make_jobs(sources, max_rows)
    expected = 0
    for slices in locate_rows(sources, get_index_ranges([(job,) for job in jobs])):
        for row_slice in slices:
            owner = next(s for s in sources if row_slice.uri in s.uris)
            first = owner.first_groups[owner.uris.index(row_slice.uri)]
            expected += sum(int(owner.starts[first + g + 1] - owner.starts[first + g]) for g in row_slice.groups)
    assert count_rows_read(sources, get_index_ranges([(job,) for job in jobs])) == expected


def test_finished_files_separate_groups() -> None:
    jobs = make_jobs([make_source("s", np.arange(100, dtype=np.int64), 5)], 5)
    del jobs[7:9]
    groups = group_shards(jobs, 3)
    assert [job for group in groups for job in group] == jobs
    assert all(before.high == after.low for group in groups for before, after in pairwise(group))
    assert [len(group) for group in groups[-3:]] == [1, 1, 1], "the last ones are short"


def make_plan(rows: int, image_bytes: int, seed: int = 0, file_bytes: int = 32 * MEGABYTE) -> SplitPlan:
    """Return a plan of images as clean stores them: files of 32 MB with row groups of 1 MB."""
    random = np.random.default_rng(seed)
    order = random.integers(0, 2**62, rows)
    count = max(1, rows * image_bytes // file_bytes)
    group = -(-MEGABYTE // image_bytes)
    sources = [make_source(f"f{n}", np.sort(part), group) for n, part in enumerate(np.array_split(order, count))]
    jobs = make_jobs(sources, compute_max_rows_per_shard(224 * 224 * 3, image_bytes, 0))
    return SplitPlan(tuple(jobs), tuple(sources), image_bytes)


@pytest.mark.parametrize(("rows", "image_bytes"), [(100, 40_000), (3_000, 40_000), (50_000, 2_000), (2_000, 5_000_000)])
def test_small_datasets_are_split_into_many_tasks(rows: int, image_bytes: int) -> None:
    plan = make_plan(rows, image_bytes)
    planned = list(plan_tasks(plan, plan.shards))
    assert len(planned) >= min(12, len(plan.shards))
    assert [len(task.shards) for task in planned][-2:] == [1, 1][-len(planned) :]
    amplification = compute_read_amplification(plan, plan.shards, choose_shards_per_task(plan, plan.shards))
    assert amplification <= tasks.MAX_READ_AMPLIFICATION + 0.3, "or the tail"


def test_large_datasets_have_larger_tasks_within_the_limit() -> None:
    plan = make_plan(300_000, 4_000, file_bytes=2000 * MEGABYTE)  # few sources, so reading is no reason
    files = choose_shards_per_task(plan, plan.shards)
    planned = list(plan_tasks(plan, plan.shards))
    assert files > 1 and compute_read_amplification(plan, plan.shards, 1) < tasks.MAX_READ_AMPLIFICATION
    assert max(task.rows for task in planned) * 4_000 <= tasks.TASK_ENCODED_BYTES
    assert len(planned) >= tasks.ENOUGH_TASKS and sum(task.rows for task in planned) == 300_000
    assert planned[-1].rows <= MAX_SHARD_ROWS


@pytest.mark.parametrize(("copies", "image_bytes"), list(product((0, 1, 9, 5000), (2_000, 40_000))))
def test_rows_per_file_are_limited_by_the_output_size(copies: int, image_bytes: int) -> None:
    rows = compute_max_rows_per_shard(224 * 224 * 3, image_bytes, copies)
    assert rows >= 1
    assert rows * (1 + copies) <= max(MAX_SHARD_ROWS, 1 + copies) and rows * image_bytes <= 96 * MEGABYTE
    if rows > 1:
        assert rows * (1 + copies) * 224 * 224 * 3 <= 128 * MEGABYTE


def measure_reading(plan: SplitPlan) -> tuple[float, float, int]:
    """Return rows read for each row of the plan, with one file per task and as planned (merges counted), and the
    number of merge levels."""
    levels = 0

    def merge(merges: Sequence[MergeTask]) -> dict[str, dict[str, Any]]:
        nonlocal levels
        levels += 1
        rows = max(1, MERGED_GROUP_BYTES // plan.mean_bytes)
        results = {}
        for merge_task in merges:
            lengths = [min(rows, merge_task.rows - at) for at in range(0, merge_task.rows, rows)]
            files = [lengths[at : at + 64] for at in range(0, len(lengths), 64)]
            results[merge_task.key] = {
                "files": [{"uri": f"{merge_task.key}.{n}"} for n in range(len(files))],
                "groups": files,
            }
        assert sum(merge_task.rows for merge_task in merges) == plan.rows
        return results

    merged = merge_sources(plan, plan.shards, ["image"], "/x", merge)
    before = compute_read_amplification(plan, plan.shards, 1)
    after = compute_read_amplification(merged, merged.shards, choose_shards_per_task(merged, plan.shards))
    return before, levels + after, levels


@pytest.mark.parametrize(
    ("rows", "image_bytes", "file_bytes"),
    [
        (16_000, 40_000, 26 * MEGABYTE),  # 20,000 images of 500 x 375, the training split
        (26_000, 40_000, 26 * MEGABYTE),  # the largest that is never merged
        (32_000, 40_000, 26 * MEGABYTE),
        (200_000, 40_000, 3 * MEGABYTE),  # val of two million, a little of it in each slice that was cleaned
        (1_000_000, 40_000, 26 * MEGABYTE),
        (1_000_000, 2_000, 26 * MEGABYTE),
        (100_000, 400_000, 26 * MEGABYTE),
        (20_000, 5_000_000, 26 * MEGABYTE),
    ],
)
def test_rows_read_stay_within_about_three_times_the_data(rows: int, image_bytes: int, file_bytes: int) -> None:
    plan = make_plan(rows, image_bytes, file_bytes=file_bytes)
    before, after, levels = measure_reading(plan)
    files, jobs = len(plan.sources), len(plan.shards)
    print(f"{rows:,} of {image_bytes:,}: {files:,} files, {jobs:,} jobs: {before:.2f} → {after:.2f} ({levels} merges)")
    assert after < 3.4 and levels <= 1
    assert levels == 0 or rows * image_bytes > 1024 * MEGABYTE, "small datasets are never merged"


# Time and memory of the plan of a million images in as many clean files as a real dataset has.


ROWS, FILES = 1_000_000, 1_250

_WRITE = """
import sys, numpy as np, pyarrow as pa
from imagemill.components.dataset.manifest import Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout, ShardWriter
uri, rows, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random, files = np.random.default_rng(0), []
schema = pa.schema([("image_id", pa.string()), ("image", pa.struct([("bytes", pa.binary())])), ("label_id", pa.int32()),
                    ("shuffle_index", pa.int64())])
each = rows // count
for file in range(count):
    order = np.sort(random.integers(0, 2**63 - 1, each))
    table = pa.table([[f"{file:05d}-{n:05d}" for n in range(each)], [{"bytes": b"x"}] * each, np.zeros(each, np.int32),
                      order], schema=schema)
    with ShardWriter(uri, Layout(schema)) as writer:
        for start in range(0, each, 100):
            writer.add_table(table.slice(start, 100))
        files.append(writer.publish("data/train", "data", "train"))
commit(uri, Manifest("clean", "0" * 16, files=tuple(files), totals=Totals(rows=rows, bytes=40_000 * rows)))
"""

_PLAN = """
import json, resource, sys, time
from imagemill.components.resize.plan import plan_split
from imagemill.components.dataset.manifest import read_dataset
def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
clean = read_dataset(sys.argv[1])
before, started = megabytes(), time.monotonic()
plan = plan_split(clean, "train", 224 * 224 * 3)
results = {"seconds": time.monotonic() - started, "megabytes": megabytes() - before, "rows": plan.rows}
results |= {"jobs": len(plan.shards), "files": len(plan.sources)}
print(json.dumps(results))
"""


@pytest.mark.proof
def test_time_and_memory_of_the_plan(tmp_path: Path) -> None:
    uri = str(tmp_path / "clean" / ("0" * 16))
    subprocess.run([sys.executable, "-c", _WRITE, uri, str(ROWS), str(FILES)], check=True)
    process = subprocess.run([sys.executable, "-c", _PLAN, uri], capture_output=True, text=True, check=True)
    results = json.loads(process.stdout.splitlines()[-1])
    print(results)
    assert results["rows"] == ROWS and results["files"] == FILES and results["jobs"] > 1000
    assert results["megabytes"] < 100 and results["seconds"] < 30
