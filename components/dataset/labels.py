"""Single-label and multi-label tasks: their column, targets, loss and probabilities; class lists under new names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def translate_classes(
    classes: Sequence[str], label_map: Mapping[str, str]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return a class list under the new names of `label_map` (by old name), and int64 [classes]: the index in it of
    each class. Several classes under one name are one, at the place of the first."""
    renamed = [label_map.get(name, name) for name in classes]
    index = {name: number for number, name in enumerate(dict.fromkeys(renamed))}
    return tuple(index), np.array([index[name] for name in renamed], np.int64)


def merge_logits(logits: torch.Tensor, columns: npt.NDArray[np.int64], task: str) -> torch.Tensor:
    """Return logits float [B, names] of logits float [B, C] of a model whose class c is the name `columns[c]`.

    The probabilities of a single-label model add up; of a multi-label one the highest counts.
    """
    import torch

    names = int(columns.max()) + 1
    if names == len(columns):  # `translate_classes` keeps the order
        return logits
    groups = (logits[:, torch.from_numpy(columns == name).to(logits.device)] for name in range(names))
    return torch.stack([group.amax(1) if task == MULTI else group.logsumexp(1) for group in groups], 1)


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
