"""Jobs on Ray: plain tasks, each of which reads, works and writes by itself and returns only an entry.

Tasks and not Ray Data: over the same slices Ray Data's executor costs a quarter of two cores, and nothing of
what it offers (moving blocks, writing files) is wanted here, where no image may cross the object store.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..store import uri as uris
from ..store.errors import MillError, TransientError, UserError
from ..store.parallel import max_workers
from ..store.progress import say
from . import remains
from .config import VERSION
from .reach import check_address, knock, nobody, not_joined, said_address, use_token
from .threads import Threads, run_in_threads

LOST_TRIES = 20
"""How often a job may lose its worker. Were every second try lost to bad luck, one job in a million would get here;
one that brings down its worker by itself gets here in a minute or two, while the others are done beside it."""
RAY_BYTES, WORKER_BYTES = 2**30, 3 * 2**28
"""Memory of Ray in this process without workers, and of one worker with its libraries and images (measured: 0.6 GB)."""
LOOK_S = 10.0
"""How often the cluster's cores are counted again: it may have grown."""
WAITING_S = 30.0
"""How often it is said that all cores of the cluster are taken."""
NO_CORES_S = 300.0
"""How long a cluster may be without any core: one that grows on demand starts from none."""


class Piece(Protocol):
    """What is to be known of a job here: a name that says which rows it has, and their number."""

    @property
    def key(self) -> str: ...
    @property
    def rows(self) -> int: ...


J = TypeVar("J", bound=Piece)


@dataclass
class Cluster:
    """Where jobs run. `address` is empty for Ray in this process.

    `witness`: a file on a local disk that every node must see; empty where there is nothing to see.
    """

    address: str
    witness: str
    cores: int = 1
    looked: float = field(default_factory=time.monotonic)
    had_cores: float = field(default_factory=time.monotonic)

    def look(self) -> int:
        """Its CPU cores now, counted again every few seconds; TransientError if it has had none for minutes."""
        if not self.address or time.monotonic() - self.looked < LOOK_S:
            return self.cores
        return self.count()

    def count(self) -> int:
        import ray

        self.looked = time.monotonic()
        found = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if found:
            self.had_cores = self.looked
        elif self.looked - self.had_cores > NO_CORES_S:
            raise TransientError(
                f"ray_address: expected CPU cores in the cluster at {self.address}, found none for "
                f"{NO_CORES_S:.0f} s (are its workers started, and not with --num-cpus 0?)"
            )
        self.cores = max(1, found)  # a task that waits is what makes a cluster grow
        return self.cores


Slots = Cluster | Threads
"""Where jobs run."""


