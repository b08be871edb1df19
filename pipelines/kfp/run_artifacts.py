"""Read a run's step records, report, logs and failures from Kubeflow Pipelines.

The records are in the metadata of artifacts (`artifacts.records_metadata`). Each step's artifact carries its own; the
summary artifacts of promote and of the exit step carry all of them, the latter also those of steps that failed. A step
that failed before it could leave one is explained by its log or its pod.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from ...components.dataset.workspace import STEPS
from ...components.storage.errors import EXIT_OURS, MillError, TransientError, UserError, error_for_exit_code, wrong
from .artifacts import RECORDS
from .metadata import HTML_TYPE, Execution, read_artifacts, read_executions
from .ui import KfpUi

_EMPTY_RECORD = {"uri": "", "fingerprint": "", "state": "", "seconds": 0.0, "metrics": {}, "exit_code": 0, "error": ""}
_PROCESS_FAILED = re.compile(r"failed to execute component: (?:exit status (\d+)|signal: (\w+))")
"""The message of KFP's launcher about a process that failed (backend/src/v2/component/launcher_v2.go)."""


def read_records(ui: KfpUi, run: str) -> dict[str, dict[str, Any]] | None:
    """Return the records of a run's steps that KFP has so far, in the order of the steps.

    None where no artifact of the run has records: none is written yet, or an older imagemill started the run.
    """
    texts = [artifact.properties.get(RECORDS, "") for artifact in read_artifacts(ui.call_metadata_store, run)]
    records: dict[str, dict[str, Any]] = {}
    for text in filter(None, texts):
        with contextlib.suppress(ValueError):  # other tools may use the same property
            records |= {step: _EMPTY_RECORD | record for step, record in json.loads(text).items()}
    return {step: records[step] for step in STEPS if step in records} if any(texts) else None


def read_report(ui: KfpUi, run: str) -> bytes | None:
    """Return a run's report, or None where KFP has none."""
    reports = [artifact for artifact in read_artifacts(ui.call_metadata_store, run) if artifact.type == HTML_TYPE]
    return ui.fetch_artifact(reports[-1]) if reports else None


def read_log(ui: KfpUi, run: str, task: str) -> str:
    """Return the log of a task's last try: from its pod while it runs, afterwards from where it is stored.

    UserError for a task that has not begun, or whose log no longer exists.
    """
    execution = _find_execution(ui, run, task)
    from_pod, from_artifact = _list_log_sources(ui, run, execution)
    if execution.state in ("COMPLETE", "FAILED"):  # the stored log first, which has no lines of KFP's launcher
        return _read_first([*from_artifact, *from_pod], f"the log of {task}")
    return _read_first([*from_pod, *from_artifact], f"the log of {task}")


def find_failure(ui: KfpUi, run: str, task: str) -> MillError | None:
    """Return the error of a failed task without a record; None where neither its log nor its pod explains it."""
    try:
        execution = _find_execution(ui, run, task)
        from_pod, from_artifact = _list_log_sources(ui, run, execution)
        log = _read_first([*from_pod, *from_artifact], f"the log of {task}")
    except MillError:
        return None
    messages = re.findall(rf"^\[{re.escape(task)}\] error: (.*)$", log, re.MULTILINE)
    code, signal = (_PROCESS_FAILED.findall(log) or [("", "")])[-1]
    if messages:
        return error_for_exit_code(int(code or EXIT_OURS), f"{task}: {messages[-1]}")
    if reason := _describe_pod_failure(ui, execution):
        return MillError(f"{task}: {reason}")
    if signal:
        return MillError(f"{task}: its process was killed (signal {signal}); it probably ran out of memory")
    return MillError(f"{task}: ended with exit code {code} and without a message") if code else None


def _find_execution(ui: KfpUi, run: str, task: str) -> Execution:
    executions = read_executions(ui.call_metadata_store, run)
    matching = [execution for execution in executions if execution.task == task]
    if not matching:
        started = ", ".join(dict.fromkeys(execution.task for execution in executions)) or "none has"
        raise wrong("--logs", f"a step that has begun ({started})", task)
    return matching[-1]


LogSources = list[Callable[[], str]]
"""Functions that read one log, each from another place."""


def _list_log_sources(ui: KfpUi, run: str, execution: Execution) -> tuple[LogSources, LogSources]:
    """Return the sources of a log: the pod's (itself, Argo's archive), and the artifact that KFP's launcher stores."""
    pod = (
        [lambda: ui.fetch_pod_log(run, execution), lambda: ui.fetch_archived_log(run, execution)]
        if execution.pod
        else []
    )
    stored: LogSources = []
    if execution.logs:
        stored.append(lambda: ui.fetch_artifact(execution.logs[-1]).decode(errors="replace"))
    return pod, stored


def _read_first(sources: LogSources, description: str) -> str:
    """Return the log of the first source that can be read; UserError if none can, TransientError if one may later."""
    errors: list[MillError] = []
    for source in sources:
        try:
            return source()
        except MillError as error:
            errors.append(error)
    transient = next((error for error in errors if isinstance(error, TransientError)), None)
    messages = "; ".join(str(error) for error in errors) or "its pod has not started yet"
    raise (TransientError if transient else UserError)(f"expected {description}, found none: {messages}")


def _describe_pod_failure(ui: KfpUi, execution: Execution) -> str:
    """Return how the pod ended, from its status; empty where the pod no longer exists."""
    try:
        status = ui.fetch_pod(execution).get("status") or {}
    except MillError:
        return ""
    if status.get("reason"):  # Evicted, NodeLost, …
        return f"its pod was ended: {status['reason']}: {status.get('message', '')}".rstrip(": ")
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if container.get("name") == "main" and ended.get("reason") == "OOMKilled":
            return f"its pod was killed: out of memory (OOMKilled, exit code {ended.get('exitCode')})"
    return ""
