"""Classification metrics: from a confusion matrix for single-label images, from counts by class for multi-label ones.

Macro averages run over the classes that are present.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Counts, or ids that belong to counts; shapes are where they are used."""
Scores = dict[str, npt.NDArray[np.float64]]
"""Result of `compute_scores`."""
_MAX_PENDING = 1 << 16
"""Pairs that are kept before they are counted: half a megabyte."""


def compute_scores(hits: npt.ArrayLike, predicted: npt.ArrayLike, support: npt.ArrayLike) -> Scores:
    """Return `precision`, `recall`, `f1` in [0, 1] and `support` (images), each float64 [classes]; 0 where undefined.

    `hits`, `predicted`, `support`: of each class the true positives, the predicted images, and those that have it.
    """
    true_positives, positives, relevant = (np.asarray(count, np.float64) for count in (hits, predicted, support))
    return {
        "precision": _ratio(true_positives, positives),
        "recall": _ratio(true_positives, relevant),
        "f1": _ratio(2 * true_positives, relevant + positives),
        "support": relevant,
    }


def _ratio(numerator: Any, denominator: Any) -> npt.NDArray[np.float64]:
    ratio: npt.NDArray[np.float64] = np.divide(
        numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0
    )
    return ratio


def _mean_of_present(scores: Scores, name: str) -> float:
    """Return the mean of a score over the classes with at least one image."""
    present = scores["support"] > 0
    return float(scores[name][present].mean()) if present.any() else 0.0


@dataclass
class ConfusionCounts:
    """A sparse confusion matrix of single-label images, filled batch by batch.

    Dense, 20,000 classes would take 3 GB; 16 bytes for each pair that occurs are never more than 16 bytes an image.
    """

    classes: int
    _keys: Counts = field(default_factory=lambda: np.empty(0, np.int64))
    _counts: Counts = field(default_factory=lambda: np.empty(0, np.int64))
    _pending: list[Counts] = field(default_factory=list)
    _pending_rows: int = 0

    def add(self, labels: npt.ArrayLike, predicted: npt.ArrayLike) -> None:
        """Add a batch: the true and the predicted ids, both [B]."""
        self._pending.append(np.asarray(labels, np.int64) * self.classes + np.asarray(predicted, np.int64))
        self._pending_rows += len(self._pending[-1])
        if self._pending_rows >= _MAX_PENDING:
            self._merge()

    def _merge(self) -> None:
        keys, numbers = np.unique(np.concatenate([self._keys[:0], *self._pending]), return_counts=True)
        self._keys, inverse = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        counts = np.concatenate([self._counts, numbers])
        self._counts = np.bincount(inverse, counts, len(self._keys)).astype(np.int64)
        self._pending, self._pending_rows = [], 0

    def cells(self) -> tuple[Counts, Counts, Counts]:
        """Return true ids, predicted ids and counts, int64 [pairs], each pair once, ordered by the true id."""
        self._merge()
        return self._keys // max(1, self.classes), self._keys % max(1, self.classes), self._counts

    def per_class(self) -> Scores:
        """Return the scores of each class, as `compute_scores`."""
        true, predicted, counts = self.cells()
        right = true == predicted
        return compute_scores(*(np.bincount(ids, weights, self.classes) for ids, weights in
                        ((true[right], counts[right]), (predicted, counts), (true, counts))))  # fmt: skip

    def summary(self) -> dict[str, float]:
        """Return values in [0, 1]. `top1`: share of images that are right; `macro_f1` and `balanced_accuracy`: the mean
        F1 and the mean recall of the classes with at least one image (Brodersen et al., "The Balanced Accuracy and Its
        Posterior Distribution", 2010)."""
        true, predicted, counts = self.cells()
        scores, images = self.per_class(), int(counts.sum())
        return {
            "top1": int(counts[true == predicted].sum()) / images if images else 0.0,
            "macro_f1": _mean_of_present(scores, "f1"),
            "balanced_accuracy": _mean_of_present(scores, "recall"),
        }


def summarize_predictions(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> dict[str, float]:
    """Return `ConfusionCounts.summary` of true and predicted ids, both [N]."""
    counts = ConfusionCounts(classes)
    counts.add(labels, predicted)
    return counts.summary()


@dataclass
class LabelCounts:
    """Counts over multi-label images, filled batch by batch.

    Of each class, int64 [classes]: `hits` (true positives), `predicted` and `support`. Numbers of images: `images` all,
    `exact` those whose predicted classes are exactly their labels, `top` those whose highest-scored class is a label.
    """

    classes: int
    hits: Counts = field(init=False)
    predicted: Counts = field(init=False)
    support: Counts = field(init=False)
    images: int = 0
    exact: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        self.hits, self.predicted, self.support = (np.zeros(self.classes, np.int64) for _ in range(3))

    def add(self, labels: npt.ArrayLike, predicted: npt.ArrayLike, highest: npt.ArrayLike) -> None:
        """Add a batch: both [B, classes] of zeros and ones, and int64 [B], the class with the highest score."""
        true, positive = np.asarray(labels, np.bool_), np.asarray(predicted, np.bool_)
        self.hits += (true & positive).sum(axis=0)
        self.predicted += positive.sum(axis=0)
        self.support += true.sum(axis=0)
        self.images += len(true)
        self.exact += int((true == positive).all(axis=1).sum())
        self.top += int(true[np.arange(len(true)), np.asarray(highest, np.int64)].sum())

    def per_class(self) -> Scores:
        return compute_scores(self.hits, self.predicted, self.support)

    def summary(self) -> dict[str, float]:
        """Return values in [0, 1]. `top1`: share of images whose highest-scored class is one of their labels;
        `macro_f1`: the mean F1 of the classes with at least one image; `micro_f1`: F1 over all (image, class) pairs;
        `subset_accuracy`: share of images whose predicted classes are exactly their labels."""
        pairs = int(self.predicted.sum() + self.support.sum())
        return {
            "top1": self.top / self.images if self.images else 0.0,
            "macro_f1": _mean_of_present(self.per_class(), "f1"),
            "micro_f1": 2 * int(self.hits.sum()) / pairs if pairs else 0.0,
            "subset_accuracy": self.exact / self.images if self.images else 0.0,
        }
