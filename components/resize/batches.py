"""Several tensor files of consecutive rows as one task: what they need is read once.

The rows of a file lie in all the clean files of a split, some in each, and only whole row groups can be read. How much
more is read than is needed depends on how many rows a task wants at a time; how many files it makes of them is its own
affair and changes nothing of what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store.errors import MillError
from .plan import Indices, Job, Plan, Slice, places, rows_read
from .work import Kernel, Recipe, Row, make_file, one_by_one, read_rows

READ_AT_MOST = 2.5
"""Rows read for each one that is needed: with more of them tasks grow, and then clean files are merged."""
HELD_BYTES = 48 * 2**20
"""What a task of several files holds of encoded images, by the dataset's mean."""
MANY = 64
"""So many tasks are enough for many cores: beyond it they grow as far as they may."""
TAIL = 4
"""A task has at most this part of what is left of its split, so that the last ones are short."""


@dataclass(frozen=True)
class Batch:
    """The consecutive tensor files that one task makes, and where their rows lie."""

    jobs: tuple[Job, ...]
    slices: tuple[Slice, ...]

    @property
    def key(self) -> str:
        """Which rows, as a job's key says it."""
        return f"{self.jobs[0].split}-{self.jobs[0].low:016x}-{self.jobs[-1].high:016x}"

    @property
    def rows(self) -> int:
        """Images that go in."""
        return sum(job.rows for job in self.jobs)


def make_files(batch: Batch, dataset_uri: str, recipe: Recipe, kernel: Kernel = one_by_one) -> dict[str, Any]:
    """Do the jobs of a batch; what each of them gave is in `files`, by its key. With `error` and `exit_code`, if one
    failed, beside those that were finished before."""
    found: dict[str, Any] = {}
    try:
        rows = read_rows(batch.slices, recipe.columns(batch.jobs[0]))
    except MillError as error:
        return {"files": found, "error": str(error), "exit_code": error.exit_code}
    rows.reverse()
    for job in batch.jobs:
        result = make_file(job, dataset_uri, recipe, _taken(rows, job.high), kernel)
        if "error" in result:
            return {"files": found, **result}
        found[job.key] = result
    return {"files": found}


def _taken(rows: list[Row], high: int) -> list[Row]:
    """The rows below `high`, from the end of a list in falling order, which no longer holds them then."""
    taken = []
    while rows and rows[-1]["shuffle_index"] < high:
        taken.append(rows.pop())
    return taken


def batches(plan: Plan, jobs: Sequence[Job]) -> Iterator[Batch]:
    """Some jobs of a plan, in their order, as tasks: a function of the plan and of which jobs there are to do."""
    groups = grouped(jobs, files_a_task(plan, jobs))
    for group, slices in zip(groups, places(plan.sources, ranges_of(groups)), strict=True):
        yield Batch(group, slices)


def files_a_task(plan: Plan, jobs: Sequence[Job]) -> int:
    """As few as `READ_AT_MOST` allows, more where tasks are many, and never more than a task may hold."""
    most = files_held(plan)
    least = min(most, max(1, len(jobs) // MANY))
    return next((n for n in range(least, most) if amplification(plan, jobs, n) <= READ_AT_MOST), most)


def files_held(plan: Plan) -> int:
    """Files whose encoded images a task may hold."""
    return max(1, HELD_BYTES // (max((job.rows for job in plan.jobs), default=1) * plan.mean_bytes))


def amplification(plan: Plan, jobs: Sequence[Job], files: int) -> float:
    """Rows that tasks of so many files read for some jobs of a plan, for each row of the whole plan."""
    return rows_read(plan.sources, ranges_of(grouped(jobs, files))) / max(1, plan.rows)


def grouped(jobs: Sequence[Job], files: int) -> list[tuple[Job, ...]]:
    """Neighbours together, at most so many; what an earlier try finished parts them."""
    groups: list[tuple[Job, ...]] = []
    at = 0
    while at < len(jobs):
        end = at + max(1, min(files, (len(jobs) - at) // TAIL))
        end = next((n for n in range(at + 1, end) if jobs[n].low != jobs[n - 1].high), end)
        groups.append(tuple(jobs[at:end]))
        at = end
    return groups


def ranges_of(groups: Sequence[tuple[Job, ...]]) -> Indices:
    """int64 [groups, 2]: the lowest and the highest index that a row of each may have."""
    return np.array([(group[0].low, group[-1].high - 1) for group in groups], np.int64).reshape(-1, 2)
