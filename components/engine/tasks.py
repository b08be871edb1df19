"""Run tasks on an executor: a bounded number at a time, and again what was lost with its worker.

Images never cross between processes: a task reads its part of a dataset, works and writes by itself, and returns only a
record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ..step.progress import say
from ..storage.errors import MillError, TransientError, error_for_exit_code

MAX_WORKER_FAILURES = 20
"""Times that a task may lose its worker. If every second attempt were lost by chance, one task in a million would get
here; one that crashes its worker gets here in a minute or two, while the others are done beside it."""
TASKS_PER_WORKER = 2
"""One running and one queued task."""
OPEN_TASKS_PER_SLOT = 2
"""Tasks for each slot that may be open where results are wanted in order: one submitted, one that finished early."""

Result = dict[str, Any]
TaskFunction = Callable[..., Result]
"""A function of a task and of arguments that all tasks share. Pickled by its name, so it belongs to a module."""


class Task(Protocol):
    """A unit of work: its key names the rows that it covers."""

    @property
    def key(self) -> str: ...
    @property
    def rows(self) -> int: ...


TaskT = TypeVar("TaskT", bound=Task)


class WorkerLost(Exception):
    """Error of a task whose worker ended; the message says why, as in `its node was lost`."""


@dataclass(frozen=True)
class Failure:
    """Picklable form of a MillError."""

    message: str
    exit_code: int

    def to_error(self) -> MillError:
        return error_for_exit_code(self.exit_code, self.message)


class Executor(Protocol):
    """An interface that runs tasks. A handle stands for a task that was submitted."""

    @property
    def step(self) -> str:
        """The step that the tasks belong to, for messages."""

    def count_slots(self) -> int:
        """Return how many tasks may be submitted at a time."""

    def submit(self, work: TaskFunction, task: Any, arguments: tuple[Any, ...]) -> Any:
        """Submit `work(task, *arguments)`; return its handle."""

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Wait until some of these handles have ended, or for a while; return those that have."""

    def get_result(self, handle: Any) -> Result:
        """Return the result of a handle that has ended; raise the task's own error, or WorkerLost."""


def run_tasks(
    tasks: Iterable[TaskT | None], work: TaskFunction, arguments: tuple[Any, ...], executor: Executor
) -> Iterator[tuple[TaskT, Result]]:
    """Yield (task, `work(task, *arguments)`) as they finish.

    `tasks` may yield None for no task before the next result. A task that is lost with its worker or node is submitted
    again, up to `MAX_WORKER_FAILURES` times; an error that a task itself raises ends the work.
    """
    running: dict[Any, TaskT] = {}
    lost: list[TaskT] = []
    losses, pending = WorkerFailureCounter(executor.step), iter(tasks)
    while True:
        while len(running) < executor.count_slots():
            task = lost.pop() if lost else next(pending, None)
            if task is None:
                break
            running[executor.submit(work, task, arguments)] = task
        if not running:
            return
        for handle in executor.wait(list(running)):
            task = running.pop(handle)
            try:
                result = executor.get_result(handle)
            except WorkerLost as error:
                losses.add(task, str(error))
                lost.append(task)
            else:
                losses.finished += 1
                yield task, result


def run_tasks_in_order(
    tasks: Iterable[TaskT], work: TaskFunction, arguments: tuple[Any, ...], executor: Executor
) -> Iterator[tuple[TaskT, Result]]:
    """Yield what `run_tasks` yields, in the order of the tasks.

    At most `OPEN_TASKS_PER_SLOT` tasks for each of the executor's slots are open: submitted, or waiting for an earlier
    one to finish. A slow task delays the others then, instead of filling memory with their results.
    """
    unfinished: deque[TaskT] = deque()
    results: dict[str, Result] = {}

    def limit_open() -> Iterator[TaskT | None]:
        for task in tasks:
            while len(unfinished) >= OPEN_TASKS_PER_SLOT * executor.count_slots():
                yield None
            unfinished.append(task)
            yield task

    for task, result in run_tasks(limit_open(), work, arguments, executor):
        results[task.key] = result
        while unfinished and unfinished[0].key in results:
            first = unfinished.popleft()
            yield first, results.pop(first.key)


def run_work(work: TaskFunction, task: Task, arguments: tuple[Any, ...]) -> Result | Failure:
    """Return `work(task, *arguments)`, or the MillError that it raised in a form that can be pickled."""
    try:
        return work(task, *arguments)
    except MillError as error:
        return Failure(str(error), error.exit_code)


@dataclass
class WorkerFailureCounter:
    """Number of times that each task was lost, by its key, and of tasks that finished."""

    step: str
    by_key: dict[str, int] = field(default_factory=dict)
    finished: int = 0

    def add(self, task: Task, reason: str) -> None:
        """Count and report a loss; raise an error after `MAX_WORKER_FAILURES` of one task.

        TransientError if no task has finished, since then the machines are at fault; MillError if others have.
        """
        losses = self.by_key[task.key] = self.by_key.get(task.key, 0) + 1
        if losses < MAX_WORKER_FAILURES:
            retry_message = (
                f"{task.rows:,} rows are done again ({task.key}, attempt {losses + 1} of {MAX_WORKER_FAILURES})"
            )
            say(self.step, f"{reason}; {retry_message}")
            return
        text = f"{task.key}: its {task.rows:,} rows lost their worker {losses} times, last because {reason}"
        if not self.finished:
            raise TransientError(f"{text}; no task has finished: look at the workers' memory and image")
        raise MillError(
            f"{text}; {self.finished:,} tasks were finished meanwhile, so these images probably crash a worker"
        )


AUTO, THREADS, PROCESSES, RAY = "auto", "threads", "processes", "ray"
EXECUTORS = (AUTO, THREADS, PROCESSES, RAY)
EXECUTOR_HELP = (
    "what does the work where no ray_address is given: threads of the step's process, processes of this machine, or "
    "Ray started on it; auto: threads where they are done before others have started, else processes for clean and Ray "
    "for resize"
)
RAY_ADDRESS_HELP = (
    "where Ray runs: an existing cluster, by its client (ray://host:10001), from one of its nodes (auto, host:6379), "
    "or for resize as a job that it runs (http://host:8265), while clean stays on this machine (default: in this "
    "process)"
)
