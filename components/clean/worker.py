"""A worker process of cleaning: `python -m imagemill.components.clean.worker`, started by pool.py.

Processes instead of threads, because the work between decoder and measures holds Python's lock. Jobs arrive as lines
of JSON on stdin, results leave as lines of JSON on stdout; pixels never pass between processes.
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
from dataclasses import asdict
from typing import IO, Any

from ..dataset.manifest import Dataset, read_dataset
from ..step.runner_exit import exit_with_runner
from ..storage.errors import EXIT_OURS, MillError
from .config import CleanConfig
from .labels import LabelRules
from .shard import RowRules, Slice, clean_shard

CONCURRENT_JOBS = 2
"""Jobs of a worker at a time: one is decoded while the one before it is written."""
_PROGRESS_INTERVAL_S = 0.5


class Worker:
    """Cleans slices and writes their results to `output`; safe to use from several threads."""

    def __init__(self, setup: dict[str, Any], output: IO[str]) -> None:
        self._raw: Dataset = read_dataset(setup["raw"], "raw")
        self._uri, self._threads = setup["shards"], setup["threads"]
        self._rules = rules_from_record(setup["rules"])
        self._output, self._lock, self._decode_lock = output, threading.Lock(), threading.Lock()
        self._unreported, self._last_message = 0, time.monotonic()

    def run(self, part: Slice) -> None:
        """Clean one slice and send its record, or the error that ended it."""
        try:
            shard = clean_shard(self._raw, part, self._uri, self._rules, self._count, self._decode_lock, self._threads)
            message: dict[str, Any] = {"shard": shard.to_record()}
        except MillError as error:
            message = {"error": str(error), "exit_code": error.exit_code}
        except Exception as error:  # of any kind: the parent waits for an answer and would wait forever without one
            traceback.print_exc()
            message = {"error": f"{type(error).__name__}: {error} (an error of imagemill's)", "exit_code": EXIT_OURS}
        self._send(message | {"key": part.key})

    def _count(self, number: int) -> None:
        with self._lock:
            self._unreported += number
            is_due = time.monotonic() - self._last_message > _PROGRESS_INTERVAL_S
        if is_due:
            self._send({})

    def _send(self, message: dict[str, Any]) -> None:
        """Write one line, with the number of images done since the last one."""
        with self._lock:
            self._output.write(json.dumps(message | {"done": self._unreported}) + "\n")
            self._output.flush()
            self._unreported, self._last_message = 0, time.monotonic()


def rules_to_record(rules: RowRules) -> dict[str, Any]:
    """Return the rules as JSON; the config's values are effective ones, so no preset is applied again."""
    return {"config": asdict(rules.config), "labels": rules.labels.to_record()}


def rules_from_record(record: dict[str, Any]) -> RowRules:
    return RowRules(CleanConfig(**record["config"]), LabelRules.from_record(record["labels"]))


class _PandasBlocker:
    """Import hook that hides pandas, which Arrow imports, where it is installed, before it converts its first list.

    Nothing here needs it, and it would take each process a third of a second.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ImportError("not wanted in this process")


def main() -> int:
    """Read the setup, then jobs until stdin ends; ends with the parent process."""
    exit_with_runner()
    sys.meta_path.insert(0, _PandasBlocker())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends it orderly
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints must not be taken for a result
    worker = Worker(json.loads(sys.stdin.readline()), output)
    with ThreadPoolExecutor(CONCURRENT_JOBS) as pool:
        for line in sys.stdin:
            pool.submit(worker.run, Slice.from_record(json.loads(line)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
