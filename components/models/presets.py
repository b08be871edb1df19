"""Model presets: the image size, resampling and normalization that a network's weights were trained with.

For torchvision's models they are the evaluation transforms of the weights (torchvision_models); for timm's (timm:NAME)
those of timm's configuration; for other models they come with their source.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import cache
from itertools import chain

from ..storage.errors import UserError, wrong
from . import timm_models
from .torchvision_models import ModelPreset, backbones, installed_transforms, named_weights, torchvision_presets

NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "caffe": ([0.48235, 0.45882, 0.40784], [1 / 255, 1 / 255, 1 / 255]),
}
"""Mean and standard deviation of red, green and blue in [0, 1], by name."""
LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in gray, by ITU-R 601."""


FAMILIES: dict[str, ModelPreset] = {
    # timm 1.0 (github.com/huggingface/pytorch-image-models), models/xception.py, legacy_xception.tf_in1k: 299, crop_pct
    # 0.8975 (so that the short side is floor(299 / 0.8975)), bicubic, mean and std 0.5.
    "xception": ModelPreset(299, 333, "bicubic", "half"),
    # github.com/openai/CLIP, clip/clip.py, _transform: Resize(n, BICUBIC), CenterCrop(n); n = 336 for ViT-L/14@336px.
    "clip": ModelPreset(224, 224, "bicubic", "clip"),
    "clip-336": ModelPreset(336, 336, "bicubic", "clip"),
    # timm, models/vision_transformer.py, vit_base_patch16_384.augreg_in21k_ft_in1k: crop_pct 1, bicubic, 0.5.
    "vit-384": ModelPreset(384, 384, "bicubic", "half"),
    # timm, models/convnext.py, convnext_large.fb_in22k_ft_in1k_384: crop_pct 1, crop_mode squash, bicubic.
    "convnext-384": ModelPreset(384, 384, "bicubic", mode="squash"),
    # Sizes without a model, as torchvision's weights of that size have it. From 384 on nothing of the short side is
    # cropped and bicubic is usual (SWAG's weights, arXiv:2201.08371).
    "224": ModelPreset(224, 256),
    "256": ModelPreset(256, 292),
    "299": ModelPreset(299, 342),
    "336": ModelPreset(336, 336, "bicubic"),
    "384": ModelPreset(384, 384, "bicubic"),
    "448": ModelPreset(448, 448, "bicubic"),
    "512": ModelPreset(512, 512, "bicubic"),
    "600": ModelPreset(600, 600, "bicubic"),
}
"""Presets that are no models of torchvision's, by name."""

_SIZES = [name for name in FAMILIES if name.isdigit()]
HELP = (
    "the model whose input size, crop ratio, interpolation and normalization hold where nothing else is said: one of "
    "torchvision (resnet50, efficientnet_b7; with its weights: resnet50:IMAGENET1K_V1) or timm (timm:NAME.TAG), "
    f"{', '.join(name for name in FAMILIES if name not in _SIZES)}, or a size ({', '.join(_SIZES)})"
)


@cache
def find(name: str) -> ModelPreset | None:
    """Return the preset of that name, or None."""
    if not name:  # or else torchvision would be imported, which takes two seconds, to know that it has no such model
        return None
    if name in FAMILIES:
        return FAMILIES[name]
    if timm_models.is_timm(name):
        return _timm_preset(name)
    return torchvision_presets().get(name) or _installed_preset(name)


def name_of_weights(backbone: str, weights: str) -> str:
    """Return the name of the preset for a backbone's named weights."""
    if weights == "DEFAULT":
        return backbone
    if timm_models.is_timm(backbone):
        return f"{timm_models.PREFIX}{timm_models.split_name(backbone)[0]}.{weights}"
    return f"{backbone}:{weights}"


def _timm_preset(name: str) -> ModelPreset | None:
    """Return the preset by timm's `transforms_imagenet_eval` (timm/data/transforms_factory.py) at the weights' training
    size: the short side is resized to floor(size / crop_pct). None for an unknown name, where timm is not installed, or
    for a normalization that has no name here."""
    try:
        timm_models.check_timm_name(name)
        config = timm_models.pretrained_config(name)
    except UserError:
        return None
    normalization = name_normalization(config.mean, config.std) if config else ""
    if not normalization or config.interpolation not in ("bilinear", "bicubic"):
        return None
    size, squash = config.input_size[-1], config.crop_mode == "squash"
    short = size if squash else math.floor(size / config.crop_pct)
    return ModelPreset(size, short, config.interpolation, normalization, "squash" if squash else "crop")


def _installed_preset(name: str) -> ModelPreset | None:
    """Return the preset of weights that the installed torchvision has beside the table; None for unknown ones, and for
    a normalization or interpolation that has no name here."""
    backbone, colon, weights = name.partition(":")
    transforms = installed_transforms(backbone, weights if colon else "DEFAULT")
    normalization = name_normalization(transforms.mean, transforms.std) if transforms else ""
    if not normalization or transforms.interpolation.value not in ("bilinear", "bicubic", "lanczos"):
        return None
    sizes = transforms.crop_size[0], transforms.resize_size[0]
    return ModelPreset(*sizes, transforms.interpolation.value, normalization)


def name_normalization(mean: Sequence[float], std: Sequence[float], color: str = "rgb") -> str:
    """Return the name of a mean and standard deviation of a color's channels; empty where it has none."""
    values = [*mean, *std]
    for name in NORMALIZATIONS:
        reference = [*chain(*mean_and_std(name, color))]
        if len(reference) == len(values) and all(abs(a - b) < 1e-4 for a, b in zip(reference, values, strict=True)):
            return name
    return ""


def mean_and_std(normalization: str, color: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of a color's channels under a named normalization; empty for unknown ones.

    Those of gray follow by the luma weights of ITU-R 601.
    """
    if normalization not in NORMALIZATIONS or color not in ("rgb", "gray"):
        return [], []
    mean, std = NORMALIZATIONS[normalization]
    if color == "rgb":
        return list(mean), list(std)
    luma_mean, luma_std = (round(sum(w * v for w, v in zip(LUMA, values, strict=True)), 3) for values in (mean, std))
    return [luma_mean], [luma_std]


def check(name: str) -> None:
    """Raise UserError, with the nearest names, for an unknown name."""
    if not name or find(name) is not None:
        return
    if timm_models.is_timm(name):
        timm_models.check_timm_name(name)
        raise wrong("model_preset", "a model that timm describes, with a normalization that has a name here", name)
    backbone = name.partition(":")[0]
    if ":" in name and (weights := named_weights(backbone)):
        raise wrong("model_preset", f"{backbone} with one of its weights ({', '.join(sorted(weights))})", name)
    names = [*FAMILIES, *backbones()]
    nearest = difflib.get_close_matches(backbone.lower(), names, 4, 0.5) or ["resnet50", "efficientnet_b7", *FAMILIES]
    raise wrong("model_preset", f"a model preset ({', '.join(nearest)})", name)
