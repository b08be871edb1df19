"""One process of cleaning's pool: `python -m imagemill.components.clean.worker`, started by pool.py.

A process and not a thread, for what lies between the decoder and the measures holds Python's lock: threads of one
process would wait for one another. Jobs come as lines of JSON on stdin, results go to stdout as such: no pickle, and
nothing of an image passes between the processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from ..store.errors import EXIT_OURS, MillError
from ..store.manifest import Dataset, read_dataset
from ..store.runner import exit_with_runner
from .config import CleanConfig
from .labels import LabelRules
from .shard import RowRules, clean_shard
from .slices import Slice

JOBS_AT_A_TIME = 2
"""One is decoded while the one before it is written."""
_SAID_EVERY_S = 0.5


class Worker:
    """The rules, and the pipe that answers go to; safe to use from the threads of the jobs."""

    def __init__(self, setup: dict[str, Any], answers: IO[str]) -> None:
        self._raw: Dataset = read_dataset(setup["raw"], "raw")
        self._uri, self._threads = setup["clean"], setup["threads"]
        self._rules = rules_from_record(setup["rules"])
        self._answers, self._lock, self._turn = answers, threading.Lock(), threading.Lock()
        self._done, self._said = 0, time.monotonic()

    def work(self, part: Slice) -> None:
        """Clean one slice and answer with its record, or with the error that ended it."""
        try:
            shard = clean_shard(self._raw, part, self._uri, self._rules, self._count, self._turn, self._threads)
            answer: dict[str, Any] = {"shard": shard.to_record()}
        except MillError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # an unforeseen one: its trace in the log, its words to the step
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error} (an error of imagemill's)", "exit_code": EXIT_OURS}
        self._say(answer | {"key": part.key})

    def _count(self, number: int) -> None:
        with self._lock:
            self._done += number
            due = time.monotonic() - self._said > _SAID_EVERY_S
        if due:
            self._say({})

    def _say(self, answer: dict[str, Any]) -> None:
        """One line, with the images done since the last one."""
        with self._lock:
            self._answers.write(json.dumps(answer | {"done": self._done}) + "\n")
            self._answers.flush()
            self._done, self._said = 0, time.monotonic()


def rules_to_record(rules: RowRules) -> dict[str, Any]:
    """The rules as JSON; the config's values are effective ones, so no preset is applied again."""
    from dataclasses import asdict

    labels = asdict(rules.labels) | {"rare": sorted(rules.labels.rare)}
    return {"config": asdict(rules.config), "labels": labels}


def rules_from_record(record: dict[str, Any]) -> RowRules:
    labels = LabelRules(**{**record["labels"], "rare": frozenset(record["labels"]["rare"])})
    return RowRules(CleanConfig(**record["config"]), labels)


class _WithoutPandas:
    """Arrow imports pandas, where it is installed, before it converts its first list. Nothing here needs it, and it
    would take each process a third of a second."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ImportError("not wanted in this process")


def main() -> int:
    """Read the setup, then jobs until there are no more; the parent's end is this process's end."""
    exit_with_runner()
    sys.meta_path.insert(0, _WithoutPandas())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends it orderly
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    worker = Worker(json.loads(sys.stdin.readline()), answers)
    with ThreadPoolExecutor(JOBS_AT_A_TIME) as pool:
        for line in sys.stdin:
            pool.submit(worker.work, Slice.from_record(json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
