"""A network's parameters as blocks from the input to the head: what layer-wise learning rates and thawing go by.

A block is what the network repeats (a residual block, a transformer's layer) or what stands alone (the stem, a
convolution with its normalization); timm's networks say so themselves (`group_matcher`), torchvision's are read from
their modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

_OPENED = ("Sequential", "ModuleList", "AnyStage", "_DenseBlock", "MaxVitBlock", "Encoder")
"""torch's and torchvision's classes that hold blocks rather than being one."""


def blocks(network: torch.nn.Module) -> list[list[str]]:
    """The names of all parameters, each once, in blocks from the input to the head, which is the last."""
    prefixes = tuple(f"{name}." for name in head(network))
    dimensions = {name: value.ndim for name, value in network.named_parameters()}
    found: list[list[str]] = []
    for group in _timms(network) if hasattr(network, "group_matcher") else _torchvisions(network):
        names = [name for name in group if not name.startswith(prefixes)]
        if found and all(dimensions[name] == 1 for name in names):  # a normalization goes with what it normalizes
            found[-1].extend(names)
        elif names:
            found.append(names)
    return [*found, [name for name in dimensions if name.startswith(prefixes)]]


def head(network: torch.nn.Module) -> list[str]:
    """The names of the modules that make the logits: one, or two in networks distilled by a token of its own."""
    if hasattr(network, "get_classifier"):
        made = cast(Any, network).get_classifier()
        wanted = {id(one) for one in (made if isinstance(made, tuple | list) else (made,))}
        modules = [(name, module) for name, module in network.named_modules() if id(module) in wanted]
        found = [name for name, module in modules if next(module.parameters(), None) is not None]
        if found:
            return found
    *_, (name, _) = network.named_parameters()
    return [name.rpartition(".")[0]]


def _timms(network: Any) -> list[list[str]]:
    from timm.models import group_parameters

    found: dict[int, list[str]] = group_parameters(network, network.group_matcher(coarse=False))
    return [found[number] for number in sorted(found)]


def _torchvisions(network: torch.nn.Module) -> list[list[str]]:
    """Each unit's parameters. What belongs to no unit (a class token, position embeddings) is added to the input, so
    it goes with the first."""
    found = [[f"{name}.{key}" for key, _ in unit.named_parameters()] for name, unit in _units(network, "")]
    known = {key for group in found for key in group}
    found[0] = [*(key for key, _ in network.named_parameters() if key not in known), *found[0]]
    return found


def _units(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules below one that are no containers, in their order. Deep inside, a container of single layers (what
    makes an image smaller between two stages) is one unit."""
    for name, child in module.named_children():
        holds_blocks = any(next(one.children(), None) is not None for one in child.children())
        if type(child).__name__ in _OPENED and (holds_blocks or not prefix):
            yield from _units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
