"""Cleans slices on all cores: in this process where there is little to do, else in worker processes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import IO, Any

from ..dataset.manifest import Dataset
from ..step.progress import Progress
from ..step.runner_exit import RUNNER_PID
from ..storage.errors import MillError, TransientError, error_for_exit_code
from ..storage.parallel import map_ordered, max_workers
from .shard import SLICE_BYTES, CleanedShard, RowRules, Slice, clean_shard
from .worker import CONCURRENT_JOBS, rules_to_record

WORKER_BYTES = 3 * 2**27
"""Memory of one worker process: its libraries, and two slices' images."""


def clean_slices(
    raw: Dataset, parts: list[Slice], uri: str, rules: RowRules, progress: Progress
) -> Iterator[tuple[Slice, CleanedShard]]:
    """Yield every slice with its result, in the order of `parts`. Each process holds two slices' images, 150 MB.

    Args:
        uri: folder below which the files are written.
    """
    workers, rules = rules.config.clean_workers or max_workers(WORKER_BYTES), rules.for_rows()
    processes = min(workers, len(parts))
    if processes < 2 or sum(part.bytes for part in parts) <= SLICE_BYTES:
        decode_lock = threading.Lock()

        def clean_in_process(part: Slice) -> CleanedShard:
            return clean_shard(raw, part, uri, rules, progress.add, decode_lock, workers)

        yield from zip(parts, map_ordered(parts, clean_in_process, CONCURRENT_JOBS, lambda _: 0), strict=True)
        return
    setup = {"raw": raw.uri, "shards": uri, "rules": rules_to_record(rules), "threads": workers // processes}
    with _start_workers(processes, setup, progress) as run:
        yield from zip(parts, map_ordered(parts, run, CONCURRENT_JOBS * processes, lambda _: 0), strict=True)


@contextmanager
def _start_workers(number: int, setup: dict[str, Any], progress: Progress) -> Iterator[Callable[[Slice], CleanedShard]]:
    """Start `number` processes; yield a function that cleans a slice on a free one, `CONCURRENT_JOBS` on each."""
    workers: list[_WorkerProcess] = []
    free: queue.SimpleQueue[_WorkerProcess] = queue.SimpleQueue()

    def run(part: Slice) -> CleanedShard:
        worker = free.get()
        try:
            return worker.run(part)
        finally:
            free.put(worker)

    try:
        for _ in range(number):
            workers.append(_WorkerProcess(setup, progress))
        for worker in workers * CONCURRENT_JOBS:
            free.put(worker)
        yield run
    finally:
        # Idle ones have nothing left to do; busy ones are left only after an error, when their work is not needed.
        for worker in workers:
            worker.popen.kill()
        for worker in workers:
            worker.popen.wait()


class _WorkerProcess:
    """A worker process, and a thread that reads its results."""

    def __init__(self, setup: dict[str, Any], progress: Progress) -> None:
        environment = os.environ | {RUNNER_PID: str(os.getpid()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __package__ + ".worker"]
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._progress, self._futures, self._lock = progress, dict[str, Future[CleanedShard]](), threading.Lock()
        self._send(setup)
        threading.Thread(target=self._read_results, daemon=True, name="answers").start()

    def run(self, part: Slice) -> CleanedShard:
        """Clean one slice in the process; raises its error, TransientError if the process itself was killed."""
        future: Future[CleanedShard] = Future()
        with self._lock:
            self._futures[part.key] = future
        self._send(part.to_record())
        return future.result()

    def _send(self, message: dict[str, Any]) -> None:
        pipe: IO[str] = self.popen.stdin  # type: ignore[assignment]
        try:
            with self._lock:
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()
        except OSError:  # the process has ended
            self._fail_pending()

    def _read_results(self) -> None:
        lines: Iterable[str] = self.popen.stdout or ()
        for line in lines:
            result = json.loads(line)
            if result["done"]:
                self._progress.add(result["done"])
            if "key" in result:
                with self._lock:
                    future = self._futures.pop(result["key"])
                if "error" in result:
                    future.set_exception(error_for_exit_code(result["exit_code"], result["error"]))
                else:
                    future.set_result(CleanedShard.from_record(result["shard"]))
        self._fail_pending()

    def _fail_pending(self) -> None:
        """Fail all pending slices, because the process has ended."""
        code = self.popen.wait()
        cause = f"was killed by signal {-code}; perhaps memory ran out" if code < 0 else f"ended with exit code {code}"
        error: MillError = (TransientError if code < 0 else MillError)(f"a process that cleans images {cause}")
        with self._lock:
            pending, self._futures = self._futures, {}
        for future in pending.values():
            future.set_exception(error)
