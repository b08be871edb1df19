"""Runs through Argo: WorkflowTemplate, Workflow and CronWorkflow of the session, created by the API."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from imagemill.pipelines.argo import workflow as argo
from imagemill.pipelines.cluster.cluster_file import Cluster
from imagemill.pipelines.parameters import resolve_parameters
from imagemill.pipelines.settings import to_text

from .access.kube import Doc, labels_of, name_of
from .access.mirror import say
from .options import E2E_LABEL
from .runs import ARGO, Run
from .scenario import Deadline, Failed

if TYPE_CHECKING:
    from .session import Trial

EVERY_MINUTE = "* * * * *"
_CRON = "workflows.argoproj.io/cron-workflow"
_TAKEN_S = 60
_TRIES = 5


def template(trial: Trial, cluster: Cluster, parameters: Mapping[str, Any]) -> str:
    """Create the WorkflowTemplate of `imagemill compile --target argo` under a name of the session; return the name.

    Runs of one scenario wait for one another, those of two don't."""
    own = replace(cluster, argo=replace(cluster.argo, mutex=trial.session.name("mutex")))
    document = copy.deepcopy(argo.build_workflow_template(own, resolve_parameters(parameters)))
    document["metadata"]["name"] = trial.name("template")
    labels = document["spec"].setdefault("workflowMetadata", {}).setdefault("labels", {})
    labels[E2E_LABEL] = trial.session.suffix
    trial.create("workflowtemplates", document)
    return name_of(document)


def submit(
    trial: Trial, workspace: str, cluster: Cluster | None = None, template_name: str = "", config_file: str = "",
    **parameters: Any,
) -> Run:  # fmt: skip
    """Create a Workflow from a WorkflowTemplate (a new one unless it is named), the parameters as its arguments.

    The controller reads templates from a cache: in the second after a template was made it may not know it, and ends
    the Workflow with an error. That one, and no other, is submitted again.
    """
    template_used = template_name or template(trial, cluster or trial.cluster, {})
    values = resolve_parameters({"workspace": workspace, **parameters}, config_file).arguments()
    arguments = [{"name": name, "value": to_text(value)} for name, value in values.items() if value not in ("", None)]
    for _ in range(_TRIES):
        document = {
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": trial.name(trial.scenario)},
            "spec": {"workflowTemplateRef": {"name": template_used}, "arguments": {"parameters": arguments}},
        }  # fmt: skip
        trial.create("workflows", document)
        run = Run(trial.place, ARGO, name_of(document), name_of(document), workspace)
        if _was_taken(trial, run, template_used):
            return trial.start(run)
        say(f"{run.workflow}: the controller did not know its template yet; once more")
        trial.discard("workflows", run.workflow)
    raise Failed(f"{_TRIES} times Argo's controller did not find the WorkflowTemplate {template_used}")


def _was_taken(trial: Trial, run: Run, template_name: str) -> bool:
    """Wait for the controller's first status of a run; return False if it is that the template does not exist."""
    trial.mirror.wait(lambda: run.phase, f"Argo's controller to take {run.workflow}", trial.within(_TAKEN_S))
    return not (run.ended and "not found" in run.message and template_name in run.message)


def fire_cron(trial: Trial, workspace: str, deadline: Deadline, **parameters: Any) -> Run:
    """Let a copy of the CronWorkflow start one run, and delete it."""
    name = start_cron(trial, trial.cluster, workspace, **parameters)
    run = next_of_cron(trial, name, workspace, deadline, 0)
    stop_cron(trial, name)
    return run


def start_cron(trial: Trial, cluster: Cluster, workspace: str, **parameters: Any) -> str:
    """Create a copy of the CronWorkflow that fires every minute while none of its runs is active; return its name."""
    template_name = template(trial, cluster, {"workspace": workspace, **parameters})
    document: Doc = copy.deepcopy(argo.build_cron_workflow(cluster))
    name = trial.name("cron")
    document["metadata"]["name"] = name
    spec = document["spec"]
    spec |= {"schedules": [EVERY_MINUTE], "suspend": False}
    spec["workflowSpec"] = {**spec.get("workflowSpec", {}), "workflowTemplateRef": {"name": template_name}}
    spec.setdefault("workflowMetadata", {}).setdefault("labels", {})[E2E_LABEL] = trial.session.suffix
    trial.create("cronworkflows", document)
    return name


def next_of_cron(trial: Trial, name: str, workspace: str, deadline: Deadline, earlier: int) -> Run:
    """Wait for the run of a CronWorkflow that comes after `earlier` others."""

    def find_started() -> Doc | None:
        started = _started_by(trial, name)
        return started[earlier] if len(started) > earlier else None

    def describe_progress() -> str:
        status = (trial.kube.get("cronworkflows", name) or {}).get("status") or {}
        problems = [condition.get("message", "") for condition in status.get("conditions") or ()]
        return f"CronWorkflow {name}: {'; '.join(filter(None, problems)) or 'waits for the next minute'}"

    started = trial.mirror.wait(find_started, f"CronWorkflow {name} starts a run", deadline, describe_progress)
    return trial.start(Run(trial.place, ARGO, name_of(started), name_of(started), workspace))


def stop_cron(trial: Trial, name: str) -> None:
    """Have it start no more runs. Its Workflows are its dependants, which deleting it would delete: the scenario's
    cleaning deletes both."""
    trial.kube.merge(trial.kube.path("cronworkflows", name), {"spec": {"suspend": True}})


def _started_by(trial: Trial, name: str) -> list[Doc]:
    started = [workflow for workflow in trial.mirror.seen("workflows") if labels_of(workflow).get(_CRON) == name]
    return sorted(started, key=lambda workflow: str(workflow["metadata"]["creationTimestamp"]))


def fired_by(trial: Trial, run: Run) -> list[Doc]:
    """Return all runs that the same CronWorkflow has started."""
    workflow = run.object()
    if workflow is None:
        raise Failed(f"workflow {run.workflow} was not seen")
    return _started_by(trial, str(labels_of(workflow).get(_CRON)))
