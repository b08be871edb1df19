"""Single-label and multi-label tasks: their column, targets, loss and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..storage.errors import MillError

if TYPE_CHECKING:
    import torch

SINGLE, MULTI = "single", "multi"
THRESHOLD = 0.5
"""Probability from which on a class of a multi-label image counts as predicted."""


def label_column(task: str) -> str:
    """Return the column of labels: `label_id` int32, or `label_ids` list<int32> where an image has several labels."""
    return "label_ids" if task == MULTI else "label_id"


def multi_hot(rows: Sequence[Sequence[int]], classes: int) -> npt.NDArray[np.uint8]:
    """Encode the ids of each row as uint8 [rows, classes], 1 at every id of the row and 0 elsewhere."""
    hot = np.zeros((len(rows), classes), np.uint8)
    lengths = np.array([len(ids) for ids in rows], np.int64)
    ids = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        raise MillError(f"label_ids: expected ids below {classes}, found {int(ids.min())} to {int(ids.max())}")
    hot[np.repeat(np.arange(len(rows)), lengths), ids] = 1
    return hot


def sum_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the loss of logits float [B, C], summed over the batch's images.

    Labels int64 [B]: cross-entropy. Labels [B, C] of zeros and ones: the mean over the classes of the binary
    cross-entropy of each.
    """
    from torch.nn import functional

    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, reduction="sum").item()
    targets = labels.to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum").item() / logits.shape[1]


def probabilities(logits: torch.Tensor, task: str) -> torch.Tensor:
    """Return float [B, C] in [0, 1]: softmax for single-label models, a sigmoid of each logit for multi-label ones."""
    return logits.sigmoid() if task == MULTI else logits.softmax(1)
