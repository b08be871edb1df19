"""Run resize's tasks on Ray: plain tasks on CPUs, actors on GPUs. Each task reads, works and writes by itself and
returns only a record.

Tasks and not Ray Data: over the same slices Ray Data's executor costs a quarter of two cores, and nothing of what it
offers (moving blocks, writing files) is needed here, where no image may cross the object store. Actors on GPUs: Ray
starts a fresh process for every task that has a GPU, and CUDA takes seconds to start.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ..step.progress import say
from ..storage.errors import MillError, TransientError
from .gpu import make_kernel
from .ray_session import CORES_INTERVAL_S, RaySession, can_read, code_mismatch_error, workspace_error
from .tasks import ResizeTask, write_shards
from .tensor_shards import TensorSpec
from .threads import Threads, run_in_threads

MAX_LOSSES = 20
"""Times that a task may lose its worker. If every second attempt were lost by chance, one task in a million would get
here; one that crashes its worker gets here in a minute or two, while the others are done beside it."""
ACTOR_RESTARTS = -1
"""Unlimited: lost tasks are counted, and that ends it."""
ACTOR_TASK_RETRIES = 1
"""By Ray: without any, a call to an actor that is being restarted would fail at once."""
TASKS_PER_ACTOR = 2
"""One that runs, and one that waits for it."""


class Task(Protocol):
    """A unit of work: its key names the rows that it covers."""

    @property
    def key(self) -> str: ...
    @property
    def rows(self) -> int: ...


TaskT = TypeVar("TaskT", bound=Task)
Executor = RaySession | Threads
"""Where tasks run."""


@dataclass(frozen=True)
class UnreadableWorkspace:
    """The result of a task on a node that can't read the workspace."""

    node: str


def run_tasks(
    tasks: Iterable[TaskT], work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], executor: Executor
) -> Iterator[tuple[TaskT, dict[str, Any]]]:
    """Yield (task, `work(task, *arguments)`) as they finish, from Ray tasks or threads of this process.

    At most two Ray tasks a core are submitted. A task that is lost with its worker or node is submitted again, up to
    `MAX_LOSSES` times; an error of its own is not, it comes back as a result (`error`, `exit_code`).
    """
    if isinstance(executor, Threads):
        yield from run_in_threads(tasks, work, arguments, executor)
        return
    import ray

    session = executor
    # Losses are counted here and not by Ray, which would retry without end what is killed for its memory.
    remote_function = ray.remote(num_cpus=1, max_retries=0)(_run_on_node)
    running: dict[Any, TaskT] = {}
    losses = _LossCounter()
    pending = iter(tasks)
    while True:
        while len(running) < 2 * session.get_cores() and (task := next(pending, None)) is not None:
            running[remote_function.remote(work, session.probe_file, task, arguments)] = task
        if not running:
            return
        ready_refs, _ = ray.wait(list(running), num_returns=1, timeout=CORES_INTERVAL_S)
        for ref in ready_refs:
            task = running.pop(ref)
            result = _get_result(ref, session)
            if isinstance(result, str):
                losses.add(task, result)
                running[remote_function.remote(work, session.probe_file, task, arguments)] = task
            else:
                losses.finished += 1
                yield task, result


def _run_on_node(
    work: Callable[..., dict[str, Any]], probe_file: str, task: Task, arguments: tuple[Any, ...]
) -> dict[str, Any] | UnreadableWorkspace:
    # Checked by every task, because nodes may join while tasks run.
    return work(task, *arguments) if can_read(probe_file) else UnreadableWorkspace(platform.node())


class GpuActor:
    """One process with a share of a GPU. `device` is a torch device."""

    def __init__(self, device: str) -> None:
        self.device, self.kernel = device, make_kernel(device)

    def write_shards(
        self, probe_file: str, task: ResizeTask, dataset_uri: str, spec: TensorSpec
    ) -> dict[str, Any] | UnreadableWorkspace:
        """Write the shards of a task (`tasks.write_shards`). The CPU decodes images that the GPU can't decode."""
        import torch

        if not can_read(probe_file):
            return UnreadableWorkspace(platform.node())
        if self.device != "cpu" and not torch.cuda.is_available():
            error = f"device: expected the GPU that Ray gave to node {platform.node()}, found none that torch can use"
            return {"files": {}, "error": error, "exit_code": MillError.exit_code}
        return write_shards(task, dataset_uri, spec, self.kernel)


