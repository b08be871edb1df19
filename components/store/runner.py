"""A step's end when the local runner that started it is gone: nobody would see its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EXIT_TRANSIENT

RUNNER_PID = "IMAGEMILL_RUNNER_PID"
RUNNER_PIPE = "IMAGEMILL_RUNNER_PIPE"
"""A named pipe that the runner holds open: what a container has instead of the process id of a runner outside of it."""
RUNNER_BOOT = "IMAGEMILL_RUNNER_BOOT"
"""The runner's `boot()`: whether the pipe is one of this kernel's."""
LAST_WORDS_S = 30.0
"""So long a step that handles SIGTERM may take to end when its runner is gone."""


def end_with_runner() -> None:
    """End this process when the local runner that started it is gone (killed): nobody would see its end.

    What was finished is recorded; the next run goes on from there.
    """
    if pipe := os.environ.get(RUNNER_PIPE, ""):
        threading.Thread(target=_end_with_pipe, args=(pipe,), daemon=True, name="runner-pipe").start()
    named = os.environ.get(RUNNER_PID, "")
    if not named.isdecimal():
        return
    pid = int(named)

    def watch() -> None:
        while not _is_gone(pid):
            time.sleep(0.5)
        _end()

    threading.Thread(target=watch, daemon=True, name="runner-watch").start()


def _end_with_pipe(pipe: str) -> None:
    """The pipe's end comes when nobody holds it open for writing any more, however the runner ended.

    A runner that has ended already would be waited for by an ordinary open: so nobody holding it open is its end as
    well, where the runner's kernel is this one. In another (Docker in a virtual machine) a pipe tells nothing.
    """
    same = os.environ.get(RUNNER_BOOT, "") == (boot() or None)
    try:
        file = os.open(pipe, os.O_RDONLY | (os.O_NONBLOCK if same else 0))
        try:
            os.read(file, 1)
        except BlockingIOError:  # it is held open
            os.set_blocking(file, True)
            os.read(file, 1)
    except OSError:  # it is not there
        return
    _end()


_graceful = threading.Event()


@contextmanager
def ends_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM leads to an orderly end soon: training writes down what the next try goes on from."""
    _graceful.set()
    try:
        yield
    finally:
        _graceful.clear()


def _end() -> None:
    """At once, but for what `ends_by_sigterm`."""
    if _graceful.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + LAST_WORDS_S
        while _graceful.is_set() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1.0)  # for the record
    os._exit(EXIT_TRANSIENT)


def boot() -> str:
    """What tells this start of this kernel from any other, also in a container; empty where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_gone(pid: int) -> bool:
    """No such process, or one that has ended and that nobody waits for (a container's first process seldom does)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or a system without /proc
        return False
