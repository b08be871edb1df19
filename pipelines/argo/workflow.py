"""The pipeline for Argo Workflows without Kubeflow, 3.7 and 4: a WorkflowTemplate, and the CronWorkflow that starts it.

DAG, parameters and defaults are the same as the KFP pipeline's. There clean and resize create a RayJob where they need
one; here the pod before plans it, download's or clean's, and Argo itself creates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...components.storage.errors import wrong
from ..cluster import validation
from ..cluster.check_and_download import CHANGED
from ..cluster.checks import check_output, set_workspace
from ..cluster.cluster_file import LABELS, RUN_LABEL, Cluster, Limits
from ..cluster.pod_fields import NO_SIDECAR, build_pod_security_context
from ..parameters import RunParameters, format_form_value, list_form_parameters
from ..steps import PIPELINE
from .planning import POD, only_resize_knows_tensors
from .planning import RAYJOB as PLANNED_RAYJOB
from .templates import RUN_PLACEHOLDER, STEP_PARTS, build_finish_template, build_rayjob_template, build_step_template

if TYPE_CHECKING:
    from hera.workflows import DAG, Parameter, Task

NAME = "imagemill-training"
"""The name of the WorkflowTemplate and of the CronWorkflow."""
POD_GC_DELAY = "1h"
"""How long the pods and logs of a run that succeeded are kept; those of a failed one are kept as long as the run."""


def compile_argo(parameters: RunParameters, target: Path, cluster: Cluster) -> None:
    """Write WorkflowTemplate and CronWorkflow to one YAML file; the chosen parameters become the defaults.

    UserError for images without a digest, a workspace that a pod can't reach, a schedule that Argo would refuse.
    """
    check_output(target)
    cluster.require_images("cluster")
    import yaml

    documents = [build_workflow_template(cluster, parameters), build_cron_workflow(cluster)]
    text = yaml.safe_dump_all(documents, sort_keys=False, width=10_000, allow_unicode=True)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise wrong("-o", f"a file that can be written ({error.strerror})", str(target)) from None


def build_workflow_template(cluster: Cluster, parameters: RunParameters) -> dict[str, Any]:
    """Return the WorkflowTemplate as a document."""
    from hera.workflows import WorkflowTemplate, models

    limits, argo = cluster.limits, cluster.argo
    dag = _build_dag(cluster)
    template = WorkflowTemplate(
        name=NAME,
        namespace=cluster.namespace,
        labels=dict(LABELS),
        annotations={
            "workflows.argoproj.io/title": "Imagemill training",
            "workflows.argoproj.io/description": "Labeled images in, a better classifier out.",
        },
        arguments=_build_parameters(cluster, parameters),
        entrypoint=dag.name,
        on_exit="finish",
        service_account_name=argo.service_account,
        security_context=models.PodSecurityContext.model_validate(build_pod_security_context()),
        image_pull_secrets=list(cluster.images.pull_secrets) or None,
        workflow_metadata=models.WorkflowMetadata(labels=dict(LABELS)),
        pod_metadata=models.Metadata(
            labels={**cluster.labels, **LABELS, **NO_SIDECAR, RUN_LABEL: RUN_PLACEHOLDER}, annotations=NO_SIDECAR
        ),
        pod_gc=models.PodGC(strategy="OnWorkflowSuccess", delete_delay_duration=POD_GC_DELAY),
        ttl_strategy=_build_ttl_strategy(limits),
        active_deadline_seconds=limits.run_deadline_seconds or None,
        synchronization=models.Synchronization(mutexes=[models.Mutex(name=argo.mutex)]) if argo.mutex else None,
        archive_logs=None if argo.artifacts else False,
        templates=[dag, *_build_step_templates(cluster, parameters), build_finish_template(cluster)],
    )
    document: dict[str, Any] = template.to_dict()
    return document


def _build_ttl_strategy(limits: Limits) -> Any:
    """Return when Argo deletes a run that ended. 0 seconds mean never in the cluster file, at once to Argo."""
    from hera.workflows import models

    succeeded, failed = limits.keep_succeeded_seconds or None, limits.keep_failed_seconds or None
    ttl_strategy = models.TTLStrategy(seconds_after_success=succeeded, seconds_after_failure=failed)
    return ttl_strategy if succeeded or failed else None


def _build_parameters(cluster: Cluster, parameters: RunParameters) -> list[Parameter]:
    """Return the parameters of the form, with the chosen values as defaults; choices are a drop-down there."""
    from hera.workflows import Parameter

    arguments = set_workspace(parameters, cluster).arguments()
    return [
        Parameter(
            name=name, value=arguments.get(name, format_form_value(parameter.default)), description=parameter.help,
            enum=list(parameter.choices) or None,
        )
        for name, parameter in list_form_parameters().items()
    ]  # fmt: skip


def _build_step_templates(cluster: Cluster, parameters: RunParameters) -> list[Any]:
    """Return the templates of steps, and that of RayJobs where the cluster makes any."""
    tasks = [step for step in STEP_PARTS if step != "resize" or _may_resize_in_pod(cluster)]
    templates = [build_step_template(task, cluster, parameters) for task in tasks]
    return [*templates, build_rayjob_template(cluster)] if cluster.ray.makes_rayjobs else templates


def _may_resize_in_pod(cluster: Cluster) -> bool:
    return cluster.ray.mode != "rayjob"


def _build_dag(cluster: Cluster) -> DAG:
    """Return the DAG: each task depends on those whose outputs are its inputs.

    Where nothing has changed, download is the only task that runs. The tensors are made by a pod, by a RayJob, or not
    at all, as clean's pod has planned. Where a RayJob cleans, as planned by download's pod, clean's finds its dataset.
    """
    from hera.workflows import DAG

    clean_tasks = _build_rayjob_tasks("clean-rayjob", "clean", "download", cluster)
    tensor_tasks = _build_rayjob_tasks("rayjob", "resize", "clean", cluster)
    if _may_resize_in_pod(cluster):
        tensor_tasks.insert(0, _build_task("resize", when=_build_condition("clean", "executor", POD)))
    tensors_task = "resize" if only_resize_knows_tensors(cluster) else "clean"  # clean's pod can tell
    tasks = [
        _build_task("download"),
        *clean_tasks,
        _build_task("clean", {}, _list_done(clean_tasks), when=_build_condition("download", "changed", CHANGED)),
        *tensor_tasks,
        _build_task("train", {"tensors": tensors_task}, _list_done(tensor_tasks)),
        _build_task("evaluate"),
        _build_task("promote"),
    ]
    return DAG(name="training", tasks=[*tasks])


def _build_rayjob_tasks(name: str, step: str, planner: str, cluster: Cluster) -> list[Task]:
    """Return the task of a step's RayJob, which the task `planner` has planned; none where the step never has one."""
    if not cluster.ray.may_make_rayjob(step):
        return []
    when = _build_condition(planner, "executor", PLANNED_RAYJOB)
    return [_build_task(name, {"rayjob": planner}, when=when, template="rayjob")]


