"""Executors of tasks on this machine: threads, and processes for work that holds Python's lock.

Not `concurrent.futures.ProcessPoolExecutor`: there a worker that dies breaks the whole pool, and which task it had and
how it ended is lost. Its workers also import the program that started them, which may be KFP's; those here run
`python -m imagemill.components.engine.processes`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from ..compat import hide_pandas
from ..step.runner_exit import RUNNER_PID, exit_with_runner
from ..storage.errors import EXIT_INTERNAL, describe_internal_error
from .tasks import TASKS_PER_WORKER, Failure, Result, TaskFunction, WorkerLost, run_work

WorkAndArguments = tuple[TaskFunction, tuple[Any, ...]]
"""A function and its arguments beside the task, which are sent to a worker once for many tasks."""
Submitted = tuple[int, Any, WorkAndArguments]
"""A submitted task: its handle, the task, and its work."""


@dataclass
class _Worker:
    """A worker process with the tasks that were sent to it, of which it does the first. `work`: of the last one."""

    popen: subprocess.Popen[bytes]
    connection: Connection
    submitted: list[Submitted] = field(default_factory=list)
    work: WorkAndArguments | None = None

    @classmethod
    def start(cls) -> _Worker:
        connection, worker_end = multiprocessing.Pipe()
        environment = os.environ | {RUNNER_PID: str(os.getpid()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", f"{__package__}.processes", str(worker_end.fileno())]
        with worker_end:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, env=environment, pass_fds=[worker_end.fileno()]
            )  # stdout is for the result of a command: what a worker prints goes to stderr
        return cls(popen, connection)

    def send(self, submitted: Submitted) -> None:
        _, task, work = submitted
        self.submitted.append(submitted)
        with suppress(OSError):  # it has ended, which the next wait finds
            self.connection.send((None if work is self.work else work, task))
        self.work = work

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
        self._work: WorkAndArguments | None = None
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
        if self._work is None or self._work[0] is not work or self._work[1] is not arguments:
            self._work = work, arguments
        self._last_handle += 1
        self._assign((self._last_handle, task, self._work))
        return self._last_handle

    def _assign(self, submitted: Submitted) -> None:
        """Send a task to the worker with the fewest; start one where all have tasks and more are allowed."""
        worker = min(self._workers, key=lambda worker: len(worker.submitted), default=None)
        if worker is None or (worker.submitted and len(self._workers) < self.number):
            worker = _Worker.start()
            self._workers.append(worker)
        worker.send(submitted)

    def wait(self, handles: Sequence[int]) -> Sequence[int]:
        while not self._results:
            workers = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(workers)):
                self._receive(workers[connection])  # type: ignore[index]
        return list(self._results)

    def _receive(self, worker: _Worker) -> None:
        """Take a result from a worker; if it has ended, its first task is lost and the others go to other workers."""
        try:
            self._results[worker.submitted[0][0]] = worker.connection.recv()
            del worker.submitted[0]
        except (EOFError, OSError):
            reason = worker.describe_end()
            self._workers.remove(worker)
            worker.stop()
            self._results |= {handle: WorkerLost(reason) for handle, _, _ in worker.submitted[:1]}
            for submitted in worker.submitted[1:]:
                self._assign(submitted)

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


def main() -> int:
    """Do tasks one after another, in a worker process, until the connection is closed.

    Tasks arrive at the connection whose file descriptor is the first argument, and results leave by it. The process
    ends with the one that started it.
    """
    exit_with_runner()
    hide_pandas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends it orderly
    work: Any = None
    with Connection(int(sys.argv[1])) as connection:
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return 0
            try:
                new_work, task = pickle.loads(message)
                work = new_work or work
                result = run_work(work[0], task, work[1])
            except Exception as error:  # of any kind: the parent waits for an answer
                traceback.print_exc()
                result = Failure(describe_internal_error(error), EXIT_INTERNAL)
            connection.send(result)


if __name__ == "__main__":
    sys.exit(main())
