"""The pipeline for Argo Workflows without Kubeflow, 3.7 and 4: a WorkflowTemplate, and the CronWorkflow that starts it.

DAG, pods, parameters and defaults are the same as the KFP pipeline's: those of `steps.py` and `pod.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.dataset.workspace import STEPS
from ...components.storage.errors import wrong
from ..cluster import validation
from ..cluster.checks import check_output, set_workspace
from ..cluster.cluster_file import LABELS, RUN_LABEL, Cluster, Limits
from ..cluster.pod_fields import NO_SIDECAR, build_pod_security_context
from ..cluster.unchanged import CHANGED
from ..finish import FINISH
from ..parameters import RunParameters, format_form_value, list_form_parameters
from ..steps import PIPELINE
from .templates import RUN_PLACEHOLDER, build_finish_template, build_step_template

if TYPE_CHECKING:
    from hera.workflows import DAG, Parameter

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
    dag = _build_dag()
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
        on_exit=FINISH,
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
        templates=[
            dag,
            *(build_step_template(step, cluster, parameters) for step in STEPS),
            build_finish_template(cluster),
        ],
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


def _build_dag() -> DAG:
    """Return the DAG: each task depends on those whose outputs it takes, and is omitted where one did not succeed.

    Where nothing has changed, download is the only task that runs.
    """
    from hera.workflows import DAG, Task

    changed = f"'{{{{tasks.{STEPS[0]}.outputs.parameters.changed}}}}' == '{CHANGED}'"
    tasks = []
    for step in STEPS:
        inputs = {name: giver for name, (giver, _) in PIPELINE[step].inputs.items()}
        taken = {name: f"{{{{tasks.{giver}.outputs.parameters.{name}}}}}" for name, giver in inputs.items()}
        depends = " && ".join(f"{giver}.Succeeded" for giver in dict.fromkeys(inputs.values()))
        when = changed if step == STEPS[1] else None
        tasks.append(Task(name=step, template=step, arguments=taken or None, depends=depends or None, when=when))
    return DAG(name="training", tasks=[*tasks])


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
