"""The KFP pipeline: download → clean → resize → train → evaluate → promote.

Argo's DAG has the same steps and is written in `argo/workflow.py`, because there Argo itself creates the RayJob: who
changes one changes both.

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
from .cluster.cluster_file import Cluster
from .kfp import executor, steps
from .kfp.executor import ENTRY_POINT
from .kfp.pods import ClusterPlacement, supports_literals
from .parameters import Parameter, RunParameters, format_form_value, list_form_parameters

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

    def training(*values: Any) -> None:
        arguments = dict(zip(form, values, strict=True))
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER

        def select_inputs(step: str) -> dict[str, Any]:
            return {"run": run} | {name: value for name, value in arguments.items() if step in form[name].steps}

        with on.build_exit_handler(lambda: steps.finish(workspace=arguments["workspace"], run=run)):
            raw = on.place("download", steps.download(run=run, **arguments))
            arguments["name"] = raw.outputs["name"]  # resolved: all later steps use the same name
            with on.build_changed_group(raw):
                cleaned = on.place("clean", steps.clean(raw=raw.outputs["raw"], **select_inputs("clean")))
                tensors = on.place("resize", steps.resize(clean=cleaned.outputs["Output"], **select_inputs("resize")))
                model = on.place("train", steps.train(tensors=tensors.outputs["Output"], **select_inputs("train")))
                evaluated = on.place("evaluate", steps.evaluate(
                    model=model.outputs["Output"], clean=cleaned.outputs["Output"], **select_inputs("evaluate"),
                ))  # fmt: skip
                on.place("promote", steps.promote(
                    evaluation=evaluated.outputs["evaluation"],
                    champion_evaluation=evaluated.outputs["champion_evaluation"], **select_inputs("promote"),
                ))  # fmt: skip

    training.__signature__ = make_signature(form)  # type: ignore[attr-defined]
    training.__doc__ = make_docstring(form, "Labeled images in, a better classifier out.")
    decorate = dsl.pipeline(name=NAME, display_name="Imagemill training", pipeline_config=on.build_config())
    pipeline = decorate(training)
    replace_executor(pipeline.pipeline_spec)
    if supports_literals(cluster.kfp.version):
        add_choices(pipeline.pipeline_spec, form)
    return pipeline


def replace_executor(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    """Let the pods start KFP's executor through ours, which does not print a step's whole input to its log."""
    for settings in spec.deployment_spec["executors"].values():
        command = settings["container"]["command"]
        for index, word in enumerate(command):
            command[index] = word.replace(f"-m {ENTRY_POINT}", f"-m {executor.__name__}")


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
