"""Ray as the executor of tasks: started in this process or a cluster, whose nodes are checked before they work.

Plain tasks and not Ray Data: over the same slices Ray Data's executor costs a quarter of two cores, and nothing of what
it offers (moving blocks, writing files) is needed here, where no image may cross the object store.

`ray.shutdown()` leaves processes behind: Ray gives its raylet one second to end the processes below it, then kills it
(ray/_private/node.py, `_kill_process_impl`); its two agents would then try for a minute to report to a GCS that is
gone.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..step.progress import say
from ..storage import uri as uris
from ..storage.errors import MillError, TransientError, UserError
from ..storage.parallel import max_workers
from .ray_connection import (
    check_address,
    check_port,
    connection_error,
    enable_token_auth,
    ignore_address_variables,
    unreachable_error,
)
from .tasks import TASKS_PER_WORKER, Failure, Result, Task, TaskFunction, WorkerLost, run_work

RAY_BYTES, WORKER_BYTES = 2**30, 3 * 2**28
"""Memory of Ray in this process without workers, and of one worker with its libraries and images (measured: 0.6 GB)."""
CORES_INTERVAL_S = 10.0
"""Seconds between two counts of the cluster's cores: it may have grown."""
WAITING_INTERVAL_S = 30.0
"""Seconds between two messages that all cores of the cluster are taken."""
NO_CORES_TIMEOUT_S = 300.0
"""Seconds that a cluster may be without any core: one that grows on demand starts from none."""
CHECK_RETRIES = 20
"""Times that Ray may run the first small task again after it lost its worker."""
RAY_INIT_DEFAULTS: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@dataclass
class RaySession:
    """A connection to the Ray cluster at `address`, or to Ray in this process, on which tasks of `step` run: an
    executor.

    `probe_file`: a file on a local disk that every node must be able to read; empty if there is none to check.
    """

    step: str
    address: str
    probe_file: str
    cores: int = 1
    counted_at: float = field(default_factory=time.monotonic)
    had_cores_at: float = field(default_factory=time.monotonic)
    _remote_function: Any = None

    def get_cores(self) -> int:
        """Return the number of CPU cores, counted again every `CORES_INTERVAL_S`.

        Raises TransientError if the cluster has had none for `NO_CORES_TIMEOUT_S`.
        """
        if not self.address or time.monotonic() - self.counted_at < CORES_INTERVAL_S:
            return self.cores
        return self.count_cores()

    def count_cores(self) -> int:
        import ray

        self.counted_at = time.monotonic()
        cores = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if cores:
            self.had_cores_at = self.counted_at
        elif self.counted_at - self.had_cores_at > NO_CORES_TIMEOUT_S:
            raise TransientError(
                f"ray_address: expected CPU cores in the cluster at {self.address}, found none for "
                f"{NO_CORES_TIMEOUT_S:.0f} s (are its workers started, and not with --num-cpus 0?)"
            )
        self.cores = max(1, cores)  # a task that waits is what makes a cluster grow
        return self.cores

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * self.get_cores()

    def submit(self, work: TaskFunction, task: Task, arguments: tuple[Any, ...]) -> Any:
        import ray

        if self._remote_function is None:
            # Losses are counted in run_tasks; Ray would retry without end what is killed for its memory.
            self._remote_function = ray.remote(num_cpus=1, max_retries=0)(_run_on_node)
        return self._remote_function.remote(work, self.probe_file, task, arguments)

    def wait(self, handles: Sequence[Any]) -> Sequence[Any]:
        import ray

        ready, _ = ray.wait(list(handles), num_returns=1, timeout=CORES_INTERVAL_S)
        return ready

    def get_result(self, handle: Any) -> Result:
        """Return the result of a task; raise its own error, or UserError if the node can't read the workspace or has
        other code."""
        import ray
        from ray import exceptions

        try:
            result: Result | Failure | UnreadableWorkspace = ray.get(handle)
        except exceptions.RayTaskError as error:
            is_missing = isinstance(error.cause, ModuleNotFoundError) and self.address
            if is_missing or "failed to import" in str(error):
                raise code_mismatch_error(self.address, error) from None
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except exceptions.RuntimeEnvSetupError as error:
            raise code_mismatch_error(self.address, error) from None
        except exceptions.OutOfMemoryError:
            raise WorkerLost("its node was out of memory") from None
        except (exceptions.NodeDiedError, exceptions.LocalRayletDiedError, exceptions.ObjectLostError):
            raise WorkerLost("its node was lost") from None
        except exceptions.RayError as error:
            raise WorkerLost(f"its worker was lost ({type(error).__name__})") from None
        if isinstance(result, UnreadableWorkspace):
            raise unseen_file_error("workspace", self.probe_file, result.node)
        if isinstance(result, Failure):
            raise result.to_error()
        return result


