"""timm's networks (github.com/huggingface/pytorch-image-models) as `timm:NAME`, where NAME may carry the tag of its
pretrained weights: timm:vit_base_patch16_224.augreg_in21k. Names are read from timm's source text: importing it takes
seconds, and a typing mistake should not."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import wrong

if TYPE_CHECKING:
    import torch

PREFIX = "timm:"


def is_timms(backbone: str) -> bool:
    """One of timm's rather than torchvision's."""
    return backbone.startswith(PREFIX)


def parts(backbone: str) -> tuple[str, str]:
    """The name of the architecture, and the tag of its weights (empty: timm's default)."""
    name, _, tag = backbone.removeprefix(PREFIX).partition(".")
    return name, tag


def is_tag(weights: str) -> bool:
    """What can be a tag of timm's or DEFAULT, rather than a URI."""
    return bool(re.fullmatch(r"\w+", weights))


@cache
def _sources() -> dict[str, bool]:
    """Every architecture's name, and whether its module knows stochastic depth; empty where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return {}
    found: dict[str, bool] = {}
    for path in sorted((Path(spec.origin).parent / "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"@register_model\n(?:@.*\n)*def (\w+)\(", text)
        found |= dict.fromkeys(names, "drop_path_rate" in text)
    return found


def check_timms(backbone: str) -> None:
    """UserError for a name that timm does not have, with the nearest ones; where it is not installed, for a form that
    no name has."""
    name, tag = parts(backbone)
    if not re.fullmatch(r"\w+(\.\w+)?", backbone.removeprefix(PREFIX)):
        raise wrong("backbone", "timm:NAME or timm:NAME.TAG, such as timm:convnext_tiny.in12k_ft_in1k", backbone)
    if _sources() and name not in _sources():
        near = difflib.get_close_matches(name, _sources(), 3) or ["convnext_tiny", "vit_base_patch16_224", "…"]
        raise wrong("backbone", f"an architecture of timm's ({', '.join(near)})", f"{name}{tag and '.'}{tag}")


def has_drop_path(backbone: str) -> bool:
    """The network has branches that stochastic depth can skip."""
    return _sources().get(parts(backbone)[0], False)


def described(backbone: str, weights: str = "DEFAULT") -> Any:
    """What timm says of pretrained weights, its `PretrainedCfg`; None where there are none of that name.

    `weights` DEFAULT are those of the name's tag, or else timm's own choice for the architecture.
    """
    name, tag = parts(backbone)
    try:
        wanted = ".".join(filter(None, (name, tag if weights == "DEFAULT" else weights)))
        return _timm().models.get_pretrained_cfg(wanted)
    except RuntimeError:  # no such tag
        return None


def check_tag(backbone: str, weights: str) -> None:
    """UserError for weights that timm does not have for the architecture."""
    name, tag = parts(backbone)
    asked = tag if weights == "DEFAULT" else weights
    if tag and asked != tag:
        raise wrong("weights", f"DEFAULT or {tag}, which {backbone} names", weights)
    known = [one.partition(".")[2] for one in _timm().list_pretrained(f"{name}.*")]
    if not known or (asked and asked not in known):
        expected = f"one of DEFAULT, {', '.join(known)} for {PREFIX}{name}" if known else f"none for {PREFIX}{name}"
        raise wrong("weights", expected, asked or weights)


def create(
    backbone: str, classes: int, size: int, channels: int, dropout: float = 0.0, drop_path: float = 0.0
) -> torch.nn.Module:
    """The untrained network: logits float [B, classes] from float [B, channels, size, size].

    `dropout` is timm's `drop_rate`, before the head, `drop_path` the deepest block's share of stochastic depth.
    UserError for a size that it does not take, or stochastic depth that it does not have.
    """
    name, tag = parts(backbone)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout}
    options |= {"drop_path_rate": drop_path}
    if getattr(described(backbone), "fixed_input_size", False):
        options["img_size"] = size
    while True:
        try:
            network: torch.nn.Module = _timm().create_model(f"{name}{tag and '.'}{tag}", pretrained=False, **options)
            return network
        except TypeError as error:
            unknown = next((one for one in ("drop_path_rate", "drop_rate") if f"'{one}'" in str(error)), "")
            if unknown not in options:
                raise
            if options.pop(unknown):
                field = "drop_path" if unknown == "drop_path_rate" else "dropout"
                raise wrong(field, f"0 for {backbone}, which has none", drop_path or dropout) from None


def converted(backbone: str, state: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights as they were published, named as the network names them, and position embeddings and windows' tables of
    relative positions resampled to its image size: by timm's own `checkpoint_filter_fn` of the architecture."""
    import sys

    made = _timm().models.model_entrypoint(parts(backbone)[0])
    convert = getattr(sys.modules[made.__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        found: dict[str, torch.Tensor] = convert(dict(state), network)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise wrong("weights", f"weights of {backbone}", f"others: {type(error).__name__}: {error}") from None
    return found


def _timm() -> Any:
    import timm

    return timm
