"""What is drawn for the images of a batch, by the config: a pure function of (seed, epoch, number of the batch).

The order is that of a list of torchvision transforms: random resized crop (Szegedy et al., "Going Deeper with
Convolutions", 2014; ratio 3/4 to 4/3), flips, one affine change (RandomAffine), perspective, the policy; then colour
jitter in an order drawn for each image (ColorJitter), grey, blur, noise, JPEG; a box erased (Zhong et al., "Random
Erasing Data Augmentation", 2017). Each group has random numbers of its own, so that one more kind of change
leaves the others as they were.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import matrices, policy
from .config import TrainConfig
from .drawn import NUMBER, Drawn
from .matrices import Floats, compose

RATIO = (3 / 4, 4 / 3)
ERASED, ERASED_RATIO = (0.02, 0.2), (0.3, 3.3)
"""Share of the area, and height to width, of an erased box."""
TRIES = 10
"""At a crop or a box that fits, as torchvision has it."""
BLUR, NOISE, QUALITY = (0.1, 2.0), (0.0, 25.0), (30, 90)
"""Sigma in pixels; sigma in steps of 255; of JPEG."""
PRESUME_RGB = frozenset(NUMBER) - {"None", "Sharpness", "Blur", "Noise"}
"""Left out where the channels are not red, green and blue, or one of light: YCbCr and Lab."""
_STREAM = 0x41554747
"""Apart from the loader's order, which is drawn from (seed, epoch) too."""

Boxes = npt.NDArray[np.int64]
"""[B, 4]: top, left, height, width in pixels."""


class Frame(NamedTuple):
    """Sides in pixels of the stored images and of the square that comes out; the colour of the first channels."""

    height: int
    width: int
    size: int
    color: str = "rgb"


def draw(config: TrainConfig, frame: Frame, epoch: int, number: int, count: int) -> Drawn:
    """For the `count` images of batch `number`. `config` is one that a recipe has filled in."""
    geometry, chosen, colour, erasing, noise = (
        np.random.default_rng([config.seed, epoch, number, _STREAM + group]) for group in range(5)
    )
    matrix = _geometry(config, frame, geometry, count)
    parts = [_colours(config, colour, count)]
    if config.policy not in ("", "none"):
        policies = policy.choose(config, chosen, count, frame.size)
        policies = policy.narrowed(policies, config.preset, frame.size)
        matrix = compose(matrix, policy.geometry(policies, frame.size))
        parts.insert(0, policy.operations(policies))
    operations, values = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    if frame.color in ("ycbcr", "lab"):
        operations = np.where(np.isin(operations, [NUMBER[name] for name in PRESUME_RGB]), 0, operations)
    seeds = noise.integers(2**63 - 1, size=count)
    erase = _erased(config.erasing, erasing, count, frame.size)
    return Drawn(matrix, operations.astype(np.int8), values.astype(np.float32), seeds, erase)


def plain(seed: int, epoch: int, number: int, count: int) -> Drawn:
    """Only the seeds, and all of each image: for a pipeline that draws for itself."""
    noise = np.random.default_rng([seed, epoch, number, _STREAM + 4])
    return Drawn(
        matrices.identity(count),
        np.zeros((count, 0), np.int8),
        np.zeros((count, 0), np.float32),
        noise.integers(2**63 - 1, size=count),
        np.zeros((count, 4), np.int32),
    )


def _geometry(config: TrainConfig, frame: Frame, random: np.random.Generator, count: int) -> Floats:
    size = frame.size
    if config.crop_scale < 1:
        boxes = crop_boxes(random, count, frame.height, frame.width, config.crop_scale)
    else:
        boxes = _windows(random, count, frame)
    matrix = matrices.box(boxes, size)
    mirrored = random.random((2, count)) < 0.5
    for axis, wanted in enumerate((config.flip == "true", config.vertical_flip == "true")):
        if wanted:
            matrix = compose(matrix, matrices.mirror(mirrored[axis], size, axis))
    uniform = random.uniform(-1, 1, (6, count))  # drawn in any case: what follows does not depend on what is off
    if config.rotate or config.translate or config.zoom or config.shear:
        across, down = np.round(uniform[:2] * config.translate * size)  # whole pixels, as torchvision has it
        turn, scale = uniform[2] * config.rotate, 1 + uniform[3] * config.zoom
        shear_x, shear_y = uniform[4:] * config.shear
        centre = np.full(count, size / 2)
        matrix = compose(matrix, matrices.affine(turn, across, down, scale, shear_x, shear_y, centre))
    if config.perspective:
        matrix = compose(matrix, _perspective(random, count, config.perspective, size))
    return matrix