@dataclass(frozen=True)
class UnreadableWorkspace:
    """The result of a task on a node that can't read the workspace."""

    node: str


def _run_on_node(
    work: TaskFunction, probe_file: str, task: Task, arguments: tuple[Any, ...]
) -> Result | Failure | UnreadableWorkspace:
    # Checked by every task, because nodes may join while tasks run.
    return run_work(work, task, arguments) if can_read(probe_file) else UnreadableWorkspace(platform.node())


@contextmanager
def open_ray_session(
    step: str, address: str, workers: int | None, probe_uri: str = "", gpus: int = 0
) -> Iterator[RaySession]:
    """Start Ray in this process, or connect to the cluster at `address`; shut down at exit.

    Args:
        step: name of the step that the tasks belong to; the nodes must have the same version of it.
        workers: CPU cores for Ray in this process; None for as many as memory allows.
        probe_uri: a workspace file that every node must be able to read.
        gpus: GPUs of this machine that actors may use.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _connect(address)
    session_dir = "" if address else _start(workers, gpus)
    import ray

    # Listed now and at the end: on SIGTERM Ray ends its raylet first, after which its agents are no descendants of
    # this process.
    processes = find_session_processes(session_dir) if session_dir else []
    try:
        session = RaySession(step, address, probe_uri if address and not uris.scheme(probe_uri) else "")
        session.count_cores()
        if address:
            _check_cluster(session)
        say(step, f"Ray with {session.cores} cores")
        yield session
    except ConnectionError as error:  # of Ray Client, when the head is gone
        raise unreachable_error(address, str(error).partition("\n")[0]) from None
    except SystemExit:  # Ray's answer to SIGTERM, after which its own shutdown may not come to an end
        _clean_up(session_dir, processes)
        raise
    finally:
        processes += find_session_processes(session_dir) if session_dir else []
        ray.shutdown()
        _clean_up(session_dir, processes)


def _clean_up(session_dir: str, processes: list[Process]) -> None:
    """Kill the processes of an ended session and remove its logs and sockets."""
    kill(processes)
    if session_dir:
        shutil.rmtree(session_dir, ignore_errors=True)


def _start(workers: int | None, gpus: int) -> str:
    """Start Ray in this process; return its session directory."""
    with ignore_address_variables("local"):
        import ray

        num_cpus = workers or max_workers(WORKER_BYTES, RAY_BYTES)
        try:
            # `local`: never join a cluster that somebody left running. Nothing large goes through the object store.
            context: Any = ray.init(
                address="local", num_cpus=num_cpus, num_gpus=gpus, include_dashboard=False,
                object_store_memory=128 * 2**20, **RAY_INIT_DEFAULTS,
            )  # fmt: skip
        except (ConnectionError, TimeoutError) as error:
            raise TransientError(f"Ray does not start on this machine: {error}") from None
    return str(context.address_info.get("session_dir") or "")


def _connect(address: str) -> None:
    check_address(address)
    enable_token_auth()
    with ignore_address_variables(address):
        check_port(address)
        import ray

        for retries_left in (2, 1, 0):  # a head that is busy starts no server for a client within Ray's half minute
            try:
                ray.init(address=address, **RAY_INIT_DEFAULTS)
                break
            except Exception as error:  # ray.init raises anything from ValueError to gRPC's own errors
                reason = connection_error(address, error)
                if not retries_left or not isinstance(reason, TransientError):
                    raise reason from None
                ray.shutdown()


def _check_cluster(session: RaySession) -> None:
    """Run one small task: the node must have this version of imagemill and be able to read the workspace."""
    import ray

    try:
        remote_function = ray.remote(num_cpus=1, max_retries=CHECK_RETRIES)(_describe_node)
        node_ref = remote_function.remote(session.step, session.probe_file)
        reported_at = time.monotonic()
        while not ray.wait([node_ref], timeout=min(2.0, CORES_INTERVAL_S))[0]:
            session.get_cores()
            if time.monotonic() - reported_at > WAITING_INTERVAL_S:
                reported_at = time.monotonic()
                say(session.step, f"waiting for a free core of the Ray cluster at {session.address}")
        node = ray.get(node_ref)
    except (ray.exceptions.RayError, ImportError, AttributeError) as error:  # the latter from Ray Client's server
        raise code_mismatch_error(session.address, error) from None
    if node["version"] != (version := _get_version(session.step)):
        raise UserError(
            f"ray_address: expected the imagemill of this command on the cluster ({session.step} {version}), found "
            f"another one ({session.step} {node['version']}) on node {node['node']}"
        )
    if not node["sees"]:
        raise unseen_file_error("workspace", session.probe_file, node["node"])


def _describe_node(step: str, probe_file: str) -> dict[str, Any]:
    """Return this node's version of the step, its name, and whether it can read the workspace."""
    return {"version": _get_version(step), "node": platform.node(), "sees": can_read(probe_file)}


