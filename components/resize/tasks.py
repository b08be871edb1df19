"""Group consecutive tensor shards into tasks, so that the rows that they need are read once.

The rows of a shard lie in all clean files of a split, some in each, and only whole row groups can be read. The more
rows a task covers, the less is read that it does not need. The grouping changes nothing of what the shards hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import RowSlice, ShardPlan, SplitPlan, count_rows_read, get_index_ranges, locate_rows
from .tensor_shards import Kernel, Row, TensorSpec, decode_on_cpu, read_rows, write_shard

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
