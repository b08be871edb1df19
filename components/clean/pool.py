"""Slices on all cores: in this process where there is little to do, else in processes of their own."""

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

from ..store.errors import MillError, TransientError, error_for_exit_code
from ..store.manifest import Dataset
from ..store.parallel import map_ordered, max_workers
from ..store.progress import Progress
from ..store.runner import RUNNER_PID
from .shard import CleanedShard, RowRules, clean_shard
from .slices import SLICE_BYTES, Slice
from .worker import JOBS_AT_A_TIME, rules_to_record

Work = Callable[[Slice], CleanedShard]
WORKER_BYTES = 3 * 2**27
"""Memory of one worker process: its libraries, and two slices' images."""


def clean_slices(
    raw: Dataset, parts: list[Slice], uri: str, rules: RowRules, progress: Progress
) -> Iterator[tuple[Slice, CleanedShard]]:
    """Every slice with what it gave, in their order. In memory are two slices' images a process, about 150 MB."""
    workers = rules.config.clean_workers or max_workers(WORKER_BYTES)
    processes = min(workers, len(parts))
    if processes < 2 or sum(part.bytes for part in parts) <= SLICE_BYTES:
        turn = threading.Lock()

        def here(part: Slice) -> CleanedShard:
            return clean_shard(raw, part, uri, rules, progress.add, turn, workers)

        yield from zip(parts, map_ordered(parts, here, JOBS_AT_A_TIME, lambda _: 0), strict=True)
        return
    setup = {"raw": raw.uri, "clean": uri, "rules": rules_to_record(rules), "threads": workers // processes}
    with _processes(processes, setup, progress) as work:
        yield from zip(parts, map_ordered(parts, work, JOBS_AT_A_TIME * processes, lambda _: 0), strict=True)


@contextmanager
def _processes(number: int, setup: dict[str, Any], progress: Progress) -> Iterator[Work]:
    """A function that runs a slice on one of so many processes, each with `JOBS_AT_A_TIME` at a time."""
    started: list[_Process] = []
    free: queue.SimpleQueue[_Process] = queue.SimpleQueue()

    def work(part: Slice) -> CleanedShard:
        process = free.get()
        try:
            return process.run(part)
        finally:
            free.put(process)

    try:
        for _ in range(number):
            started.append(_Process(setup, progress))
        for process in started * JOBS_AT_A_TIME:
            free.put(process)
        yield work
    finally:
        _end(started)


class _Process:
    """One worker process, and a thread that takes its answers."""

    def __init__(self, setup: dict[str, Any], progress: Progress) -> None:
        environment = os.environ | {RUNNER_PID: str(os.getpid()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __package__ + ".worker"]
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._progress, self._waiting, self._lock = progress, dict[str, Future[CleanedShard]](), threading.Lock()
        self._send(setup)
        threading.Thread(target=self._listen, daemon=True, name="answers").start()

    def run(self, part: Slice) -> CleanedShard:
        """Have one slice cleaned; raises what ended it, TransientError if the process itself was killed."""
        future: Future[CleanedShard] = Future()
        with self._lock:
            self._waiting[part.key] = future
        self._send(part.to_record())
        return future.result()

    def _send(self, message: dict[str, Any]) -> None:
        pipe: IO[str] = self.popen.stdin  # type: ignore[assignment]
        try:
            with self._lock:
                pipe.write(json.dumps(message) + "\n")
                pipe.flush()
        except OSError:  # it is gone
            self._give_up()

    def _listen(self) -> None:
        answers: Iterable[str] = self.popen.stdout or ()
        for line in answers:
            answer = json.loads(line)
            if answer["done"]:
                self._progress.add(answer["done"])
            if "key" in answer:
                with self._lock:
                    future = self._waiting.pop(answer["key"])
                if "error" in answer:
                    future.set_exception(error_for_exit_code(answer["exit_code"], answer["error"]))
                else:
                    future.set_result(CleanedShard.from_record(answer["shard"]))
        self._give_up()

    def _give_up(self) -> None:
        """The process has ended: whoever still waits for it is told how."""
        code = self.popen.wait()
        killed = f"was killed by signal {-code}; perhaps memory ran out" if code < 0 else f"ended with exit code {code}"
        error: MillError = (TransientError if code < 0 else MillError)(f"a process that cleans images {killed}")
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(error)


def _end(processes: list[_Process]) -> None:
    """End what is still there: idle ones at once, busy ones only after an error, when their work is not wanted."""
    for process in processes:
        process.popen.kill()
    for process in processes:
        process.popen.wait()
