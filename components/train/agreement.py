"""Do the tensors and the pretrained weights agree? What was found, what the weights expect, and the flag that mends it.

What weights were trained with is known of torchvision's by their evaluation transform, of timm's by its description of
them, of an imagemill model by what it says itself, and of a bare file not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..store import model_presets
from ..store.choices import COLORS
from ..store.manifest import Dataset
from ..store.model_presets import NORMALIZATIONS, mean_and_std
from ..store.resample import Geometry
from .config import TrainConfig
from .weights import model_dataset

FAR = 1.25
"""Times larger or smaller than what the weights were trained with: beyond it things have other sizes in pixels than the
filters know (Touvron et al., "Fixing the train-test resolution discrepancy", 2019)."""
CROPPED = 0.05
"""Relative difference of the crop ratio (resize_size / image_size) that is worth a word."""
CONVERTS = ("googlenet", "inception_v3")
"""Their weights come from TensorFlow, which normalizes by mean and spread 0.5; torchvision describes ImageNet's, which
the network itself then converts (`transform_input`), if it has red, green and blue and nothing else."""
CONVERTED = "transform_input"
POSITIONS = re.compile(r"(vit|deit|beit|eva)")
"""Networks with an embedding of each position, by their names."""


@dataclass(frozen=True)
class Expected:
    """What weights were trained with: `geometry` and the name of the `normalization` (empty: a dataset's own).

    `preset` is the model preset that makes such tensors, if there is one; `but_normalization`: not in that.
    """

    who: str
    geometry: Geometry
    normalization: str
    preset: str = ""
    but_normalization: bool = False


def expected_by(config: TrainConfig, image: dict[str, Any]) -> Expected | None:
    """What the weights that the config names expect; `image` is the tensors', whose colour the weights are fitted to.
    None where there are no weights, or where nothing is known of them."""
    if config.weights_are_named:
        preset = model_presets.name_of_weights(config.backbone, config.weights)
        chosen = model_presets.find(preset)
        if chosen is None:
            return None
        geometry = Geometry(
            chosen.image_size, chosen.mode, resize=chosen.resize_size, interpolation=chosen.interpolation
        )
        inside = config.backbone in CONVERTS and not conversion(config, image)
        normalization = "half" if inside else chosen.normalization
        return Expected(f"{config.weights} of {config.backbone}", geometry, normalization, preset, inside)
    dataset = model_dataset(config.weights) if config.weights else None
    if dataset is None or not dataset.manifest.image:
        return None
    theirs = dataset.manifest.image
    return Expected("the model of weights", Geometry.from_dict(theirs).input, _normalization(theirs))


def conversion(config: TrainConfig, image: dict[str, Any]) -> dict[str, Any]:
    """What the model's description must say, so that its network converts ImageNet's normalization itself; empty where
    it must not. A model that starts from another one does as that does."""
    if config.backbone not in CONVERTS or not config.weights:
        return {}
    if config.weights_are_named:
        plain = image["color"] == "rgb" and image["shape"][2] == 3 and _normalization(image) == "imagenet"
        return {CONVERTED: True} if plain else {}
    dataset: Dataset | None = model_dataset(config.weights)
    converts = dataset is not None and dataset.manifest.extra.get(CONVERTED, False) and image["shape"][2] == 3
    return {CONVERTED: True} if converts else {}


def disagreements(image: dict[str, Any], expected: Expected, backbone: str) -> list[str]:
    """A line for each thing in which the tensors' `image` is not what the weights expect."""
    sizes, pixels = _in_size(image, expected, backbone), _in_pixels(image, expected)
    return [f"{one.field}: {expected.who} expects {one.wants}, the tensors have {one.has} ({_mended(one, expected)})"
            for one in (*sizes, *pixels)]  # fmt: skip


class Difference(NamedTuple):
    """What the weights want of a field, what the tensors have, and the value to resize (or clean) with."""

    field: str
    wants: str
    has: str
    value: str


def _mended(one: Difference, expected: Expected) -> str:
    if one.field == "color":
        return f"clean with --color {one.value}"
    by_preset = expected.preset and not (one.field == "normalization" and expected.but_normalization)
    flag = f"model-preset {expected.preset}" if by_preset else f"{one.field.replace('_', '-')} {one.value}"
    return f"resize with --{flag}"


def _in_size(image: dict[str, Any], expected: Expected, backbone: str) -> Iterator[Difference]:
    """A size within `FAR` is no difference; nor is a mode that somebody chose though a model preset has another."""
    found, wanted = Geometry.from_dict(image).input, expected.geometry
    size = str(wanted.size)
    if not 1 / FAR <= found.size / wanted.size <= FAR:
        resampled = ", so that position embeddings are resampled" if POSITIONS.search(backbone) else ""
        yield Difference("image_size", size, f"{found.size}{resampled}", size)
    if found.mode == wanted.mode == "crop":
        has, wants = found.short_side / found.size, wanted.short_side / wanted.size
        if abs(has / wants - 1) > CROPPED:
            short = str(round(found.size * wants))
            yield Difference("resize_size", f"{wants:.3f} x image_size", f"{has:.3f} x", short)
    elif found.mode != wanted.mode and not expected.preset:
        yield Difference("resize_mode", wanted.mode, found.mode, wanted.mode)


def _in_pixels(image: dict[str, Any], expected: Expected) -> Iterator[Difference]:
    """A normalization by the dataset's own mean and spread is no difference: it gives a network what it knows, mean 0
    and spread 1; nor is a single channel, for which the first layer's filters are summed."""
    found, wanted = Geometry.from_dict(image), expected.geometry
    if found.interpolation != wanted.interpolation:
        yield Difference("interpolation", wanted.interpolation, found.interpolation, wanted.interpolation)
    if found.color != wanted.color and COLORS[found.color] == 3:
        yield Difference("color", wanted.color, found.color, wanted.color)
    normalization = _normalization(image)
    if normalization and normalization != expected.normalization:
        wants = expected.normalization or "its dataset's own mean and spread"
        yield Difference("normalization", wants, normalization, expected.normalization or "dataset")


def _normalization(image: dict[str, Any]) -> str:
    """The name of the mean and spread of an image's colour channels; empty for a dataset's own."""
    number = COLORS[image["color"]]
    has = [*image["mean"][:number], *image["std"][:number]]
    for name in NORMALIZATIONS:
        mean, std = mean_and_std(name, image["color"])
        if mean and all(abs(a - b) < 1e-4 for a, b in zip([*mean, *std], has, strict=True)):
            return name
    return ""
