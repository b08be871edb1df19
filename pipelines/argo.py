"""The pipeline for Argo Workflows without Kubeflow, 3.7 and 4: a WorkflowTemplate, and the CronWorkflow that starts it.

The same DAG, parameters and defaults as the KFP pipeline's. There a resize step that is not needed returns at once;
here a task `plan` looks whether the tensors exist, and Argo itself makes the RayJob when they don't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..components.store.errors import wrong
from .argo_templates import PARTS, RUN, finish_template, rayjob_template, step_template
from .checks import check_output, with_workspace
from .cluster import LABELS, RUN_LABEL, Cluster, Limits
from .cron import parse, zone
from .parameters import Chosen, form_parameters, form_value
from .planning import NEEDED
from .pods import NO_SIDECAR, pod_security

if TYPE_CHECKING:
    from hera.workflows import DAG, Parameter, Task

NAME = "imagemill-training"
"""Of the WorkflowTemplate and of the CronWorkflow."""
KEEP_PODS = "1h"
"""How long the pods of a run that succeeded stay, with their logs; those of a failed one stay as long as the run."""


def compile_argo(chosen: Chosen, target: Path, cluster: Cluster) -> None:
    """Write WorkflowTemplate and CronWorkflow to one YAML file; the chosen parameters become the defaults.

    UserError for images without a digest, a workspace that a pod can't reach, a schedule that Argo would refuse.
    """
    import yaml

    check_output(target)
    cluster.require_images("cluster")
    documents = [workflow_template(cluster, chosen), cron_workflow(cluster)]
    written = yaml.safe_dump_all(documents, sort_keys=False, width=10_000, allow_unicode=True)
    try:
        target.write_text(written, encoding="utf-8")
    except OSError as error:
        raise wrong("-o", f"a file that can be written ({error.strerror})", str(target)) from None


def workflow_template(cluster: Cluster, chosen: Chosen) -> dict[str, Any]:
    """The WorkflowTemplate as a document."""
    from hera.workflows import WorkflowTemplate, models

    limits, argo = cluster.limits, cluster.argo
    arguments = _arguments(cluster, chosen)
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
        templates=[_dag(cluster), *_templates(cluster, chosen), finish_template(cluster)],
    )
    document: dict[str, Any] = template.to_dict()
    return document


def _kept(limits: Limits) -> Any:
    """When Argo deletes a run that ended: to it 0 seconds are at once, here they are never."""
    from hera.workflows import models

    succeeded, failed = limits.keep_succeeded_seconds or None, limits.keep_failed_seconds or None
    kept = models.TTLStrategy(seconds_after_success=succeeded, seconds_after_failure=failed)
    return kept if succeeded or failed else None


def _arguments(cluster: Cluster, chosen: Chosen) -> list[Parameter]:
    """The parameters of the form, with the chosen values as defaults; a fixed choice is a drop-down there."""
    from hera.workflows import Parameter

    given = with_workspace(chosen, cluster).arguments()
    return [
        Parameter(
            name=name, value=given.get(name, form_value(one.default)), description=one.help,
            enum=list(one.choices) or None,
        )
        for name, one in form_parameters().items()
    ]  # fmt: skip


def _templates(cluster: Cluster, chosen: Chosen) -> list[Any]:
    resize = [rayjob_template(cluster)] if _has_plan(cluster) else []
    return [step_template(task, cluster, chosen) for task in _tasks(cluster)] + resize


def _has_plan(cluster: Cluster) -> bool:
    return cluster.ray.mode == "rayjob"


def _tasks(cluster: Cluster) -> list[str]:
    """The parts of this cluster's DAG, in their order."""
    return [task for task in PARTS if task != ("resize" if _has_plan(cluster) else "plan")]


def _dag(cluster: Cluster) -> DAG:
    """Each task after those whose outputs it takes; the RayJob between plan and train, where it is needed."""
    from hera.workflows import DAG

    tasks = _tasks(cluster)
    givers = {output: task for task in tasks for output in PARTS[task].gives}
    made = []
    for task in tasks:
        also = [AFTER_RAYJOB] if task == "train" and _has_plan(cluster) else []
        made.append(_task(task, PARTS[task].takes, givers, also))
        if task == "plan":
            made.append(_task("rayjob", ("rayjob",), givers, when=WHEN_NEEDED))
    return DAG(name="training", tasks=list(made))


WHEN_NEEDED = f"'{{{{tasks.plan.outputs.parameters.needed}}}}' == '{NEEDED}'"
AFTER_RAYJOB = "(rayjob.Succeeded || rayjob.Skipped)"


def _task(
    name: str, takes: Sequence[str], givers: Mapping[str, str], also: Sequence[str] = (), when: str | None = None
) -> Task:
    from hera.workflows import Task

    parents = list(dict.fromkeys(givers[one] for one in takes))
    return Task(
        name=name,
        template=name,
        arguments={one: f"{{{{tasks.{givers[one]}.outputs.parameters.{one}}}}}" for one in takes} or None,
        depends=" && ".join([*parents, *also]) or None,
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
