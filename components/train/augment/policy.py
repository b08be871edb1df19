"""RandAugment, TrivialAugmentWide and AutoAugment: the operations that they sample for the images of a batch.

Cubuk et al., "AutoAugment: Learning Augmentation Policies from Data", 2019, and "RandAugment: Practical automated data
augmentation with a reduced search space", 2019; Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art
Data Augmentation", 2021. Operations, magnitude bins, signs and probabilities are those of torchvision's
`transforms.v2`. Shears, translations and rotations become one matrix; the others are listed in their order, after it.

Presets restrict a policy. `ocr`: no more than 15 degrees, a shear of 0.15 and a translation by a tenth of the side;
`medical`: 10 degrees, 0.1 and a tenth; larger magnitudes are clipped to that. `fashion`: operations that change a hue
or its saturation are left out, which are Color and those that treat each channel on its own (Posterize, Solarize,
Invert, AutoContrast, Equalize); shapes, brightness, contrast and sharpness stay. No policy flips.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...imaging.rand_augment import BINS, OPERATIONS, SIGNED, list_magnitudes
from ..config import TrainConfig
from .matrices import Floats, compose, make_affine, make_identity

RANDAUGMENT, TRIVIALAUGMENT, AUTOAUGMENT = "randaugment", "trivialaugment", "autoaugment"
NAMES = (*OPERATIONS, "Invert")
"""In torchvision's order. RandAugment and TrivialAugment sample from all but Invert."""
_INDICES = {name: index for index, name in enumerate(NAMES)}
_IS_SIGNED = np.array([name in SIGNED for name in NAMES])
AUTO_BINS = 10
_WIDE = dict.fromkeys(SIGNED, 0.99) | {"Rotate": 135.0}
_WIDE_TRANSLATION = 32.0
"""Pixels, for any image size."""
HUE_OPERATIONS = ("Color", "Hue", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize")
"""Operations that change hue or saturation."""


class GeometryLimits(NamedTuple):
    """Largest geometric magnitudes of a policy: degrees, tangent, share of the side."""

    rotate: float
    shear: float
    translate: float


GEOMETRY_LIMITS = {"ocr": GeometryLimits(15.0, 0.15, 0.1), "medical": GeometryLimits(10.0, 0.1, 0.1)}
"""By preset."""

# Sub-policies of two operations, each (name, probability, magnitude of 9, -1 where it has none).
_PolicyOp = tuple[str, float, int]
AUTO_POLICIES: dict[str, tuple[tuple[_PolicyOp, _PolicyOp], ...]] = {
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, -1)),
        (("Equalize", 0.8, -1), ("Equalize", 0.6, -1)), (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, -1), ("Solarize", 0.2, 4)), (("Equalize", 0.4, -1), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, -1)), (("Posterize", 0.8, 5), ("Equalize", 1.0, -1)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)), (("Equalize", 0.6, -1), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)), (("Rotate", 0.4, 9), ("Equalize", 0.6, -1)),
        (("Equalize", 0.0, -1), ("Equalize", 0.8, -1)), (("Invert", 0.6, -1), ("Equalize", 1.0, -1)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)), (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)), (("Sharpness", 0.4, 7), ("Invert", 0.6, -1)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, -1)), (("Color", 0.4, 0), ("Equalize", 0.6, -1)),
        (("Equalize", 0.4, -1), ("Solarize", 0.2, 4)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, -1)),
        (("Invert", 0.6, -1), ("Equalize", 1.0, -1)), (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, -1), ("Equalize", 0.6, -1)),
    ),
    "cifar10": (
        (("Invert", 0.1, -1), ("Contrast", 0.2, 6)), (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)), (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, -1), ("Equalize", 0.9, -1)), (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)), (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, -1), ("Equalize", 0.5, -1)), (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)), (("Equalize", 0.3, -1), ("AutoContrast", 0.4, -1)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)), (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, -1)), (("Equalize", 0.2, -1), ("AutoContrast", 0.6, -1)),
        (("Equalize", 0.2, -1), ("Equalize", 0.6, -1)), (("Color", 0.9, 9), ("Equalize", 0.6, -1)),
        (("AutoContrast", 0.8, -1), ("Solarize", 0.2, 8)), (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, -1)), (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, -1), ("Solarize", 0.8, 3)), (("Equalize", 0.8, -1), ("Invert", 0.1, -1)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, -1)),
    ),
    "svhn": (
        (("ShearX", 0.9, 4), ("Invert", 0.2, -1)), (("ShearY", 0.9, 8), ("Invert", 0.7, -1)),
        (("Equalize", 0.6, -1), ("Solarize", 0.6, 6)), (("Invert", 0.9, -1), ("Equalize", 0.6, -1)),
        (("Equalize", 0.6, -1), ("Rotate", 0.9, 3)), (("ShearX", 0.9, 4), ("AutoContrast", 0.8, -1)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, -1)), (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, -1), ("AutoContrast", 0.8, -1)), (("Equalize", 0.6, -1), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)), (("ShearY", 0.8, 8), ("Invert", 0.7, -1)),
        (("Equalize", 0.9, -1), ("TranslateY", 0.6, 6)), (("Invert", 0.9, -1), ("Equalize", 0.6, -1)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)), (("Invert", 0.8, -1), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)), (("Invert", 0.6, -1), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)), (("ShearX", 0.1, 6), ("Invert", 0.6, -1)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)), (("ShearY", 0.8, 4), ("Invert", 0.8, -1)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)), (("ShearY", 0.8, 5), ("AutoContrast", 0.7, -1)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, -1)),
    ),
}  # fmt: skip


