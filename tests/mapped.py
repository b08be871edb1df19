"""Tasks and work for the engine's executors, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagemill.components.storage.errors import MillError, TransientError, UserError


@dataclass(frozen=True)
class Number:
    """A task. `folder`: where work leaves files."""

    value: int
    folder: str = ""
    rows: int = 1

    @property
    def key(self) -> str:
        return f"number-{self.value}"


def multiply(task: Number, factor: int) -> dict[str, Any]:
    return {"product": task.value * factor, "pid": os.getpid()}


def sleep(task: Number, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {}


def fail(task: Number, kind: str) -> dict[str, Any]:
    if task.value != 2:
        return {}
    errors = {error.__name__: error for error in (MillError, TransientError, UserError, ValueError)}
    raise errors[kind]("the second")


def end_process(task: Number, times: int, number: int) -> dict[str, Any]:
    """End the worker by a signal, or with an exit code where `number` is 0, for so many times on task 2."""
    deaths = Path(task.folder)
    if task.value == 2 and len(list(deaths.iterdir())) < times:
        (deaths / str(time.monotonic_ns())).touch()
        if number == 0:
            os._exit(7)
        os.kill(os.getpid(), number)
        signal.pause()
    return {"value": task.value}
