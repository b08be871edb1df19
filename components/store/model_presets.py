"""Input sizes by model: what a network was trained to see, so that tensors are made for it.

Sizes, interpolation and crop are those of the evaluation transforms of torchvision's weights; models that torchvision
does not have are named with their source.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from .errors import wrong

NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}
"""Mean and standard deviation of red, green and blue in [0, 1], by name."""


@dataclass(frozen=True)
class ModelPreset:
    """`image_size` is what the model sees, `resize_size` what the short side is resized to before the centre crop,
    both in pixels."""

    image_size: int
    resize_size: int
    interpolation: str = "bilinear"
    normalization: str = "imagenet"


PRESETS = {"resnet": ModelPreset(224, 256)}
HELP = "model whose input size, crop ratio, interpolation and normalization hold where nothing else is said"


def find(name: str) -> ModelPreset | None:
    """The preset of that name, or None."""
    return PRESETS.get(name)


def check(name: str) -> None:
    """UserError for a name that is none, with the nearest ones."""
    if name and find(name) is None:
        near = difflib.get_close_matches(name, PRESETS, 3) or list(PRESETS)
        raise wrong("model_preset", f"a model preset ({', '.join(near)})", name)
