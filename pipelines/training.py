"""The DAG: download → clean → resize → train → evaluate → promote, the same on every runner.

There are no conditions: a step with nothing to do returns at once. KFP's own cache is off, for its key knows
neither the image's digest nor the source; the manifests do what it would.
"""

# No `from __future__ import annotations` here: KFP reads the annotations as objects.
from typing import Any

from kfp import dsl

from ..components.clean.config import CleanConfig
from ..components.download.config import DownloadConfig
from ..components.promote.config import PromoteConfig
from ..components.resize.config import ResizeConfig
from ..components.train.config import TrainConfig
from . import steps
from .parameters import parameters

CONFIG_HELP = 'all other parameters as JSON, by step: {"train": {"weight_decay": 0.05}}'
LOST_POD_RETRIES = 2
"""A cluster's retries are for lost pods; transient errors were retried inside the step already."""


def training(
    name: str = DownloadConfig.name,
    dataset: str = DownloadConfig.dataset,
    source: str = DownloadConfig.source,
    annotations: str = DownloadConfig.annotations,
    workspace: str = DownloadConfig.workspace,
    label_pattern: str = DownloadConfig.label_pattern,
    preset: str = CleanConfig.preset,
    color: str = CleanConfig.color,
    model_preset: str = ResizeConfig.model_preset,
    image_size: int = ResizeConfig.image_size,
    resize_mode: str = ResizeConfig.resize_mode,
    encoding: str = ResizeConfig.encoding,
    backbone: str = TrainConfig.backbone,
    weights: str = TrainConfig.weights,
    recipe: str = TrainConfig.recipe,
    epochs: int = TrainConfig.epochs,
    batch_size: int = TrainConfig.batch_size,
    learning_rate: float = TrainConfig.learning_rate,
    seed: int = TrainConfig.seed,
    val_fraction: float = CleanConfig.val_fraction,
    test_fraction: float = CleanConfig.test_fraction,
    min_gain: float = PromoteConfig.min_gain,
    promote: str = PromoteConfig.promote,
    rerun: str = DownloadConfig.rerun,
    config: str = "",
) -> None:
    common: dict[str, Any] = {
        "workspace": workspace, "name": name, "rerun": rerun, "config": config,
        "run": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    }  # fmt: skip
    raw = _step(
        steps.download(
            dataset=dataset, source=source, annotations=annotations, label_pattern=label_pattern, **common
        ), "Download",
    )  # fmt: skip
    common["name"] = raw.outputs["name"]  # resolved: the rest of the run goes by one name
    cleaned = _step(
        steps.clean(
            raw=raw.outputs["raw"], preset=preset, color=color, val_fraction=val_fraction,
            test_fraction=test_fraction, **common
        ), "Clean",
    )  # fmt: skip
    tensors = _step(
        steps.resize(
            clean=cleaned.outputs["Output"], preset=preset, model_preset=model_preset, image_size=image_size,
            resize_mode=resize_mode, encoding=encoding, **common
        ), "Resize",
    )  # fmt: skip
    model = _step(
        steps.train(
            tensors=tensors.outputs["Output"], preset=preset, backbone=backbone, weights=weights, recipe=recipe,
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, **common,
        ), "Train",
    )  # fmt: skip
    evaluated = _step(
        steps.evaluate(model=model.outputs["Output"], clean=cleaned.outputs["Output"], **common), "Evaluate"
    )
    _step(
        steps.promote(
            evaluation=evaluated.outputs["evaluation"], champion_evaluation=evaluated.outputs["champion_evaluation"],
            min_gain=min_gain, promote=promote, **common,
        ), "Promote",
    )  # fmt: skip


def _step(task: dsl.PipelineTask, title: str) -> dsl.PipelineTask:
    task.set_display_name(title)
    task.set_caching_options(False)
    task.set_retry(num_retries=LOST_POD_RETRIES, backoff_duration="30s", backoff_factor=2.0)
    return task


def described() -> str:
    """The pipeline's docstring in the form KFP reads parameter descriptions from."""
    known = parameters()
    arguments = {name: p.help for name, p in known.items() if p.pipeline} | {"config": CONFIG_HELP}
    lines = [f"    {name}: {text}" for name, text in arguments.items()]
    return "Labelled images in, a better classifier out.\n\nArgs:\n" + "\n".join(lines) + "\n"


training.__doc__ = described()
training_pipeline = dsl.pipeline(name="imagemill-training", display_name="Imagemill training")(training)
