"""Read the records of runs' steps: from Kubeflow Pipelines, else from the workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...components.dataset.workspace import STEPS, Workspace
from ...components.storage import uri as uris
from ...components.storage.errors import MillError
from .artifacts import read_records
from .client import KfpService, NotFoundError
from .ui import KfpUi

Records = dict[str, dict[str, Any]]


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
        return any(record["exit_code"] for record in records.values())
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
