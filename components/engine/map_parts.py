"""A function mapped over parts: those that exist are not made again, the others are made on this machine or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from ..dataset.parts import PartFolder, PartRecord
from ..step.progress import Progress
from .tasks import Executor, Task, run_tasks

TaskT = TypeVar("TaskT", bound=Task)


def map_parts(
    folder: PartFolder,
    tasks: Sequence[TaskT],
    make: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
    open_executor: Callable[[Sequence[TaskT]], AbstractContextManager[Executor]],
    progress: Progress,
) -> dict[str, PartRecord]:
    """Return the record of each task's part by its key, in the order of the tasks.

    Args:
        tasks: each with the `key` of its part and the number of `rows` that it works on.
        make: called as `make(task, folder, *arguments)` by a worker; it writes the part's files, adds its record to the
            folder (`PartFolder.add`) and returns the record's `to_dict()`. Pickled by its name.
        open_executor: opens what does the given tasks; not called where every part exists.
        progress: is told of the rows that are done.
    """
    existing = folder.find([task.key for task in tasks])
    progress.leave_out(sum(task.rows for task in tasks if task.key in existing))
    missing = [task for task in tasks if task.key not in existing]
    if missing:
        with open_executor(missing) as executor:
            for task, record in run_tasks(missing, make, (folder, *arguments), executor):
                existing[task.key] = PartRecord.from_dict(record, folder.uri)
                progress.add(task.rows)
    return {task.key: existing[task.key] for task in tasks}
