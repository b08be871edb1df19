"""The loss of a batch, with hard or mixed targets, smoothed or not, and with classes that weigh more than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI, label_column
from ..store.manifest import Dataset
from ..store.shards import read_columns

if TYPE_CHECKING:
    import torch

MOST = 100.0
"""What the rarest class of images with several labels weighs at most: with a handful of images a class's loss would
else be nothing but those."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """The sum over a batch's images of their losses, from logits float [B, C].

    Targets int64 [B], or float [B, C] that add up to 1 where images were mixed: cross-entropy. Of images with several
    labels, [B, C] in [0, 1]: the mean over the classes of the binary cross-entropy of each. Smoothing s spreads a share
    of each target over all classes; of a label that is there or not it moves the target y to y(1 - s) + s/2 (Szegedy et
    al., "Rethinking the Inception Architecture", 2015). `weights` float [C] on the device, or None: of each class's
    term; of images with several labels only of the terms of the labels that are there.
    """

    task: str
    smoothing: float = 0.0
    weights: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if self.task != MULTI:
            return functional.cross_entropy(
                logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing
            )
        smoothed = targets.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        terms = functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=self.weights, reduction="sum")
        return terms / logits.shape[1]


def class_counts(tensors: Dataset) -> npt.NDArray[np.int64]:
    """How many training images each class has, int64 [classes]: from the column of labels, a row group at a time."""
    column = label_column(tensors.manifest.task)
    counts = np.zeros(len(tensors.manifest.classes), np.int64)
    for table in read_columns(tensors, "data", [column], "train"):
        found = table.column(column).combine_chunks()
        ids = found.flatten() if tensors.manifest.task == MULTI else found
        counts += np.bincount(ids.to_numpy(zero_copy_only=False), minlength=len(counts))
    return counts


def inverse_frequency(counts: npt.NDArray[np.int64]) -> Numbers:
    """A weight for each class, float64 [classes], in inverse proportion to its images, 1 on average of the images;
    0 for a class that has none."""
    present = counts > 0
    rare: Numbers = np.divide(1.0, counts, out=np.zeros(len(counts)), where=present)
    weights: Numbers = rare * (counts.sum() / max(1, int(present.sum())))
    return weights


def positive_weights(counts: npt.NDArray[np.int64], images: int) -> Numbers:
    """What a label that is there weighs, float64 [classes]: as much as all images without it weigh together, from 1 to
    `MOST`; 1 for a class that no image has."""
    without = np.divide(images - counts, counts, out=np.ones(len(counts)), where=counts > 0)
    return np.clip(without, 1.0, MOST)
