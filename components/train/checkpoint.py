"""Two alternating checkpoints below the model's `_work/`: a killed training goes on at its last whole epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..store import uri as uris
from ..store.filesystem import store_for

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

SLOTS = ("checkpoint-a.safetensors", "checkpoint-b.safetensors")


@dataclass
class TrainingState:
    """Where a training is after `epoch` whole epochs: the history so far and the best epoch's weights."""

    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: State = field(default_factory=dict)


def save_checkpoint(uri: str, state: TrainingState, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Everything that the next epoch depends on, as one safetensors object in the slot that is not the newest."""
    from safetensors.torch import save

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    about = {"epoch": state.epoch, "history": state.history, "best_epoch": state.best_epoch}
    data = save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, {"imagemill": json.dumps(about)}
    )
    slot = uris.join(uri, "_work", SLOTS[state.epoch % 2])
    store_for(slot).put(slot, data)


def load_checkpoint(uri: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """The newest whole checkpoint, loaded into both; a fresh state where there is none."""
    found = [c for slot in SLOTS if (c := _read(uris.join(uri, "_work", slot))) is not None]
    if not found:
        return TrainingState()
    about, tensors = max(found, key=lambda c: c[0]["epoch"])
    parts: dict[str, State] = {"network": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    network.load_state_dict(parts["network"])
    optimizer.load_state_dict(
        {"state": _optimizer_state(parts["optimizer"]), "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return TrainingState(about["epoch"], about["history"], about["best_epoch"], parts["best"])


def discard_checkpoints(uri: str) -> None:
    """After the model is committed: two checkpoints are eight times its size, and nobody reads them again."""
    for slot in SLOTS:
        store_for(uri).discard(uris.join(uri, "_work", slot))


def _optimizer_state(flat: State) -> dict[int, State]:
    state: dict[int, State] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return state


def _read(uri: str) -> tuple[dict[str, Any], State] | None:
    """(description, tensors), or None for no checkpoint or one that is not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = store_for(uri).read(uri)
        tensors: State = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["imagemill"]), tensors
    except (FileNotFoundError, SafetensorError, ValueError, KeyError):
        return None
