"""Configs for tests of augmentation: everything off but what a test names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.recipe_values import PLAIN

_OFF: dict[str, Any] = PLAIN | {"crop_scale": 1.0, "flip": "false", "vertical_flip": "false"}


def config(**options: Any) -> TrainConfig:
    return replace(TrainConfig(), **{**_OFF, **options})


def image(side: int, size: int = 0, channels: int = 3, color: str = "rgb") -> ImageSpec:
    """Build the `image` entry of a tensors manifest."""
    mean = (0.485, 0.456, 0.406, 0.5, 0.5, 0.5)[:channels]
    return ImageSpec((side, side, channels), size or None, color, mean=mean, std=(0.25,) * channels)
