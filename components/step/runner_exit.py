"""Stop a step early: on request, by a signal, or because the process that started this one is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.errors import EXIT_TRANSIENT

RUNNER_PID = "IMAGEMILL_RUNNER_PID"
RUNNER_PIPE = "IMAGEMILL_RUNNER_PIPE"
"""A named pipe that the runner holds open: in a container the runner's process id means nothing."""
RUNNER_BOOT = "IMAGEMILL_RUNNER_BOOT"
"""The runner's `boot_id()`, which tells whether the pipe belongs to this kernel."""
SIGTERM_GRACE_S = 30.0
"""Seconds that a step which handles SIGTERM has to end when its runner is gone."""


def exit_with_runner() -> None:
    """End this process when the local runner that started it is gone: nobody would see its result.

    Finished parts are recorded; the next run continues from them.
    """
    if pipe := os.environ.get(RUNNER_PIPE, ""):
        threading.Thread(target=_exit_with_pipe, args=(pipe,), daemon=True, name="runner-pipe").start()
    text = os.environ.get(RUNNER_PID, "")
    if not text.isdecimal():
        return
    pid = int(text)

    def watch() -> None:
        while not _is_gone(pid):
            time.sleep(0.5)
        _exit()

    threading.Thread(target=watch, daemon=True, name="runner-watch").start()


def _exit_with_pipe(pipe: str) -> None:
    """Wait for the end of the pipe, which comes when the runner has ended in whatever way, and end this process.

    An ordinary open would wait for a runner that has ended already: so where the runner's kernel is this one, a pipe
    that nobody holds open means the end as well. In another kernel (Docker in a virtual machine) it means nothing.
    """
    is_same_kernel = os.environ.get(RUNNER_BOOT, "") == (boot_id() or None)
    try:
        file = os.open(pipe, os.O_RDONLY | (os.O_NONBLOCK if is_same_kernel else 0))
        try:
            os.read(file, 1)
        except BlockingIOError:  # the runner holds it open
            os.set_blocking(file, True)
            os.read(file, 1)
    except OSError:  # no such pipe
        return
    _exit()


_graceful = threading.Event()
_SIGNAL_NAMES: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


@dataclass
class StopRequest:
    """A request to end the training at the next batch, `requested_by` SIGTERM (the machine is taken away), Ctrl-C, or
    whoever runs the step."""

    is_requested: bool = False
    requested_by: str = "SIGTERM"

    @property
    def is_by_signal(self) -> bool:
        return self.is_requested and self.requested_by in _SIGNAL_NAMES.values()

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let SIGTERM and the first Ctrl-C make the request instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
            yield
            return

        def request(number: int, frame: Any) -> None:
            self.is_requested, self.requested_by = True, _SIGNAL_NAMES[number]
            if number == signal.SIGINT:
                signal.signal(number, previous[number])  # a second Ctrl-C ends the process at once

        previous = {number: signal.signal(number, request) for number in _SIGNAL_NAMES}
        _graceful.set()
        try:
            yield
        finally:
            _graceful.clear()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _exit() -> None:
    """End this process: at once, or by SIGTERM within `StopRequest.handle_signals`."""
    if _graceful.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + SIGTERM_GRACE_S
        while _graceful.is_set() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)  # for the record
    os._exit(EXIT_TRANSIENT)


def boot_id() -> str:
    """Return an id of this boot of this kernel, the same in its containers; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_gone(pid: int) -> bool:
    """Return whether a process does not exist or is a zombie (a container's first process seldom reaps them)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or a system without /proc
        return False
