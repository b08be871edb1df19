"""Which blocks learn in an epoch: the head alone at first, then block after block from the head on.

With few images, a random head would send noise into pretrained layers: it learns first (Kumar et al., "Fine-Tuning can
Distort Pretrained Features", 2022), then the network is unfrozen gradually (Howard and Ruder, "Universal Language Model
Fine-tuning", 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .config import TrainConfig

if TYPE_CHECKING:
    import torch


def thawed(config: TrainConfig, blocks: int, epoch: int) -> int:
    """How many of the blocks, from the head on, learn in an epoch counted from 0: 1 in the first `probe_epochs`, all
    `unfreeze_epochs` later. Without pretrained weights there is nothing to protect: always all."""
    if not config.weights or epoch >= config.probe_epochs + config.unfreeze_epochs:
        return blocks
    if epoch < config.probe_epochs:
        return 1
    return 1 + math.ceil((blocks - 1) * (epoch - config.probe_epochs + 1) / (config.unfreeze_epochs + 1))


def set_learning(network: torch.nn.Module, blocks: Sequence[Sequence[str]], number: int) -> None:
    """Training mode, in which the last `number` blocks learn and all else stays as it is: no gradients, no noise, and
    the statistics of normalizations as they were learned."""
    learning = {name for block in blocks[len(blocks) - number :] for name in block}
    for name, value in network.named_parameters():
        value.requires_grad_(name in learning)
    network.train()
    _freeze(network)


def _freeze(module: torch.nn.Module) -> None:
    """Evaluation mode for the largest modules that have parameters none of which learn."""
    values = [value.requires_grad for value in module.parameters()]
    if values and not any(values):
        module.eval()
        return
    for child in module.children():
        _freeze(child)
