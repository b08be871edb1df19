"""The effective recipe in a few lines: what a training does, and nothing of what it leaves alone."""

from __future__ import annotations

from ..store import uri as uris
from .config import TrainConfig


def recipe_lines(config: TrainConfig) -> list[str]:
    """Of a resolved config: passes and optimizer, regularization, augmentation."""
    return [
        f"recipe {config.recipe}: {config.epochs} epochs in batches of {config.batch_size}, {_optimizer(config)}",
        f"regularization: {_or_none(_regularization(config))}",
        f"augmentation: {_or_none(_augmentation(config))}",
    ]


def _or_none(parts: list[str]) -> str:
    return ", ".join(parts) or "none"


def _optimizer(config: TrainConfig) -> str:
    parts = [f"{config.optimizer} with a learning rate of {config.learning_rate:g}"]
    if config.warmup:
        parts.append(f"warm-up over {config.warmup:.0%} of the steps")
    if config.accumulate > 1:
        parts.append(f"{config.accumulate} batches a step")
    if config.weight_decay:
        parts.append(f"weight decay {config.weight_decay:g}")
    if config.clip_norm:
        parts.append(f"gradients clipped to {config.clip_norm:g}")
    if config.layer_decay != 1:
        parts.append(f"layer decay {config.layer_decay:g}")
    if config.backbone_rate != 1:
        parts.append(f"all but the head at {config.backbone_rate:g} of that rate")
    if config.head == "solved":
        parts.append("the head solved first")
    trained = config.probe_epochs - (config.head == "solved")
    if config.weights and trained > 0:
        parts.append(f"the head alone for {trained} epochs")
    if config.weights and config.unfreeze_epochs:
        parts.append(f"then thawing over {config.unfreeze_epochs}")
    if config.early_stopping:
        parts.append(f"stopping after {config.early_stopping} epochs without a better validation")
    return ", ".join(parts)


def _regularization(config: TrainConfig) -> list[str]:
    named = {
        "label smoothing": config.label_smoothing, "moving average of the weights": config.ema,
        "dropout": config.dropout, "stochastic depth": config.drop_path,
    }  # fmt: skip
    parts = [f"{name} {value:g}" for name, value in named.items() if value]
    if config.class_balance != "none":
        parts.append(f"classes balanced by {config.class_balance}")
    for name, alpha, share in (
        ("MixUp", config.mixup, config.mixup_probability),
        ("CutMix", config.cutmix, config.cutmix_probability),
    ):
        if alpha and share:
            parts.append(f"{name} {alpha:g} in {share:.0%} of the batches")
    return parts


def _augmentation(config: TrainConfig) -> list[str]:
    if config.augment_pipeline:
        return [f"the pipeline {uris.redact(config.augment_pipeline)}"]
    parts = [f"crops of {config.crop_scale:g} to 1 of the area"] if config.crop_scale < 1 else []
    parts += [name for name, on in (("flips", config.flip), ("vertical flips", config.vertical_flip)) if on == "true"]
    policy = {"randaugment": f"RandAugment {config.policy_ops}/{config.policy_magnitude}",
              "trivialaugment": "TrivialAugment", "autoaugment": f"AutoAugment ({config.policy_set})"}  # fmt: skip
    parts += [policy[config.policy]] if config.policy in policy else []
    degrees = {"rotated to {:g}°": config.rotate, "sheared to {:g}°": config.shear}
    strengths = {
        "shifted to {:g}": config.translate, "zoomed by {:g}": config.zoom, "perspective {:g}": config.perspective,
        "brightness {:g}": config.brightness, "contrast {:g}": config.contrast, "saturation {:g}": config.saturation,
        "hue {:g}": config.hue,
    }  # fmt: skip
    shares = {
        "{:.0%} grey": config.grayscale, "{:.0%} blurred": config.blur, "{:.0%} noisy": config.noise,
        "{:.0%} with JPEG artifacts": config.jpeg_artifacts, "{:.0%} with a box erased": config.erasing,
    }  # fmt: skip
    return parts + [form.format(value) for form, value in (degrees | strengths | shares).items() if value]
