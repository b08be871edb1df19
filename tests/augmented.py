"""Configs for tests of augmentation: everything off but what a test names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from imagemill.components.train.config import TrainConfig

_OFF: dict[str, Any] = {field.name: 0.0 for field in fields(TrainConfig) if field.default == -1.0}
_OFF |= {"policy": "none", "crop_scale": 1.0, "flip": "false", "vertical_flip": "false"}


def config(**wanted: Any) -> TrainConfig:
    return replace(TrainConfig(), **{**_OFF, **wanted})


def image(side: int, size: int = 0, channels: int = 3, color: str = "rgb") -> dict[str, Any]:
    """What a tensors manifest says of its images."""
    mean = [0.485, 0.456, 0.406, 0.5, 0.5, 0.5][:channels]
    about = {"shape": [side, side, channels], "mean": mean, "std": [0.25] * channels, "color": color, "mode": "crop"}
    return about | ({"input_size": size} if size else {})
