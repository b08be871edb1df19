"""The loss of a batch, with hard, mixed or smoothed targets, and weights that balance classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...dataset.index import read_index
from ...dataset.labels import MULTI, label_column
from ...dataset.manifest import Dataset
from ...storage.errors import UserError
from ..config import TrainConfig

if TYPE_CHECKING:
    import torch

MAX_POSITIVE_WEIGHT = 100.0
"""Largest weight of a positive label: with a handful of images a rare class's loss would else be nothing but those."""
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """The sum over a batch's images of their losses, from logits float [B, C].

    Of images with one label: cross-entropy with targets int64 [B], or float [B, C] that add up to 1 where images were
    mixed. Of images with several: the mean over the classes of the binary cross-entropy with targets [B, C] in [0, 1].

    Args:
        task: of the manifest, single or multi.
        smoothing: share s of each target that is spread over all classes; of several labels it moves the target y to
            y(1 - s) + s/2 (Szegedy et al., "Rethinking the Inception Architecture", 2015).
        weights: float [C] on the device, of each class's term; of several labels only of the terms of positive ones.
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


def balance_classes(tensors: Dataset, config: TrainConfig, device: torch.device) -> tuple[Loss, Weights | None]:
    """Return the loss, and the sampling weight of each class, float64 [classes]: None to read every image once."""
    import torch

    task = tensors.manifest.task
    if config.class_balance == "sampling":
        if task == MULTI:
            raise UserError(
                "class_balance: expected weights or none where images have several labels, found 'sampling'"
            )
        return Loss(task, config.label_smoothing), compute_inverse_frequencies(count_labels(tensors))
    if config.class_balance != "weights":
        return Loss(task, config.label_smoothing), None
    counts = count_labels(tensors)
    if task == MULTI:
        weights = compute_positive_weights(counts, tensors.manifest.totals.by_split["train"])
    else:
        weights = compute_inverse_frequencies(counts)
    return Loss(task, config.label_smoothing, torch.tensor(weights, dtype=torch.float32, device=device)), None


def compute_inverse_frequencies(counts: npt.NDArray[np.int64]) -> Weights:
    """Return a weight for each class in inverse proportion to its images, float64 [classes].

    1 on average of the images; 0 for a class without images.
    """
    present = counts > 0
    inverses: Weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=present)
    weights: Weights = inverses * (counts.sum() / max(1, int(present.sum())))
    return weights


def count_labels(tensors: Dataset) -> npt.NDArray[np.int64]:
    """Return the number of training images of each class, int64 [classes]."""
    name = label_column(tensors.manifest.task)
    column = read_index(tensors, [name], "train").column(name).combine_chunks()
    ids = np.asarray(column.flatten() if tensors.manifest.task == MULTI else column)
    return np.bincount(ids, minlength=len(tensors.manifest.classes))


def compute_positive_weights(counts: npt.NDArray[np.int64], images: int) -> Weights:
    """Return the weight of each class's positive labels, float64 [classes].

    It is the ratio of the images without the label to those with it, from 1 to `MAX_POSITIVE_WEIGHT`; 1 for a class
    without images.
    """
    ratios = np.divide(images - counts, counts, out=np.ones(len(counts)), where=counts > 0)
    return np.clip(ratios, 1.0, MAX_POSITIVE_WEIGHT)
