"""A run in the service, watched: its states as they change, and, at its end, what its steps have recorded."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import MillError, TransientError, UserError, error_for_exit_code
from ..components.store.progress import format_duration, say
from .kfp_client import LoginError, NotFoundError, Service, stopped
from .kfp_pages import Pages
from .kfp_records import find_failure
from .run import read_record_facts
from .run_records import Records, RunRecords

POLL_S, SLOW_POLL_S = 5.0, 20.0
"""Seconds between two looks at a run, and between two when the service doesn't answer."""
PATIENCE_S = 30 * 60.0
"""So long the service may be away while a run is followed."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
NOT_REACHED = "NOT_REACHED"
"""Of a task that Argo omits, for one before it has failed: the API gives it no state."""
_MACHINERY = ("root", "executor")
_GROUPS = ("exit-handler", "condition-", "for-loop-", "imagemill-")
"""How the names of KFP's groups of tasks begin, and the workflow's own."""
_NODE = re.compile(r"(?P<name>.+?)(?:\((?P<number>\d+)\))?")
_WHOLE = sys.maxsize


def get_run(service: Service, run: str) -> Any:
    """The run as the service has it; UserError if it has none of this id."""
    try:
        return service.call("reading the run", service.client.runs.run_service_get_run, run_id=run)
    except NotFoundError as error:
        raise UserError(f"RUN_ID: expected a run that there is, found {run!r}: {error}") from None


def follow(service: Service, run: str) -> Any:
    """The run, when it has ended. Each change of its state, or of a task's, is a line on stderr.

    While the service is away, or a login has run out that lies in a file, the run is thought to go on; an error is
    raised when that lasts for PATIENCE_S.
    """
    goes_on = f"the run goes on: {service.link(run)}; `imagemill runs {run} --follow` follows it"
    shown: dict[str, str] = {}
    away_since: float | None = None
    try:
        while True:
            try:
                found = service.once(service.client.runs.run_service_get_run, run_id=run)
            except (TransientError, LoginError) as error:
                if isinstance(error, LoginError) and not service.connection.renewable:
                    raise UserError(f"{error} ({goes_on})") from None
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    login = isinstance(error, LoginError)
                    wanted = f"a new login in {service.connection.renewable}" if login else "the service"
                    say("run", f"{error}; the run goes on, waiting for {wanted}")
                if now - away_since >= PATIENCE_S:
                    away = format_duration(now - away_since)
                    raise type(error)(f"{error}, for {away}: given up waiting; {goes_on}") from None
                time.sleep(min(POLL_S if now - away_since < 60 else SLOW_POLL_S, PATIENCE_S))
                continue
            except NotFoundError as error:
                raise UserError(f"{error} (the run was deleted while it was followed)") from None
            except UserError as error:
                raise UserError(f"{error} ({goes_on})") from None
            if away_since is not None:
                say("run", f"the service is back after {format_duration(time.monotonic() - away_since)}")
                away_since = None
            _show_changes(found, shown)
            if found.state in ENDED:
                return found
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise stopped(f"stopped following; {goes_on}") from None


def _show_changes(run: Any, shown: dict[str, str]) -> None:
    for name, state, seconds in [*tasks(run), ("run", run.state or "PENDING", took(run))]:
        if shown.get(name) == state or state in (NOT_REACHED, "RUNTIME_STATE_UNSPECIFIED"):
            continue
        shown[name] = state
        word = state.lower().replace("_", " ")
        say(name, f"{word} after {format_duration(seconds)}" if state in ENDED and seconds is not None else word)


def tasks(run: Any) -> list[tuple[str, str, float | None]]:
    """(name, state, seconds) of a run's tasks by the time of their beginning, without KFP's drivers and launchers.

    A task that may be tried again is a node `clean` in Argo, whose state is the task's, and a node for each try,
    `clean(0)`, `clean(1)`: one task, from the first one's beginning to the last one's end.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    nodes: dict[str, list[tuple[int, Any]]] = {}
    for detail in details:
        found = _NODE.fullmatch((detail.display_name or "").lower())
        if found and _is_task(found["name"]):
            rank = _WHOLE if found["number"] is None else int(found["number"])
            nodes.setdefault(found["name"], []).append((rank, detail))
    rows = []
    for name, tries in nodes.items():
        starts = [moment(one.start_time) or moment(one.create_time) for _, one in tries]
        started = min((start for start in starts if start), default=datetime.max.replace(tzinfo=UTC))
        last = max(tries, key=lambda one: one[0])[1]
        ended = moment(last.end_time)
        seconds = (ended - started).total_seconds() if ended and ended >= started else None
        rows.append((started, (name, last.state, seconds) if last.state else (name, NOT_REACHED, None)))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _is_task(name: str) -> bool:
    """Argo's nodes are also the workflow itself, groups of tasks, the drivers and the launchers."""
    return name in STEPS or not (name in _MACHINERY or name.endswith("-driver") or name.startswith(_GROUPS))


def moment(time: datetime | None) -> datetime | None:
    """A time of the service's, which says 1970 where it has none."""
    if time is None or time.year <= 1970:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def took(run: Any) -> float | None:
    """Seconds that a run took, or has taken until now."""
    created = moment(run.created_at)
    if created is None:
        return None
    return max(((moment(run.finished_at) or datetime.now(UTC)) - created).total_seconds(), 0.0)


def error_of(run: Any, records: Records, unread: str, pages: Pages) -> MillError | None:
    """Why a run that has ended did not succeed, with the failed step's exit code where anything says it: its record,
    or else its log or its pod."""
    if run.state == "SUCCEEDED":
        return None
    if run.state == "CANCELED":
        return MillError("the run was cancelled")
    for step, record in records.items():
        if record["exit_code"]:
            return error_for_exit_code(int(record["exit_code"]), f"{step}: {record['error']}")
    failed = [name for name, state, _ in tasks(run) if state == "FAILED"]
    for name in failed:
        if why := find_failure(pages, run.run_id, name):
            return why
    said = f": {run.error.message}" if run.error and run.error.message else ""
    where = f" in {', '.join(failed)}" if failed else ""
    if unread:
        return MillError(f"the run failed{where}{said}; {unread}")
    silent = next((step for step in STEPS if step not in records), "")
    lost = f"; {silent} ended without a record, as a pod does that is lost or killed (for memory?)" if silent else ""
    return MillError(f"the run failed{where}{said}{lost}")


def finish(service: Service, run: Any, result: dict[str, Any]) -> int:
    """Add to `result` what came of a run that has ended, and return the exit code that says it."""
    source = RunRecords(service)
    records, unread = source.read(run)
    error = error_of(run, records, unread, source.pages)
    result |= {
        "status": "failed" if error else "succeeded",
        "state": run.state,
        **read_record_facts(records),
        "records": records,
    }
    if unread:
        print(f"imagemill: {unread}", file=sys.stderr)
    if error:
        result |= {"error": str(error), "exit_code": error.exit_code}
    return error.exit_code if error else 0
