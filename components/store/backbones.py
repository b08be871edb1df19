"""What torchvision has, read from its source text: importing it takes seconds, and a typing mistake should not."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from .errors import wrong


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
    for text in _sources():
        function = re.search(rf"^def {backbone}\(\s*(?:\*,\s*)?weights: (?:Optional\[)?(\w+)", text, re.MULTILINE)
        if function:
            body = re.search(rf"^class {function[1]}\(WeightsEnum\):\n((?:(?: .*)?\n)+)", text, re.MULTILINE)
            return tuple(re.findall(r"^    ([A-Z]\w*) = ", body[1], re.MULTILINE)) if body else ()
    return ()


def check_backbone(name: str) -> None:
    """UserError for a name that torchvision does not have, with the nearest ones; silent where it is not installed."""
    known = backbones()
    if known and name not in known:
        near = difflib.get_close_matches(name, known, 3) or [*known[:8], "…"]
        raise wrong("backbone", f"a torchvision classification model ({', '.join(near)})", name)


def check_named_weights(backbone: str, weights: str) -> None:
    """UserError for pretrained weights that the model does not have."""
    known = named_weights(backbone)
    if known and weights not in known:
        raise wrong("weights", f"one of {', '.join(known)} for {backbone}", weights)
