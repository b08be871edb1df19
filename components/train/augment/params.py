"""Sampled augmentation parameters of one batch: a pure function of (seed, epoch, number of the batch).

Everything random is decided here, on the host and in small arrays; `cpu_engine` only computes
pixels. All geometry of an image is one transform, applied first; the operations follow in their order; the
erased box comes last. Coordinates are continuous: pixel i of a row covers [i, i + 1), and its center is i + 0.5.

The order is that of a list of torchvision transforms: random resized crop (Szegedy et al., "Going Deeper with
Convolutions", 2014; ratio 3/4 to 4/3), flips, one affine transform (RandomAffine), perspective, the policy; then color
jitter in an order sampled for each image (ColorJitter), grayscale, blur, noise, JPEG; a box erased (Zhong et al.,
"Random Erasing Data Augmentation", 2017). Each group has a random generator of its own, so that one more kind of
operation leaves the others as they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...imaging.rand_augment import SIGNED
from ..config import TrainConfig
from . import matrices, policy
from .matrices import Floats

OPERATIONS = (
    "None", "Brightness", "Contrast", "Color", "Hue", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast",
    "Equalize", "Sharpness", "Blur", "Noise", "Jpeg",
)  # fmt: skip
"""Names by operation id. Values: Brightness, Contrast, Color (saturation), Sharpness: torchvision's factor, 1 changes
nothing; Hue: turns of the color circle in [-0.5, 0.5]; Posterize: bits kept, 0 to 8; Solarize: threshold in [0, 255];
Blur: sigma in pixels; Noise: sigma in levels of 255; Jpeg: quality 1 to 100; the others have none. They change color
channels only, never edges; those that need color (Color, Hue, Grayscale) leave a single channel as it is."""
OPERATION_IDS = {name: index for index, name in enumerate(OPERATIONS)}
CROP_RATIO = (3 / 4, 4 / 3)
ERASE_AREA, ERASE_RATIO = (0.02, 0.2), (0.3, 3.3)
"""Share of the area, and height to width, of an erased box."""
MAX_TRIES = 10
"""For a crop or a box that fits, as in torchvision."""
BLUR_SIGMA, NOISE_SIGMA, JPEG_QUALITY = (0.1, 2.0), (0.0, 25.0), (30, 90)
"""Pixels; levels of 255; libjpeg's quality."""
RGB_ONLY = frozenset(OPERATION_IDS) - {"None", "Sharpness", "Blur", "Noise"}
"""Left out where the channels are not red, green and blue, or one of light: YCbCr and Lab."""
_SEED_STREAM = 0x41554747
"""Separates these random numbers from the loader's shuffling, which is seeded by (seed, epoch) too."""

Boxes = npt.NDArray[np.int64]
"""[B, 4]: top, left, height, width in pixels."""


