"""The structure of a network: its parameters in blocks from the input to the head, and dropout set from outside.

Layer-wise learning rates and freezing go by blocks. A block is a unit that the network repeats (a residual block, a
transformer's layer) or that stands alone (the stem, a convolution with its normalization); timm's networks list theirs
(`group_matcher`), torchvision's are derived from their modules. Dropout and stochastic depth of torchvision's networks
have another name in each of them; both act in training mode only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import commonpath
from typing import TYPE_CHECKING, Any, cast

from ..storage.errors import wrong

if TYPE_CHECKING:
    import torch

_CONTAINERS = ("Sequential", "ModuleList", "AnyStage", "_DenseBlock", "MaxVitBlock", "Encoder")
"""torch's and torchvision's classes that hold blocks rather than being one."""


def parameter_blocks(network: torch.nn.Module) -> list[list[str]]:
    """Return the names of all parameters, each once, in blocks from the input to the head, which is the last."""
    prefixes = tuple(f"{name}." for name in head_modules(network))
    dimensions = {name: value.ndim for name, value in network.named_parameters()}
    blocks: list[list[str]] = []
    for group in _timm_groups(network) if hasattr(network, "group_matcher") else _torchvision_groups(network):
        names = [name for name in group if not name.startswith(prefixes)]
        if blocks and all(dimensions[name] == 1 for name in names):  # a normalization goes with what it normalizes
            blocks[-1].extend(names)
        elif names:
            blocks.append(names)
    return [*blocks, [name for name in dimensions if name.startswith(prefixes)]]


def find_block_modules(network: torch.nn.Module, depths: Sequence[float]) -> list[torch.nn.Module]:
    """Return the modules of the blocks at these depths, shares of the blocks before the head; each module once.

    The module of a block that has parameters of the network itself (a class token) is the network.
    """
    blocks = parameter_blocks(network)[:-1]
    chosen = [blocks[min(int(depth * len(blocks)), len(blocks) - 1)] for depth in depths]
    paths = [commonpath([name.rpartition(".")[0].replace(".", "/") for name in block]) for block in chosen]
    return [network.get_submodule(path.replace("/", ".")) for path in dict.fromkeys(paths)]


def head_modules(network: torch.nn.Module) -> list[str]:
    """Return the names of the modules that make the logits: one, or two in networks with a distillation token."""
    if hasattr(network, "get_classifier"):
        classifier = cast(Any, network).get_classifier()
        heads = {id(module) for module in (classifier if isinstance(classifier, tuple | list) else (classifier,))}
        modules = [(name, module) for name, module in network.named_modules() if id(module) in heads]
        names = [name for name, module in modules if next(module.parameters(), None) is not None]
        if names:
            return names
    *_, (name, _) = network.named_parameters()
    return [name.rpartition(".")[0]]


def _timm_groups(network: Any) -> list[list[str]]:
    from timm.models import group_parameters

    groups: dict[int, list[str]] = group_parameters(network, network.group_matcher(coarse=False))
    return [groups[number] for number in sorted(groups)]


def _torchvision_groups(network: torch.nn.Module) -> list[list[str]]:
    """Return each unit's parameters. Those of no unit (a class token, position embeddings) are added to the input, so
    they go with the first."""
    groups = [[f"{name}.{key}" for key, _ in unit.named_parameters()] for name, unit in _iter_units(network, "")]
    in_units = {key for group in groups for key in group}
    groups[0] = [*(key for key, _ in network.named_parameters() if key not in in_units), *groups[0]]
    return groups


def _iter_units(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules below `module` that are no containers, in their order. Deep inside, a container of single
    layers (a downsampling between two stages) is one unit."""
    for name, child in module.named_children():
        holds_blocks = any(next(grandchild.children(), None) is not None for grandchild in child.children())
        if type(child).__name__ in _CONTAINERS and (holds_blocks or not prefix):
            yield from _iter_units(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


@contextmanager
def evaluation_mode(network: torch.nn.Module) -> Iterator[None]:
    """Set evaluation mode; at the end each module has the mode that it had before."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def set_dropout(network: torch.nn.Module, p: float) -> None:
    """Set dropout before the head (Srivastava et al., 2014) to the probability `p`.

    The network's own dropout where it has one, else one inside of the head, whose tensors keep their names. UserError
    for a head that is no linear layer.
    """
    import torch

    name = head_modules(network)[0]
    dropouts = [module for module in _modules_near_head(network, name) if isinstance(module, torch.nn.Dropout)]
    for dropout in dropouts:
        dropout.p = p
    if dropouts or not p:
        return
    parent, _, leaf = name.rpartition(".")
    linear = network.get_submodule(name)
    if not isinstance(linear, torch.nn.Linear):
        raise wrong("dropout", f"0 for a {type(network).__name__}, whose head is no linear layer", p)
    setattr(network.get_submodule(parent), leaf, _add_dropout(linear, p))


def _modules_near_head(network: torch.nn.Module, name: str) -> list[torch.nn.Module]:
    """Return the modules beside the head, and those of the classifier that it ends."""
    top = name.partition(".")[0]
    siblings = [module for key, module in network.named_children() if key != top]
    return [*siblings, *network.get_submodule(top).modules()]


def _add_dropout(linear: torch.nn.Linear, p: float) -> torch.nn.Module:
    import torch

    class DropoutLinear(torch.nn.Linear):
        """A linear layer with dropout on its input."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.nn.functional.dropout(input, p, self.training))

    layer = DropoutLinear(linear.in_features, linear.out_features, linear.bias is not None)
    layer.load_state_dict(linear.state_dict())
    return layer


def set_drop_path(network: torch.nn.Module, p: float, backbone: str) -> None:
    """Set stochastic depth (Huang et al., 2016): the deepest block is skipped for a share `p` of the images, the others
    in proportion to the network's own values. UserError for a network without."""
    from torchvision.ops import StochasticDepth

    layers: list[Any] = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    deepest = max((layer.p for layer in layers), default=0.0)
    if p and not deepest:
        raise wrong("drop_path", f"0 for {backbone}, which has no stochastic depth", p)
    for layer in layers:
        layer.p = p * layer.p / deepest if p else 0.0
