"""RandAugment's operations and magnitudes, which offline copies and training share, and its pixels on one image.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019, as torchvision's
`transforms.v2.RandAugment` has it: its operations, its 31 bins of magnitude, a sign drawn where an operation has
one; bilinear, and black where a picture is moved away. Copies are sampled image by image, each with a generator of its
own, and their pixels are torchvision's. Training samples whole batches and folds their geometry into one transform
(components/train/augment/policy.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .decoder import Pixels

if TYPE_CHECKING:
    import torch

BINS = 31
"""Magnitudes are 0 to 30."""
SIGNED = {
    "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150.0 / 331.0, "TranslateY": 150.0 / 331.0, "Rotate": 30.0,
    "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9,
}  # fmt: skip
"""Operations whose value may be negative, with the value of the largest magnitude: tangents, shares of the width or
height, degrees, factors less 1."""
OPERATIONS = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")


@dataclass(frozen=True)
class Operation:
    """One of `OPERATIONS` with its value: tangent, pixels, degrees, factor less 1, bits, or share of 255."""

    name: str
    value: float = 0.0

    def to_record(self) -> dict[str, str | float]:
        return {"name": self.name} if self.name in _WITHOUT_VALUE else {"name": self.name, "value": self.value}


_WITHOUT_VALUE = ("Identity", "AutoContrast", "Equalize")


def list_magnitudes(name: str, largest: float, bins: int = BINS, dropped_bits: int = 4) -> list[float]:
    """Return an operation's magnitude at each bin, before its sign; zeros for one without.

    In float32 as torchvision computes it: a translation is cut to whole pixels, so the last digit counts.

    Args:
        largest: of an operation in `SIGNED`.
        dropped_bits: of Posterize at the largest magnitude.
    """
    import torch

    if name == "Posterize":
        return (8 - torch.arange(bins) / ((bins - 1) / dropped_bits)).round().tolist()
    if name == "Solarize":
        return torch.linspace(1.0, 0.0, bins).tolist()
    return torch.linspace(0.0, largest if name in SIGNED else 0.0, bins).tolist()


@cache
def operation_value(name: str, magnitude: int, height: int, width: int) -> float:
    """Return an operation's value at a magnitude (0 to 30), before its sign; pixels for translations. 0 without one."""
    side = {"TranslateX": width, "TranslateY": height}.get(name, 1)
    return list_magnitudes(name, SIGNED.get(name, 0.0) * side)[magnitude]


def sample_operations(
    random: np.random.Generator, number: int, magnitude: int, height: int, width: int
) -> list[Operation]:
    """Sample `number` operations for an image of that size, uniformly and independently."""
    operations: list[Operation] = []
    for _ in range(number):
        name = OPERATIONS[int(random.integers(len(OPERATIONS)))]
        value = operation_value(name, magnitude, height, width)
        if name in SIGNED and random.random() < 0.5:
            value = -value
        operations.append(Operation(name, value))
    return operations


def apply_operations(pixels: Pixels, operations: Sequence[Operation]) -> Pixels:
    """Apply the operations to uint8 [H, W, 1 or 3], in their order; return the same array where none changes it."""
    import torch

    effective = [operation for operation in operations if operation.name != "Identity"]
    if not effective:
        return pixels
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    for operation in effective:
        image = _functions()[operation.name](image, operation.value)
    return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def rand_augment(
    pixels: Pixels, random: np.random.Generator, number: int, magnitude: int
) -> tuple[Pixels, list[Operation]]:
    """Augment uint8 [H, W, 1 or 3]; return the augmented picture and the sampled operations."""
    height, width = pixels.shape[:2]
    operations = sample_operations(random, number, magnitude, height, width)
    return apply_operations(pixels, operations), operations


@cache
def _functions() -> dict[str, Callable[[torch.Tensor, float], Any]]:
    """Return the functions of all operations, from a uint8 tensor [C, H, W] and the operation's value."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    bilinear: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR}

    def translate(image: Any, x: float = 0, y: float = 0) -> Any:
        return tv.affine(image, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0], **bilinear)

    def shear(image: Any, x: float = 0, y: float = 0) -> Any:  # around the corner, as the paper's authors do
        angles = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        return tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0], **bilinear)

    return {
        "ShearX": lambda image, value: shear(image, x=value),
        "ShearY": lambda image, value: shear(image, y=value),
        "TranslateX": lambda image, value: translate(image, x=value),
        "TranslateY": lambda image, value: translate(image, y=value),
        "Rotate": lambda image, value: tv.rotate(image, angle=value, **bilinear),
        "Brightness": lambda image, value: tv.adjust_brightness(image, 1.0 + value),
        "Color": lambda image, value: tv.adjust_saturation(image, 1.0 + value),
        "Contrast": lambda image, value: tv.adjust_contrast(image, 1.0 + value),
        "Sharpness": lambda image, value: tv.adjust_sharpness(image, 1.0 + value),
        "Posterize": lambda image, value: tv.posterize(image, bits=int(value)),
        "Solarize": lambda image, value: tv.solarize(image, threshold=255.0 * value),
        "AutoContrast": lambda image, value: tv.autocontrast(image),
        "Equalize": lambda image, value: tv.equalize(image),
    }