@dataclass(frozen=True)
class AugmentParams:
    """Sampled parameters of the B images of a batch.

    `matrix` float64 [B, 3, 3] takes homogeneous output coordinates (x, y, 1) to input ones (divided by their third
    component); outside of the image all is 0, black. `operations` int8 [B, K] are operation ids, `values` float32
    [B, K] their values. `seeds` int64 [B] are for noise. `erase` int32 [B, 4]: top, left, height, width of the box in
    the output; a height of 0 erases nothing.
    """

    matrix: npt.NDArray[np.float64]
    operations: npt.NDArray[np.int8]
    values: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    erase: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.matrix)

    def select_rows(self, rows: slice) -> AugmentParams:
        """Return the parameters of some images: one device's share of a batch that was sampled as one."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


class InputSpec(NamedTuple):
    """Sides of the stored images and of the square output in pixels; the color space of the first channels."""

    height: int
    width: int
    size: int
    color: str = "rgb"


def make_params(config: TrainConfig, spec: InputSpec, epoch: int, number: int, count: int) -> AugmentParams:
    """Sample parameters for the `count` images of batch `number`. `config` is one that a recipe has filled in."""
    geometry_rng, policy_rng, color_rng, erase_rng, noise_rng = (
        np.random.default_rng([config.seed, epoch, number, _SEED_STREAM + group]) for group in range(5)
    )
    matrix = _sample_geometry(config, spec, geometry_rng, count)
    groups = [_sample_color_operations(config, color_rng, count)]
    if config.policy not in ("", "none"):
        ops = policy.sample_ops(config, policy_rng, count, spec.size)
        ops = policy.restrict_ops(ops, config.preset, spec.size)
        matrix = matrices.compose(matrix, policy.make_matrix(ops, spec.size))
        groups.insert(0, convert_policy_ops(ops))
    operations, values = (np.concatenate(arrays, axis=1) for arrays in zip(*groups, strict=True))
    if spec.color in ("ycbcr", "lab"):
        operations = np.where(np.isin(operations, [OPERATION_IDS[name] for name in RGB_ONLY]), 0, operations)
    seeds = noise_rng.integers(2**63 - 1, size=count)
    erase = _sample_erase_boxes(config.erasing, erase_rng, count, spec.size)
    return AugmentParams(matrix, operations.astype(np.int8), values.astype(np.float32), seeds, erase)


def make_seed_params(seed: int, epoch: int, number: int, count: int) -> AugmentParams:
    """Sample seeds alone, with identity matrices and no operations: for a pipeline that samples its own parameters."""
    noise_rng = np.random.default_rng([seed, epoch, number, _SEED_STREAM + 4])
    no_operations, no_values = np.zeros((count, 0), np.int8), np.zeros((count, 0), np.float32)
    seeds, no_boxes = noise_rng.integers(2**63 - 1, size=count), np.zeros((count, 4), np.int32)
    return AugmentParams(matrices.make_identity(count), no_operations, no_values, seeds, no_boxes)


def convert_policy_ops(ops: policy.PolicyOps) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the color operations of a policy as `operations` int8 [B, N] and `values` float32 [B, N] of
    `AugmentParams`; geometric ones become "None" in their place."""
    ids_by_index = np.array([OPERATION_IDS.get(name, 0) for name in policy.NAMES], np.int8)
    is_factor = np.array([name in SIGNED for name in policy.NAMES])
    values = np.where(is_factor[ops.indices], 1 + ops.magnitudes, ops.magnitudes)
    values = np.where(ops.indices == policy.NAMES.index("Solarize"), 255 * ops.magnitudes, values)
    operations = ids_by_index[ops.indices]
    return operations, np.where(operations == 0, 0, values).astype(np.float32)


def _sample_geometry(config: TrainConfig, spec: InputSpec, rng: np.random.Generator, count: int) -> Floats:
    size = spec.size
    if config.crop_scale < 1:
        boxes = sample_crop_boxes(rng, count, spec.height, spec.width, config.crop_scale)
    else:
        boxes = _sample_shifted_boxes(rng, count, spec)
    matrix = matrices.make_crop(boxes, size)
    is_flipped = rng.random((2, count)) < 0.5
    for axis, enabled in enumerate((config.flip == "true", config.vertical_flip == "true")):
        if enabled:
            matrix = matrices.compose(matrix, matrices.make_flip(is_flipped[axis], size, axis))
    uniform = rng.uniform(-1, 1, (6, count))  # always sampled, so that later numbers don't depend on what is off
    if config.rotate or config.translate or config.zoom or config.shear:
        shift_x, shift_y = np.round(uniform[:2] * config.translate * size)  # whole pixels, as in torchvision
        angle, scale = uniform[2] * config.rotate, 1 + uniform[3] * config.zoom
        shear_x, shear_y = uniform[4:] * config.shear
        center = np.full(count, size / 2)
        affine = matrices.make_affine(angle, shift_x, shift_y, scale, shear_x, shear_y, center)
        matrix = matrices.compose(matrix, affine)
    if config.perspective:
        matrix = matrices.compose(matrix, _sample_perspective(rng, count, config.perspective, size))
    return matrix


def _sample_perspective(rng: np.random.Generator, count: int, distortion: float, size: int) -> Floats:
    """Move every corner inwards by up to `distortion` of half a side, along both axes."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    inwards = rng.uniform(0, distortion * size / 2, (count, 4, 2))
    return matrices.make_perspective(corners * size + (1 - 2 * corners) * inwards, size)


def sample_crop_boxes(rng: np.random.Generator, count: int, height: int, width: int, min_area: float) -> Boxes:
    """Sample boxes as torchvision's RandomResizedCrop: `min_area` to 1 of the image's area and a width to height of 3/4
    to 4/3, in ten tries; else the largest central box with such a ratio."""
    boxes, fits = _sample_boxes(rng, count, height, width, (min_area, 1.0), CROP_RATIO, False)
    h, w = min(height, round(width / CROP_RATIO[0])), min(width, round(height * CROP_RATIO[1]))
    boxes[~fits] = (height - h) // 2, (width - w) // 2, h, w
    return boxes


def _sample_shifted_boxes(rng: np.random.Generator, count: int, spec: InputSpec) -> Boxes:
    """Sample boxes of the output's size, anywhere in the stored image."""
    margin = np.array([spec.height, spec.width]) - spec.size
    size = np.full((count, 2), spec.size)
    return np.concatenate([rng.integers(margin + 1, size=(count, 2)), size], axis=1)


