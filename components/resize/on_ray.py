"""Jobs on Ray: plain tasks, each of which reads, works and writes by itself and returns only an entry.

Tasks and not Ray Data: over the same slices Ray Data's executor costs a quarter of two cores, and nothing of
what it offers (moving blocks, writing files) is wanted here, where no image may cross the object store.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..store.errors import TransientError, UserError
from ..store.parallel import cores

J = TypeVar("J")
LOST_WORKER_RETRIES = 3


@contextmanager
def ray_session(address: str, workers: int) -> Iterator[int]:
    """Ray in this process, or a connection to the cluster at `address`; yields its CPU cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    session = ""
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            # `local`: never join a cluster that somebody left running. Nothing large goes through the store.
            started: Any = ray.init(
                address="local", num_cpus=workers or cores(), num_gpus=0, include_dashboard=False,
                object_store_memory=128 * 2**20, **quiet,
            )  # fmt: skip
            session = str(started.address_info.get("session_dir") or "")
    except (ConnectionError, TimeoutError) as error:
        raise TransientError(f"ray_address: no Ray cluster answers at {address or 'this machine'}: {error}") from None
    except ValueError as error:
        raise UserError(f"ray_address: expected the address of a Ray cluster, found {address!r}: {error}") from None
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
        if session:  # logs and sockets of a Ray that is no more
            shutil.rmtree(session, ignore_errors=True)


def run_jobs(
    jobs: Iterable[J], work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], slots: int
) -> Iterator[tuple[J, dict[str, Any]]]:
    """`work(job, *arguments)` as Ray tasks; (job, result) as they finish. Two tasks a core are submitted at most."""
    import ray

    # A task lost with its worker or node is run again; an error of its own is not, it comes back as a result.
    task = ray.remote(num_cpus=1, max_retries=LOST_WORKER_RETRIES)(work)
    running: dict[Any, J] = {}
    waiting = iter(jobs)
    while True:
        while len(running) < 2 * slots and (job := next(waiting, None)) is not None:
            running[task.remote(job, *arguments)] = job
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            job = running.pop(reference)
            yield job, _result(reference)


def _result(reference: Any) -> dict[str, Any]:
    import ray
    from ray import exceptions

    try:
        result: dict[str, Any] = ray.get(reference)
    except exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except exceptions.RayError as error:
        raise TransientError(f"Ray lost a task {LOST_WORKER_RETRIES + 1} times: {str(error).splitlines()[0]}") from None
    return result
