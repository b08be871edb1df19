"""GPUs as the executor of resize's tasks: actors of Ray, each with a share of one.

Actors and not tasks: Ray starts a fresh process for every task that has a GPU, and CUDA takes seconds to start.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from ..engine.ray_session import RaySession, UnreadableWorkspace, can_read
from ..engine.tasks import TASKS_PER_WORKER, Failure, Result, Work, run_tasks, run_work
from ..storage.errors import MillError
from .gpu import make_kernel
from .tasks import ResizeTask, write_shards
from .tensor_shards import TensorSpec

ACTOR_RESTARTS = -1
"""Unlimited: lost tasks are counted, and that ends it."""
ACTOR_TASK_RETRIES = 1
"""By Ray: without any, a call to an actor that is being restarted would fail at once."""


class GpuActor:
    """One process with a share of a GPU. `device` is a torch device."""

    def __init__(self, device: str) -> None:
        self.device, self.kernel = device, make_kernel(device)

    def run(
        self, work: Work, probe_file: str, task: ResizeTask, arguments: tuple[Any, ...]
    ) -> Result | Failure | UnreadableWorkspace:
        """Return `work(task, *arguments, kernel)`; the CPU decodes images that the GPU can't decode."""
        import torch

        if not can_read(probe_file):
            return UnreadableWorkspace(platform.node())
        if self.device != "cpu" and not torch.cuda.is_available():
            message = f"device: expected the GPU that Ray gave to node {platform.node()}, found none that torch can use"
            return Failure(message, MillError.exit_code)
        return run_work(work, task, (*arguments, self.kernel))


def count_actors(gpus: float, cores: int, share: float) -> int:
    """Return the number of actors that fit: whole shares of each GPU, and a core for each."""
    return max(1, min(int(gpus) * int(1 / share + 1e-9), cores))


class GpuActors:
    """An executor of actors with `share` of a GPU each, on all GPUs of a Ray session; they are killed at exit."""

    def __init__(self, session: RaySession, share: float, device: str) -> None:
        import ray

        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        actor_class: Any = ray.remote(
            num_cpus=1, num_gpus=share, max_restarts=ACTOR_RESTARTS, max_task_retries=ACTOR_TASK_RETRIES
        )(GpuActor)
        self.step, self._session = session.step, session
        self._actors = [actor_class.remote(device) for _ in range(count_actors(gpus, session.get_cores(), share))]
        self._running: dict[Any, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * len(self._actors)

    def submit(self, work: Work, task: Any, arguments: tuple[Any, ...]) -> Any:
        busy = list(self._running.values())
        number = min(range(len(self._actors)), key=busy.count)
        handle = self._actors[number].run.remote(work, self._session.probe_file, task, arguments)
        self._running[handle] = number
        return handle

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        self._session.get_cores()
        return self._session.wait(handles)

    def get_result(self, handle: Any) -> Result:
        del self._running[handle]
        return self._session.get_result(handle)


def run_on_gpus(
    tasks: Iterable[ResizeTask],
    arguments: tuple[str, TensorSpec],
    session: RaySession,
    share: float,
    device: str = "cuda",
) -> Iterator[tuple[ResizeTask, Result]]:
    """Yield (task, `write_shards(task, *arguments)`) as they finish, from actors with `share` of a GPU each."""
    with GpuActors(session, share, device) as actors:
        yield from run_tasks(tasks, write_shards, arguments, actors)
