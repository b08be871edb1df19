"""A search as a WorkflowTemplate of Argo Workflows, with one pod for each trial.

The images are prepared by the tasks of the training workflow. The rungs are written out: for each of them a task that
chooses trials, and one over the list that it outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..argo.templates import STEP_PARTS, StepPart, build_finish_template, build_part_template
from ..argo.workflow import (
    build_image_tasks,
    build_parameters,
    build_step_templates,
    build_template_document,
    list_done,
    write_documents,
)
from ..cluster.checks import check_output
from ..cluster.cluster_file import Cluster
from ..cluster.pod_fields import shm_size
from .package import NAME, SearchPackage
from .pod import MODULE
from .rungs import SEARCH_STEPS, TUNED, count_rungs

if TYPE_CHECKING:
    from hera.workflows import DAG, Task

_INPUTS = ("scope", "tensors", "model")
_SEARCH = StepPart(MODULE, STEP_PARTS["download"].flag_steps, _INPUTS, {}, parameters=("trials", "seeds", "space"))


def compile_argo(package: SearchPackage, target: Path, cluster: Cluster) -> None:
    """Write the WorkflowTemplate to a YAML file; UserError for what `compile_argo` of the training refuses."""
    check_output(target)
    cluster.require_images("cluster")
    write_documents([build_workflow_template(package, cluster)], target)


def build_workflow_template(package: SearchPackage, cluster: Cluster) -> dict[str, Any]:
    """Return the WorkflowTemplate as a document."""
    parameters, form = package.parameters, package.list_form()
    arguments = build_parameters(form, cluster, parameters)
    # Tasks that may run at the same time are trials alone, so the limit of pods is one of trials.
    return build_template_document(
        NAME, ("Imagemill tuning", "A search for better training parameters."), cluster, arguments,
        NAME if cluster.argo.mutex else "",
        [
            _build_dag(package, cluster), *_build_search_templates(package, cluster),
            *build_step_templates(("clean", "resize"), cluster, parameters),
            build_finish_template(cluster, SEARCH_STEPS),
        ],
        package.parallelism,
    )  # fmt: skip


def _build_search_templates(package: SearchPackage, cluster: Cluster) -> list[Any]:
    """Return the templates of the search's own pods: small ones, and that of trials with the resources of training."""
    own = STEP_PARTS["download"]
    downloading = replace(
        own, module=MODULE, outputs={**own.outputs, "scope": "name"}, constants={"action": "download"}
    )
    base, choose, train, report = (
        replace(_SEARCH, constants={"action": action, "pruner": package.pruner})
        for action in ("base", "choose", "train", "report")
    )
    trial = {"model": "model", "state": "state", "score": "score"}
    parts = {
        "base": replace(base, inputs=("scope", "tensors"), outputs=trial),
        "choose": replace(choose, inputs=(*_INPUTS, "rung"), outputs={"trials": "trials"}),
        "trial": replace(train, inputs=(*_INPUTS, "rung", "item"), outputs=trial),
        "report": replace(
            report, outputs={name: name for name in ("verdict", "reason", "best")}, artifacts=("report.html", TUNED)
        ),
    }
    pod = cluster.steps["train"]
    shm = shm_size("train", pod, package.parameters)
    templates = [
        build_part_template("download", downloading, cluster, cluster.steps["download"], cluster.image_of("download"))
    ]
    for name, part in parts.items():
        if name in ("base", "trial"):
            templates.append(build_part_template(name, part, cluster, pod, cluster.image_of("train"), shm))
        else:
            templates.append(build_part_template(name, part, cluster, cluster.small, cluster.image("cpu")))
    return templates


def _build_dag(package: SearchPackage, cluster: Cluster) -> DAG:
    from hera.workflows import DAG

    images = build_image_tasks(cluster)
    inputs = {"scope": "download.scope", "tensors": f"{images.tensors_task}.tensors"}
    base = _build_task("base", "base", inputs, {}, images.conditions)
    inputs |= {"model": "base.model"}
    tasks, done = [*images.tasks, base], list[str]()
    for rung in range(count_rungs(package.pruner) + 1):
        choose = _build_task(f"choose-{rung + 1}", "choose", inputs, {"rung": str(rung)}, done)
        trials = f"{choose.name}.trials"
        constants = {"rung": str(rung), "item": "{{item}}"}
        train = _build_task(f"trials-{rung + 1}", "trial", inputs, constants, [f"{choose.name}.Succeeded"], trials)
        tasks += [choose, train]
        done = list_done([train])  # Argo skips a task over an empty list
    tasks.append(_build_task("report", "report", inputs, {}, done))
    return DAG(name="tuning", tasks=[*tasks])


def _build_task(
    name: str, template: str, inputs: Mapping[str, str], constants: Mapping[str, str], conditions: Sequence[str],
    items: str = "",
) -> Task:  # fmt: skip
    """Return a task.

    `inputs`: parameter → `task.output` that it gets, with `constants` beside them; `conditions`: of `depends`, beside
    the success of these tasks; `items`: `task.output` with the list over whose items it is repeated.
    """
    from hera.workflows import Task

    def refer(output: str) -> str:
        task, _, parameter = output.partition(".")
        return f"{{{{tasks.{task}.outputs.parameters.{parameter}}}}}"

    parents = [
        f"{parent}.Succeeded" for parent in dict.fromkeys(output.partition(".")[0] for output in inputs.values())
    ]
    return Task(
        name=name,
        template=template,
        arguments={**{parameter: refer(output) for parameter, output in inputs.items()}, **constants},
        depends=" && ".join([*parents, *conditions]),
        with_param=refer(items) if items else None,
    )
