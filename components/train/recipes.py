"""Ways to train that are known to work, by situation. A recipe fills in what nobody chose."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ..store.manifest import Manifest
from .config import TrainConfig

Values = dict[str, Any]

_PLAIN: Values = {
    "epochs": 8, "learning_rate": 0.001, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 1.0,
    "layer_decay": 1.0, "backbone_rate": 1.0, "probe_epochs": 0, "unfreeze_epochs": 0, "early_stopping": 0,
    "label_smoothing": 0.05, "ema": 0.0, "dropout": 0.0, "drop_path": 0.0, "class_balance": "none",
    "rotate": 0.0, "translate": 0.0, "zoom": 0.0, "shear": 0.0, "perspective": 0.0,
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0,
    "blur": 0.0, "noise": 0.0, "jpeg_artifacts": 0.0, "erasing": 0.0, "policy": "none",
    "mixup": 0.2, "mixup_probability": 0.0, "cutmix": 1.0, "cutmix_probability": 0.0,
}  # fmt: skip
"""Every value that a recipe may set, with what holds in `plain`: crops and flips alone."""


def resolve(config: TrainConfig, tensors: Manifest) -> TrainConfig:
    """The config with everything filled in that nobody chose; `recipe` is never `auto` in it."""
    name = config.recipe if config.recipe != "auto" else "plain"
    values = _PLAIN
    unset = {one.name for one in fields(config) if one.name in values and getattr(config, one.name) == one.default}
    return replace(config, recipe=name, **{key: values[key] for key in unset})
