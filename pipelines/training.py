"""The DAG: download → clean → resize → train → evaluate → promote, the same on every runner.

A step with nothing to do returns at once. KFP's own cache is off, for its key knows neither the image's digest nor the
source; the manifests do what it would. For a cluster the same DAG has pods, retries for those that are lost, deadlines,
an exit step, and one condition: nothing comes after download where nothing has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kfp import dsl

from ..components.store.manifest import code_version
from . import kfp_executor, steps
from .cluster import Cluster
from .kfp_executor import ENTRY_POINT
from .kfp_pods import Here, OnCluster
from .kfp_server import knows_choices
from .parameters import Parameter, RunParameters, format_form_value, list_form_parameters

if TYPE_CHECKING:
    from kfp.pipeline_spec import pipeline_spec_pb2

NAME = "imagemill-training"


def build(cluster: Cluster | None = None, parameters: RunParameters | None = None) -> Any:
    """The pipeline, a `GraphComponent`, for a cluster, or without one for KFP's local runners.

    `parameters`: the parameters that become the package's defaults, by which the pods are sized. UserError where the
    cluster's file says what KFP can't do.
    """
    on: Here | OnCluster = Here() if cluster is None else OnCluster(cluster, parameters or RunParameters({}, {}))

    form = list_form_parameters()

    def training(*values: Any) -> None:
        given = dict(zip(form, values, strict=True))
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER

        def shared(step: str) -> dict[str, Any]:
            """Return what the step is given of the form."""
            return {"run": run} | {name: value for name, value in given.items() if step in form[name].steps}

        with on.finishing(lambda: steps.finish(workspace=given["workspace"], run=run)):
            raw = on.place("download", steps.download(run=run, **given))
            given["name"] = raw.outputs["name"]  # resolved: the rest of the run goes by one name
            with on.if_changed(raw):
                cleaned = on.place("clean", steps.clean(raw=raw.outputs["raw"], **shared("clean")))
                tensors = on.place("resize", steps.resize(clean=cleaned.outputs["Output"], **shared("resize")))
                model = on.place("train", steps.train(tensors=tensors.outputs["Output"], **shared("train")))
                evaluated = on.place("evaluate", steps.evaluate(
                    model=model.outputs["Output"], clean=cleaned.outputs["Output"], **shared("evaluate"),
                ))  # fmt: skip
                on.place("promote", steps.promote(
                    evaluation=evaluated.outputs["evaluation"],
                    champion_evaluation=evaluated.outputs["champion_evaluation"], **shared("promote"),
                ))  # fmt: skip

    training.__signature__ = signature(form)  # type: ignore[attr-defined]
    training.__doc__ = docstring(form)
    decorated = dsl.pipeline(name=NAME, display_name="Imagemill training", pipeline_config=on.config())
    pipeline = decorated(training)
    if cluster is not None:
        _quiet_executors(pipeline.pipeline_spec)
    if cluster is not None and knows_choices(cluster.kfp.version):
        _add_choices(pipeline.pipeline_spec, form)
    return pipeline


def _quiet_executors(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    """Let the pods start KFP's executor by way of ours: else a step's log begins with all of its input."""
    for executor in spec.deployment_spec["executors"].values():
        command = executor["container"]["command"]
        for index, word in enumerate(command):
            command[index] = word.replace(f"-m {ENTRY_POINT}", f"-m {kfp_executor.__name__}")


def _add_choices(spec: pipeline_spec_pb2.PipelineSpec, form: Mapping[str, Parameter]) -> None:
    """Say which values a parameter takes. The pages make a drop-down of them, and the API server refuses others; the
    SDK (2.17) has no word for them, the pipeline spec has."""
    for name, one in form.items():
        literals = spec.root.input_definitions.parameters[name].literals
        for choice in one.choices:
            literals.add().string_value = choice


def signature(form: Mapping[str, Parameter]) -> inspect.Signature:
    """The pipeline function's signature, which KFP makes the form of. All are texts, as in Argo: KFP's pages take a
    number that may be left blank for a missing one, and don't start the run."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([
        inspect.Parameter(name, kind, default=format_form_value(parameter.default), annotation=str)
        for name, parameter in form.items()
    ])  # fmt: skip


def docstring(form: Mapping[str, Parameter]) -> str:
    """The pipeline function's docstring, in the form that KFP reads descriptions of parameters from."""
    lines = [f"    {name}: {one.help}" for name, one in form.items()]
    about = f"Labelled images in, a better classifier out. Compiled by imagemill {code_version()}"
    return f"{about}\n\nArgs:\n" + "\n".join(lines) + "\n"


training_pipeline = build()