def _get_version(step: str) -> int:
    version: int = importlib.import_module(f"..{step}.config", __package__).VERSION
    return version


def can_read(probe_file: str) -> bool:
    """Return whether this node can read `RaySession.probe_file`; True if there is none to check."""
    return not probe_file or Path(probe_file).is_file()


def unseen_file_error(field: str, file: str, node: str) -> UserError:
    """Return the error of a local file, of what the user calls `field`, that a node can't read."""
    return UserError(
        f"{field}: expected a place that every node of the Ray cluster sees (s3://bucket/prefix, or a folder that "
        f"all of them mount), found no {file} on node {node}"
    )


def code_mismatch_error(address: str, error: Exception) -> MillError:
    """Return the error for a task that could not be loaded on the cluster."""
    text = f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if "Error: " in line), lines[0] if lines else repr(error))
    if "ModuleNotFoundError" in text or "failed to import" in text or "AttributeError" in text:
        return UserError(
            f"ray_address: expected the imagemill of this command on the nodes of the Ray cluster at {address} (start "
            f"them from the same image), found {cause}"
        )
    return TransientError(f"ray_address: the Ray cluster at {address} ran no task: {cause}")


Process = tuple[int, str]
"""Process id, and start time in ticks since boot: an id may be given to another process."""


def find_session_processes(session_dir: str) -> list[Process]:
    """Return this process's children that belong to the Ray session `session_dir`, with all their descendants.

    Empty on systems without /proc.
    """
    children: dict[int, list[Process]] = {}
    for pid in _list_pids():
        if stat := _read_stat(pid):
            children.setdefault(int(stat[1]), []).append((pid, stat[19]))
    session_name = Path(session_dir).name.encode()
    pending = [child for child in children.get(os.getpid(), []) if session_name in _read_command_line(child[0])]
    descendants: list[Process] = []
    while pending:
        process = pending.pop()
        descendants.append(process)
        pending += children.get(process[0], [])
    return descendants


def kill(processes: list[Process]) -> None:
    """Kill those processes that still run."""
    for pid, start_time in processes:
        if (stat := _read_stat(pid)) and stat[19] == start_time:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _list_pids() -> list[int]:
    proc = Path("/proc")
    return [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()] if proc.is_dir() else []


def _read_stat(pid: int) -> list[str]:
    """Return the fields after the name in /proc/<pid>/stat (proc(5)): state, parent, …, start time at index 19.

    Empty if the process is gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _read_command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
