"""For tests of augmentation: configs with everything off but what a test names, and torchvision's operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

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


TORCHVISION: dict[str, Callable[[torch.Tensor, float], Any]] = {
    "Brightness": tv.adjust_brightness, "Contrast": tv.adjust_contrast, "Color": tv.adjust_saturation,
    "Hue": tv.adjust_hue, "Grayscale": lambda image, _: tv.rgb_to_grayscale(image, len(image)),
    "Posterize": lambda image, bits: tv.posterize(image, int(bits)), "Solarize": tv.solarize,
    "Invert": lambda image, _: tv.invert(image), "AutoContrast": lambda image, _: tv.autocontrast(image),
    "Equalize": lambda image, _: tv.equalize(image), "Sharpness": tv.adjust_sharpness,
    "Blur": lambda image, sigma: tv.gaussian_blur(image, [5, 5], [sigma] * 2),
    "Jpeg": lambda image, quality: tv.jpeg(image, int(quality)),
}  # fmt: skip


def apply_torchvision(image: Any, name: str, value: float) -> Any:
    """Apply torchvision's operation to uint8 [H, W, C], with its value as float32 has it."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return TORCHVISION[name](planes, float(np.float32(value))).permute(1, 2, 0).numpy()
