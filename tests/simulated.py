"""Simulated predictions of models whose true scores are known, for tests and benchmarks of the statistics.

A wrong prediction falls on the next class in 70% of cases (classes are confused with some others more than with the
rest) and on any other class otherwise. Two models agree: an image gets the same prediction from both with the
probability `agreement`, else each one's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from imagemill.components.promote.pairs import Assignments, PairedPredictions

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NEAR = 0.7


def equal_counts(classes: int, images: int) -> Ids:
    """`images` in all, the same number in each class, as far as they go."""
    return np.full(classes, images // classes) + (np.arange(classes) < images % classes)


def zipf_counts(classes: int, images: int) -> Ids:
    """`images` in all, about, the k-th class with 1/k of the first one's, and no class empty."""
    share = 1 / np.arange(1, classes + 1)
    return np.maximum(1, np.round(images * share / share.sum())).astype(np.int64)


def geometric_counts(classes: int, low: int, high: int) -> Ids:
    """Return counts from `low` to `high` images, each class with the same factor more than the one before."""
    return np.round(np.geomspace(low, high, classes)).astype(np.int64)


def labels_of(counts: Ids) -> Ids:
    return np.repeat(np.arange(len(counts)), counts)


def predict(labels: Ids, error: Floats, random: np.random.Generator) -> Ids:
    """Predictions of `labels`, [images], with the probability of an error by class, [classes]."""
    classes, images = len(error), len(labels)
    next_class = (labels + 1) % classes
    any_other = (labels + random.integers(1, max(2, classes), images)) % classes
    wrong = np.where(random.random(images) < NEAR, next_class, any_other)
    return np.where(random.random(images) < error[labels], wrong, labels)


def true_scores(counts: Ids, error: Floats) -> dict[str, float]:
    """The scores of such a model on infinitely many images, with classes as frequent as `counts`."""
    classes = len(counts)
    rates = np.outer(error, np.full(classes, (1 - NEAR) / max(1, classes - 1)))
    rates[np.arange(classes), (np.arange(classes) + 1) % classes] += NEAR * error
    rates[np.arange(classes), np.arange(classes)] = 1 - error
    recall, predicted = 1 - error, counts @ rates
    return {
        "top1": float((counts * recall).sum() / counts.sum()),
        "macro_f1": float((2 * counts * recall / (counts + predicted)).mean()),
        "balanced_accuracy": float(recall.mean()),
    }


@dataclass(frozen=True)
class Models:
    """Models that agree on `agreement` of the images with what all of them share, drawn once for these `labels`."""

    labels: Ids
    error: Floats
    agreement: float
    shared: Ids

    @classmethod
    def draw(cls, counts: Ids, error: Floats, agreement: float, random: np.random.Generator) -> Models:
        labels = labels_of(counts)
        return cls(labels, error, agreement, predict(labels, error, random))

    def model(self, random: np.random.Generator, gain: float | Floats = 0.0) -> Ids:
        """Predictions of one more model, whose true recall is higher by `gain`, in each class or by class."""
        error = np.clip(self.error - gain / (1 - self.agreement), 0.0, 1.0)
        shares = random.random(len(self.labels)) < self.agreement
        return np.where(shares, self.shared, predict(self.labels, error, random))


def pair_of(labels: Ids, champion: Ids, challenger: Ids, classes: int) -> PairedPredictions:
    """Return both models' predictions as the gate takes them."""
    images = np.arange(len(labels))
    return PairedPredictions(
        classes=tuple(f"class {number}" for number in range(classes)),
        images=len(labels),
        labels=Assignments(images, labels),
        champion=Assignments(images, champion),
        challenger=Assignments(images, challenger),
        is_right=(champion == labels, challenger == labels),
        confidence=(np.full(len(labels), 0.9), np.full(len(labels), 0.9)),
        shared=classes,
    )
