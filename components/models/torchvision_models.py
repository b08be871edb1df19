"""torchvision's classification models, their weights, and the input that the weights were evaluated with.

They are in a table, because importing torchvision takes 1.6 s and 400 MB, also for `imagemill run`, which needs no more
than to know that a name is right. Names that the table lacks are looked up in torchvision, where it is installed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..compat import import_torchvision
from ..storage.errors import wrong
from . import timm_models

_DROP_PATH = ("convnext_", "efficientnet_", "maxvit_", "swin_")
"""Prefixes of torchvision's networks with stochastic depth."""
_TRANSFORMERS = re.compile(r"(vit|swin|deit|beit|eva|cait|xcit|mixer|hiera)")


@dataclass(frozen=True)
class ModelPreset:
    """Sides in pixels: `image_size` of the model's input, `resize_size` of the short side before the center crop.
    `mode` squash: straight to the square."""

    image_size: int
    resize_size: int
    interpolation: str = "bilinear"
    normalization: str = "imagenet"
    mode: str = "crop"


_TABLE: dict[ModelPreset, str] = {
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
    ModelPreset(
        384, 384, "bicubic"
    ): "regnet_y_128gf:SWAG_E2E_V1 regnet_y_16gf:SWAG_E2E_V1 regnet_y_32gf:SWAG_E2E_V1 vit_b_16:SWAG_E2E_V1",
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


@cache
def torchvision_presets() -> dict[str, ModelPreset]:
    """Return the table by name: `resnet50:IMAGENET1K_V2` and so on, `:DEFAULT` and the bare name for the default
    weights, which are a model's second version, or the first, or those of the end-to-end fine-tuning."""
    presets = dict(_table_rows())
    for backbone, weights in _table_defaults().items():
        default = presets[f"{backbone}:{weights}"]
        presets |= {backbone: default, f"{backbone}:DEFAULT": default}
    return presets


@cache
def _table_defaults() -> dict[str, str]:
    """Return the name of each model's default weights in the table."""
    rows, defaults = dict(_table_rows()), {}
    for backbone in sorted({name.partition(":")[0] for name in rows}):
        for version in ("V2", "V1", "SWAG_E2E_V1"):
            if f"{backbone}:IMAGENET1K_{version}" in rows:
                defaults[backbone] = f"IMAGENET1K_{version}"
                break
    return defaults


def name_default_weights(backbone: str) -> str:
    """Return the name of a model's default weights; empty for a model without any."""
    default = _installed_weights(backbone).get("DEFAULT") if backbone not in _table_defaults() else None
    return _table_defaults().get(backbone) or (default.name if default else "")


def _table_rows() -> Iterator[tuple[str, ModelPreset]]:
    for preset, names in _TABLE.items():
        for name in names.split():
            backbone, _, weights = name.partition(":")
            yield f"{backbone}:IMAGENET1K_{weights}", preset


def backbones() -> list[str]:
    """Return the names of the classification models: those of the installed torchvision, or else of the table."""
    return list(_installed_models() or sorted(name for name in torchvision_presets() if ":" not in name))


@cache
def _installed_models() -> tuple[str, ...]:
    """Return the names of the installed torchvision's classification models; nothing where it is not installed."""
    try:
        import_torchvision()
        from torchvision import models
    except (ImportError, RuntimeError):  # RuntimeError: one that does not fit the installed torch
        return ()
    return tuple(models.list_models(module=models))


@cache
def _installed_weights(backbone: str) -> dict[str, Any]:
    """Return the pretrained weights of one of the installed torchvision's models, by name; else an empty dict."""
    if backbone not in _installed_models():
        return {}
    from torchvision.models import get_model_weights

    return dict(get_model_weights(backbone).__members__)


def named_weights(backbone: str) -> list[str]:
    """Return the names of a model's pretrained weights, `DEFAULT` last; nothing if they are unknown."""
    in_table = [name.removeprefix(f"{backbone}:") for name in torchvision_presets() if name.startswith(f"{backbone}:")]
    names = _installed_weights(backbone) or in_table
    return sorted(names, key=lambda name: (name == "DEFAULT", name))


def installed_transforms(backbone: str, weights: str) -> Any:
    """Return the evaluation transforms of weights, an `ImageClassification` of torchvision; None for unknown ones."""
    member = _installed_weights(backbone).get(weights)
    return member.transforms() if member else None


def has_drop_path(backbone: str) -> bool:
    """Return whether the network has branches that stochastic depth can skip (Huang et al., 2016)."""
    if timm_models.is_timm(backbone):
        return timm_models.has_drop_path(backbone)
    return backbone.startswith(_DROP_PATH)


def is_transformer(backbone: str) -> bool:
    """Return whether a network is, by its name, a vision transformer or trained like one."""
    return bool(_TRANSFORMERS.search(backbone))


def check_backbone(name: str) -> None:
    """Raise UserError, with the nearest names, for a name that torchvision (timm:… timm) does not have; silent where
    it is not installed."""
    if timm_models.is_timm(name):
        timm_models.check_timm_name(name)
        return
    if name not in torchvision_presets() and _installed_models() and name not in (names := backbones()):
        nearest = difflib.get_close_matches(name, names, 3) or [*names[:8], "…"]
        raise wrong("backbone", f"a torchvision classification model ({', '.join(nearest)}), or timm:NAME", name)


def check_named_weights(backbone: str, weights: str) -> None:
    """Raise UserError for pretrained weights that the model does not have; timm's are checked by train."""
    if timm_models.is_timm(backbone) or f"{backbone}:{weights}" in torchvision_presets():
        return
    names = named_weights(backbone)
    if names and weights not in names:
        raise wrong("weights", f"one of {', '.join(names)} for {backbone}", weights)
