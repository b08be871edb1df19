"""What torchvision has, read from its source text: importing it takes seconds, and a typing mistake should not. Names
of timm's go to timm_models."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import timm_models
from .errors import wrong

_DROP_PATH = ("convnext_", "efficientnet_", "maxvit_", "swin_")
"""What the names of torchvision's networks with stochastic depth begin with."""
_TRANSFORMERS = re.compile(r"(vit|swin|deit|beit|eva|cait|xcit|mixer|hiera)")


@cache
def _sources() -> tuple[str, ...]:
    """The text of each module of classification models; nothing where torchvision is not installed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ()
    return tuple(p.read_text(encoding="utf-8") for p in sorted((Path(spec.origin).parent / "models").glob("*.py")))


@cache
def backbones() -> tuple[str, ...]:
    """The classification models by name."""
    names: set[str] = set()
    for text in _sources():
        names.update(re.findall(r"@register_model\(\)\n(?:@.*\n)*def (\w+)\(", text))
        names.update(re.findall(r"@register_model\(name=\"(\w+)\"\)", text))
    return tuple(sorted(names))


@cache
def named_weights(backbone: str) -> tuple[str, ...]:
    """The names of a model's pretrained weights, `DEFAULT` among them; nothing if that can't be told."""
    return tuple(re.findall(r"^    ([A-Z]\w*) = ", _weights_class(backbone), re.MULTILINE))


def _weights_class(backbone: str) -> str:
    """The source text of the enumeration of a model's weights; empty if it can't be told."""
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
    """What weights were evaluated with, torchvision's `ImageClassification`: the short side is resized to
    `resize_size` and the centre square of `crop_size` taken, in pixels; mean and std are of red, green, blue in [0, 1].
    The defaults are that class's."""

    crop_size: int
    resize_size: int = 256
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@cache
def transforms_of(backbone: str, weights: str = "DEFAULT") -> Transforms | None:
    """What a model's weights were evaluated with; None if there are no such weights, or if it can't be told."""
    try:
        values = _assignments(_weights_class(backbone))
        found = values.get(weights)
        if isinstance(found, ast.Name):  # DEFAULT = IMAGENET1K_V2
            found = values.get(found.id)
        made = _arguments(found)["transforms"]  # partial(ImageClassification, crop_size=224, …)
        if not isinstance(made, ast.Call) or ast.unparse(made.args[0]) != "ImageClassification":
            return None
        said: dict[str, Any] = {name: _value(node) for name, node in _arguments(made).items() if name != "antialias"}
        return Transforms(**said)
    except (SyntaxError, KeyError, IndexError, TypeError, ValueError):  # written otherwise than we know it
        return None


def _assignments(text: str) -> dict[str, ast.expr]:
    """`name = value` in the body of the one class of a text."""
    body = [one for made in ast.parse(text).body if isinstance(made, ast.ClassDef) for one in made.body]
    pairs = [(one.targets[0], one.value) for one in body if isinstance(one, ast.Assign)]
    return {target.id: value for target, value in pairs if isinstance(target, ast.Name)}


def _arguments(call: ast.expr | None) -> dict[str, ast.expr]:
    """The named arguments of a call; nothing of what is none."""
    return {one.arg: one.value for one in call.keywords if one.arg} if isinstance(call, ast.Call) else {}


def _value(node: ast.expr) -> object:
    """A number, a tuple of them (also `1.0 / 255.0`), or the name of an `InterpolationMode`. ValueError for others."""
    if isinstance(node, ast.Tuple):
        return tuple(_value(one) for one in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = ast.literal_eval(node.left), ast.literal_eval(node.right)
        return float(above) / float(below)
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    return ast.literal_eval(node)


def has_drop_path(backbone: str) -> bool:
    """The network has branches that stochastic depth can skip (Huang et al., 2016)."""
    if timm_models.is_timms(backbone):
        return timm_models.has_drop_path(backbone)
    return backbone.startswith(_DROP_PATH)


def is_transformer(backbone: str) -> bool:
    """A vision transformer or what is trained like one, by its name."""
    return bool(_TRANSFORMERS.search(backbone))


def check_backbone(name: str) -> None:
    """UserError for a name that torchvision (timm:… timm) does not have, with the nearest ones; silent where it is not
    installed."""
    if timm_models.is_timms(name):
        timm_models.check_timms(name)
        return
    known = backbones()
    if known and name not in known:
        near = difflib.get_close_matches(name, known, 3) or [*known[:8], "…"]
        raise wrong("backbone", f"a torchvision classification model ({', '.join(near)}), or timm:NAME", name)


def check_named_weights(backbone: str, weights: str) -> None:
    """UserError for pretrained weights that the model does not have; of timm's the step that loads them knows."""
    known = named_weights(backbone)
    if known and weights not in known:
        raise wrong("weights", f"one of {', '.join(known)} for {backbone}", weights)
