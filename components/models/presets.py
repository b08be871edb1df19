"""Model presets: the image size, resampling and normalization that a network's weights were trained with.

For torchvision's models they are the evaluation transforms of the weights, parsed from torchvision's source where it is
installed and else from the table below, which a test compares with it; for timm's (timm:NAME) those of timm's
configuration; for other models they come with their source.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from ..storage.errors import UserError, wrong
from . import timm_models
from .torchvision_models import Transforms, backbones, evaluation_transforms, named_weights

NORMALIZATIONS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "caffe": ([0.48235, 0.45882, 0.40784], [1 / 255, 1 / 255, 1 / 255]),
}
"""Mean and standard deviation of red, green and blue in [0, 1], by name."""
LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in grey, by ITU-R 601."""


@dataclass(frozen=True)
class ModelPreset:
    """Sides in pixels: `image_size` of the model's input, `resize_size` of the short side before the center crop.
    `mode` squash: straight to the square."""

    image_size: int
    resize_size: int
    interpolation: str = "bilinear"
    normalization: str = "imagenet"
    mode: str = "crop"


_WHOLE_384 = ModelPreset(384, 384, "bicubic")

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
    "384": _WHOLE_384,
    "448": ModelPreset(448, 448, "bicubic"),
    "512": ModelPreset(512, 512, "bicubic"),
    "600": ModelPreset(600, 600, "bicubic"),
}
"""Presets that are no models of torchvision's, by name."""

_TORCHVISION: dict[ModelPreset, str] = {
    ModelPreset(224, 224, "bicubic"): "maxvit_t:V1 regnet_y_128gf:SWAG_LINEAR_V1 regnet_y_16gf:SWAG_LINEAR_V1 "
    "regnet_y_32gf:SWAG_LINEAR_V1 vit_b_16:SWAG_LINEAR_V1 vit_h_14:SWAG_LINEAR_V1 vit_l_16:SWAG_LINEAR_V1",
    ModelPreset(224, 230): "convnext_small:V1",
    ModelPreset(224, 232, "bicubic"): "swin_t:V1",
    ModelPreset(224, 232): "convnext_base:V1 convnext_large:V1 mnasnet0_75:V1 mnasnet1_3:V1 mobilenet_v2:V2 "
    "mobilenet_v3_large:V2 regnet_x_16gf:V2 regnet_x_1_6gf:V2 regnet_x_32gf:V2 regnet_x_3_2gf:V2 regnet_x_400mf:V2 "
    "regnet_x_800mf:V2 regnet_x_8gf:V2 regnet_y_16gf:V2 regnet_y_1_6gf:V2 regnet_y_32gf:V2 regnet_y_3_2gf:V2 "
    "regnet_y_400mf:V2 regnet_y_800mf:V2 regnet_y_8gf:V2 resnet101:V2 resnet152:V2 resnet50:V2 resnext101_32x8d:V2 "
    "resnext101_64x4d:V1 resnext50_32x4d:V2 shufflenet_v2_x1_5:V1 shufflenet_v2_x2_0:V1 wide_resnet101_2:V2 "
    "wide_resnet50_2:V2",
    ModelPreset(224, 236): "convnext_tiny:V1",
    ModelPreset(224, 238, "bicubic"): "swin_b:V1",
    ModelPreset(224, 242): "vit_l_16:V1",
    ModelPreset(224, 246, "bicubic"): "swin_s:V1",
    ModelPreset(224, 256, "bicubic"): "efficientnet_b0:V1",
    ModelPreset(224, 256, normalization="caffe"): "vgg16:FEATURES",
    ModelPreset(224, 256): "alexnet:V1 densenet121:V1 densenet161:V1 densenet169:V1 densenet201:V1 googlenet:V1 "
    "mnasnet0_5:V1 mnasnet1_0:V1 mobilenet_v2:V1 mobilenet_v3_large:V1 mobilenet_v3_small:V1 regnet_x_16gf:V1 "
    "regnet_x_1_6gf:V1 regnet_x_32gf:V1 regnet_x_3_2gf:V1 regnet_x_400mf:V1 regnet_x_800mf:V1 regnet_x_8gf:V1 "
    "regnet_y_16gf:V1 regnet_y_1_6gf:V1 regnet_y_32gf:V1 regnet_y_3_2gf:V1 regnet_y_400mf:V1 regnet_y_800mf:V1 "
    "regnet_y_8gf:V1 resnet101:V1 resnet152:V1 resnet18:V1 resnet34:V1 resnet50:V1 resnext101_32x8d:V1 "
    "resnext50_32x4d:V1 shufflenet_v2_x0_5:V1 shufflenet_v2_x1_0:V1 squeezenet1_0:V1 squeezenet1_1:V1 vgg11:V1 "
    "vgg11_bn:V1 vgg13:V1 vgg13_bn:V1 vgg16:V1 vgg16_bn:V1 vgg19:V1 vgg19_bn:V1 vit_b_16:V1 vit_b_32:V1 vit_l_32:V1 "
    "wide_resnet101_2:V1 wide_resnet50_2:V1",
    ModelPreset(240, 255): "efficientnet_b1:V2",
    ModelPreset(240, 256, "bicubic"): "efficientnet_b1:V1",
    ModelPreset(256, 260, "bicubic"): "swin_v2_s:V1 swin_v2_t:V1",
    ModelPreset(256, 272, "bicubic"): "swin_v2_b:V1",
    ModelPreset(288, 288, "bicubic"): "efficientnet_b2:V1",
    ModelPreset(299, 342): "inception_v3:V1",
    ModelPreset(300, 320, "bicubic"): "efficientnet_b3:V1",
    ModelPreset(380, 384, "bicubic"): "efficientnet_b4:V1",
    _WHOLE_384: "regnet_y_128gf:SWAG_E2E_V1 regnet_y_16gf:SWAG_E2E_V1 regnet_y_32gf:SWAG_E2E_V1 vit_b_16:SWAG_E2E_V1",
    ModelPreset(384, 384): "efficientnet_v2_s:V1",
    ModelPreset(456, 456, "bicubic"): "efficientnet_b5:V1",
    ModelPreset(480, 480, "bicubic", "half"): "efficientnet_v2_l:V1",
    ModelPreset(480, 480): "efficientnet_v2_m:V1",
    ModelPreset(512, 512, "bicubic"): "vit_l_16:SWAG_E2E_V1",
    ModelPreset(518, 518, "bicubic"): "vit_h_14:SWAG_E2E_V1",
    ModelPreset(528, 528, "bicubic"): "efficientnet_b6:V1",
    ModelPreset(600, 600, "bicubic"): "efficientnet_b7:V1",
}
"""Torchvision 0.29: preset → all weights with these evaluation transforms (`IMAGENET1K_` is left out)."""

