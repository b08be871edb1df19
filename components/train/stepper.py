"""One batch after another through the network: forward, backward, and a step of the optimizer when enough are there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.errors import wrong
from .checkpoint import Learner, TrainingState
from .config import TrainConfig
from .losses import Loss
from .optimizer import Schedule, set_rate
from .ranks import Ranks
from .thaw import set_learning

if TYPE_CHECKING:
    import torch

COMPILE_FROM = 3000
"""Steps from which `compile: auto` is worth the minute or two that it takes."""


@dataclass
class Stepper:
    """Makes steps with the gradient of the mean loss of `accumulate` batches, over the images of all ranks.

    `blocks` of parameter names from the input to the head; `shape` [C, H, W] of an image. What is random in a network
    (dropout, stochastic depth) draws from torch's generator, which is seeded by (seed, epoch, batch, rank) before each
    batch: so nothing of it needs to be kept to go on in the middle of an epoch.
    """

    learner: Learner
    blocks: Sequence[Sequence[str]]
    loss: Loss
    schedule: Schedule
    config: TrainConfig
    device: torch.device
    ranks: Ranks
    autocast: Callable[[], AbstractContextManager[Any]]
    shape: tuple[int, int, int]
    _learning: int = 0
    _forward: Any = None
    _parallel: Any = None
    _unreached: list[str] = field(default_factory=list)
    _images: int = 0

    def begin(self, learning: int) -> None:
        """An epoch in which so many blocks, from the head on, learn. Gradients of the others are not even computed."""
        network = self.learner.network
        set_learning(network, self.blocks, learning)
        if self.ranks.number > 1 and not self._forward:
            self._unreached = _without_gradient(network, self.shape, self.device)
        for name, value in network.named_parameters():
            if name in self._unreached:
                value.requires_grad_(False)
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._images = 0
        if learning != self._learning:
            self._learning, self._forward = learning, self._wrapped(network)

    def _wrapped(self, network: torch.nn.Module) -> Any:
        """The network as it is called: by ranks, and compiled. Its weights stay where they are, under their names."""
        import torch

        forward: Any = network
        if self.ranks.number > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            with self.ranks.step():
                forward = self._parallel = torch.nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        if compiles(self.config, self.device, self.schedule.steps):
            torch._dynamo.reset()
            if self.config.compile == "auto":  # what can't be compiled runs as it is
                torch._dynamo.config.suppress_errors = True
            forward = torch.compile(forward, dynamic=False)
        return forward

    def add(
        self, images: torch.Tensor, targets: torch.Tensor, place: tuple[int, int], total: int, ends: bool, updates: int
    ) -> torch.Tensor:
        """The gradient of a batch (this rank's share of its `total` images, float [B, C, H, W]), and, where it `ends` a
        group, a step: the optimizer's number `updates`, from 0. `place`: (epoch, number of the batch).

        The batch's summed loss, float64, is left on the device, so that nothing waits for it.
        """
        import torch

        torch.manual_seed(_seed(self.config.seed, *place, self.ranks.rank))
        planned = total if self.config.accumulate == 1 else self.config.accumulate * self.config.batch_size
        waits = self._parallel is not None and not ends
        with self._parallel.no_sync() if waits else contextlib.nullcontext(), self.ranks.step():
            with self.autocast():
                logits = self._forward(images)
            loss = self.loss(logits.float(), targets)
            mean = loss * (self.ranks.number / planned)  # DistributedDataParallel takes the mean over the ranks
            if self.learner.scaler:
                mean = self.learner.scaler.scale(mean)
            mean.backward()  # type: ignore[no-untyped-call]
        self._images += total
        if ends:
            self._step(planned, updates)
        return loss.detach().double()

    def _step(self, planned: int, updates: int) -> None:
        """A step by the gradients at hand, which were divided by `planned` images."""
        import torch

        learner = self.learner
        set_rate(learner.optimizer, self.schedule.rate(updates))
        if learner.scaler:
            learner.scaler.unscale_(learner.optimizer)
        if self._images != planned:  # the last group of an epoch
            gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, planned / self._images)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(learner.network.parameters(), self.config.clip_norm)
        if learner.scaler:
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
        else:
            learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        self._images = 0
        if learner.average:
            learner.average.update(learner.network)

    def rate(self, state: TrainingState) -> float:
        """The head's learning rate of the last step."""
        return self.schedule.rate(max(0, state.updates - 1))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _without_gradient(network: torch.nn.Module, shape: tuple[int, int, int], device: torch.device) -> list[str]:
    """Parameters that the logits do not depend on: DistributedDataParallel would wait for their gradients."""
    import torch

    modes = {module: module.training for module in network.modules()}
    learning = {name: value.requires_grad for name, value in network.named_parameters()}
    network.eval().requires_grad_(True)
    try:
        network(torch.zeros(2, *shape, device=device)).sum().backward()
        return [name for name, value in network.named_parameters() if value.grad is None]
    finally:
        network.zero_grad(set_to_none=True)
        for module, training in modes.items():
            module.training = training
        for name, value in network.named_parameters():
            value.requires_grad_(learning[name])


def compiles(config: TrainConfig, device: torch.device, steps: int) -> bool:
    """Whether torch.compile is used: where it is asked for, and by itself on a GPU for long trainings."""
    if config.compile != "auto":
        return config.compile == "true"
    return device.type == "cuda" and steps >= COMPILE_FROM


def arithmetic(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that matrix products are computed in, None: float32 as everything else. `auto`: bfloat16 where the
    device has it in hardware (GPUs since Ampere, CPUs with AMX). UserError for float16 without a GPU, whose gradients
    are scaled for it."""
    import torch

    if precision == "float16" and device.type != "cuda":
        raise wrong("precision", "float16 only on a GPU; bfloat16 or float32", precision)
    if precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if supported() else None