def _sample_erase_boxes(probability: float, rng: np.random.Generator, count: int, size: int) -> npt.NDArray[np.int32]:
    """Sample a box smaller than the image for the images with that probability; zeros for the others, and where ten
    tries give none that fits."""
    if not probability:
        return np.zeros((count, 4), np.int32)
    is_erased = rng.random(count) < probability
    ratio = (1 / ERASE_RATIO[1], 1 / ERASE_RATIO[0])
    boxes, fits = _sample_boxes(rng, count, size, size, ERASE_AREA, ratio, True)
    return np.where((is_erased & fits)[:, None], boxes, 0).astype(np.int32)


def _sample_boxes(
    rng: np.random.Generator,
    count: int,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    smaller: bool,
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Sample boxes with that share of the area and that width to height; return them and, as bool [B], which of them
    fit into the image (`smaller`: are smaller on both sides) in one of `MAX_TRIES`. Where none fits, the box is that of
    the last attempt."""
    target_area = height * width * rng.uniform(*area, (count, MAX_TRIES))
    ratios = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, MAX_TRIES)))
    w = np.round(np.sqrt(target_area * ratios)).astype(np.int64)
    h = np.round(np.sqrt(target_area / ratios)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width - smaller) & (h <= height - smaller)
    tries = np.where(fits.any(1), fits.argmax(1), MAX_TRIES - 1)
    rows = np.arange(count)
    h, w = h[rows, tries], w[rows, tries]
    position = rng.random((2, count))
    top = np.floor(position[0] * (np.maximum(height - h, 0) + 1)).astype(np.int64)
    left = np.floor(position[1] * (np.maximum(width - w, 0) + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1), fits[rows, tries]


def _sample_color_operations(
    config: TrainConfig, rng: np.random.Generator, count: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Sample operation ids [B, K] and their values [B, K], K the number of operations that the config turns on."""
    id_columns, value_columns = [], []
    jitter = {"Brightness": config.brightness, "Contrast": config.contrast, "Color": config.saturation}
    uniform = rng.random((12, count))  # always all of them, as in `_sample_geometry`
    for index, (name, strength) in enumerate((*jitter.items(), ("Hue", config.hue))):
        if strength:
            neutral = 0.0 if name == "Hue" else 1.0
            id_columns.append(np.full(count, OPERATION_IDS[name]))
            value_columns.append(neutral + strength * (2 * uniform[index] - 1))
    order = np.argsort(rng.random((count, 4))[:, : len(id_columns)], axis=1)
    degradations = (
        ("Grayscale", config.grayscale, (0.0, 0.0)), ("Blur", config.blur, BLUR_SIGMA),
        ("Noise", config.noise, NOISE_SIGMA),
        ("Jpeg", config.jpeg_artifacts, (JPEG_QUALITY[0] - 0.5, JPEG_QUALITY[1] + 0.5)),
    )  # fmt: skip
    num_jitter = len(id_columns)
    for index, (name, probability, (low, high)) in enumerate(degradations):
        if probability:
            value = low + (high - low) * uniform[8 + index]
            id_columns.append(np.where(uniform[4 + index] < probability, OPERATION_IDS[name], 0))
            value_columns.append(np.clip(np.round(value), *JPEG_QUALITY) if name == "Jpeg" else value)
    if not id_columns:
        return np.zeros((count, 0), np.int8), np.zeros((count, 0), np.float32)
    operations, values = np.stack(id_columns, axis=1), np.stack(value_columns, axis=1)
    for columns in (operations, values):
        columns[:, :num_jitter] = np.take_along_axis(columns[:, :num_jitter], order, axis=1)
    return operations.astype(np.int8), np.where(operations == 0, 0, values).astype(np.float32)
