"""Which parameters are trained, at what learning rate, by which optimizer, and the moving average of their values.

Biases, normalizations and embeddings of positions are not decayed (He et al., "Bag of Tricks", 2019; timm does the
same). Layer decay: Clark et al., "ELECTRA", 2020, and BEiT; a rate of its own for the head: Howard and Ruder,
"Universal Language Model Fine-tuning", 2018.

With few images, a random head would send noise into pretrained layers: it is trained first (Kumar et al., "Fine-Tuning
can Distort Pretrained Features", 2022), then the network is unfrozen block by block (Howard and Ruder, 2018).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig

if TYPE_CHECKING:
    import torch

MOMENTUM = 0.9
"""Nesterov's, of SGD."""
_EMBEDDINGS = ("class_token", "cls_token", "pos_embedding", "pos_embed", "relative_position_bias_table")


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up to `peak`, then half a cosine to zero (Loshchilov and Hutter, "SGDR", 2017), up to step `steps`.

    `warmup` is the share of the steps from `start` on in which the rate rises.
    """

    peak: float
    steps: int
    warmup: float
    start: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.start:
            return 0.0
        step, steps = step - self.start, self.steps - self.start
        warmup_steps = round(self.warmup * steps)
        if step < warmup_steps:
            return self.peak * ((step + 1) / warmup_steps)
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def compute_rate_scales(config: TrainConfig, num_blocks: int) -> list[float]:
    """Return each block's learning rate as a share of the head's, from the input to the head."""
    scales = [config.layer_decay ** (num_blocks - 1 - index) for index in range(num_blocks)]
    return [scale * config.backbone_rate for scale in scales[:-1]] + scales[-1:]


def make_parameter_groups(
    network: torch.nn.Module, blocks: Sequence[Sequence[str]], config: TrainConfig
) -> list[dict[str, Any]]:
    """Return parameter groups with `scale`, a share of the learning rate, and `weight_decay`."""
    parameters = dict(network.named_parameters())
    no_weight_decay = getattr(network, "no_weight_decay", None)
    undecayed = set(no_weight_decay()) if callable(no_weight_decay) else set()
    groups: dict[tuple[float, float], list[Any]] = {}
    for names, scale in zip(blocks, compute_rate_scales(config, len(blocks)), strict=True):
        for name in names:
            decay = config.weight_decay if name not in undecayed and _is_matrix(name, parameters[name]) else 0.0
            groups.setdefault((scale, decay), []).append(parameters[name])
    return [{"params": group, "scale": scale, "weight_decay": decay} for (scale, decay), group in groups.items()]


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter multiplies its input as a matrix: no bias, scale by channel or embedding does."""
    dimensions = sum(size > 1 for size in parameter.shape)
    return name.rpartition(".")[2] not in _EMBEDDINGS and (dimensions > 1 or parameter.ndim == 2)


def make_optimizer(
    network: torch.nn.Module, blocks: Sequence[Sequence[str]], config: TrainConfig
) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with Nesterov's momentum, over all parameters. Frozen ones have no gradient, and so are left
    as they are."""
    import torch

    groups = make_parameter_groups(network, blocks, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)
    # One kernel for all parameters: on two cores a step of ResNet-18 takes 12 ms so, and 45 ms tensor by tensor.
    fused = next(network.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused or None)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the head, and that of every group to its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def count_trainable_blocks(config: TrainConfig, num_blocks: int, epoch: int) -> int:
    """Return the number of blocks, counted from the head, that are trained in `epoch` (0-based).

    1 in the first `probe_epochs`, all after `unfreeze_epochs` more. Always all without pretrained weights.
    """
    if not config.weights or epoch >= config.probe_epochs + config.unfreeze_epochs:
        return num_blocks
    if epoch < config.probe_epochs:
        return 1
    return 1 + math.ceil((num_blocks - 1) * (epoch - config.probe_epochs + 1) / (config.unfreeze_epochs + 1))


def freeze_all_but_last(network: torch.nn.Module, blocks: Sequence[Sequence[str]], number: int) -> None:
    """Set training mode for the last `number` blocks, and freeze all others: they get no gradients and no dropout, and
    their normalizations keep their statistics."""
    trainable = {name for block in blocks[len(blocks) - number :] for name in block}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
    network.train()
    _set_frozen_modules_to_eval(network)


def _set_frozen_modules_to_eval(module: torch.nn.Module) -> None:
    """Set evaluation mode for the largest modules whose parameters are all frozen."""
    trainable = [parameter.requires_grad for parameter in module.parameters()]
    if trainable and not any(trainable):
        module.eval()
        return
    for child in module.children():
        _set_frozen_modules_to_eval(child)


class MovingAverage:
    """An exponential moving average of a network's weights and buffers.

    Averaged weights lie nearer to the middle of where training wanders (Polyak and Juditsky, "Acceleration of
    stochastic approximation by averaging", 1992). The decay rises with the updates t as (1 + t)/(10 + t), as
    TensorFlow's ExponentialMovingAverage does it, so that a short training is not ruled by its random start.

    Attributes:
        network: a copy in evaluation mode that holds the averages, in float32 as the network itself.
        updates: values averaged so far.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    def get_decay(self) -> float:
        """Return the decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def update(self, network: torch.nn.Module) -> None:
        """Set average ← decay · average + (1 - decay) · weights; copy integers (counts of normalizations)."""
        import torch
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        averages, values = [], []
        with torch.no_grad():
            for average, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
                if average.is_floating_point():
                    averages.append(average)
                    values.append(value.detach())
                else:
                    average.copy_(value)
        get_ema_multi_avg_fn(self.get_decay())(averages, values, None)  # type: ignore[no-untyped-call]
        self.updates += 1