_SIZES = [name for name in FAMILIES if name.isdigit()]
HELP = (
    "the model whose input size, crop ratio, interpolation and normalization hold where nothing else is said: one of "
    "torchvision (resnet50, efficientnet_b7; with its weights: resnet50:IMAGENET1K_V1) or timm (timm:NAME.TAG), "
    f"{', '.join(name for name in FAMILIES if name not in _SIZES)}, or a size ({', '.join(_SIZES)})"
)


@cache
def find(name: str) -> ModelPreset | None:
    """Return the preset of that name, or None."""
    if name in FAMILIES:
        return FAMILIES[name]
    if timm_models.is_timm(name):
        return _timm_preset(name)
    backbone, _, weights = name.partition(":")
    transforms = evaluation_transforms(backbone, weights or "DEFAULT") if not name.endswith(":") else None
    return (transforms and _torchvision_preset(transforms)) or torchvision_presets().get(name)


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
    normalization = normalization_named(list(config.mean), list(config.std)) if config else ""
    if not normalization or config.interpolation not in ("bilinear", "bicubic"):
        return None
    size, squash = config.input_size[-1], config.crop_mode == "squash"
    short = size if squash else math.floor(size / config.crop_pct)
    return ModelPreset(size, short, config.interpolation, normalization, "squash" if squash else "crop")


def _torchvision_preset(transforms: Transforms) -> ModelPreset | None:
    """Return torchvision's transforms as a preset; None for a normalization or interpolation that has no name here."""
    normalization = normalization_named(list(transforms.mean), list(transforms.std))
    if not normalization or transforms.interpolation not in ("bilinear", "bicubic", "lanczos"):
        return None
    return ModelPreset(transforms.crop_size, transforms.resize_size, transforms.interpolation, normalization)


def normalization_named(mean: list[float], std: list[float]) -> str:
    """Return the name of a mean and standard deviation of red, green and blue; empty where it has none."""
    values = [*mean, *std]
    for name, (preset_mean, preset_std) in NORMALIZATIONS.items():
        reference = [*preset_mean, *preset_std]
        if len(reference) == len(values) and all(abs(a - b) < 1e-6 for a, b in zip(reference, values, strict=True)):
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


@cache
def torchvision_presets() -> dict[str, ModelPreset]:
    """Return the table by name: `resnet50:IMAGENET1K_V2` and so on, `:DEFAULT` and the bare name for the default
    weights, which are a model's second version, or the first, or those of the end-to-end fine-tuning."""
    presets = dict(_torchvision_rows())
    for backbone in {name.partition(":")[0] for name in presets}:
        for version in ("V2", "V1", "SWAG_E2E_V1"):
            if default := presets.get(f"{backbone}:IMAGENET1K_{version}"):
                presets |= {backbone: default, f"{backbone}:DEFAULT": default}
                break
    return presets


def _torchvision_rows() -> Iterator[tuple[str, ModelPreset]]:
    for preset, names in _TORCHVISION.items():
        for name in names.split():
            backbone, _, weights = name.partition(":")
            yield f"{backbone}:IMAGENET1K_{weights}", preset


def check(name: str) -> None:
    """Raise UserError, with the nearest names, for an unknown name."""
    if not name or find(name) is not None:
        return
    if timm_models.is_timm(name):
        timm_models.check_timm_name(name)
        raise wrong("model_preset", "a model that timm describes, with a normalization that has a name here", name)
    backbone = name.partition(":")[0]
    weights = named_weights(backbone) or [
        n.partition(":")[2] for n in torchvision_presets() if n.startswith(f"{backbone}:")
    ]
    if ":" in name and weights:
        raise wrong("model_preset", f"{backbone} with one of its weights ({', '.join(sorted(weights))})", name)
    names = [*FAMILIES, *(backbones() or (n for n in torchvision_presets() if ":" not in n))]
    nearest = difflib.get_close_matches(backbone.lower(), names, 4, 0.5) or ["resnet50", "efficientnet_b7", *FAMILIES]
    raise wrong("model_preset", f"a model preset ({', '.join(nearest)})", name)
