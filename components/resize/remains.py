"""The end of a Ray in this process, to its last one: what Ray's own shutdown leaves on a busy machine.

Ray gives its raylet one second to end the processes below it, then kills it (ray/_private/node.py,
`_kill_process_impl`); its two agents would then try for a minute to tell a GCS that is gone as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

Process = tuple[int, str]
"""Its id, and when it started in ticks since boot: an id may be given to another one."""


def started_for(session: str) -> list[Process]:
    """The processes of this one's Ray whose session's folder this is, with all that they started; none where there is
    no /proc."""
    children: dict[int, list[Process]] = {}
    for pid in _pids():
        if about := _stat(pid):
            children.setdefault(int(about[1]), []).append((pid, about[19]))
    name = Path(session).name.encode()
    found, above = [], [one for one in children.get(os.getpid(), []) if name in _command_line(one[0])]
    while above:
        one = above.pop()
        found.append(one)
        above += children.get(one[0], [])
    return found


def end(processes: list[Process]) -> None:
    """Kill those that are still there."""
    for pid, started in processes:
        if (about := _stat(pid)) and about[19] == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    proc = Path("/proc")
    return [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()] if proc.is_dir() else []


def _stat(pid: int) -> list[str]:
    """What follows the name in /proc/<pid>/stat (proc(5)): state, parent, …, the start at 19; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
