"""The DAG: download → clean → resize → train → evaluate → promote, the same on every runner.

There are no conditions: a step with nothing to do returns at once. KFP's own cache is off, for its key knows
neither the image's digest nor the source; the manifests do what it would. For a cluster the same DAG has pods, retries
for those that are lost, deadlines, and an exit step.
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
from .cluster import Cluster
from .kfp_pods import Here, OnCluster
from .parameters import CONFIG_HELP, WORKSPACE_HELP, Chosen, parameters

NAME = "imagemill-training"


def build(cluster: Cluster | None = None, chosen: Chosen | None = None) -> Any:
    """The pipeline, a `GraphComponent`, for a cluster, or without one for KFP's local runners.

    `chosen`: the parameters that become the package's defaults, by which the pods are sized. UserError where the
    cluster's file says what KFP can't do.
    """
    on: Here | OnCluster = Here() if cluster is None else OnCluster(cluster, chosen or Chosen({}, {}))

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
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        common: dict[str, Any] = {"workspace": workspace, "rerun": rerun, "config": config, "run": run}
        with on.finishing(lambda: steps.finish(workspace=workspace, run=run)):
            raw = on.place("download", steps.download(
                name=name, dataset=dataset, source=source, annotations=annotations, label_pattern=label_pattern,
                **common,
            ))  # fmt: skip
            common["name"] = raw.outputs["name"]  # resolved: the rest of the run goes by one name
            cleaned = on.place("clean", steps.clean(
                raw=raw.outputs["raw"], preset=preset, color=color, val_fraction=val_fraction,
                test_fraction=test_fraction, **common,
            ))  # fmt: skip
            tensors = on.place("resize", steps.resize(
                clean=cleaned.outputs["Output"], preset=preset, model_preset=model_preset, image_size=image_size,
                resize_mode=resize_mode, encoding=encoding, **common,
            ))  # fmt: skip
            model = on.place("train", steps.train(
                tensors=tensors.outputs["Output"], preset=preset, backbone=backbone, weights=weights, recipe=recipe,
                epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, **common,
            ))  # fmt: skip
            evaluated = on.place("evaluate", steps.evaluate(
                model=model.outputs["Output"], clean=cleaned.outputs["Output"], **common,
            ))  # fmt: skip
            on.place("promote", steps.promote(
                evaluation=evaluated.outputs["evaluation"], min_gain=min_gain, promote=promote,
                champion_evaluation=evaluated.outputs["champion_evaluation"], **common,
            ))  # fmt: skip

    training.__doc__ = described()
    decorated = dsl.pipeline(name=NAME, display_name="Imagemill training", pipeline_config=on.config())
    return decorated(training)


def described() -> str:
    """The pipeline's docstring in the form KFP reads parameter descriptions from."""
    known = parameters()
    arguments = {name: p.help for name, p in known.items() if p.pipeline}
    arguments |= {"workspace": WORKSPACE_HELP, "config": CONFIG_HELP}
    lines = [f"    {name}: {text}" for name, text in arguments.items()]
    return "Labelled images in, a better classifier out.\n\nArgs:\n" + "\n".join(lines) + "\n"


training_pipeline = build()
