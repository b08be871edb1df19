"""Batches on GPUs: Ray actors, each with a share of a GPU and a kernel of its own.

Actors and not tasks: Ray starts a fresh process for every task that has a GPU, and CUDA takes seconds to start.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..store.errors import MillError
from .batches import Batch, make_files
from .gpu import kernel_on
from .on_ray import LOOK_S, Blind, Cluster, _blind, _Losses, _result
from .work import Recipe

RESTARTS = -1
"""An actor that is lost is started again however often: lost batches are counted, and that ends it."""
RETRIES = 1
"""By Ray: without any, a call to an actor that is being started again would fail at once."""
QUEUED = 2
"""Batches that an actor has: one to do, and one that waits for it."""


class Worker:
    """One process with a share of a GPU. `device` is a torch device."""

    def __init__(self, device: str) -> None:
        self.device, self.kernel = device, kernel_on(device)

    def make(self, witness: str, batch: Batch, dataset_uri: str, recipe: Recipe) -> dict[str, Any] | Blind:
        """See `make_files`. A batch whose rows the GPU can't help with is done by the CPU beside it."""
        import torch

        if witness and not Path(witness).is_file():
            return Blind(platform.node())
        if self.device != "cpu" and not torch.cuda.is_available():
            error = f"device: expected the GPU that Ray gave to node {platform.node()}, found none that torch can use"
            return {"files": {}, "error": error, "exit_code": MillError.exit_code}
        return make_files(batch, dataset_uri, recipe, self.kernel)


def actors_on(gpus: float, cores: int, share: float) -> int:
    """How many actors there is room for: whole shares of each GPU, and a core for each."""
    return max(1, min(int(gpus) * int(1 / share + 1e-9), cores))


def run_on_gpus(
    batches: Iterable[Batch], arguments: tuple[str, Recipe], cluster: Cluster, share: float, device: str = "cuda"
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """`make_files(batch, *arguments)` on actors with so much of a GPU each; (batch, result) as they finish.

    A batch that is lost with its actor or node is given out again; an error of its own comes back as a result.
    """
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    kind: Any = ray.remote(num_cpus=1, num_gpus=share, max_restarts=RESTARTS, max_task_retries=RETRIES)(Worker)
    actors = [kind.remote(device) for _ in range(actors_on(gpus, cluster.look(), share))]
    running: dict[Any, tuple[int, Batch]] = {}
    again: list[Batch] = []
    losses, waiting = _Losses(), iter(batches)
    try:
        while True:
            while (actor := _idle(len(actors), running)) is not None:
                batch = again.pop() if again else next(waiting, None)
                if batch is None:
                    break
                running[actors[actor].make.remote(cluster.witness, batch, *arguments)] = actor, batch
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
            cluster.look()
            for reference in done:
                actor, batch = running.pop(reference)
                result = _result(reference, cluster.address)
                if isinstance(result, str):
                    losses.add(batch, result)
                    again.append(batch)
                elif isinstance(result, Blind):
                    raise _blind(cluster, result.node)
                else:
                    losses.finished += 1
                    yield batch, result
    finally:
        for one in actors:
            ray.kill(one)


def _idle(actors: int, running: dict[Any, tuple[int, Batch]]) -> int | None:
    """The actor with the least to do, or None where each has enough."""
    busy = [0] * actors
    for actor, _ in running.values():
        busy[actor] += 1
    least = min(range(actors), key=busy.__getitem__)
    return least if busy[least] < QUEUED else None
