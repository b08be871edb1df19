"""The steps as KFP components: containers of the steps' images that run `imagemill.pipelines.pod`.

Datasets are passed as URIs in string parameters (KFP would download an `Input[Dataset]` before the step starts); the
artifacts that the UI shows are small.
"""

from __future__ import annotations

import inspect
from typing import Any

from kfp import dsl

from ...components.dataset.manifest import code_version
from ...components.dataset.workspace import STEPS
from ..finish import FINISH
from ..parameters import list_step_parameters
from ..steps import PIPELINE, list_outputs

ARTIFACTS: dict[str, dict[str, Any]] = {
    "download": {"manifest": dsl.Dataset},
    "clean": {"manifest": dsl.Dataset},
    "resize": {"manifest": dsl.Dataset},
    "train": {"manifest": dsl.Model},
    "evaluate": {"metrics": dsl.Metrics, "confusion": dsl.ClassificationMetrics},
    "promote": {"report": dsl.HTML, "summary": dsl.Markdown},
    FINISH: {"summary": dsl.Markdown},
}
"""The artifacts of each pod, which `results.py` writes."""
COMMAND = ["python3", "-m", "imagemill.pipelines.pod"]
_OUTPUT = "_output"
"""Suffix of an output in the function that KFP reads, whose arguments have different names: download is given `name`,
which may be blank, and gives the name that it resolves."""


def build_component(step: str) -> Any:
    """Return the component of a step, whose inputs are its parameters of the form, or of the exit step."""
    if step == FINISH:
        inputs: dict[str, Any] = {"workspace": str, "run": str, "status": dsl.PipelineTaskFinalStatus}
        outputs: list[str] = []
        image, description = "cpu", "However the steps ended: the run in short, and nothing of it left in the cluster."
    else:
        row = PIPELINE[step]
        inputs = dict.fromkeys(["run", *list_step_parameters(step), *row.inputs], str)
        outputs = [*list_outputs(step), *(["changed"] if step == STEPS[0] else [])]
        image, description = row.image, row.step.help

    annotations = {
        **inputs,
        **{f"{name}{_OUTPUT}": dsl.OutputPath(str) for name in outputs},
        **{name: dsl.Output[kind] for name, kind in ARTIFACTS[step].items()},
    }

    def component(*values: Any) -> dsl.ContainerSpec:
        given = dict(zip(annotations, values, strict=True))
        artifacts = [word for name in ARTIFACTS[step] for word in ("--artifact", name, given[name].path)]
        return dsl.ContainerSpec(
            image=f"imagemill-{image}:{code_version()}", command=COMMAND, args=[step, "--kfp", "{{$}}", *artifacts]
        )

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    component.__name__, component.__doc__ = step, description
    component.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in annotations.items()]
    )
    made = dsl.container_component(component)
    spec = made.component_spec
    spec.outputs = {name.removesuffix(_OUTPUT): output for name, output in (spec.outputs or {}).items()}
    return made
