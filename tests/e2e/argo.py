"""Runs through Argo alone: WorkflowTemplate, Workflow and CronWorkflow of the session's own, created by the API."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imagemill.pipelines import argo
from imagemill.pipelines.cluster import Cluster
from imagemill.pipelines.parameters import choose, form_parameters

from .kube import Doc, labels_of, name_of
from .options import E2E_LABEL, SMALL
from .runs import ARGO, Run
from .scenario import Deadline, Failed

if TYPE_CHECKING:
    from .session import Session

EVERY_MINUTE = "* * * * *"
_CRON = "workflows.argoproj.io/cron-workflow"


def template(session: Session, cluster: Cluster, parameters: Mapping[str, Any]) -> str:
    """Create the WorkflowTemplate of `imagemill compile --target argo`, under a name of the session's; the name."""
    document = copy.deepcopy(argo.workflow_template(cluster, choose({**SMALL, **parameters})))
    document["metadata"]["name"] = session.name("template")
    document["spec"].setdefault("workflowMetadata", {}).setdefault("labels", {})[E2E_LABEL] = session.suffix
    session.create("workflowtemplates", document)
    return name_of(document)


def submit(session: Session, workspace: str, cluster: Cluster | None = None, **parameters: Any) -> Run:
    """Create a Workflow from a WorkflowTemplate, the parameters as its arguments, and in `config` what is none."""
    made_by = template(session, cluster or session.cluster, {})
    form = form_parameters()
    given = {"workspace": workspace, **{name: value for name, value in parameters.items() if name in form}}
    if others := {name: value for name, value in parameters.items() if name not in form}:
        given["config"] = json.dumps(others)
    spec = {
        "workflowTemplateRef": {"name": made_by},
        "arguments": {"parameters": [{"name": name, "value": str(value)} for name, value in given.items()]},
    }
    document = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
                "metadata": {"name": session.name(session.scenario)}, "spec": spec}  # fmt: skip
    session.create("workflows", document)
    run = Run(session, ARGO, name_of(document), name_of(document), workspace)
    session.runs.append(run)
    return run


def fire_cron(session: Session, workspace: str, deadline: Deadline) -> Run:
    """Let a copy of the CronWorkflow start one run, and delete it."""
    made_by = template(session, session.cluster, {"workspace": workspace})
    document: Doc = copy.deepcopy(argo.cron_workflow(session.cluster))
    name = session.name("cron")
    document["metadata"]["name"] = name
    spec = document["spec"]
    spec |= {"schedules": [EVERY_MINUTE], "suspend": False}
    spec["workflowSpec"] = {**spec.get("workflowSpec", {}), "workflowTemplateRef": {"name": made_by}}
    spec.setdefault("workflowMetadata", {}).setdefault("labels", {})[E2E_LABEL] = session.suffix
    session.create("cronworkflows", document)

    def fired() -> Doc | None:
        mine = [one for one in session.mirror.seen("workflows") if labels_of(one).get(_CRON) == name]
        return mine[0] if mine else None

    def doing() -> str:
        status = (session.kube.get("cronworkflows", name) or {}).get("status") or {}
        problems = [one.get("message", "") for one in status.get("conditions") or ()]
        return f"CronWorkflow {name}: {'; '.join(filter(None, problems)) or 'waits for the next minute'}"

    started = session.mirror.wait(fired, f"CronWorkflow {name} starts a run", deadline, doing)
    # Its Workflows are its dependants: they must outlive it to be watched.
    run = Run(session, ARGO, name_of(started), name_of(started), workspace)
    session.runs.append(run)
    _suspend(session, name)
    return run


def _suspend(session: Session, name: str) -> None:
    """No second run. Deleting it at once would delete the run with it; the scenario's cleaning deletes both."""
    session.kube.merge("cronworkflows", name, {"spec": {"suspend": True}})


def fired_by(session: Session, run: Run) -> list[Doc]:
    """All runs that the same CronWorkflow has started."""
    found = run.object()
    if found is None:
        raise Failed(f"workflow {run.workflow} was not seen")
    name = labels_of(found).get(_CRON)
    return [one for one in session.mirror.seen("workflows") if labels_of(one).get(_CRON) == name]
