"""Two alternating checkpoints below the model's `_work/`: a killed training goes on at its last one, in mid-epoch too.

A checkpoint is one safetensors object: weights, the optimizer's moments, the moving average and the best epoch's
weights, so up to five times the model with AdamW (ResNet-50: 0.5 GB, twice of which lies in memory while it is
written). On S3 it is one object of at most 5 GB, so of 250 million parameters.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..store import uri as uris
from ..store.filesystem import get_store
from .moving_average import MovingAverage

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

SLOTS = ("checkpoint-a.safetensors", "checkpoint-b.safetensors")


@dataclass
class TrainingState:
    """Where a training is: after `epoch` whole epochs, `batches` of the next one and `updates` of the optimizer.

    `loss` is the sum over the `images` of this epoch so far, float64 on the device; `seconds` and `waiting` are the
    time that it took, and of that what was waited for data. `number` counts checkpoints. torch's generator is no part:
    it is seeded before every batch.
    """

    epoch: int = 0
    batches: int = 0
    updates: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    number: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: State = field(default_factory=dict)
    loss: torch.Tensor | None = None


@dataclass
class Learner:
    """What learns: everything that a step changes, but for the `TrainingState`."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None = None
    scaler: torch.amp.GradScaler | None = None


def save_checkpoint(uri: str, state: TrainingState, learner: Learner) -> None:
    """Everything that the next step depends on, in the slot that is not the newest."""
    from safetensors.torch import save

    state.number += 1
    tensors = {f"network.{k}": v for k, v in learner.network.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    if learner.average:
        tensors |= {f"average.{k}": v for k, v in learner.average.network.state_dict().items()}
    for index, values in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items() if v is not None}
    if state.loss is not None:
        tensors["loss.sum"] = state.loss
    about = {k: v for k, v in asdict(_without_tensors(state)).items() if k not in ("best", "loss")}
    about["scaler"] = learner.scaler.state_dict() if learner.scaler else {}
    data = save(_on_cpu(tensors), {"imagemill": json.dumps(about)})
    slot = uris.join(uri, "_work", SLOTS[state.number % 2])
    get_store(slot).put(slot, data)


def _without_tensors(state: TrainingState) -> TrainingState:
    return TrainingState(**{**vars(state), "best": {}, "loss": None})


def _on_cpu(tensors: State) -> State:
    """As safetensors takes them: contiguous, and no two in the same memory (tied weights)."""
    found: State = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        here = value.detach().cpu().contiguous()
        found[key] = here.clone() if here.data_ptr() in seen else here
        seen.add(here.data_ptr())
    return found


def load_checkpoint(uri: str, learner: Learner) -> TrainingState:
    """The newest whole checkpoint, loaded into all that learns; a fresh state where there is none."""
    found = [c for slot in SLOTS if (c := _read(uris.join(uri, "_work", slot))) is not None]
    if not found:
        return TrainingState()
    about, tensors = max(found, key=lambda c: c[0]["number"])
    parts: dict[str, State] = {"network": {}, "best": {}, "optimizer": {}, "average": {}, "loss": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    learner.network.load_state_dict(parts["network"])
    _load_optimizer(learner.optimizer, parts["optimizer"])
    scaler = about.pop("scaler")
    if learner.average:
        learner.average.network.load_state_dict(parts["average"])
        learner.average.steps = about["updates"]
    if learner.scaler and scaler:
        learner.scaler.load_state_dict(scaler)
    device = next(learner.network.parameters()).device
    loss = parts["loss"]["sum"].to(device) if parts["loss"] else None
    return TrainingState(**about, best=parts["best"], loss=loss)


def _load_optimizer(optimizer: torch.optim.Optimizer, flat: State) -> None:
    """Each parameter's moments, in the order of memory that it has itself. Frozen parameters have none."""
    import torch

    state: dict[int, State] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.ndim == 4:
                values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def discard_checkpoints(uri: str) -> None:
    """After the model is committed: two checkpoints are ten times its size, and nobody reads them again."""
    for slot in SLOTS:
        get_store(uri).discard(uris.join(uri, "_work", slot))


def _read(uri: str) -> tuple[dict[str, Any], State] | None:
    """(description, tensors), or None for no checkpoint or one that is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = get_store(uri).read(uri)
        tensors: State = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header["__metadata__"]["imagemill"])
        about["number"]  # what an older imagemill wrote has none
        return about, tensors
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError):
        return None
