"""timm's networks (github.com/huggingface/pytorch-image-models) as `timm:NAME`, where NAME may carry the tag of its
pretrained weights: timm:vit_base_patch16_224.augreg_in21k. Names are parsed from timm's source: importing it takes
seconds, and reporting a mistyped name should not."""

from __future__ import annotations

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage.errors import wrong

if TYPE_CHECKING:
    import torch

PREFIX = "timm:"


def is_timm(backbone: str) -> bool:
    """Return whether a backbone is one of timm's rather than torchvision's."""
    return backbone.startswith(PREFIX)


def split_name(backbone: str) -> tuple[str, str]:
    """Split a backbone into the architecture and the tag of its weights (empty: timm's default)."""
    name, _, tag = backbone.removeprefix(PREFIX).partition(".")
    return name, tag


def is_tag(weights: str) -> bool:
    """Return whether `weights` can be a tag of timm's or DEFAULT, rather than a URI."""
    return bool(re.fullmatch(r"\w+", weights))


@cache
def _architectures() -> dict[str, bool]:
    """Return, by architecture, whether its module supports stochastic depth; empty where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return {}
    architectures: dict[str, bool] = {}
    for path in sorted((Path(spec.origin).parent / "models").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"@register_model\n(?:@.*\n)*def (\w+)\(", text)
        architectures |= dict.fromkeys(names, "drop_path_rate" in text)
    return architectures


def check_timm_name(backbone: str) -> None:
    """Raise UserError, with the nearest names, for a name that timm does not have; where timm is not installed, for a
    malformed one."""
    name, tag = split_name(backbone)
    if not re.fullmatch(r"\w+(\.\w+)?", backbone.removeprefix(PREFIX)):
        raise wrong("backbone", "timm:NAME or timm:NAME.TAG, such as timm:convnext_tiny.in12k_ft_in1k", backbone)
    if _architectures() and name not in _architectures():
        nearest = difflib.get_close_matches(name, _architectures(), 3) or ["convnext_tiny", "vit_base_patch16_224", "…"]
        raise wrong("backbone", f"an architecture of timm's ({', '.join(nearest)})", f"{name}{tag and '.'}{tag}")


def has_drop_path(backbone: str) -> bool:
    """Return whether the network has branches that stochastic depth can skip."""
    return _architectures().get(split_name(backbone)[0], False)


def pretrained_config(backbone: str, weights: str = "DEFAULT") -> Any:
    """Return timm's `PretrainedCfg` of pretrained weights; None where there are none of that name.

    `weights` DEFAULT are those of the name's tag, or else timm's own choice for the architecture.
    """
    from timm.models import get_pretrained_cfg

    name, tag = split_name(backbone)
    try:
        return get_pretrained_cfg(".".join(filter(None, (name, tag if weights == "DEFAULT" else weights))))
    except RuntimeError:  # no such tag
        return None


def check_tag(backbone: str, weights: str) -> None:
    """Raise UserError for weights that timm does not have for the architecture."""
    import timm

    name, tag = split_name(backbone)
    requested = tag if weights == "DEFAULT" else weights
    if tag and requested != tag:
        raise wrong("weights", f"DEFAULT or {tag}, which {backbone} names", weights)
    tags = [model_name.partition(".")[2] for model_name in timm.list_pretrained(f"{name}.*")]
    if not tags or (requested and requested not in tags):
        expected = f"one of DEFAULT, {', '.join(tags)} for {PREFIX}{name}" if tags else f"none for {PREFIX}{name}"
        raise wrong("weights", expected, requested or weights)


def create_network(
    backbone: str, classes: int, size: int, channels: int, dropout: float = 0.0, drop_path: float = 0.0
) -> torch.nn.Module:
    """Create the untrained network: logits float [B, classes] from float [B, channels, size, size].

    `dropout` is timm's `drop_rate`, before the head, `drop_path` the deepest block's probability of stochastic
    depth.
    UserError for a size that it does not take, or stochastic depth that it does not have.
    """
    import timm

    name, tag = split_name(backbone)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout}
    options |= {"drop_path_rate": drop_path}
    if getattr(pretrained_config(backbone), "fixed_input_size", False):
        options["img_size"] = size
    while True:
        try:
            network: torch.nn.Module = timm.create_model(f"{name}{tag and '.'}{tag}", pretrained=False, **options)
            return network
        except TypeError as error:
            unknown = next((key for key in ("drop_path_rate", "drop_rate") if f"'{key}'" in str(error)), "")
            if unknown not in options:
                raise
            if options.pop(unknown):
                field = "drop_path" if unknown == "drop_path_rate" else "dropout"
                raise wrong(field, f"0 for {backbone}, which has none", drop_path or dropout) from None


def convert_weights(backbone: str, state: dict[str, torch.Tensor], network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Convert published weights to the network's names and image size, by timm's `checkpoint_filter_fn` of the
    architecture; position embeddings and tables of relative positions are resampled."""
    import sys

    from timm.models import model_entrypoint

    entrypoint = model_entrypoint(split_name(backbone)[0])
    convert = getattr(sys.modules[entrypoint.__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, torch.Tensor] = convert(dict(state), network)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise wrong("weights", f"weights of {backbone}", f"others: {type(error).__name__}: {error}") from None
    return converted
