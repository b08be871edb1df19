"""The table of steps: what the pipeline consists of, in its order. Local runs, containers, pods and forms are made from
it.

The names of the steps and the kinds of datasets that they make are `STEPS` and `PRODUCTS` of
`components/dataset/workspace.py`, for workspaces are read without pipelines as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..components import clean, download, evaluate, promote, resize, train
from ..components.dataset.records import StepRecord
from ..components.step.config import StepConfig
from ..components.step.step import Step

Output = tuple[str, str]
"""A value that a step gives to later ones: the name of the step, and `uri` or one of its metrics."""
Records = dict[str, StepRecord]
"""Records of a run's steps by name, in the order of the steps."""
NAME: dict[str, Output] = {"name": ("download", "name")}
"""The dataset's name, which download resolves."""


@dataclass(frozen=True)
class PipelineStep:
    """A step and its place in the pipeline.

    Attributes:
        step: name, config and entry point.
        image: the image that it runs in, a target of the Dockerfile.
        inputs: outputs of earlier steps by the field of the config that takes them.
        uses_gpu: whether a container of it is given the machine's GPUs.
    """

    step: Step
    image: str
    inputs: Mapping[str, Output] = field(default_factory=dict)
    uses_gpu: bool = False

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def config(self) -> type[StepConfig]:
        return self.step.config


PIPELINE: dict[str, PipelineStep] = {
    row.name: row
    for row in (
        PipelineStep(download.STEP, "cpu"),
        PipelineStep(clean.STEP, "cpu", NAME | {"raw": ("download", "uri")}),
        PipelineStep(resize.STEP, "ray", NAME | {"clean": ("clean", "uri")}),
        PipelineStep(train.STEP, "gpu", NAME | {"tensors": ("resize", "uri")}, uses_gpu=True),
        PipelineStep(
            evaluate.STEP, "gpu", NAME | {"model": ("train", "uri"), "clean": ("clean", "uri")}, uses_gpu=True
        ),
        PipelineStep(
            promote.STEP, "cpu", NAME | {
                "evaluation": ("evaluate", "uri"), "champion_evaluation": ("evaluate", "champion_evaluation"),
            },
        ),
    )
}  # fmt: skip


def select_inputs(step: str, records: Records) -> dict[str, str]:
    """Return the values of a step's `inputs`, from the records of the steps before it."""
    return {name: select_outputs(giver, records[giver])[name] for name, (giver, _) in PIPELINE[step].inputs.items()}


def list_outputs(step: str) -> dict[str, str]:
    """Return what a step gives (`uri` or a metric of its record), by the field of the later steps that takes it."""
    return {name: output for row in PIPELINE.values() for name, (giver, output) in row.inputs.items() if giver == step}


def select_outputs(step: str, record: StepRecord) -> dict[str, str]:
    """Return the values of a step's `list_outputs` from its record."""
    return {
        name: record.uri if output == "uri" else str(record.metrics[output])
        for name, output in list_outputs(step).items()
    }


def list_required_modules() -> list[str]:
    """Return the optional modules that the steps import, for a command that runs them in its own process."""
    return [module for row in PIPELINE.values() for module in row.step.needs]