def count_actors(gpus: float, cores: int, share: float) -> int:
    """Return the number of actors that fit: whole shares of each GPU, and a core for each."""
    return max(1, min(int(gpus) * int(1 / share + 1e-9), cores))


def run_on_gpus(
    tasks: Iterable[ResizeTask],
    arguments: tuple[str, TensorSpec],
    session: RaySession,
    share: float,
    device: str = "cuda",
) -> Iterator[tuple[ResizeTask, dict[str, Any]]]:
    """Yield (task, `write_shards(task, *arguments)`) as they finish, from actors with `share` of a GPU each.

    A task that is lost with its actor or node is submitted again; an error of its own comes back as a result.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    actor_class: Any = ray.remote(
        num_cpus=1, num_gpus=share, max_restarts=ACTOR_RESTARTS, max_task_retries=ACTOR_TASK_RETRIES
    )(GpuActor)
    actors = [actor_class.remote(device) for _ in range(count_actors(gpus, session.get_cores(), share))]
    running: dict[Any, tuple[int, ResizeTask]] = {}
    lost: list[ResizeTask] = []
    losses, pending = _LossCounter(), iter(tasks)
    try:
        while True:
            while (number := _pick_actor(len(actors), running)) is not None:
                task = lost.pop() if lost else next(pending, None)
                if task is None:
                    break
                running[actors[number].write_shards.remote(session.probe_file, task, *arguments)] = number, task
            if not running:
                return
            ready_refs, _ = ray.wait(list(running), num_returns=1, timeout=CORES_INTERVAL_S)
            session.get_cores()
            for ref in ready_refs:
                _, task = running.pop(ref)
                result = _get_result(ref, session)
                if isinstance(result, str):
                    losses.add(task, result)
                    lost.append(task)
                else:
                    losses.finished += 1
                    yield task, result
    finally:
        for actor in actors:
            ray.kill(actor)


def _pick_actor(num_actors: int, running: dict[Any, tuple[int, ResizeTask]]) -> int | None:
    """Return the number of the actor with the fewest tasks, or None if all have `TASKS_PER_ACTOR`."""
    loads = [0] * num_actors
    for number, _ in running.values():
        loads[number] += 1
    least_busy = min(range(num_actors), key=loads.__getitem__)
    return least_busy if loads[least_busy] < TASKS_PER_ACTOR else None


def _get_result(ref: Any, session: RaySession) -> dict[str, Any] | str:
    """Return the result of a task, or the reason for its loss in one line.

    Raises UserError if the node can't read the workspace or has other code, and the task's own exception.
    """
    import ray
    from ray import exceptions

    try:
        result: dict[str, Any] | UnreadableWorkspace = ray.get(ref)
    except exceptions.RayTaskError as error:
        if "failed to import" in str(error):
            raise code_mismatch_error(session.address, error) from None
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except exceptions.RuntimeEnvSetupError as error:
        raise code_mismatch_error(session.address, error) from None
    except exceptions.OutOfMemoryError:
        return "its node was out of memory"
    except (exceptions.NodeDiedError, exceptions.LocalRayletDiedError, exceptions.ObjectLostError):
        return "its node was lost"
    except exceptions.RayError as error:
        return f"its worker was lost ({type(error).__name__})"
    if isinstance(result, UnreadableWorkspace):
        raise workspace_error(session, result.node)
    return result


@dataclass
class _LossCounter:
    """Number of times that each task was lost, by its key, and of tasks that finished."""

    by_key: dict[str, int] = field(default_factory=dict)
    finished: int = 0

    def add(self, task: Task, reason: str) -> None:
        """Count and report a loss; raise an error after `MAX_LOSSES` of one task.

        TransientError if no task has finished, since then the cluster is at fault; MillError if others have.
        """
        losses = self.by_key[task.key] = self.by_key.get(task.key, 0) + 1
        if losses < MAX_LOSSES:
            say("resize", f"{reason}; {task.rows:,} rows are done again ({task.key}, try {losses + 1} of {MAX_LOSSES})")
            return
        text = f"{task.key}: the {task.rows:,} rows of this job lost their worker {losses} times, last because {reason}"
        if not self.finished:
            raise TransientError(f"{text}; no job was finished: the cluster can't run them")
        raise MillError(f"{text}; {self.finished:,} jobs were finished meanwhile, so it is these rows' images")
