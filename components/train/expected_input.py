"""Compare the tensors with what the pretrained weights were trained with, and name the flag that mends a difference.

What weights were trained with is known of torchvision's by their evaluation transform, of timm's by its description of
them, of an imagemill model by its manifest, and of a bare file not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..dataset.kinds import ImageSpec, ModelExtra
from ..imaging.geometry import Geometry
from ..imaging.pixel_options import COLORS
from ..models import presets as model_presets
from .config import CHAMPION, TrainConfig
from .pretrained_weights import find_model_dataset

MAX_SIZE_RATIO = 1.25
"""Factor in size up to which things are about as large in pixels as the filters know them (Touvron et al., "Fixing the
train-test resolution discrepancy", 2019)."""
MAX_CROP_DIFFERENCE = 0.05
"""Relative difference of the crop ratio (resize_size / image_size) up to which it is not reported."""
CONVERTING_BACKBONES = ("googlenet", "inception_v3")
"""Their weights come from TensorFlow, which normalizes by mean and spread 0.5; torchvision describes ImageNet's, which
the network itself then converts (`transform_input`), if it has red, green and blue and nothing else."""
_HAS_POSITIONS = re.compile(r"(vit|deit|beit|eva)")
"""Names of networks with position embeddings."""


@dataclass(frozen=True)
class ExpectedInput:
    """The images that weights were trained with.

    Attributes:
        owner: of the weights, as messages name it.
        normalization: by name; empty for the mean and spread of a dataset.
        preset: the model preset that makes such tensors, if there is one.
        preset_normalizes: whether that preset has this normalization.
    """

    owner: str
    geometry: Geometry
    normalization: str
    preset: str = ""
    preset_normalizes: bool = True


def find_expected_input(config: TrainConfig, image: ImageSpec) -> ExpectedInput | None:
    """Return what the configured weights were trained with, None without weights or where it is unknown.

    `image` is the tensors', to whose color the weights are fitted.
    """
    if config.weights_are_named:
        name = model_presets.name_of_weights(config.backbone, config.weights)
        preset = model_presets.find(name)
        if preset is None:
            return None
        geometry = Geometry.create(
            preset.image_size, mode=preset.mode, resize=preset.resize_size, interpolation=preset.interpolation
        )
        is_half = config.backbone in CONVERTING_BACKBONES and not describe_conversion(config, image)
        normalization = "half" if is_half else preset.normalization
        return ExpectedInput(f"{config.weights} of {config.backbone}", geometry, normalization, name, not is_half)
    dataset = find_model_dataset(config)
    if dataset is None or not dataset.manifest.image:
        return None
    source = dataset.manifest.image_spec
    owner = "the champion" if config.start == CHAMPION else "the model of weights"
    return ExpectedInput(owner, Geometry.of(source).input, _name_normalization(source))


def describe_conversion(config: TrainConfig, image: ImageSpec) -> dict[str, bool]:
    """Return `transform_input` for the model's description if its network is to convert ImageNet's normalization
    itself, else nothing. A model that starts from another one does as that does."""
    if config.backbone not in CONVERTING_BACKBONES or not config.weights:
        return {}
    converts = image.shape[2] == 3
    if config.weights_are_named:
        converts = converts and image.color == "rgb" and _name_normalization(image) == "imagenet"
    else:
        dataset = find_model_dataset(config)
        converts = converts and dataset is not None and bool(ModelExtra.of(dataset.manifest).transform_input)
    return {"transform_input": True} if converts else {}


class Mismatch(NamedTuple):
    """A field of the tensors that is not as the weights expect it, and the value to make them with (resize, clean)."""

    field: str
    expected: str
    actual: str
    value: str


def describe_mismatches(image: ImageSpec, expected: ExpectedInput, backbone: str) -> list[str]:
    """Return a line for each field in which the tensors' `image` is not what the weights expect."""
    mismatches = (*_compare_sizes(image, expected, backbone), *_compare_pixels(image, expected))
    return [
        f"{mismatch.field}: {expected.owner} expects {mismatch.expected}, the tensors have {mismatch.actual} "
        f"({_suggest_flag(mismatch, expected)})"
        for mismatch in mismatches
    ]


def _suggest_flag(mismatch: Mismatch, expected: ExpectedInput) -> str:
    if mismatch.field == "color":
        return f"clean with --color {mismatch.value}"
    if expected.preset and (mismatch.field != "normalization" or expected.preset_normalizes):
        return f"resize with --model-preset {expected.preset}"
    return f"resize with --{mismatch.field.replace('_', '-')} {mismatch.value}"


def _compare_sizes(image: ImageSpec, expected: ExpectedInput, backbone: str) -> Iterator[Mismatch]:
    """Compare size, crop and mode. A size within `MAX_SIZE_RATIO` is no mismatch, nor is another mode than that of a
    model preset, which somebody chose."""
    ours, theirs = Geometry.of(image).input, expected.geometry
    size = str(theirs.size)
    if not 1 / MAX_SIZE_RATIO <= ours.size / theirs.size <= MAX_SIZE_RATIO:
        resampled = ", so that position embeddings are resampled" if _HAS_POSITIONS.search(backbone) else ""
        yield Mismatch("image_size", size, f"{ours.size}{resampled}", size)
    if ours.mode == theirs.mode == "crop":
        our_ratio, their_ratio = ours.short_side / ours.size, theirs.short_side / theirs.size
        if abs(our_ratio / their_ratio - 1) > MAX_CROP_DIFFERENCE:
            resize_size = str(round(ours.size * their_ratio))
            yield Mismatch("resize_size", f"{their_ratio:.3f} x image_size", f"{our_ratio:.3f} x", resize_size)
    elif ours.mode != theirs.mode and not expected.preset:
        yield Mismatch("resize_mode", theirs.mode, ours.mode, theirs.mode)


def _compare_pixels(image: ImageSpec, expected: ExpectedInput) -> Iterator[Mismatch]:
    """Compare interpolation, color and normalization.

    A dataset's own mean and spread are no mismatch: they give the network mean 0 and spread 1, as it knows them. Nor is
    a single channel, for which the first layer's filters are summed.
    """
    ours, theirs = Geometry.of(image), expected.geometry
    if ours.interpolation != theirs.interpolation:
        yield Mismatch("interpolation", theirs.interpolation, ours.interpolation, theirs.interpolation)
    if ours.color != theirs.color and COLORS[ours.color] == 3:
        yield Mismatch("color", theirs.color, ours.color, theirs.color)
    normalization = _name_normalization(image)
    if normalization and normalization != expected.normalization:
        name = expected.normalization or "its dataset's own mean and spread"
        yield Mismatch("normalization", name, normalization, expected.normalization or "dataset")


def _name_normalization(image: ImageSpec) -> str:
    """Return the name of the mean and spread of an image's color channels; empty for a dataset's own."""
    number = COLORS[image.color]
    return model_presets.name_normalization(image.mean[:number], image.std[:number], image.color)
