"""The pipeline for Argo Workflows without Kubeflow, 3.7 and 4: a WorkflowTemplate, and the CronWorkflow that starts it.

The same DAG, parameters and defaults as the KFP pipeline's. There the resize step makes a RayJob where it needs one;
here clean's pod says what makes the tensors, and Argo itself makes the RayJob.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..components.store.errors import wrong
from .argo_templates import PARTS, RUN, finish_template, rayjob_template, step_template
from .checks import check_output, set_workspace
from .cluster import LABELS, RUN_LABEL, Cluster, Limits
from .cron import parse, zone
from .first_step import CHANGED
from .parameters import RunParameters, format_form_value, list_form_parameters
from .planning import POD, only_resize_knows_tensors
from .planning import RAYJOB as PLANNED_RAYJOB
from .pods import NO_SIDECAR, pod_security

if TYPE_CHECKING:
    from hera.workflows import DAG, Parameter, Task

NAME = "imagemill-training"
"""Of the WorkflowTemplate and of the CronWorkflow."""
KEEP_PODS = "1h"
"""How long the pods of a run that succeeded stay, with their logs; those of a failed one stay as long as the run."""


def compile_argo(parameters: RunParameters, target: Path, cluster: Cluster) -> None:
    """Write WorkflowTemplate and CronWorkflow to one YAML file; the chosen parameters become the defaults.

    UserError for images without a digest, a workspace that a pod can't reach, a schedule that Argo would refuse.
    """
    import yaml

    check_output(target)
    cluster.require_images("cluster")
    documents = [workflow_template(cluster, parameters), cron_workflow(cluster)]
    written = yaml.safe_dump_all(documents, sort_keys=False, width=10_000, allow_unicode=True)
    try:
        target.write_text(written, encoding="utf-8")
    except OSError as error:
        raise wrong("-o", f"a file that can be written ({error.strerror})", str(target)) from None


def workflow_template(cluster: Cluster, parameters: RunParameters) -> dict[str, Any]:
    """The WorkflowTemplate as a document."""
    from hera.workflows import WorkflowTemplate, models

    limits, argo = cluster.limits, cluster.argo
    arguments = _arguments(cluster, parameters)
    template = WorkflowTemplate(
        name=NAME,
        namespace=cluster.namespace,
        labels=dict(LABELS),
        annotations={
            "workflows.argoproj.io/title": "Imagemill training",
            "workflows.argoproj.io/description": "Labelled images in, a better classifier out.",
        },
        arguments=arguments,
        entrypoint="training",
        on_exit="finish",
        service_account_name=argo.service_account,
        security_context=models.PodSecurityContext.model_validate(pod_security()),
        image_pull_secrets=list(cluster.images.pull_secrets) or None,
        workflow_metadata=models.WorkflowMetadata(labels=dict(LABELS)),
        pod_metadata=models.Metadata(
            labels={**cluster.labels, **LABELS, **NO_SIDECAR, RUN_LABEL: RUN}, annotations=NO_SIDECAR
        ),
        pod_gc=models.PodGC(strategy="OnWorkflowSuccess", delete_delay_duration=KEEP_PODS),
        ttl_strategy=_kept(limits),
        active_deadline_seconds=limits.run_deadline_seconds or None,
        synchronization=models.Synchronization(mutexes=[models.Mutex(name=argo.mutex)]) if argo.mutex else None,
        archive_logs=None if argo.artifacts else False,
        templates=[_dag(cluster), *_templates(cluster, parameters), finish_template(cluster)],
    )
    document: dict[str, Any] = template.to_dict()
    return document


def _kept(limits: Limits) -> Any:
    """When Argo deletes a run that ended: to it 0 seconds are at once, here they are never."""
    from hera.workflows import models

    succeeded, failed = limits.keep_succeeded_seconds or None, limits.keep_failed_seconds or None
    kept = models.TTLStrategy(seconds_after_success=succeeded, seconds_after_failure=failed)
    return kept if succeeded or failed else None


def _arguments(cluster: Cluster, parameters: RunParameters) -> list[Parameter]:
    """The parameters of the form, with the chosen values as defaults; a fixed choice is a drop-down there."""
    from hera.workflows import Parameter

    given = set_workspace(parameters, cluster).arguments()
    return [
        Parameter(
            name=name, value=given.get(name, format_form_value(one.default)), description=one.help,
            enum=list(one.choices) or None,
        )
        for name, one in list_form_parameters().items()
    ]  # fmt: skip


def _templates(cluster: Cluster, parameters: RunParameters) -> list[Any]:
    tasks = [task for task in PARTS if task != "resize" or _resizes_in_pod(cluster)]
    steps = [step_template(task, cluster, parameters) for task in tasks]
    return [*steps, rayjob_template(cluster)] if cluster.ray.makes_rayjobs else steps


def _resizes_in_pod(cluster: Cluster) -> bool:
    return cluster.ray.mode != "rayjob"


def _dag(cluster: Cluster) -> DAG:
    """Each task after those whose outputs it takes. Nothing comes after download where nothing has changed; the tensors
    are made by a pod, by a RayJob, or not at all, as clean's pod has planned."""
    from hera.workflows import DAG

    in_pod, rayjobs = _resizes_in_pod(cluster), cluster.ray.makes_rayjobs
    tensors = [
        *([_task("resize", when=_equal("clean", "executor", POD))] if in_pod else []),
        *([_task("rayjob", {"rayjob": "clean"}, when=_equal("clean", "executor", PLANNED_RAYJOB))] if rayjobs else []),
    ]
    after = [f"({task.name}.Succeeded || {task.name}.Skipped)" for task in tensors]
    giver = {"tensors": "resize"} if only_resize_knows_tensors(cluster) else {}  # else clean's pod can tell
    tasks = [
        _task("download"),
        _task("clean", when=_equal("download", "changed", CHANGED)),
        *tensors,
        _task("train", giver, after),
        _task("evaluate"),
        _task("promote"),
    ]
    return DAG(name="training", tasks=[*tasks])


