"""The loader for anybody's training loop: `from imagemill.components.train import loader`.

`TensorBatches` is a PyTorch `IterableDataset` of whole batches, `TensorImages` a map-style `Dataset` of single images,
and `batches` what both and the trainer stand on: NumPy arrays, without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .batches import Batch, batches, steps

if TYPE_CHECKING:
    from .datasets import TensorBatches, TensorImages

__all__ = ["Batch", "TensorBatches", "TensorImages", "batches", "steps"]


def __getattr__(name: str) -> Any:
    """`TensorBatches` and `TensorImages`, which need torch; batches do not."""
    if name in ("TensorBatches", "TensorImages"):
        from . import datasets

        return getattr(datasets, name)
    raise AttributeError(name)
