"""RandAugment, TrivialAugmentWide and AutoAugment: what they draw for the images of a batch.

Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data", 2019, and "RandAugment: Practical automated data
augmentation with a reduced search space", 2019; Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art
Data Augmentation", 2021. Operations, bins of magnitude, signs and probabilities are those of torchvision's
`transforms.v2`. Shears, shifts and rotations become one matrix; the others are listed in their order, after it.

Presets narrow a policy. `ocr`: no more than 15 degrees, a shear of 0.15 and a shift by a tenth of the side; `medical`:
10 degrees, 0.1 and a tenth; what is drawn beyond is drawn in to that. `fashion`: what changes a hue or its saturation
is left out, which beside Color is all that treats the channels one by one (Posterize, Solarize, Invert, AutoContrast,
Equalize); shapes, brightness, contrast and sharpness stay. No policy mirrors.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..store.policies import BINS, SIGNED
from .config import TrainConfig
from .drawn import NUMBER
from .matrices import Floats, affine, compose, identity

RAND, TRIVIAL, AUTO = "randaugment", "trivialaugment", "autoaugment"
NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
)  # fmt: skip
"""In torchvision's order. RandAugment and TrivialAugment draw from all but Invert."""
_AT = {name: at for at, name in enumerate(NAMES)}
_IS_SIGNED = np.array([name in SIGNED for name in NAMES])
AUTO_BINS = 10
_WIDE = dict.fromkeys(SIGNED, 0.99) | {"Rotate": 135.0}
_WIDE_SHIFT = 32.0
"""Pixels, whatever the size of the picture."""
HUES = ("Color", "Hue", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize")
"""What changes hue or saturation."""


class Limits(NamedTuple):
    """The most that a policy may do to shapes: degrees, tangent, share of the side."""

    rotate: float
    shear: float
    translate: float


LIMITS = {"ocr": Limits(15.0, 0.15, 0.1), "medical": Limits(10.0, 0.1, 0.1)}
"""By preset."""

# Sub-policies of two operations, each (name, probability, magnitude of 9, -1 where it has none).
_Step = tuple[str, float, int]
AUTO_POLICIES: dict[str, tuple[tuple[_Step, _Step], ...]] = {
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, -1)),
        (("Equalize", 0.8, -1), ("Equalize", 0.6, -1)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, -1), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, -1), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, -1)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, -1)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, -1), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, -1)),
        (("Equalize", 0.0, -1), ("Equalize", 0.8, -1)),
        (("Invert", 0.6, -1), ("Equalize", 1.0, -1)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, -1)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, -1)),
        (("Color", 0.4, 0), ("Equalize", 0.6, -1)),
        (("Equalize", 0.4, -1), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, -1)),
        (("Invert", 0.6, -1), ("Equalize", 1.0, -1)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, -1), ("Equalize", 0.6, -1)),
    ),
    "cifar10": (
        (("Invert", 0.1, -1), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, -1), ("Equalize", 0.9, -1)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, -1), ("Equalize", 0.5, -1)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, -1), ("AutoContrast", 0.4, -1)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, -1)),
        (("Equalize", 0.2, -1), ("AutoContrast", 0.6, -1)),
        (("Equalize", 0.2, -1), ("Equalize", 0.6, -1)),
        (("Color", 0.9, 9), ("Equalize", 0.6, -1)),
        (("AutoContrast", 0.8, -1), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, -1)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, -1), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, -1), ("Invert", 0.1, -1)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, -1)),
    ),
    "svhn": (
        (("ShearX", 0.9, 4), ("Invert", 0.2, -1)),
        (("ShearY", 0.9, 8), ("Invert", 0.7, -1)),
        (("Equalize", 0.6, -1), ("Solarize", 0.6, 6)),
        (("Invert", 0.9, -1), ("Equalize", 0.6, -1)),
        (("Equalize", 0.6, -1), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("AutoContrast", 0.8, -1)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, -1)),
        (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, -1), ("AutoContrast", 0.8, -1)),
        (("Equalize", 0.6, -1), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
        (("ShearY", 0.8, 8), ("Invert", 0.7, -1)),
        (("Equalize", 0.9, -1), ("TranslateY", 0.6, 6)),
        (("Invert", 0.9, -1), ("Equalize", 0.6, -1)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
        (("Invert", 0.8, -1), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
        (("Invert", 0.6, -1), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
        (("ShearX", 0.1, 6), ("Invert", 0.6, -1)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
        (("ShearY", 0.8, 4), ("Invert", 0.8, -1)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
        (("ShearY", 0.8, 5), ("AutoContrast", 0.7, -1)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, -1)),
    ),
}


class Chosen(NamedTuple):
    """Of B images: `which` int64 [B, N] of `NAMES`, and `values` float64 [B, N] with their signs, as torchvision calls
    them magnitudes: tangent, pixels, degrees, factor less 1, bits, share of 255."""

    which: npt.NDArray[np.int64]
    values: Floats


@cache
def strengths(policy: str, size: int) -> Floats:
    """float64 [operations, bins]: the value of each of `NAMES` at each magnitude, before its sign, for a picture of
    `size` pixels a side. In float32, as torchvision computes it: a shift is cut to whole pixels."""
    import torch

    bins = AUTO_BINS if policy == AUTO else BINS
    table = np.zeros((len(NAMES), bins))
    for name, largest in (_WIDE if policy == TRIVIAL else SIGNED).items():
        if name.startswith("Translate"):
            largest = _WIDE_SHIFT if policy == TRIVIAL else largest * size
        table[_AT[name]] = torch.linspace(0.0, largest, bins).numpy()
    cut = 6 if policy == TRIVIAL else 4
    table[_AT["Posterize"]] = (8 - (torch.arange(bins) / ((bins - 1) / cut))).round().numpy()
    table[_AT["Solarize"]] = torch.linspace(1.0, 0.0, bins).numpy()
    return table


def choose(config: TrainConfig, random: np.random.Generator, count: int, size: int) -> Chosen:
    """What the policy of the config draws for `count` images, whatever the preset."""
    policy = config.policy
    if policy == AUTO:
        return _auto(config.policy_set, random, count, size)
    number = config.policy_ops if policy == RAND else 1
    which = random.integers(len(NAMES) - 1, size=(count, number))
    magnitude = random.integers(BINS, size=(count, number)) if policy == TRIVIAL else config.policy_magnitude
    return Chosen(which, strengths(policy, size)[which, magnitude] * _signs(random, which))


def _auto(policy: str, random: np.random.Generator, count: int, size: int) -> Chosen:
    steps = AUTO_POLICIES[policy]
    names = np.array([[_AT[name] for name, _, _ in pair] for pair in steps])
    shares = np.array([[share for _, share, _ in pair] for pair in steps])
    magnitudes = np.array([[max(0, magnitude) for _, _, magnitude in pair] for pair in steps])
    drawn = random.integers(len(steps), size=count)
    used = random.random((count, 2)) <= shares[drawn]
    which = np.where(used, names[drawn], _AT["Identity"])
    return Chosen(which, strengths(AUTO, size)[which, magnitudes[drawn]] * _signs(random, which))


def _signs(random: np.random.Generator, which: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.where(_IS_SIGNED[which] & (random.random(which.shape) <= 0.5), -1, 1)


def narrowed(chosen: Chosen, preset: str, size: int) -> Chosen:
    """What of it a preset allows."""
    which, values = chosen
    if preset == "fashion":
        hues = np.isin(which, [_AT[name] for name in HUES if name in _AT])
        return Chosen(np.where(hues, _AT["Identity"], which), np.where(hues, 0.0, values))
    if preset not in LIMITS:
        return chosen
    limits = LIMITS[preset]
    most = np.full(len(NAMES), np.inf)
    for name, limit in (("Shear", limits.shear), ("Translate", limits.translate * size), ("Rotate", limits.rotate)):
        most[[at for at, one in enumerate(NAMES) if one.startswith(name)]] = limit
    return Chosen(which, np.clip(values, -most[which], most[which]))


def geometry(chosen: Chosen, size: int) -> Floats:
    """float64 [B, 3, 3]: all its shears, shifts and rotations, one after the other."""
    made = identity(len(chosen.which))
    for which, value in zip(chosen.which.T, chosen.values.T, strict=True):
        if not ((which >= _AT["ShearX"]) & (which <= _AT["Rotate"])).any():
            continue
        part = {name: np.where(which == _AT[name], value, 0.0) for name in NAMES[1:6]}
        shear_x, shear_y = (np.degrees(np.arctan(part[name])) for name in ("ShearX", "ShearY"))
        across, down = (np.trunc(part[name]) for name in ("TranslateX", "TranslateY"))
        centre = np.where((which == _AT["ShearX"]) | (which == _AT["ShearY"]), 0.0, size / 2)
        turn, scale = -part["Rotate"], np.ones(len(which))  # torchvision's rotation turns against the clock
        made = compose(made, affine(turn, across, down, scale, shear_x, shear_y, centre))
    return made


def operations(chosen: Chosen) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """int8 [B, N] and float32 [B, N] as drawn.py has them: what is not geometry, in its place."""
    number = np.array([NUMBER.get(name, 0) for name in NAMES], np.int8)
    factor = np.array([name in SIGNED for name in NAMES])
    values = np.where(factor[chosen.which], 1 + chosen.values, chosen.values)
    values = np.where(chosen.which == _AT["Solarize"], 255 * chosen.values, values)
    found = number[chosen.which]
    return found, np.where(found == 0, 0, values).astype(np.float32)
