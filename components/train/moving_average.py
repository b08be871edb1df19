"""The moving average of a network's weights: what is validated and kept, where the recipe says so.

Averaged weights lie nearer to the middle of where training wanders (Polyak and Juditsky, "Acceleration of stochastic
approximation by averaging", 1992). The decay rises with the steps t as (1 + t)/(10 + t), as TensorFlow's
ExponentialMovingAverage does it, so that a short training is not ruled by its random start.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class MovingAverage:
    """`network`: a copy in evaluation mode whose weights and buffers are the averages, float32 as the network's own;
    it takes as much memory again. `steps`: so many were averaged."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    def current_decay(self) -> float:
        return min(self.decay, (1 + self.steps) / (10 + self.steps))

    def update(self, network: torch.nn.Module) -> None:
        """After a step of the optimizer: average ← decay · average + (1 - decay) · weights; what is counted (batches
        that a normalization has seen) is taken over."""
        import torch

        averages, values = [], []
        with torch.no_grad():
            for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    averages.append(mine)
                    values.append(theirs.detach())
                else:
                    mine.copy_(theirs)
            torch._foreach_lerp_(averages, values, 1 - self.current_decay())
        self.steps += 1