def _equal(task: str, output: str, value: str) -> str:
    return f"'{{{{tasks.{task}.outputs.parameters.{output}}}}}' == '{value}'"


GIVERS = {output: task for task, part in PARTS.items() if task != "resize" for output in part.gives}
"""Output parameter → the task that gives it, unless the DAG says another one."""


def _task(
    name: str, givers: Mapping[str, str] = MappingProxyType({}), after: Sequence[str] = (), when: str | None = None
) -> Task:
    """A task and what it takes. A task whose givers did not run is omitted: `depends` asks for their success."""
    from hera.workflows import Task

    takes = PARTS[name].takes if name in PARTS else tuple(givers)
    taken = {output: {**GIVERS, **givers}[output] for output in takes}
    parents = [f"{parent}.Succeeded" for parent in dict.fromkeys(taken.values())]
    return Task(
        name=name,
        template=name,
        arguments={name: f"{{{{tasks.{giver}.outputs.parameters.{name}}}}}" for name, giver in taken.items()} or None,
        depends=" && ".join([*parents, *after]) or None,
        when=when,
    )


def cron_workflow(cluster: Cluster) -> dict[str, Any]:
    """The CronWorkflow as a document: it starts the WorkflowTemplate as it then is, one run at a time."""
    from hera.workflows import CronWorkflow, models

    schedule = cluster.schedule
    cron = CronWorkflow(
        name=NAME,
        namespace=cluster.namespace,
        labels=dict(LABELS),
        schedules=[str(parse(schedule.cron, "cluster (schedule.cron)"))],  # where Sunday is 0 alone, as Argo reads it
        timezone=zone(schedule.timezone, "cluster (schedule.timezone)").key,
        concurrency_policy="Forbid",
        starting_deadline_seconds=schedule.starting_deadline_seconds,
        successful_jobs_history_limit=schedule.keep_succeeded,
        failed_jobs_history_limit=schedule.keep_failed,
        cron_suspend=schedule.suspended,
        workflow_template_ref=models.WorkflowTemplateRef(name=NAME),
    )
    document: dict[str, Any] = cron.to_dict()
    return document