def _list_done(tasks: Sequence[Task]) -> list[str]:
    """Return the conditions that tasks have ended well or were not needed."""
    return [f"({task.name}.Succeeded || {task.name}.Skipped)" for task in tasks]


def _build_condition(task: str, output: str, value: str) -> str:
    return f"'{{{{tasks.{task}.outputs.parameters.{output}}}}}' == '{value}'"


OUTPUT_TASKS = {output: task for task, part in STEP_PARTS.items() if task != "resize" for output in part.outputs}
"""Output parameter → the task that has it, unless the DAG names another one."""


def _build_task(
    name: str,
    output_tasks: Mapping[str, str] = MappingProxyType({}),
    conditions: Sequence[str] = (),
    when: str | None = None,
    template: str = "",
) -> Task:
    """Return a task with its arguments. It is omitted where a task whose output it takes did not succeed (`depends`).

    Args:
        name: the name of the task, and of its template unless `template` is another one.
        output_tasks: output parameter → the task that has it, where OUTPUT_TASKS names another one.
        conditions: further conditions of `depends`, all of which must hold.
        when: the condition without which the task is skipped.
    """
    from hera.workflows import Task

    inputs = PIPELINE[name].inputs if name in PIPELINE else output_tasks
    tasks_by_output = {output: {**OUTPUT_TASKS, **output_tasks}[output] for output in inputs}
    parents = [f"{parent}.Succeeded" for parent in dict.fromkeys(tasks_by_output.values())]
    return Task(
        name=name,
        template=template or name,
        arguments={name: f"{{{{tasks.{task}.outputs.parameters.{name}}}}}" for name, task in tasks_by_output.items()}
        or None,
        depends=" && ".join([*parents, *conditions]) or None,
        when=when,
    )


def build_cron_workflow(cluster: Cluster) -> dict[str, Any]:
    """Return the CronWorkflow as a document: it starts the current WorkflowTemplate, one run at a time."""
    from hera.workflows import CronWorkflow, models

    schedule = cluster.schedule
    validation.check_cron("cluster (schedule.cron)", schedule.cron)
    validation.check_timezone("cluster (schedule.timezone)", schedule.timezone)
    cron = CronWorkflow(
        name=NAME,
        namespace=cluster.namespace,
        labels=dict(LABELS),
        schedules=[schedule.cron],
        timezone=schedule.timezone,
        concurrency_policy="Forbid",
        starting_deadline_seconds=schedule.starting_deadline_seconds,
        successful_jobs_history_limit=schedule.keep_succeeded,
        failed_jobs_history_limit=schedule.keep_failed,
        cron_suspend=schedule.suspended,
        workflow_template_ref=models.WorkflowTemplateRef(name=NAME),
    )
    document: dict[str, Any] = cron.to_dict()
    return document
