"""Read what Kubeflow Pipelines keeps of a run: its steps' records, report and logs, and why a step failed.

The records are in the metadata of the steps' artifacts (`artifacts.records_metadata`): each step's own, and all of
them at the summaries of promote and of the exit step, which also has those of steps that failed. A step that failed
before it could leave one is explained by its log or its pod.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OURS, MillError, TransientError, UserError, error_for_exit_code, wrong
from .artifacts import RECORDS
from .kfp_metadata import HTML, Execution, read_artifacts, read_executions
from .kfp_pages import Pages

_EMPTY = {"uri": "", "fingerprint": "", "state": "", "seconds": 0.0, "metrics": {}, "exit_code": 0, "error": ""}
_ENDED = re.compile(r"failed to execute component: (?:exit status (\d+)|signal: (\w+))")
"""What the launcher says of a process that failed (backend/src/v2/component/launcher_v2.go)."""


def read_records(pages: Pages, run: str) -> dict[str, dict[str, Any]] | None:
    """Return the records of a run's steps that KFP has so far, in the steps' order; None where it keeps no records of
    this run, as of one by an older version."""
    texts = [artifact.properties.get(RECORDS, "") for artifact in read_artifacts(pages.metadata, run)]
    found: dict[str, dict[str, Any]] = {}
    for text in filter(None, texts):
        with contextlib.suppress(ValueError):  # anybody may write there
            found |= {step: _EMPTY | record for step, record in json.loads(text).items()}
    return {step: found[step] for step in STEPS if step in found} if any(texts) else None


def read_report(pages: Pages, run: str) -> bytes | None:
    """Return a run's report, or None where KFP has none."""
    reports = [one for one in read_artifacts(pages.metadata, run) if one.type == HTML]
    return pages.artifact(reports[-1]) if reports else None


def read_log(pages: Pages, run: str, task: str) -> str:
    """Return what the last try of a task has printed: while it runs from its pod, then from where it is kept.

    UserError for a task that has not begun, or whose log is nowhere any more.
    """
    execution = _execution(pages, run, task)
    sources = _log_sources(pages, run, execution)
    if execution.state in ("COMPLETE", "FAILED"):  # what the step said, without the launcher's own lines
        sources = [*sources[2:], *sources[:2]]
    return _first(sources, f"the log of {task}")


def find_failure(pages: Pages, run: str, task: str) -> MillError | None:
    """Return why a task failed that has left no record, with its exit code, or None where nothing tells."""
    try:
        execution = _execution(pages, run, task)
        log = _first(_log_sources(pages, run, execution), f"the log of {task}")
    except MillError:
        return None
    messages = re.findall(rf"^\[{re.escape(task)}\] error: (.*)$", log, re.MULTILINE)
    code, signal = (_ENDED.findall(log) or [("", "")])[-1]
    if messages:
        return error_for_exit_code(int(code or EXIT_OURS), f"{task}: {messages[-1]}")
    if reason := _pod_failure(pages, execution):
        return MillError(f"{task}: {reason}")
    if signal:
        return MillError(f"{task}: its process was ended by a signal ({signal}), as it is for want of memory")
    return MillError(f"{task}: ended with exit code {code} and without a message") if code else None


def _execution(pages: Pages, run: str, task: str) -> Execution:
    executions = read_executions(pages.metadata, run)
    found = [one for one in executions if one.task == task]
    if not found:
        begun = ", ".join(dict.fromkeys(one.task for one in executions)) or "none has"
        raise wrong("--logs", f"a step that has begun ({begun})", task)
    return found[-1]


def _log_sources(pages: Pages, run: str, execution: Execution) -> list[Callable[[], str]]:
    """The pod, Argo's archive, what the launcher has kept."""
    pod = [lambda: pages.pod_log(run, execution), lambda: pages.archived_log(run, execution)] if execution.pod else []
    kept = execution.logs[-1:]
    return [*pod, *(lambda log=log: pages.artifact(log).decode(errors="replace") for log in kept)]


def _first(sources: list[Callable[[], str]], what: str) -> str:
    errors: list[MillError] = []
    for source in sources:
        try:
            return source()
        except MillError as error:
            errors.append(error)
    transient = next((one for one in errors if isinstance(one, TransientError)), None)
    said = "; ".join(str(one) for one in errors) or "its pod has not started yet"
    raise (TransientError if transient else UserError)(f"expected {what}, found none: {said}")


def _pod_failure(pages: Pages, execution: Execution) -> str:
    """Return how Kubernetes says that the pod ended; empty where it doesn't know it any more."""
    try:
        status = pages.pod(execution).get("status") or {}
    except MillError:
        return ""
    if status.get("reason"):  # Evicted, NodeLost, …
        return f"its pod was ended: {status['reason']}: {status.get('message', '')}".rstrip(": ")
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        if container.get("name") == "main" and ended.get("reason") == "OOMKilled":
            return f"its pod was ended for want of memory (OOMKilled, exit code {ended.get('exitCode')})"
    return ""
