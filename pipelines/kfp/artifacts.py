"""A run in Kubeflow Pipelines, read back from the artifacts that its pods left (`results.py`): the steps' records (else
from the workspace), report, logs and failures. A step that failed before it could leave a record is explained by its
log or its pod.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import STEPS, Workspace
from ...components.storage import uri as uris
from ...components.storage.errors import EXIT_INTERNAL, MillError, TransientError, UserError, error_for_exit_code, wrong
from .client import KfpService, NotFoundError
from .results import RECORDS
from .ui import HTML_TYPE, Execution, KfpUi, read_artifacts, read_executions

_PROCESS_FAILED = re.compile(r"failed to execute component: (?:exit status (\d+)|signal: (\w+))")
"""The message of KFP's launcher about a process that failed (backend/src/v2/component/launcher_v2.go)."""


def read_records(ui: KfpUi, run: str) -> Records | None:
    """Return the records of a run's steps that KFP has so far, in the order of the steps.

    None where no artifact of the run has records: none is written yet, or an older imagemill started the run.
    """
    texts = [artifact.properties.get(RECORDS, "") for artifact in read_artifacts(ui.call_metadata_store, run)]
    records: Records = {}
    for text in filter(None, texts):
        with contextlib.suppress(ValueError, MillError):  # other tools may use the same property
            records |= {step: StepRecord.from_dict(record, RECORDS) for step, record in json.loads(text).items()}
    return {step: records[step] for step in STEPS if step in records} if any(texts) else None


def read_report(ui: KfpUi, run: str) -> bytes | None:
    """Return a run's report, or None where KFP has none."""
    reports = [artifact for artifact in read_artifacts(ui.call_metadata_store, run) if artifact.type == HTML_TYPE]
    return ui.fetch_artifact(reports[-1]) if reports else None


def read_log(ui: KfpUi, run: str, task: str) -> str:
    """Return the log of a task's last attempt: from its pod while it runs, afterwards from where it is stored.

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
        return error_for_exit_code(int(code or EXIT_INTERNAL), f"{task}: {messages[-1]}")
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


Records = dict[str, StepRecord]


class PipelineSpecs:
    """The compiled pipelines of runs, each version requested once."""

    def __init__(self, service: KfpService) -> None:
        self._service = service
        self._specs: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}

    def read(self, run: Any) -> dict[str, Any]:
        """Return the compiled pipeline of a run: the run's own, which the SDK sends with a package, or that of its
        version; empty if the version was deleted."""
        if run.pipeline_spec is not None:
            return _pipeline_document(run.pipeline_spec)
        reference = run.pipeline_version_reference
        version = reference.pipeline_version_id if reference else None
        if not version:
            return {}
        if version not in self._specs:
            try:
                response = self._service.call(
                    "reading the run's pipeline", self._service.client.pipelines.pipeline_service_get_pipeline_version,
                    pipeline_id=reference.pipeline_id, pipeline_version_id=version,
                )  # fmt: skip
            except NotFoundError:
                self._specs[version] = {}
            else:
                self._specs[version] = _pipeline_document(response.pipeline_spec)
        return self._specs[version]

    def read_name(self, run: Any) -> str:
        """Return the name that the pipeline was compiled with, whatever it was uploaded as; all versions of a pipeline
        are taken to have the same."""
        reference = run.pipeline_version_reference
        if run.pipeline_spec is not None or not reference:
            return _compiled_name(self.read(run))
        if not self._names.get(reference.pipeline_id):
            self._names[reference.pipeline_id] = _compiled_name(self.read(run))
        return self._names[reference.pipeline_id]


class RunRecords:
    """Reads the records of runs. A place that can't be read is tried once."""

    def __init__(self, service: KfpService, specs: PipelineSpecs | None = None) -> None:
        self.pages = KfpUi(service)
        self._specs = specs or PipelineSpecs(service)
        self._unreadable: dict[str, str] = {}

    def read(self, run: Any) -> tuple[Records, str]:
        """Return (records, the reason why there are none)."""
        in_kfp, kfp_error = self._try(self.pages.address, lambda: read_records(self.pages, run.run_id))
        if in_kfp and _is_complete(run.state, in_kfp):
            return in_kfp, ""
        stored, store_error = self._read_stored(run)
        records = {**(in_kfp or {}), **(stored or {})}
        if records or in_kfp is not None or not store_error:
            return {step: records[step] for step in STEPS if step in records}, ""
        kfp_error = kfp_error or "Kubeflow Pipelines keeps none of this run"
        return {}, f"the steps' records can't be read from here ({kfp_error}; {store_error})"

    def _read_stored(self, run: Any) -> tuple[Records | None, str]:
        try:
            workspace = find_workspace(self._specs, run)
        except MillError as error:
            return None, f"the run's workspace can't be found: {error}"
        if not workspace:
            return None, "the run doesn't say its workspace"
        return self._try(workspace, lambda: read_stored_records(workspace, run.run_id))

    def _try(self, place: str, read: Callable[[], Records | None]) -> tuple[Records | None, str]:
        if place not in self._unreadable:
            try:
                return read(), ""
            except MillError as error:
                self._unreadable[place] = str(error)
        return None, self._unreadable[place]


def read_stored_records(workspace: str, run: str) -> Records:
    """Return the records of a run in its workspace; raises MillError if it can't be read from here."""
    return Workspace(uris.normalize(workspace, "workspace")).step_records(run)


def find_workspace(specs: PipelineSpecs, run: Any) -> str:
    """Return the workspace of a run: its parameter, else its pipeline's default; empty if there is neither."""
    parameter = ((run.runtime_config.parameters if run.runtime_config else None) or {}).get("workspace")
    if parameter:
        return str(parameter)
    return str(
        _get_nested(specs.read(run), "root", "inputDefinitions", "parameters", "workspace", "defaultValue") or ""
    )


def _is_complete(state: str, records: Records) -> bool:
    """Return whether the records explain a run's state: one that failed has the record of a failed step."""
    if state == "FAILED":
        return any(record.exit_code for record in records.values())
    return state != "SUCCEEDED" or STEPS[-1] in records


def _pipeline_document(package: Any) -> dict[str, Any]:
    """Return the pipeline's document of a package, which may have the platform's as a second one."""
    document = _get_nested(package, "pipeline_spec") or package
    return document if isinstance(document, dict) else {}


def _compiled_name(spec: dict[str, Any]) -> str:
    return str(_get_nested(spec, "pipelineInfo", "name") or "")


def _get_nested(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