@contextmanager
def ray_session(address: str, workers: int | None, witness: str = "", gpus: int = 0) -> Iterator[Cluster]:
    """Ray in this process, or a connection to the cluster at `address`.

    `witness`: the URI of a file of the workspace, which every node of the cluster has to see. `gpus`: those of this
    machine that actors may have.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    session = _join(address) if address else _start(workers, gpus)
    import ray

    # Looked up now and at the end: on SIGTERM Ray ends its raylet first, and then nobody knows whose its agents are.
    mine = remains.started_for(session) if session else []
    try:
        cluster = Cluster(address, witness if address and not uris.scheme(witness) else "")
        cluster.count()
        if address:
            _greet(cluster)
        say("resize", f"Ray with {cluster.cores} cores")
        yield cluster
    except ConnectionError as error:  # of Ray Client, when the head is gone
        raise nobody(address, str(error).partition("\n")[0]) from None
    except SystemExit:  # Ray's answer to SIGTERM, after which its own shutdown may not come to an end
        _clear(session, mine)
        raise
    finally:
        mine += remains.started_for(session) if session else []
        ray.shutdown()
        _clear(session, mine)


def _clear(session: str, processes: list[remains.Process]) -> None:
    """Whatever is left of a Ray that is no more: its processes, logs and sockets."""
    remains.end(processes)
    if session:
        shutil.rmtree(session, ignore_errors=True)


_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


def _start(workers: int | None, gpus: int) -> str:
    """Ray in this process; the folder of its session."""
    with said_address("local"):
        import ray

        number = workers or max_workers(WORKER_BYTES, RAY_BYTES)
        try:
            # `local`: never join a cluster that somebody left running. Nothing large goes through the store.
            started: Any = ray.init(
                address="local", num_cpus=number, num_gpus=gpus, include_dashboard=False,
                object_store_memory=128 * 2**20, **_QUIET,
            )  # fmt: skip
        except (ConnectionError, TimeoutError) as error:
            raise TransientError(f"Ray does not start on this machine: {error}") from None
    return str(started.address_info.get("session_dir") or "")


def _join(address: str) -> str:
    """The cluster at `address`; nothing of it is to be removed."""
    check_address(address)
    use_token()
    with said_address(address):
        knock(address)
        import ray

        for left in (1, 0):  # a head that is busy starts no server for a client within Ray's half minute
            try:
                ray.init(address=address, **_QUIET)
                break
            except Exception as error:  # everything from ValueError to gRPC's own, each with its own long text
                found = not_joined(address, error)
                if not left or not isinstance(found, TransientError):
                    raise found from None
                ray.shutdown()
    return ""


def _greet(cluster: Cluster) -> None:
    """One small task before the work: is imagemill there, the same one, and does the node see the workspace?"""
    import ray

    try:
        hello = ray.remote(num_cpus=1, max_retries=LOST_TRIES)(_hello).remote(cluster.witness)
        said = time.monotonic()
        while not ray.wait([hello], timeout=min(2.0, LOOK_S))[0]:
            cluster.look()
            if time.monotonic() - said > WAITING_S:
                said = time.monotonic()
                say("resize", f"waiting for a free core of the Ray cluster at {cluster.address}")
        about = ray.get(hello)
    except (ray.exceptions.RayError, ImportError, AttributeError) as error:  # the latter from Ray Client's server
        raise _unlike(cluster.address, error) from None
    if about["version"] != VERSION:
        raise UserError(
            f"ray_address: expected the imagemill of this command on the cluster (resize {VERSION}), found another "
            f"one (resize {about['version']}) on node {about['node']}"
        )
    if not about["sees"]:
        raise _blind(cluster, about["node"])


def _hello(witness: str) -> dict[str, Any]:
    """What a node says of itself."""
    return {"version": VERSION, "node": platform.node(), "sees": not witness or Path(witness).is_file()}


def _blind(cluster: Cluster, node: str) -> UserError:
    return UserError(
        "workspace: expected a place that every node of the Ray cluster sees (s3://bucket/prefix, or a folder that "
        f"all of them mount), found no {cluster.witness} on node {node}"
    )


def _unlike(address: str, error: Exception) -> MillError:
    """A task could not even be loaded on the cluster."""
    text = f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    missing = next((line for line in reversed(lines) if "Error: " in line), lines[0] if lines else repr(error))
    if "ModuleNotFoundError" in text or "failed to import" in text or "AttributeError" in text:
        return UserError(
            f"ray_address: expected the imagemill of this command on the nodes of the Ray cluster at {address} (start "
            f"them from the same image), found {missing}"
        )
    return TransientError(f"ray_address: the Ray cluster at {address} ran no task: {missing}")


def run_jobs(
    jobs: Iterable[J], work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], slots: Slots
) -> Iterator[tuple[J, dict[str, Any]]]:
    """`work(job, *arguments)` as Ray tasks, or in threads of this process; (job, result) as they finish. Two tasks a
    core are submitted at most.

    A job that is lost with its worker or node is given out again, up to `LOST_TRIES` times; an error of its own is
    not, it comes back as a result (`error`, `exit_code`).
    """
    if isinstance(slots, Threads):
        yield from run_in_threads(jobs, work, arguments, slots)
        return
    import ray

    cluster = slots
    # Counted here and not by Ray, which would try for ever to run what is killed for its memory.
    task = ray.remote(num_cpus=1, max_retries=0)(_on_a_node)
    running: dict[Any, J] = {}
    losses = _Losses()
    waiting = iter(jobs)
    while True:
        while len(running) < 2 * cluster.look() and (job := next(waiting, None)) is not None:
            running[task.remote(work, cluster.witness, job, arguments)] = job
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_S)
        for reference in done:
            job = running.pop(reference)
            result = _result(reference, cluster.address)
            if isinstance(result, str):
                losses.add(job, result)
                running[task.remote(work, cluster.witness, job, arguments)] = job
            elif isinstance(result, Blind):
                raise _blind(cluster, result.node)
            else:
                losses.finished += 1
                yield job, result


def _on_a_node(
    work: Callable[..., dict[str, Any]], witness: str, job: Piece, arguments: tuple[Any, ...]
) -> dict[str, Any] | Blind:
    """The task: on a node that sees the workspace. Nodes may join while it runs."""
    if witness and not Path(witness).is_file():
        return Blind(platform.node())
    return work(job, *arguments)


@dataclass(frozen=True)
class Blind:
    """What a task returns from a node that does not see the workspace."""

    node: str


def _result(reference: Any, address: str) -> dict[str, Any] | Blind | str:
    """What a task returned, or in a line how it was lost."""
    import ray
    from ray import exceptions

    try:
        result: dict[str, Any] | Blind = ray.get(reference)
    except exceptions.RayTaskError as error:
        if "failed to import" in str(error):
            raise _unlike(address, error) from None
        raise error.cause if isinstance(error.cause, Exception) else error from None
    except exceptions.RuntimeEnvSetupError as error:
        raise _unlike(address, error) from None
    except exceptions.OutOfMemoryError:
        return "its node was out of memory"
    except (exceptions.NodeDiedError, exceptions.LocalRayletDiedError, exceptions.ObjectLostError):
        return "its node was lost"
    except exceptions.RayError as error:
        return f"its worker was lost ({type(error).__name__})"
    return result


@dataclass
class _Losses:
    """How often each job was lost, and when it is enough."""

    by_job: dict[str, int] = field(default_factory=dict)
    finished: int = 0

    def add(self, job: Piece, why: str) -> None:
        """Say it; an error when there is more to it than bad luck."""
        times = self.by_job[job.key] = self.by_job.get(job.key, 0) + 1
        if times < LOST_TRIES:
            say("resize", f"{why}; {job.rows:,} rows are done again ({job.key}, try {times + 1} of {LOST_TRIES})")
            return
        text = f"{job.key}: the {job.rows:,} rows of this job lost their worker {times} times, last because {why}"
        if not self.finished:
            raise TransientError(f"{text}; no job was finished: the cluster can't run them")
        raise MillError(f"{text}; {self.finished:,} jobs were finished meanwhile, so it is these rows' images")