class PolicyOps(NamedTuple):
    """Operations of a policy for B images: `indices` int64 [B, N] into `NAMES`, and signed `magnitudes` float64 [B, N]
    in torchvision's units: tangent, pixels, degrees, factor less 1, bits, share of 255."""

    indices: npt.NDArray[np.int64]
    magnitudes: Floats


@cache
def compute_magnitudes(policy: str, size: int) -> Floats:
    """Return the magnitude of each of `NAMES` at each bin, before its sign, for an image of `size` pixels a side:
    float64 [operations, bins]."""
    bins, dropped_bits = AUTO_BINS if policy == AUTOAUGMENT else BINS, 6 if policy == TRIVIALAUGMENT else 4
    largest = dict(_WIDE if policy == TRIVIALAUGMENT else SIGNED)
    for name in ("TranslateX", "TranslateY"):
        largest[name] = _WIDE_TRANSLATION if policy == TRIVIALAUGMENT else largest[name] * size
    return np.array([list_magnitudes(name, largest.get(name, 0.0), bins, dropped_bits) for name in NAMES])


def sample_ops(config: TrainConfig, rng: np.random.Generator, count: int, size: int) -> PolicyOps:
    """Sample the operations of the config's policy for `count` images, without regard to the preset."""
    policy = config.policy
    if policy == AUTOAUGMENT:
        return _sample_autoaugment(config.policy_set, rng, count, size)
    num_ops = config.policy_ops if policy == RANDAUGMENT else 1
    indices = rng.integers(len(NAMES) - 1, size=(count, num_ops))
    bins = rng.integers(BINS, size=(count, num_ops)) if policy == TRIVIALAUGMENT else config.policy_magnitude
    return PolicyOps(indices, compute_magnitudes(policy, size)[indices, bins] * _sample_signs(rng, indices))


def _sample_autoaugment(policy_set: str, rng: np.random.Generator, count: int, size: int) -> PolicyOps:
    policies = AUTO_POLICIES[policy_set]
    indices_by_policy = np.array([[_INDICES[name] for name, _, _ in pair] for pair in policies])
    probabilities = np.array([[probability for _, probability, _ in pair] for pair in policies])
    bins = np.array([[max(0, magnitude) for _, _, magnitude in pair] for pair in policies])
    policy = rng.integers(len(policies), size=count)
    is_applied = rng.random((count, 2)) <= probabilities[policy]
    indices = np.where(is_applied, indices_by_policy[policy], _INDICES["Identity"])
    magnitudes = compute_magnitudes(AUTOAUGMENT, size)[indices, bins[policy]]
    return PolicyOps(indices, magnitudes * _sample_signs(rng, indices))


def _sample_signs(rng: np.random.Generator, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.where(_IS_SIGNED[indices] & (rng.random(indices.shape) <= 0.5), -1, 1)


def restrict_ops(ops: PolicyOps, preset: str, size: int) -> PolicyOps:
    """Remove or clip the operations that a preset does not allow."""
    indices, magnitudes = ops
    if preset == "fashion":
        changes_hue = np.isin(indices, [_INDICES[name] for name in HUE_OPERATIONS if name in _INDICES])
        return PolicyOps(np.where(changes_hue, _INDICES["Identity"], indices), np.where(changes_hue, 0.0, magnitudes))
    if preset not in GEOMETRY_LIMITS:
        return ops
    limits = GEOMETRY_LIMITS[preset]
    largest = np.full(len(NAMES), np.inf)
    for prefix, limit in (("Shear", limits.shear), ("Translate", limits.translate * size), ("Rotate", limits.rotate)):
        largest[[index for index, name in enumerate(NAMES) if name.startswith(prefix)]] = limit
    return PolicyOps(indices, np.clip(magnitudes, -largest[indices], largest[indices]))


def make_matrix(ops: PolicyOps, size: int) -> Floats:
    """Compose the shears, translations and rotations of each image, in their order: float64 [B, 3, 3]."""
    matrix = make_identity(len(ops.indices))
    for indices, magnitudes in zip(ops.indices.T, ops.magnitudes.T, strict=True):
        if not ((indices >= _INDICES["ShearX"]) & (indices <= _INDICES["Rotate"])).any():
            continue
        by_name = {name: np.where(indices == _INDICES[name], magnitudes, 0.0) for name in NAMES[1:6]}
        shear_x, shear_y = (np.degrees(np.arctan(by_name[name])) for name in ("ShearX", "ShearY"))
        shift_x, shift_y = (np.trunc(by_name[name]) for name in ("TranslateX", "TranslateY"))
        center = np.where((indices == _INDICES["ShearX"]) | (indices == _INDICES["ShearY"]), 0.0, size / 2)
        angle, scale = -by_name["Rotate"], np.ones(len(indices))  # torchvision rotates counterclockwise
        matrix = compose(matrix, make_affine(angle, shift_x, shift_y, scale, shear_x, shear_y, center))
    return matrix
