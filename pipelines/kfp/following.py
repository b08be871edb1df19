"""Follow a run in Kubeflow Pipelines: print its states as they change, and collect its result at its end."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from ...components.dataset.workspace import STEPS
from ...components.step.progress import format_duration, say
from ...components.storage.errors import MillError, TransientError, UserError, error_for_exit_code
from ..finish import read_record_facts
from .artifacts import Records, RunRecords, find_failure
from .client import KfpService, LoginError, NotFoundError, build_stop_error
from .ui import KfpUi

POLL_S, SLOW_POLL_S = 5.0, 20.0
"""Seconds between two requests for a run's state, and between two when the service doesn't answer."""
MAX_OUTAGE_S = 30 * 60.0
"""Seconds for which the service may be unreachable while a run is followed."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
NOT_REACHED = "NOT_REACHED"
"""The state of a task that Argo omits because an earlier one has failed: the API gives it no state."""
_DRIVER_NODES = ("root", "executor")
_GROUPS = ("exit-handler", "condition-", "for-loop-", "iteration", "rung", "imagemill-")
"""Prefixes of the names of KFP's groups of tasks, and of the workflow's own."""
_NODE = re.compile(r"(?P<name>.+?)(?:\((?P<number>\d+)\))?")
_TASK_ITSELF = sys.maxsize


def get_run(service: KfpService, run: str) -> Any:
    """Return the run with this id from the service; UserError if there is none."""
    try:
        return service.call("reading the run", service.client.runs.run_service_get_run, run_id=run)
    except NotFoundError as error:
        raise UserError(f"RUN_ID: expected a run that there is, found {run!r}: {error}") from None


def follow(service: KfpService, run: str) -> Any:
    """Wait until a run has ended, and return it. Each change of its state, or of a task's, is a line on stderr.

    While the service is unreachable, or a login from a file has expired, the run is taken to go on; an error is raised
    when that lasts for MAX_OUTAGE_S.
    """
    goes_on = f"the run goes on: {service.get_run_url(run)}; `imagemill runs {run} --follow` follows it"
    states: dict[str, str] = {}
    away_since: float | None = None
    try:
        while True:
            try:
                current = service.request(service.client.runs.run_service_get_run, run_id=run)
            except (TransientError, LoginError) as error:
                if isinstance(error, LoginError) and not service.connection.login_file:
                    raise UserError(f"{error} ({goes_on})") from None
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    login = isinstance(error, LoginError)
                    awaited = f"a new login in {service.connection.login_file}" if login else "the service"
                    say("run", f"{error}; the run goes on, waiting for {awaited}")
                if now - away_since >= MAX_OUTAGE_S:
                    away = format_duration(now - away_since)
                    raise type(error)(f"{error}, for {away}: given up waiting; {goes_on}") from None
                time.sleep(min(POLL_S if now - away_since < 60 else SLOW_POLL_S, MAX_OUTAGE_S))
                continue
            except NotFoundError as error:
                raise UserError(f"{error} (the run was deleted while it was followed)") from None
            except UserError as error:
                raise UserError(f"{error} ({goes_on})") from None
            if away_since is not None:
                say("run", f"the service is back after {format_duration(time.monotonic() - away_since)}")
                away_since = None
            _show_changes(current, states)
            if current.state in ENDED:
                return current
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise build_stop_error(f"stopped following; {goes_on}") from None


def _show_changes(run: Any, states: dict[str, str]) -> None:
    for name, state, seconds in [*list_tasks(run), ("run", run.state or "PENDING", measure_seconds(run))]:
        if states.get(name) == state or state in (NOT_REACHED, "RUNTIME_STATE_UNSPECIFIED"):
            continue
        states[name] = state
        text = state.lower().replace("_", " ")
        say(name, f"{text} after {format_duration(seconds)}" if state in ENDED and seconds is not None else text)


def list_tasks(run: Any) -> list[tuple[str, str, float | None]]:
    """Return (name, state, seconds) of a run's tasks in the order of their start, without KFP's drivers and launchers.

    A task that may be tried again is a node `clean` in Argo, whose state is the task's, and a node for each attempt,
    `clean(0)`, `clean(1)`: one task, from the start of the first attempt to the end of the last.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    nodes: dict[str, list[tuple[int, Any]]] = {}
    for detail in details:
        match = _NODE.fullmatch((detail.display_name or "").lower())
        if match and _is_task(match["name"]):
            rank = _TASK_ITSELF if match["number"] is None else int(match["number"])
            nodes.setdefault(match["name"], []).append((rank, detail))
    rows = []
    for name, attempts in nodes.items():
        starts = [to_datetime(detail.start_time) or to_datetime(detail.create_time) for _, detail in attempts]
        started = min((start for start in starts if start), default=datetime.max.replace(tzinfo=UTC))
        last_attempt = max(attempts, key=lambda attempt: attempt[0])[1]
        ended = to_datetime(last_attempt.end_time)
        seconds = (ended - started).total_seconds() if ended and ended >= started else None
        rows.append((started, (name, last_attempt.state, seconds) if last_attempt.state else (name, NOT_REACHED, None)))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _is_task(name: str) -> bool:
    """Return whether an Argo node is a task, and not the workflow, a group of tasks, a driver or a launcher."""
    return name in STEPS or not (name in _DRIVER_NODES or name.endswith("-driver") or name.startswith(_GROUPS))


def to_datetime(time: datetime | None) -> datetime | None:
    """Return a time of the service as an aware one; None for 1970, which it returns where it has none."""
    if time is None or time.year <= 1970:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def measure_seconds(run: Any) -> float | None:
    """Return the seconds that a run took, or has taken until now."""
    created = to_datetime(run.created_at)
    if created is None:
        return None
    return max(((to_datetime(run.finished_at) or datetime.now(UTC)) - created).total_seconds(), 0.0)


def find_error(run: Any, records: Records, unread: str, ui: KfpUi) -> MillError | None:
    """Return why a run that has ended did not succeed; None if it did.

    The exit code is that of the failed step, from its record, or else its log or its pod.
    """
    if run.state == "SUCCEEDED":
        return None
    if run.state == "CANCELED":
        return MillError("the run was cancelled")
    for step, record in records.items():
        if record.exit_code:
            return error_for_exit_code(record.exit_code, f"{step}: {record.error}")
    failed = [name for name, state, _ in list_tasks(run) if state == "FAILED"]
    for name in failed:
        if failure := find_failure(ui, run.run_id, name):
            return failure
    message = f": {run.error.message}" if run.error and run.error.message else ""
    place = f" in {', '.join(failed)}" if failed else ""
    if unread:
        return MillError(f"the run failed{place}{message}; {unread}")
    lost_step = next((step for step in STEPS if step not in records), "")
    lost = f"; {lost_step} was lost or killed (out of memory?) before it wrote its record"
    return MillError(f"the run failed{place}{message}{lost if lost_step else ''}")


def collect_result(service: KfpService, run: Any, result: dict[str, Any]) -> int:
    """Add the outcome of a run that has ended to `result`, and return its exit code."""
    run_records = RunRecords(service)
    records, unread = run_records.read(run)
    error = find_error(run, records, unread, run_records.pages)
    result |= {
        "status": "failed" if error else "succeeded",
        "state": run.state,
        **read_record_facts(records),
        "records": {step: record.to_dict() for step, record in records.items()},
    }
    if unread:
        print(f"imagemill: {unread}", file=sys.stderr)
    if error:
        result |= {"error": str(error), "exit_code": error.exit_code}
    return error.exit_code if error else 0
