"""Which rows make up which tensor file, and who reads them: for any files, sizes and copies of an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
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
LAST = 2**63 - 1


def source(name: str, indices: Indices, group: int, files: int = 1) -> SortedRows:
    """A sequence of rows in row groups of so many, spread over some files."""
    lengths = [min(group, len(indices) - at) for at in range(0, len(indices), group)]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    first_groups = tuple(len(lengths) * n // files for n in range(files + 1))
    return SortedRows(tuple(f"{name}.{n}" for n in range(files)), indices, starts, first_groups)


def found_rows(sources: list[SortedRows], slices: tuple[RowSlice, ...]) -> list[tuple[int, str, int]]:
    """(index, source, row) of what some slices hold, read as `read_rows` reads them."""
    rows = []
    for one in slices:
        owner = next(s for s in sources if one.uri in s.uris)
        first = owner.first_groups[owner.uris.index(one.uri)]
        held: list[int] = []
        for group in one.groups:
            held += range(int(owner.starts[first + group]), int(owner.starts[first + group + 1]))
        held = held[one.skip : one.skip + one.rows]
        assert len(held) == one.rows, "a slice is all there"
        held = held if one.chosen is None else [held[offset] for offset in one.chosen]
        rows += [(index_at(owner, row), owner.uris[0], row) for row in held]
    return rows


def index_at(owner: SortedRows, place: int) -> int:
    """The index of the row at a place in the files."""
    row = place if owner.positions is None else owner.positions.tolist().index(place)
    return int(owner.indices[row])


@st.composite
def some_sources(draw: st.DrawFn) -> list[SortedRows]:
    """Up to 6 sequences of up to 40 rows; few indices, so that many occur twice, and the largest that there is."""
    index = st.one_of(st.integers(0, 30), st.sampled_from([LAST - 1, LAST]))
    found = []
    for number in range(draw(st.integers(1, 6))):
        indices = np.array(sorted(draw(st.lists(index, max_size=40))), np.int64)
        chosen = draw(st.one_of(st.none(), st.sets(st.integers(0, max(0, len(indices) - 1)), max_size=len(indices))))
        one = source(f"s{number}", indices, draw(st.integers(1, 9)), draw(st.integers(1, 3)) if chosen is None else 1)
        if chosen is not None:
            places = np.array(sorted(chosen), np.int64)
            one = replace(one, indices=indices[places], positions=places)
        found.append(one)
    return found


def jobs_of(sources: list[SortedRows], most: int) -> list[ShardPlan]:
    cuts = cut([one.indices for one in sources], most)
    return [ShardPlan(f"{low:016x}-{high:016x}", "train", rows, (), low, high) for low, high, rows in cuts]


def places(one: SortedRows) -> list[int]:
    """Where the rows of a source lie in its files."""
    return list(range(len(one.indices))) if one.positions is None else one.positions.tolist()


@given(some_sources(), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_every_row_is_in_exactly_one_file_in_order(sources: list[SortedRows], most: int, files: int) -> None:
    jobs = jobs_of(sources, most)
    everything = sorted(
        (int(i), s.uris[0], place) for s in sources for place, i in zip(places(s), s.indices, strict=True)
    )
    by_job = [
        sorted(found_rows(sources, slices))
        for slices in locate_rows(sources, get_index_ranges([(job,) for job in jobs]))
    ]
    assert [row for rows in by_job for row in rows] == everything, "each once, files one after the other"
    assert [len(rows) for rows in by_job] == [job.rows for job in jobs]
    assert all(before.high == after.low for before, after in pairwise(jobs)), "nothing is between two files"
    for job, rows in zip(jobs, by_job, strict=True):
        assert job.low == rows[0][0] and rows[-1][0] < job.high
        assert len(rows) <= most or rows[0][0] == rows[-1][0], "too long only for copies of one index"
    groups = group_shards(jobs, files)
    together = [sorted(found_rows(sources, slices)) for slices in locate_rows(sources, get_index_ranges(groups))]
    assert [row for rows in together for row in rows] == everything
    assert [job for group in groups for job in group] == jobs and max(map(len, groups), default=0) <= files


@given(some_sources(), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_what_is_read_is_counted_as_it_is_read(sources: list[SortedRows], most: int) -> None:
    jobs = jobs_of(sources, most)
    expected = 0
    for slices in locate_rows(sources, get_index_ranges([(job,) for job in jobs])):
        for one in slices:
            owner = next(s for s in sources if one.uri in s.uris)
            first = owner.first_groups[owner.uris.index(one.uri)]
            expected += sum(int(owner.starts[first + g + 1] - owner.starts[first + g]) for g in one.groups)
    assert count_rows_read(sources, get_index_ranges([(job,) for job in jobs])) == expected


def test_files_that_are_done_part_their_neighbours() -> None:
    jobs = jobs_of([source("s", np.arange(100, dtype=np.int64), 5)], 5)
    del jobs[7:9]
    groups = group_shards(jobs, 3)
    assert [job for group in groups for job in group] == jobs
    assert all(before.high == after.low for group in groups for before, after in pairwise(group))
    assert [len(group) for group in groups[-3:]] == [1, 1, 1], "the last ones are short"


def plan_of(rows: int, image_bytes: int, seed: int = 0, file_bytes: int = 32 * MEGABYTE) -> SplitPlan:
    """As clean would leave so many images of that size: files of 32 MB, their row groups of 1 MB."""
    random = np.random.default_rng(seed)
    order = random.integers(0, 2**62, rows)
    count = max(1, rows * image_bytes // file_bytes)
    group = -(-MEGABYTE // image_bytes)
    sources = [source(f"f{n}", np.sort(part), group) for n, part in enumerate(np.array_split(order, count))]
    jobs = jobs_of(sources, compute_max_rows_per_shard(224 * 224 * 3, image_bytes, 0))
    return SplitPlan(tuple(jobs), tuple(sources), image_bytes)


@pytest.mark.parametrize(("rows", "image_bytes"), [(100, 40_000), (3_000, 40_000), (50_000, 2_000), (2_000, 5_000_000)])
def test_small_datasets_are_work_for_many_cores(rows: int, image_bytes: int) -> None:
    plan = plan_of(rows, image_bytes)
    found = list(plan_tasks(plan, plan.shards))
    assert (
        len(found) >= min(12, len(plan.shards)) and [len(task.shards) for task in found][-2:] == [1, 1][-len(found) :]
    )
    amplification = compute_read_amplification(plan, plan.shards, choose_shards_per_task(plan, plan.shards))
    assert amplification <= tasks.MAX_READ_AMPLIFICATION + 0.3, "or the tail"


def test_tasks_grow_where_they_are_many_and_hold_no_more_than_they_may() -> None:
    plan = plan_of(300_000, 4_000, file_bytes=2000 * MEGABYTE)  # few sources, so reading is no reason
    files = choose_shards_per_task(plan, plan.shards)
    found = list(plan_tasks(plan, plan.shards))
    assert files > 1 and compute_read_amplification(plan, plan.shards, 1) < tasks.MAX_READ_AMPLIFICATION
    assert max(task.rows for task in found) * 4_000 <= tasks.TASK_ENCODED_BYTES
    assert len(found) >= tasks.ENOUGH_TASKS and sum(task.rows for task in found) == 300_000
    assert found[-1].rows <= MAX_SHARD_ROWS


@pytest.mark.parametrize(("copies", "image_bytes"), list(product((0, 1, 9, 5000), (2_000, 40_000))))
def test_files_are_cut_by_what_is_written_into_them(copies: int, image_bytes: int) -> None:
    rows = compute_max_rows_per_shard(224 * 224 * 3, image_bytes, copies)
    assert rows >= 1
    assert rows * (1 + copies) <= max(MAX_SHARD_ROWS, 1 + copies) and rows * image_bytes <= 96 * MEGABYTE
    if rows > 1:
        assert rows * (1 + copies) * 224 * 224 * 3 <= 128 * MEGABYTE


def reading(plan: SplitPlan) -> tuple[float, float, int]:
    """Rows read for each row of the plan: as one file a task from the clean files, and as it is done, all merges
    counted; and how many levels of merges there are."""
    levels = 0

    def merger(merges: Sequence[MergeTask]) -> dict[str, dict[str, Any]]:
        nonlocal levels
        levels += 1
        rows = max(1, MERGED_GROUP_BYTES // plan.mean_bytes)
        found = {}
        for one in merges:
            lengths = [min(rows, one.rows - at) for at in range(0, one.rows, rows)]
            files = [lengths[at : at + 64] for at in range(0, len(lengths), 64)]
            found[one.key] = {"files": [{"uri": f"{one.key}.{n}"} for n in range(len(files))], "groups": files}
        assert sum(one.rows for one in merges) == plan.rows
        return found

    merged = merge_sources(plan, plan.shards, ["image"], "/x", merger)
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
def test_reading_stays_within_about_three_times_the_data(rows: int, image_bytes: int, file_bytes: int) -> None:
    plan = plan_of(rows, image_bytes, file_bytes=file_bytes)
    before, after, levels = reading(plan)
    files, jobs = len(plan.sources), len(plan.shards)
    print(f"{rows:,} of {image_bytes:,}: {files:,} files, {jobs:,} jobs: {before:.2f} → {after:.2f} ({levels} merges)")
    assert after < 3.4 and levels <= 1
    assert levels == 0 or rows * image_bytes > 1024 * MEGABYTE, "small datasets are never merged"
