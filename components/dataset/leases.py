"""Leases: mutual exclusion between running steps and `imagemill gc`, which deletes files.

A step takes its lease before it looks for anything, and then waits while garbage is deleted. `imagemill gc` takes its
own lease first, then looks which steps hold one, and leaves alone what these may use. So at least one of the two sees
the other (mutual exclusion by two flags: Dijkstra, "Cooperating sequential processes", 1965). That takes a store whose
listings show all that was written before, as those of S3 and of disks do.

A lease is an object below `running/` that a thread writes again while it is held. That of a killed process stays: a
step's counts for a day after its last renewal, one to delete for a minute.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from ..storage import uri as uris
from ..storage.errors import MillError, TransientError
from ..storage.protocol import Entry
from .workspace import STEPS, Workspace

FOLDER = "running"
STEP_RENEW_S, STEP_LEASE_S = 600.0, 86_400.0
"""A step's lease counts for a day, because the clocks of machines differ, and a laptop may sleep over night."""
DELETE_RENEW_S, DELETE_LEASE_S = 5.0, 60.0
DELETE_FORGOTTEN_S = 900.0
"""A lease to delete of this age is one of a killed process, whatever the difference of two clocks."""
POLL_S = 0.5
_DELETE_PREFIX = "gc-"


class Lease:
    """An object that is written when the `with` block begins, again every `renew_s` seconds, and removed at its end."""

    def __init__(self, workspace: Workspace, name: str, record: dict[str, Any], renew_s: float) -> None:
        self._store, self._uri = workspace.store, workspace.at(FOLDER, f"{name}.json")
        self._record, self._renew_s = record, renew_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")
        self.renewed = 0.0

    def __enter__(self) -> Self:
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store.discard(self._uri)

    def _write(self, number: int) -> None:
        started = time.time()
        self._store.put(self._uri, json.dumps(self._record | {"renewals": number}, indent=1).encode() + b"\n")
        self.renewed = started

    def _renew(self) -> None:
        number = 0
        while not self._ended.wait(self._renew_s):
            number += 1
            with suppress(MillError, OSError):  # the store is away for a while: the lease is good for longer
                self._write(number)


@dataclass(frozen=True)
class RunningStep:
    """A step that holds a lease: the URIs that it was given, and when it last renewed it (seconds since 1970)."""

    run: str
    step: str
    uses: tuple[str, ...]
    renewed: float


@contextmanager
def hold_step_lease(
    workspace: Workspace, run: str, step: str, uses: Sequence[str], say: Callable[[str], None]
) -> Iterator[None]:
    """Hold a step's lease; the block begins when nobody deletes garbage. `uses`: URIs that the step was given."""
    record = {"run": run, "step": step, "uses": [*uses], "started": datetime.now(UTC).isoformat(timespec="seconds")}
    with Lease(workspace, f"{run}.{step}", record, STEP_RENEW_S):
        _wait_for_deletion(workspace, say)
        yield


def _wait_for_deletion(workspace: Workspace, say: Callable[[str], None]) -> None:
    """Wait until nobody renews a lease to delete."""
    first_seen_at: dict[Entry, float] = {}
    has_said = False
    while True:
        now, monotonic_now = time.time(), time.monotonic()
        leases = [entry for entry in _list_leases(workspace) if uris.basename(entry.uri).startswith(_DELETE_PREFIX)]
        leases = [lease for lease in leases if now - lease.modified < DELETE_FORGOTTEN_S]
        first_seen_at = {lease: first_seen_at.get(lease, monotonic_now) for lease in leases}
        if all(monotonic_now - since > DELETE_LEASE_S for since in first_seen_at.values()):
            return
        if not has_said:
            say("waiting for `imagemill gc`, which is deleting what nothing refers to")
            has_said = True
        time.sleep(POLL_S)


def _list_leases(workspace: Workspace) -> Iterator[Entry]:
    return workspace.store.list(workspace.at(FOLDER))


def list_running_steps(workspace: Workspace) -> list[RunningStep]:
    """Return the steps whose leases count, by run and step.

    Ignored are leases that were not renewed for a day, and those older than the step's own record, which a step writes
    at its end (where deleting is forbidden its lease stays).
    """
    running = []
    for entry in _list_leases(workspace):
        run, _, step = uris.basename(entry.uri).removesuffix(".json").rpartition(".")
        if step not in STEPS or time.time() - entry.modified > STEP_LEASE_S:
            continue
        ended = workspace.store.stat(workspace.run_file_uri(run, f"{step}.json"))
        try:
            record = json.loads(workspace.store.read(entry.uri))
        except FileNotFoundError:  # it has ended just now
            continue
        except ValueError:
            record = {}
        if ended is None or ended.modified <= entry.modified:
            uses = tuple(str(uri) for uri in record.get("uses", ()))
            running.append(RunningStep(run, step, uses, entry.modified))
    return sorted(running, key=lambda lease: (lease.run, lease.step))


class DeleteLease(Lease):
    """The lease to delete: no step begins while it is held."""

    def __init__(self, workspace: Workspace) -> None:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        super().__init__(workspace, f"{_DELETE_PREFIX}{secrets.token_hex(6)}", {"started": started}, DELETE_RENEW_S)

    def check(self) -> None:
        """Raise TransientError if steps may have begun, because the lease was not renewed in time."""
        if time.time() - self.renewed > DELETE_LEASE_S / 2:
            raise TransientError(
                "the lease of `imagemill gc` was not renewed in time: this process or the store stood still; run again "
                "to delete the rest"
            )
