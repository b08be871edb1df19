"""Input sizes by model: what a network was trained to see, so that tensors are made for it.

Of torchvision's models it is the evaluation transform of their weights, read from torchvision's source where it is
installed and else from the table below, which a test compares with it; of timm's (timm:NAME) what timm says of their
weights; other models are named with their source.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from . import timm_models
from .backbones import Transforms, backbones, named_weights, transforms_of
from .errors import UserError, wrong

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
    """`image_size` is what the model sees, `resize_size` what the short side is resized to before the centre crop,
    both in pixels; `mode` squash: straight to the square."""

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
    # No model's: sizes by number, as torchvision's weights of that size have it. From 384 on the whole short side is
    # seen and bicubic is usual (SWAG's weights, arXiv:2201.08371).
    "224": ModelPreset(224, 256),
    "256": ModelPreset(256, 292),
    "299": ModelPreset(299, 342),
    "336": ModelPreset(336, 336, "bicubic"),
    "384": _WHOLE_384,
    "448": ModelPreset(448, 448, "bicubic"),
    "512": ModelPreset(512, 512, "bicubic"),
    "600": ModelPreset(600, 600, "bicubic"),
}
"""What is no model of torchvision's, by the name it has here."""

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
"""Torchvision 0.29: every classification model's weights (IMAGENET1K_ is left out) by what they were evaluated with."""

_SIZES = [name for name in FAMILIES if name.isdigit()]
HELP = (
    "the model whose input size, crop ratio, interpolation and normalization hold where nothing else is said: one of "
    "torchvision (resnet50, efficientnet_b7; with its weights: resnet50:IMAGENET1K_V1) or timm (timm:NAME.TAG), "
    f"{', '.join(name for name in FAMILIES if name not in _SIZES)}, or a size ({', '.join(_SIZES)})"
)


@cache
def find(name: str) -> ModelPreset | None:
    """The preset of that name, or None."""
    if name in FAMILIES:
        return FAMILIES[name]
    if timm_models.is_timms(name):
        return _timms(name)
    backbone, _, weights = name.partition(":")
    known = transforms_of(backbone, weights or "DEFAULT") if not name.endswith(":") else None
    return (known and _preset(known)) or table().get(name)


def named(backbone: str, weights: str) -> str:
    """The name of the preset for a backbone's named weights."""
    if weights == "DEFAULT":
        return backbone
    if timm_models.is_timms(backbone):
        return f"{timm_models.PREFIX}{timm_models.parts(backbone)[0]}.{weights}"
    return f"{backbone}:{weights}"


def _timms(name: str) -> ModelPreset | None:
    """By timm's `transforms_imagenet_eval` (timm/data/transforms_factory.py) at the size that the weights were trained
    at: the short side is resized to floor(size / crop_pct). None for what timm does not have, or where it is not
    installed, or for a normalization that has no name here."""
    try:
        timm_models.check_timms(name)
        about = timm_models.described(name)
    except UserError:
        return None
    normalization = normalization_named(list(about.mean), list(about.std)) if about else ""
    if not normalization or about.interpolation not in ("bilinear", "bicubic"):
        return None
    size, squash = about.input_size[-1], about.crop_mode == "squash"
    short = size if squash else math.floor(size / about.crop_pct)
    return ModelPreset(size, short, about.interpolation, normalization, "squash" if squash else "crop")


def _preset(known: Transforms) -> ModelPreset | None:
    """Torchvision's transform as a preset; None for a normalization or interpolation that has no name here."""
    named = normalization_named(list(known.mean), list(known.std))
    if not named or known.interpolation not in ("bilinear", "bicubic", "lanczos"):
        return None
    return ModelPreset(known.crop_size, known.resize_size, known.interpolation, named)


def normalization_named(mean: list[float], std: list[float]) -> str:
    """The name of a mean and standard deviation of red, green and blue; empty where it has none."""
    wanted = [*mean, *std]
    for name, (its_mean, its_std) in NORMALIZATIONS.items():
        its = [*its_mean, *its_std]
        if len(its) == len(wanted) and all(abs(a - b) < 1e-6 for a, b in zip(its, wanted, strict=True)):
            return name
    return ""


def known(normalization: str, color: str) -> tuple[list[float], list[float]]:
    """The named mean and spread of a colour's channels, of grey by the luma weights of ITU-R 601; empty where there
    are none."""
    if normalization not in NORMALIZATIONS or color not in ("rgb", "gray"):
        return [], []
    mean, std = NORMALIZATIONS[normalization]
    if color == "rgb":
        return list(mean), list(std)
    luma_mean, luma_std = (round(sum(w * v for w, v in zip(LUMA, values, strict=True)), 3) for values in (mean, std))
    return [luma_mean], [luma_std]


@cache
def table() -> dict[str, ModelPreset]:
    """The table by name: `resnet50:IMAGENET1K_V2` and so on, `:DEFAULT` and the bare name for each model's default
    weights, which are its second version, or the first, or those of the end-to-end fine-tuning."""
    found = dict(_rows())
    for backbone in {name.partition(":")[0] for name in found}:
        for version in ("V2", "V1", "SWAG_E2E_V1"):
            if default := found.get(f"{backbone}:IMAGENET1K_{version}"):
                found |= {backbone: default, f"{backbone}:DEFAULT": default}
                break
    return found


def _rows() -> Iterator[tuple[str, ModelPreset]]:
    for preset, names in _TORCHVISION.items():
        for name in names.split():
            backbone, _, weights = name.partition(":")
            yield f"{backbone}:IMAGENET1K_{weights}", preset


def check(name: str) -> None:
    """UserError for a name that is none, with the nearest ones."""
    if not name or find(name) is not None:
        return
    if timm_models.is_timms(name):
        timm_models.check_timms(name)
        raise wrong("model_preset", "a model that timm describes, with a normalization that has a name here", name)
    backbone = name.partition(":")[0]
    its_weights = named_weights(backbone) or [n.partition(":")[2] for n in table() if n.startswith(f"{backbone}:")]
    if ":" in name and its_weights:
        raise wrong("model_preset", f"{backbone} with one of its weights ({', '.join(sorted(its_weights))})", name)
    known = [*FAMILIES, *(backbones() or (n for n in table() if ":" not in n))]
    near = difflib.get_close_matches(backbone.lower(), known, 4, 0.5) or ["resnet50", "efficientnet_b7", *FAMILIES]
    raise wrong("model_preset", f"a model preset ({', '.join(near)})", name)
