"""Find and stop processes that Ray leaves behind after `ray.shutdown()`.

Ray gives its raylet one second to end the processes below it, then kills it (ray/_private/node.py,
`_kill_process_impl`); its two agents would then try for a minute to report to a GCS that is gone as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

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
