"""A run in the service, watched: its states as they change, and, at its end, what its steps have recorded."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Any

from ..components.store import uri as uris
from ..components.store.config import STEPS
from ..components.store.errors import MillError, TransientError, UserError, error_for_exit_code
from ..components.store.progress import duration, say
from ..components.store.workspace import Workspace
from .kfp_client import LoginError, NotFoundError, Service, stopped
from .run import facts

POLL_S, SLOW_POLL_S = 5.0, 20.0
"""Seconds between two looks at a run, and between two when the service doesn't answer."""
PATIENCE_S = 30 * 60.0
"""So long the service may be away while a run is followed."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_MACHINERY = ("root", "executor")


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
                    away = duration(now - away_since)
                    raise type(error)(f"{error}, for {away}: given up waiting; {goes_on}") from None
                time.sleep(min(POLL_S if now - away_since < 60 else SLOW_POLL_S, PATIENCE_S))
                continue
            except NotFoundError as error:
                raise UserError(f"{error} (the run was deleted while it was followed)") from None
            except UserError as error:
                raise UserError(f"{error} ({goes_on})") from None
            if away_since is not None:
                say("run", f"the service is back after {duration(time.monotonic() - away_since)}")
                away_since = None
            _show_changes(found, shown)
            if found.state in ENDED:
                return found
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise stopped(f"stopped following; {goes_on}") from None


def _show_changes(run: Any, shown: dict[str, str]) -> None:
    for name, state, seconds in [*tasks(run), ("run", run.state or "PENDING", took(run))]:
        if shown.get(name) == state or state == "RUNTIME_STATE_UNSPECIFIED":
            continue
        shown[name] = state
        word = state.lower().replace("_", " ")
        say(name, f"{word} after {duration(seconds)}" if state in ENDED and seconds is not None else word)


def tasks(run: Any) -> list[tuple[str, str, float | None]]:
    """(name, state, seconds) of a run's tasks by the time of their beginning, without KFP's drivers and launchers."""
    details = (run.run_details.task_details if run.run_details else None) or []
    found: dict[str, tuple[datetime, str, float | None]] = {}
    for task in details:
        name = (task.display_name or "").lower()
        if not _is_task(name):
            continue
        started = moment(task.start_time) or moment(task.create_time) or datetime.max.replace(tzinfo=UTC)
        ended = moment(task.end_time)
        seconds = (ended - started).total_seconds() if ended and ended >= started else None
        found[name] = (started, task.state or "PENDING", seconds)
    return [(name, state, seconds) for name, (_, state, seconds) in sorted(found.items(), key=lambda item: item[1][0])]


def _is_task(name: str) -> bool:
    """Argo's nodes are also the workflow itself, the drivers, the launchers and their tries."""
    if name in STEPS:
        return True
    base = name.partition("(")[0]
    machinery = base in _MACHINERY or base.endswith("-driver") or base.startswith("exit-handler")
    return bool(name) and not machinery and not name.startswith("imagemill-")


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


def workspace_of(service: Service, run: Any) -> str:
    """The workspace that a run works in: its parameter, or its pipeline's default; empty if nothing says it."""
    given = ((run.runtime_config.parameters if run.runtime_config else None) or {}).get("workspace")
    if given:
        return str(given)
    spec, reference = run.pipeline_spec, run.pipeline_version_reference
    if spec is None and reference and reference.pipeline_version_id:
        try:
            version = service.call(
                "reading the run's pipeline", service.client.pipelines.pipeline_service_get_pipeline_version,
                pipeline_id=reference.pipeline_id, pipeline_version_id=reference.pipeline_version_id,
            )  # fmt: skip
        except NotFoundError:  # deleted since
            return ""
        spec = version.pipeline_spec
    inputs = _inside(spec, "pipeline_spec") or spec
    about = _inside(_inside(_inside(_inside(inputs, "root"), "inputDefinitions"), "parameters"), "workspace")
    return str(_inside(about, "defaultValue") or "")


def _inside(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def records(workspace: str, run: str) -> dict[str, dict[str, Any]]:
    """What the steps of a run have recorded; a MillError where the workspace can't be read from here."""
    return Workspace(uris.normalize(workspace, "workspace")).step_records(run)


def readable_records(workspace: str, run: str) -> tuple[dict[str, dict[str, Any]], str]:
    """(records, why there are none): the end of a run is known without them."""
    if not workspace:
        return {}, "the run doesn't say its workspace"
    try:
        return records(workspace, run), ""
    except MillError as error:
        return {}, f"the steps' records can't be read from here ({error})"


def records_of(service: Service, run: Any) -> tuple[dict[str, dict[str, Any]], str]:
    """(records, why there are none) of a run whose workspace is still to be found."""
    try:
        workspace = workspace_of(service, run)
    except MillError as error:
        return {}, f"the steps' records can't be found ({error})"
    return readable_records(workspace, run.run_id)


def error_of(run: Any, made: dict[str, dict[str, Any]], unread: str) -> MillError | None:
    """Why a run that has ended did not succeed, with the failed step's exit code where its record says it."""
    if run.state == "SUCCEEDED":
        return None
    if run.state == "CANCELED":
        return MillError("the run was cancelled")
    for step, record in made.items():
        if record["exit_code"]:
            return error_for_exit_code(int(record["exit_code"]), f"{step}: {record['error']}")
    failed = [name for name, state, _ in tasks(run) if state == "FAILED"]
    said = f": {run.error.message}" if run.error and run.error.message else ""
    where = f" in {', '.join(failed)}" if failed else ""
    if unread:
        return MillError(f"the run failed{where}{said}; {unread}")
    silent = next((step for step in STEPS if step not in made), "")
    lost = f"; {silent} ended without a record, as a pod does that is lost or killed (for memory?)" if silent else ""
    return MillError(
        f"the run failed{where}{said}{lost}",
    )


def finish(service: Service, run: Any, result: dict[str, Any]) -> int:
    """Add to `result` what came of a run that has ended, and return the exit code that says it."""
    made, unread = records_of(service, run)
    error = error_of(run, made, unread)
    result |= {"status": "failed" if error else "succeeded", "state": run.state, **facts(made), "records": made}
    if unread:
        print(f"imagemill: {unread}", file=sys.stderr)
    if error:
        result |= {"error": str(error), "exit_code": error.exit_code}
    return error.exit_code if error else 0
