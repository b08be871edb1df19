"""Checkpoints of a training: two alternating objects below the model's `_work/`, to resume from also within an epoch.

A checkpoint is one safetensors object: weights, the optimizer's moments, the moving average and the best epoch's
weights, so up to five times the model with AdamW (ResNet-50: 0.5 GB, twice of which lies in memory while it is
written). On S3 it is one object of at most 5 GB, so of 250 million parameters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ...storage import uri as uris
from ...storage.store import get_store
from .optimizer import MovingAverage

if TYPE_CHECKING:
    import torch

    from .domain_adversary import DomainAdversary

    State = dict[str, torch.Tensor]

SLOTS = ("checkpoint-a.safetensors", "checkpoint-b.safetensors")


@dataclass
class TrainingState:
    """Position and results of a training. Fields that are no tensors are stored in checkpoints under their names.

    torch's generator is not part of it: it is seeded before every batch.

    Attributes:
        epoch: whole epochs done.
        batches: batches done of the current epoch.
        updates: optimizer steps taken.
        images: images seen in the current epoch, on all ranks.
        seconds: time spent in the current epoch.
        waiting: seconds of that in which the loop waited for data.
        number: checkpoints saved.
        planned_epochs: as `Trainer.epochs`; 0 before any plan.
        planned_batches: of each epoch; 0 for all.
        round_start: epochs done when the learning rate last rose from zero.
        history: a row for each epoch done.
        best_weights: of epoch `best_epoch`, on the CPU; the main process has them.
        loss_sum: sum of the losses of this rank's images in the current epoch, float64 on the device.
    """

    epoch: int = 0
    batches: int = 0
    updates: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    number: int = 0
    planned_epochs: int = 0
    planned_batches: int = 0
    round_start: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: State = field(default_factory=dict)
    loss_sum: torch.Tensor | None = None

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row to the history, and reset the counts of the current epoch."""
        self.history.append(row)
        self.epoch += 1
        self.batches = self.images = 0
        self.loss_sum, self.seconds, self.waiting = None, 0.0, 0.0


@dataclass
class Learner:
    """The objects that an optimizer step changes, and a checkpoint holds: network, optimizer, moving average, gradient
    scaler and domain classifier."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None = None
    scaler: torch.amp.GradScaler | None = None
    adversary: DomainAdversary | None = None

    @property
    def modules(self) -> list[torch.nn.Module]:
        """Return the modules that the optimizer changes."""
        return [self.network, *([self.adversary.classifier] if self.adversary else [])]


def save_checkpoint(uri: str, state: TrainingState, learner: Learner) -> None:
    """Write a checkpoint of the model at `uri` over the older one of the two."""
    from safetensors.torch import save

    state.number += 1
    tensors = {f"network.{name}": value for name, value in learner.network.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    if learner.average:
        tensors |= {f"average.{name}": value for name, value in learner.average.network.state_dict().items()}
    if learner.adversary:
        tensors |= {f"domain.{name}": value for name, value in learner.adversary.state_dict().items()}
    for index, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items() if value is not None}
    if state.loss_sum is not None:
        tensors["loss.sum"] = state.loss_sum
    metadata: dict[str, Any] = {
        f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("best_weights", "loss_sum")
    }
    metadata["scaler"] = learner.scaler.state_dict() if learner.scaler else {}
    data = save(_copy_to_cpu(tensors), {"imagemill": json.dumps(metadata)})
    slot = uris.join(uri, "_work", SLOTS[state.number % 2])
    get_store(slot).put(slot, data)


def _copy_to_cpu(tensors: State) -> State:
    """Return tensors as safetensors takes them: contiguous, and no two (tied weights) in the same memory."""
    copies: State = {}
    addresses: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        copies[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return copies


def load_checkpoint(uri: str, learner: Learner) -> TrainingState:
    """Load the newest complete checkpoint into the learner and return its state; a fresh state without one."""
    checkpoints = [c for slot in SLOTS if (c := _read(uris.join(uri, "_work", slot))) is not None]
    if not checkpoints:
        return TrainingState()
    metadata, tensors = max(checkpoints, key=lambda checkpoint: checkpoint[0]["number"])
    parts: dict[str, State] = {"network": {}, "best": {}, "optimizer": {}, "average": {}, "loss": {}, "domain": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    learner.network.load_state_dict(parts["network"])
    _load_optimizer(learner.optimizer, parts["optimizer"])
    scaler = metadata.pop("scaler")
    if learner.average:
        learner.average.network.load_state_dict(parts["average"])
        learner.average.updates = metadata["updates"]
    if learner.adversary:
        learner.adversary.load_state_dict(parts["domain"])
    if learner.scaler and scaler:
        learner.scaler.load_state_dict(scaler)
    device = next(learner.network.parameters()).device
    loss_sum = parts["loss"]["sum"].to(device) if parts["loss"] else None
    return TrainingState(**metadata, best_weights=parts["best"], loss_sum=loss_sum)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: State) -> None:
    """Load each parameter's moments, in the parameter's memory format. Frozen parameters have none."""
    import torch

    state: dict[int, State] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim == 4:
                moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def discard_checkpoints(uri: str) -> None:
    """Delete the checkpoints of a committed model: they take ten times its size, and nobody reads them again."""
    for slot in SLOTS:
        get_store(uri).discard(uris.join(uri, "_work", slot))


def _read(uri: str) -> tuple[dict[str, Any], State] | None:
    """Return (metadata, tensors) of a checkpoint, None where there is none or it is incomplete."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = get_store(uri).read(uri)
        tensors: State = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"]["imagemill"])
        metadata["number"]  # checkpoints of older versions have none
        return metadata, tensors
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
        return None
