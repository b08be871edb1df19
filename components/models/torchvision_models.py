"""Names of torchvision's models and weights, parsed from its source: importing it takes seconds, and reporting a
mistyped name should not. Names of timm's go to timm_models."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..storage.errors import wrong
from . import timm_models

_DROP_PATH = ("convnext_", "efficientnet_", "maxvit_", "swin_")
"""Prefixes of torchvision's networks with stochastic depth."""
_TRANSFORMERS = re.compile(r"(vit|swin|deit|beit|eva|cait|xcit|mixer|hiera)")


@cache
def _sources() -> tuple[str, ...]:
    """Return the text of each module of classification models; nothing where torchvision is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    return tuple(p.read_text(encoding="utf-8") for p in sorted((Path(spec.origin).parent / "models").glob("*.py")))


@cache
def backbones() -> tuple[str, ...]:
    """Return the names of the classification models."""
    names: set[str] = set()
    for text in _sources():
        names.update(re.findall(r"@register_model\(\)\n(?:@.*\n)*def (\w+)\(", text))
        names.update(re.findall(r"@register_model\(name=\"(\w+)\"\)", text))
    return tuple(sorted(names))


@cache
def named_weights(backbone: str) -> tuple[str, ...]:
    """Return the names of a model's pretrained weights, `DEFAULT` among them; nothing if they are unknown."""
    return tuple(re.findall(r"^    ([A-Z]\w*) = ", _weights_class(backbone), re.MULTILINE))


def _weights_class(backbone: str) -> str:
    """Return the source of the enumeration of a model's weights; empty if it is unknown."""
    if not backbone.isidentifier():
        return ""
    for text in _sources():
        function = re.search(rf"^def {backbone}\(\s*(?:\*,\s*)?weights: (?:Optional\[)?(\w+)", text, re.MULTILINE)
        if function:
            body = re.search(rf"^class {function[1]}\(WeightsEnum\):\n((?:(?: .*)?\n)+)", text, re.MULTILINE)
            return body[0] if body else ""
    return ""


@dataclass(frozen=True)
class Transforms:
    """The evaluation transforms of weights, torchvision's `ImageClassification`: the short side is resized to
    `resize_size` and the centre square of `crop_size` taken, in pixels; mean and std are of red, green, blue in [0, 1].
    The defaults are that class's."""

    crop_size: int
    resize_size: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@cache
def evaluation_transforms(backbone: str, weights: str = "DEFAULT") -> Transforms | None:
    """Return the evaluation transforms of a model's weights; None if they are unknown."""
    try:
        members = _assignments(_weights_class(backbone))
        value = members.get(weights)
        if isinstance(value, ast.Name):  # DEFAULT = IMAGENET1K_V2
            value = members.get(value.id)
        factory = _arguments(value)["transforms"]  # partial(ImageClassification, crop_size=224, …)
        if not isinstance(factory, ast.Call) or ast.unparse(factory.args[0]) != "ImageClassification":
            return None
        arguments = _arguments(factory)
        arguments.pop("antialias", None)
        options: dict[str, Any] = {name: _evaluate(node) for name, node in arguments.items()}
        return Transforms(**options)
    except (SyntaxError, KeyError, IndexError, TypeError, ValueError):  # a version that is written differently
        return None


def _assignments(text: str) -> dict[str, ast.expr]:
    """Return the assignments `name = value` in the body of the only class of a text."""
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    statements = [statement for node in classes for statement in node.body]
    pairs = [(node.targets[0], node.value) for node in statements if isinstance(node, ast.Assign)]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}


def _arguments(call: ast.expr | None) -> dict[str, ast.expr]:
    """Return the keyword arguments of a call; nothing for another expression."""
    return (
        {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg} if isinstance(call, ast.Call) else {}
    )


def _evaluate(node: ast.expr) -> object:
    """Evaluate a number (or a quotient), a tuple of them, or an `InterpolationMode` to its name; else ValueError."""
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(element) for element in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return float(ast.literal_eval(node.left)) / float(ast.literal_eval(node.right))
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    return ast.literal_eval(node)


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
    names = backbones()
    if names and name not in names:
        nearest = difflib.get_close_matches(name, names, 3) or [*names[:8], "…"]
        raise wrong("backbone", f"a torchvision classification model ({', '.join(nearest)}), or timm:NAME", name)


def check_named_weights(backbone: str, weights: str) -> None:
    """Raise UserError for pretrained weights that the model does not have; timm's are checked by train."""
    names = named_weights(backbone)
    if names and weights not in names:
        raise wrong("weights", f"one of {', '.join(names)} for {backbone}", weights)
