"""Executors of tasks on this machine: threads, and processes for work that holds Python's lock.

Processes and not concurrent.futures': a worker that dies breaks its whole pool there, without saying which task it had
or how it ended. And its workers import the program that started them, which may be KFP's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from ..step.runner_exit import RUNNER_PID
from .tasks import TASKS_PER_WORKER, Failure, Result, TaskFunction, WorkerLost

Shared = tuple[TaskFunction, tuple[Any, ...]]
"""The work, and its arguments beside the task: sent to a worker once."""
Job = tuple[int, Any, Shared]
"""A submitted task: its handle, the task, and what it has in common with others."""


@dataclass
class _Worker:
    """A worker process (worker.py) and the jobs that it has, of which it does the first. `shared`: of the last one."""

    popen: subprocess.Popen[bytes]
    connection: Connection
    jobs: list[Job] = field(default_factory=list)
    shared: Shared | None = None

    @classmethod
    def start(cls) -> _Worker:
        connection, other = multiprocessing.Pipe()
        environment = os.environ | {RUNNER_PID: str(os.getpid()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"{__package__}.worker", str(other.fileno())]
        with other:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, env=environment, pass_fds=[other.fileno()]
            )
        return cls(popen, connection)

    def send(self, job: Job) -> None:
        _, task, shared = job
        self.jobs.append(job)
        with suppress(OSError):  # it has ended, which the next wait finds
            self.connection.send((None if shared is self.shared else shared, task))
        self.shared = shared

    def stop(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.connection.close()

    def describe_end(self) -> str:
        """Return why a process ended that was not stopped."""
        code = self.popen.wait()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}" + (
                " (perhaps memory ran out)" if -code == signal.SIGKILL else ""
            )
        return f"its process ended with exit code {code}"


class Processes:
    """An executor of `number` worker processes, each of which does one task at a time; all are killed at exit."""

    def __init__(self, step: str, number: int) -> None:
        self.step, self.number = step, number
        self._workers: list[_Worker] = []
        self._shared: Shared | None = None
        self._results: dict[int, Result | Failure | WorkerLost] = {}
        self._last_handle = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Idle ones have nothing left to do; busy ones are left only after an error, when their work is not needed.
        for worker in self._workers:
            worker.stop()

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * self.number

    def submit(self, work: TaskFunction, task: Any, arguments: tuple[Any, ...]) -> int:
        if self._shared is None or self._shared[0] is not work or self._shared[1] is not arguments:
            self._shared = work, arguments
        self._last_handle += 1
        self._assign((self._last_handle, task, self._shared))
        return self._last_handle

    def _assign(self, job: Job) -> None:
        """Send a job to the worker with the fewest; start one where all have work and more are allowed."""
        worker = min(self._workers, key=lambda worker: len(worker.jobs), default=None)
        if worker is None or (worker.jobs and len(self._workers) < self.number):
            worker = _Worker.start()
            self._workers.append(worker)
        worker.send(job)

    def wait(self, handles: Sequence[int]) -> Sequence[int]:
        while not self._results:
            workers = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(workers)):
                self._receive(workers[connection])  # type: ignore[index]
        return list(self._results)

    def _receive(self, worker: _Worker) -> None:
        """Take a result from a worker; if it has ended, its first task is lost and the others go to other workers."""
        try:
            self._results[worker.jobs[0][0]] = worker.connection.recv()
            del worker.jobs[0]
        except (EOFError, OSError):
            reason = worker.describe_end()
            self._workers.remove(worker)
            worker.stop()
            self._results |= {job[0]: WorkerLost(reason) for job in worker.jobs[:1]}
            for job in worker.jobs[1:]:
                self._assign(job)

    def get_result(self, handle: int) -> Result:
        result = self._results.pop(handle)
        if isinstance(result, WorkerLost):
            raise result
        if isinstance(result, Failure):
            raise result.to_error()
        return result


class Threads:
    """An executor of `number` threads; at exit running tasks are finished, and no further one is started."""

    def __init__(self, step: str, number: int) -> None:
        self.step, self.number = step, number
        self._pool = ThreadPoolExecutor(number, thread_name_prefix=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count_slots(self) -> int:
        return TASKS_PER_WORKER * self.number

    def submit(self, work: TaskFunction, task: Any, arguments: tuple[Any, ...]) -> Future[Result]:
        return self._pool.submit(work, task, *arguments)

    def wait(self, handles: Sequence[Future[Result]]) -> Sequence[Future[Result]]:
        return list(futures.wait(handles, return_when=FIRST_COMPLETED).done)

    def get_result(self, handle: Future[Result]) -> Result:
        return handle.result()
