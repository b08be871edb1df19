"""Do the tensors and the pretrained weights agree? What was found, what the weights expect, and the flag that mends it.

What weights were trained with is known of torchvision's by their evaluation transform, of an imagemill model by what it
says itself, and of a bare file not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..store import model_presets
from ..store.images import COLORS
from ..store.manifest import Dataset
from ..store.model_presets import NORMALIZATIONS, known
from ..store.resample import Geometry
from ..store.tensors import input_size
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
        preset = config.backbone + ("" if config.weights == "DEFAULT" else f":{config.weights}")
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
    """A line for each thing in which the tensors' `image` is not what the weights expect.

    A size within `FAR` is none, but for a vision transformer, whose position embeddings belong to one size; nor is a
    normalization by the dataset's own mean and spread, which gives a network what it knows: mean 0 and spread 1.
    """
    found = Geometry.from_dict(image | {"shape": [input_size(image)] * 2 + [image["shape"][2]]})
    wanted, lines = expected.geometry, []

    def line(field: str, wants: object, has: object, flag: str) -> None:
        by_preset = (
            expected.preset and field != "color" and not (field == "normalization" and expected.but_normalization)
        )
        mends = f"--model-preset {expected.preset}" if by_preset else flag
        step = "clean" if field == "color" else "resize"
        lines.append(f"{field}: {expected.who} expects {wants}, the tensors have {has} ({step} with {mends})")

    ratio = found.size / wanted.size
    if backbone.startswith("vit_") and ratio != 1:
        has = f"{found.size}, so that position embeddings start from scratch"
        line("image_size", wanted.size, has, f"--image-size {wanted.size}")
    elif not 1 / FAR <= ratio <= FAR:
        line("image_size", wanted.size, found.size, f"--image-size {wanted.size}")
    if found.mode == wanted.mode == "crop":
        has, wants = found.short_side / found.size, wanted.short_side / wanted.size
        if abs(has / wants - 1) > CROPPED:
            flag = f"--resize-size {round(found.size * wants)}"
            line("resize_size", f"{wants:.3f} x image_size", f"{has:.3f} x", flag)
    elif found.mode != wanted.mode and not expected.preset:
        line("resize_mode", wanted.mode, found.mode, f"--resize-mode {wanted.mode}")
    if found.interpolation != wanted.interpolation:
        line("interpolation", wanted.interpolation, found.interpolation, f"--interpolation {wanted.interpolation}")
    if found.color != wanted.color and COLORS[found.color] == 3:
        line("color", wanted.color, found.color, f"--color {wanted.color}")
    normalization = _normalization(image)
    if normalization and normalization != expected.normalization:
        wants = expected.normalization or "its dataset's own mean and spread"
        line("normalization", wants, normalization, f"--normalization {expected.normalization or 'dataset'}")
    return lines


def _normalization(image: dict[str, Any]) -> str:
    """The name of the mean and spread of an image's colour channels; empty for a dataset's own."""
    number = COLORS[image["color"]]
    has = [*image["mean"][:number], *image["std"][:number]]
    for name in NORMALIZATIONS:
        mean, std = known(name, image["color"])
        if mean and all(abs(a - b) < 1e-4 for a, b in zip([*mean, *std], has, strict=True)):
            return name
    return ""
