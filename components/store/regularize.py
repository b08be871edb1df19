"""Dropout and stochastic depth of torchvision's networks, set from outside: each network has its own, under names of
its own, or none. Both act in training mode only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .blocks import head
from .errors import wrong

if TYPE_CHECKING:
    import torch


def set_dropout(network: torch.nn.Module, share: float) -> None:
    """Dropout before the head (Srivastava et al., 2014): the network's own where it has one, with another share, else
    one inside of the head, whose tensors keep their names. UserError for a head that is no linear layer."""
    import torch

    name = head(network)[0]
    own = [module for module in _around(network, name) if isinstance(module, torch.nn.Dropout)]
    for module in own:
        module.p = share
    if own or not share:
        return
    parent, _, leaf = name.rpartition(".")
    linear = network.get_submodule(name)
    if not isinstance(linear, torch.nn.Linear):
        raise wrong("dropout", f"0 for a {type(network).__name__}, whose head is no linear layer", share)
    setattr(network.get_submodule(parent), leaf, _dropped(linear, share))


def _around(network: torch.nn.Module, name: str) -> list[torch.nn.Module]:
    """The modules beside the head, and those of the classifier that it ends."""
    top = name.partition(".")[0]
    beside = [module for key, module in network.named_children() if key != top]
    return [*beside, *network.get_submodule(top).modules()]


def _dropped(linear: torch.nn.Linear, share: float) -> torch.nn.Module:
    import torch

    class Dropped(torch.nn.Linear):
        """A linear layer of whose input a share is dropped in training."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.nn.functional.dropout(input, share, self.training))

    made = Dropped(linear.in_features, linear.out_features, linear.bias is not None)
    made.load_state_dict(linear.state_dict())
    return made


def set_drop_path(network: torch.nn.Module, share: float, backbone: str) -> None:
    """Stochastic depth (Huang et al., 2016): the deepest block is skipped in that share of the images, the others in
    proportion to what the network has. UserError for a network without."""
    from torchvision.ops import StochasticDepth

    found: list[Any] = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    deepest = max((module.p for module in found), default=0.0)
    if share and not deepest:
        raise wrong("drop_path", f"0 for {backbone}, which has no stochastic depth", share)
    for module in found:
        module.p = share * module.p / deepest if share else 0.0
