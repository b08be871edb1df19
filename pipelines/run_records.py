"""Read the records of runs' steps: through Kubeflow Pipelines' own address, else from the workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..components.store import uri as uris
from ..components.store.config import STEPS
from ..components.store.errors import MillError
from ..components.store.workspace import Workspace
from .kfp_client import NotFoundError, Service
from .kfp_pages import Pages
from .kfp_records import read_records

Records = dict[str, dict[str, Any]]


class Specs:
    """The pipelines that runs are of, each asked for once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._specs: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}

    def of(self, run: Any) -> dict[str, Any]:
        """Return the compiled pipeline of a run: the run's own, as the SDK sends it along with a package, or that of
        its version; empty where the version was deleted."""
        if run.pipeline_spec is not None:
            return _spec(run.pipeline_spec)
        reference = run.pipeline_version_reference
        version = reference.pipeline_version_id if reference else None
        if not version:
            return {}
        if version not in self._specs:
            try:
                found = self._service.call(
                    "reading the run's pipeline", self._service.client.pipelines.pipeline_service_get_pipeline_version,
                    pipeline_id=reference.pipeline_id, pipeline_version_id=version,
                )  # fmt: skip
            except NotFoundError:
                self._specs[version] = {}
            else:
                self._specs[version] = _spec(found.pipeline_spec)
        return self._specs[version]

    def name(self, run: Any) -> str:
        """Return the name that the pipeline was compiled with, whatever it was uploaded as; one version of a pipeline
        tells it for all."""
        reference = run.pipeline_version_reference
        if run.pipeline_spec is not None or not reference:
            return _name(self.of(run))
        if not self._names.get(reference.pipeline_id):
            self._names[reference.pipeline_id] = _name(self.of(run))
        return self._names[reference.pipeline_id]


class RunRecords:
    """Reads the records of runs. A place that can't be read is asked once."""

    def __init__(self, service: Service, specs: Specs | None = None) -> None:
        self.pages = Pages(service)
        self._specs = specs or Specs(service)
        self._unreadable: dict[str, str] = {}

    def of(self, run: Any) -> tuple[Records, str]:
        """(records, why there are none): the end of a run is known without them."""
        kept, why = self._read(self.pages.address, lambda: read_records(self.pages, run.run_id))
        if kept and _is_enough(run.state, kept):
            return kept, ""
        stored, unread = self._stored(run)
        found = {**(kept or {}), **(stored or {})}
        if found or kept is not None or not unread:
            return {step: found[step] for step in STEPS if step in found}, ""
        why = why or "Kubeflow Pipelines keeps none of this run"
        return {}, f"the steps' records can't be read from here ({why}; {unread})"

    def _stored(self, run: Any) -> tuple[Records | None, str]:
        try:
            workspace = workspace_of(self._specs, run)
        except MillError as error:
            return None, f"the run's workspace can't be found: {error}"
        if not workspace:
            return None, "the run doesn't say its workspace"
        return self._read(workspace, lambda: stored_records(workspace, run.run_id))

    def _read(self, place: str, read: Callable[[], Records | None]) -> tuple[Records | None, str]:
        if place not in self._unreadable:
            try:
                return read(), ""
            except MillError as error:
                self._unreadable[place] = str(error)
        return None, self._unreadable[place]


def stored_records(workspace: str, run: str) -> Records:
    """Return the records of a run in its workspace; a MillError where it can't be read from here."""
    return Workspace(uris.normalize(workspace, "workspace")).step_records(run)


def workspace_of(specs: Specs, run: Any) -> str:
    """Return the workspace that a run works in: its parameter, or its pipeline's default; empty if nothing says it."""
    given = ((run.runtime_config.parameters if run.runtime_config else None) or {}).get("workspace")
    if given:
        return str(given)
    return str(_inside(specs.of(run), "root", "inputDefinitions", "parameters", "workspace", "defaultValue") or "")


def _is_enough(state: str, records: Records) -> bool:
    """Whether these are the records by which a run in this state is told: one that failed has one that says why."""
    if state == "FAILED":
        return any(record["exit_code"] for record in records.values())
    return state != "SUCCEEDED" or STEPS[-1] in records


def _spec(spec: Any) -> dict[str, Any]:
    """A package of one document, or of two, the pipeline's and the platform's."""
    found = _inside(spec, "pipeline_spec") or spec
    return found if isinstance(found, dict) else {}


def _name(spec: dict[str, Any]) -> str:
    return str(_inside(spec, "pipelineInfo", "name") or "")


def _inside(values: Any, *keys: str) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
