"""Forward and backward of one batch after another, and an optimizer step after every group of `accumulate` batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compat import has_amx, run_what_cannot_be_compiled
from ...models.blocks import evaluation_mode
from ...storage.errors import wrong
from ..config import TrainConfig
from .checkpoint import Learner
from .distributed import Communicator
from .losses import Loss
from .optimizer import LearningRateSchedule, freeze_all_but_last, set_learning_rate
from .training_batches import TrainingBatch

if TYPE_CHECKING:
    import torch

MIN_COMPILED_UPDATES = 3000
"""Optimizer steps from which `compile: auto` is worth the minute or two that it takes."""


@dataclass
class Stepper:
    """A maker of optimizer steps on the mean loss over the images of `accumulate` batches and of all ranks.

    Dropout and stochastic depth draw from torch's generator, which is seeded by (seed, epoch, batch, rank) before each
    batch: so a checkpoint in the middle of an epoch needs no generator's state.

    Args:
        blocks: parameter names by block, from the input to the head.
        autocast: makes the context in which the network computes.
        shape: [C, H, W] of an image.
    """

    learner: Learner
    blocks: Sequence[Sequence[str]]
    loss: Loss
    schedule: LearningRateSchedule
    config: TrainConfig
    device: torch.device
    comm: Communicator
    autocast: Callable[[], AbstractContextManager[Any]]
    shape: tuple[int, int, int]
    _trainable_blocks: int = 0
    _forward: Any = None
    _parallel: Any = None
    _unused: list[str] = field(default_factory=list)
    _images: int = 0

    def begin_epoch(self, trainable_blocks: int) -> None:
        """Prepare an epoch that trains the last `trainable_blocks` blocks; no gradients of others are computed."""
        network = self.learner.network
        freeze_all_but_last(network, self.blocks, trainable_blocks)
        if self.comm.world_size > 1 and not self._forward:
            self._unused = _find_unused_parameters(network, self.shape, self.device)
        for name, parameter in network.named_parameters():
            if name in self._unused:
                parameter.requires_grad_(False)
        self.learner.optimizer.zero_grad(set_to_none=True)
        self._images = 0
        if trainable_blocks != self._trainable_blocks:
            self._trainable_blocks, self._forward = trainable_blocks, self._wrap(network)

    def _wrap(self, network: torch.nn.Module) -> Any:
        """Return the network to call, distributed and compiled; it shares the network's parameters."""
        import torch

        forward: Any = self.learner.adversary.module if self.learner.adversary else network
        if self.comm.world_size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            with self.comm.catch_lost_peers():
                forward = self._parallel = torch.nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        if should_compile(self.config, self.device, self.schedule.steps):
            torch.compiler.reset()
            if self.config.compile == "auto":
                run_what_cannot_be_compiled()
            forward = torch.compile(forward, dynamic=False)
        return forward

    def train_batch(self, batch: TrainingBatch, epoch: int, is_update: bool, updates: int) -> torch.Tensor:
        """Add the gradient of a batch of an epoch (from 0), and take an optimizer step where `is_update`.

        `updates`: optimizer steps taken before. Returns the summed loss of the labels, float64, on the device, so that
        nothing waits for it.
        """
        import torch

        torch.manual_seed(_combine_seeds(self.config.seed, epoch, batch.number, self.comm.rank))
        one_batch, adversary = self.config.accumulate == 1, self.learner.adversary
        group_images = batch.total if one_batch else self.config.accumulate * self.config.batch_size
        defers_sync = self._parallel is not None and not is_update
        with self._parallel.no_sync() if defers_sync else contextlib.nullcontext(), self.comm.catch_lost_peers():
            with self.autocast():
                if adversary:
                    logits, domain_loss = adversary.forward(self._forward, batch, updates / self.schedule.steps)
                else:
                    logits, domain_loss = self._forward(batch.images), 0.0
            loss = self.loss(logits.float(), batch.targets)
            # DistributedDataParallel takes the mean over the ranks.
            mean = (loss + domain_loss) * (self.comm.world_size / group_images)
            if self.learner.scaler:
                mean = self.learner.scaler.scale(mean)
            mean.backward()  # type: ignore[no-untyped-call]
        self._images += batch.total
        if is_update:
            self._update(group_images, updates)
        return loss.detach().double()

    def _update(self, group_images: int, updates: int) -> None:
        """Take an optimizer step by the gradients, which were divided by `group_images`."""
        import torch

        learner = self.learner
        set_learning_rate(learner.optimizer, self.schedule.rate(updates))
        if learner.scaler:
            learner.scaler.unscale_(learner.optimizer)
        if self._images != group_images:  # the last group of an epoch
            for parameter in (parameter for module in learner.modules for parameter in module.parameters()):
                if parameter.grad is not None:
                    parameter.grad.mul_(group_images / self._images)
        if self.config.clip_norm:
            for module in learner.modules:
                torch.nn.utils.clip_grad_norm_(module.parameters(), self.config.clip_norm)
        if learner.scaler:
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
        else:
            learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
        self._images = 0
        if learner.average:
            learner.average.update(learner.network)

    def get_last_rate(self, updates: int) -> float:
        """Return the head's learning rate in the last of `updates` optimizer steps."""
        return self.schedule.rate(max(0, updates - 1))


def _combine_seeds(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1)


def _find_unused_parameters(network: torch.nn.Module, shape: tuple[int, int, int], device: torch.device) -> list[str]:
    """Return parameters that the logits do not depend on: DistributedDataParallel would wait for their gradients."""
    import torch

    requires_grad = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    network.requires_grad_(True)
    with evaluation_mode(network):
        network(torch.zeros(2, *shape, device=device)).sum().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    network.zero_grad(set_to_none=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(requires_grad[name])
    return unused


def should_compile(config: TrainConfig, device: torch.device, updates: int) -> bool:
    """Return whether to use torch.compile: as configured; `auto` on a GPU for at least `MIN_COMPILED_UPDATES`."""
    if config.compile != "auto":
        return config.compile == "true"
    return device.type == "cuda" and updates >= MIN_COMPILED_UPDATES


def choose_autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of matrix products, None for float32.

    `auto`: bfloat16 where the device has it in hardware (GPUs since Ampere, CPUs with AMX). UserError for float16
    without a GPU, whose gradients are scaled for it.
    """
    import torch

    if precision == "float16" and device.type != "cuda":
        raise wrong("precision", "float16 only on a GPU; bfloat16 or float32", precision)
    if precision != "auto":
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if has_amx() else None