def _perspective(random: np.random.Generator, count: int, share: float, size: int) -> Floats:
    """Every corner moves inwards by up to `share` of half a side, along both axes."""
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    inwards = random.uniform(0, share * size / 2, (count, 4, 2))
    return matrices.quadrilateral(corners * size + (1 - 2 * corners) * inwards, size)


def crop_boxes(random: np.random.Generator, count: int, height: int, width: int, smallest: float) -> Boxes:
    """Of each image a box with `smallest` to 1 of its area and a ratio of 3/4 to 4/3, in ten tries; else the largest
    central one with such a ratio: torchvision's RandomResizedCrop."""
    boxes, found = _fitting(random, count, height, width, (smallest, 1.0), RATIO, False)
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    boxes[~found] = (height - h) // 2, (width - w) // 2, h, w
    return boxes


def _windows(random: np.random.Generator, count: int, frame: Frame) -> Boxes:
    """The model's square anywhere in what is stored around it."""
    spare = np.array([frame.height, frame.width]) - frame.size
    size = np.full((count, 2), frame.size)
    return np.concatenate([random.integers(spare + 1, size=(count, 2)), size], axis=1)


def _erased(share: float, random: np.random.Generator, count: int, size: int) -> npt.NDArray[np.int32]:
    """A box in that share of the images, smaller than the image; none where ten tries find none."""
    if not share:
        return np.zeros((count, 4), np.int32)
    wanted = random.random(count) < share
    boxes, found = _fitting(random, count, size, size, ERASED, (1 / ERASED_RATIO[1], 1 / ERASED_RATIO[0]), True)
    return np.where((wanted & found)[:, None], boxes, 0).astype(np.int32)


def _fitting(
    random: np.random.Generator,
    count: int,
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    smaller: bool,
) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Boxes with that share of the area and that width to height, and which of them fit (`smaller`: are smaller on both
    sides) in one of `TRIES`; of those that don't the last one is given."""
    target = height * width * random.uniform(*area, (count, TRIES))
    ratios = np.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, TRIES)))
    w, h = np.round(np.sqrt(target * ratios)).astype(np.int64), np.round(np.sqrt(target / ratios)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width - smaller) & (h <= height - smaller)
    first = np.where(fits.any(1), fits.argmax(1), TRIES - 1)
    rows = np.arange(count)
    h, w = h[rows, first], w[rows, first]
    place = random.random((2, count))
    top = np.floor(place[0] * (np.maximum(height - h, 0) + 1)).astype(np.int64)
    left = np.floor(place[1] * (np.maximum(width - w, 0) + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1), fits[rows, first]


def _colours(
    config: TrainConfig, random: np.random.Generator, count: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Operations [B, K] and their values: K as many as the config has."""
    names, drawn = [], []
    jitter = {"Brightness": config.brightness, "Contrast": config.contrast, "Color": config.saturation}
    uniform = random.random((12, count))  # all of them in any case, as in `_geometry`
    for at, (name, strength) in enumerate((*jitter.items(), ("Hue", config.hue))):
        if strength:
            middle = 0.0 if name == "Hue" else 1.0
            names.append(np.full(count, NUMBER[name]))
            drawn.append(middle + strength * (2 * uniform[at] - 1))
    order = np.argsort(random.random((count, 4))[:, : len(names)], axis=1)
    rest = (
        ("Grayscale", config.grayscale, (0.0, 0.0)), ("Blur", config.blur, BLUR), ("Noise", config.noise, NOISE),
        ("Jpeg", config.jpeg_artifacts, (QUALITY[0] - 0.5, QUALITY[1] + 0.5)),
    )  # fmt: skip
    jittered = len(names)
    for at, (name, share, (low, high)) in enumerate(rest):
        if share:
            value = low + (high - low) * uniform[8 + at]
            names.append(np.where(uniform[4 + at] < share, NUMBER[name], 0))
            drawn.append(np.clip(np.round(value), *QUALITY) if name == "Jpeg" else value)
    if not names:
        return np.zeros((count, 0), np.int8), np.zeros((count, 0), np.float32)
    operations, values = np.stack(names, axis=1), np.stack(drawn, axis=1)
    for one in (operations, values):
        one[:, :jittered] = np.take_along_axis(one[:, :jittered], order, axis=1)
    return operations.astype(np.int8), np.where(operations == 0, 0, values).astype(np.float32)
