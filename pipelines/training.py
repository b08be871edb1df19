"""The KFP pipeline: download → clean → resize → train → evaluate → promote.

The steps, and what each takes from those before it, are those of `steps.py`, as are Argo's in `argo/workflow.py`.

A step whose output exists returns at once, by its manifest. KFP's own cache is off, for its key has neither the image's
digest nor the source's state. The DAG has pods, retries for those that are lost, deadlines, an exit handler, and one
condition: the steps after download run only if something has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kfp import dsl

from ..components.dataset.manifest import code_version
from ..components.dataset.workspace import STEPS
from .cluster.cluster_file import Cluster
from .finish import FINISH
from .kfp.pods import ClusterPlacement, supports_literals
from .kfp.steps import build_component
from .parameters import Parameter, RunParameters, format_form_value, list_form_parameters, list_step_parameters
from .steps import PIPELINE

if TYPE_CHECKING:
    from kfp.pipeline_spec import pipeline_spec_pb2

NAME = "imagemill-training"


def build_pipeline(cluster: Cluster, parameters: RunParameters | None = None) -> Any:
    """Return the pipeline, a `GraphComponent`, for a cluster.

    `parameters`: those that become the package's defaults, by which the pods are sized. UserError for settings of the
    cluster that KFP does not support.
    """
    on = ClusterPlacement(cluster, parameters or RunParameters({}, {}))
    form = list_form_parameters()

    components = {step: build_component(step) for step in (*STEPS, FINISH)}

    def training(*values: Any) -> None:
        arguments = dict(zip(form, values, strict=True)) | {"run": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
        tasks: dict[str, Any] = {}

        def add(step: str) -> Any:
            taken = {name: tasks[giver].outputs[name] for name, (giver, _) in PIPELINE[step].inputs.items()}
            given = {name: arguments[name] for name in ("run", *list_step_parameters(step))}
            tasks[step] = on.place(step, components[step](**(given | taken)))
            return tasks[step]

        def finish() -> Any:
            return components[FINISH](workspace=arguments["workspace"], run=arguments["run"])

        with on.build_exit_handler(finish):
            first, *others = STEPS
            with on.build_changed_group(add(first)):
                for step in others:
                    add(step)

    training.__signature__ = make_signature(form)  # type: ignore[attr-defined]
    training.__doc__ = make_docstring(form, "Labeled images in, a better classifier out.")
    decorate = dsl.pipeline(name=NAME, display_name="Imagemill training", pipeline_config=on.build_config())
    pipeline = decorate(training)
    if supports_literals(cluster.kfp.version):
        add_choices(pipeline.pipeline_spec, form)
    return pipeline


def add_choices(spec: pipeline_spec_pb2.PipelineSpec, form: Mapping[str, Parameter]) -> None:
    """Add the fixed values of parameters. The UI makes a drop-down of them, and the API server refuses others; the
    pipeline spec has a field for them that the SDK (2.17) can't set."""
    for name, parameter in form.items():
        literals = spec.root.input_definitions.parameters[name].literals
        for choice in parameter.choices:
            literals.add().string_value = choice


def make_signature(form: Mapping[str, Parameter]) -> inspect.Signature:
    """Return the pipeline function's signature, from which KFP makes the form. All parameters are texts, as in Argo:
    the KFP UI starts no run while a number is blank, even an optional one."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([
        inspect.Parameter(name, kind, default=format_form_value(parameter.default), annotation=str)
        for name, parameter in form.items()
    ])  # fmt: skip


def make_docstring(form: Mapping[str, Parameter], description: str) -> str:
    """Return the pipeline function's docstring, from which KFP reads the descriptions of parameters."""
    lines = [f"    {name}: {parameter.help}" for name, parameter in form.items()]
    return f"{description} Compiled by imagemill {code_version()}\n\nArgs:\n" + "\n".join(lines) + "\n"
