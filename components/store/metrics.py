"""Classification metrics: of one label an image from a confusion matrix, of several from counts by class.

Macro averages run over the classes that are present.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int64]
Scores = dict[str, npt.NDArray[np.float64]]
_WAITING = 1 << 16
"""Pairs that are not counted yet: half a megabyte."""


def confusion(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Matrix:
    """int64 [classes, classes]: rows are true classes, columns predicted ones."""
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def per_class(matrix: Matrix) -> Scores:
    """`scores` of a confusion matrix."""
    return scores(np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1))


def scores(hits: npt.ArrayLike, predicted: npt.ArrayLike, support: npt.ArrayLike) -> Scores:
    """`precision`, `recall`, `f1` in [0, 1] and `support` (images), each float64 [classes]; 0 where undefined.

    From the images of each class that have it and were said to (`hits`), that were said to, and that have it.
    """
    right, said, there = (np.asarray(count, np.float64) for count in (hits, predicted, support))
    return {
        "precision": _ratio(right, said),
        "recall": _ratio(right, there),
        "f1": _ratio(2 * right, there + said),
        "support": there,
    }


def _ratio(top: Any, bottom: Any) -> npt.NDArray[np.float64]:
    share: npt.NDArray[np.float64] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return share


def _mean_of_present(found: Scores, name: str) -> float:
    """The mean of a score over the classes with at least one image."""
    present = found["support"] > 0
    return float(found[name][present].mean()) if present.any() else 0.0


def summary(matrix: Matrix) -> dict[str, float]:
    """`top1`, `macro_f1` and `balanced_accuracy` of a confusion matrix, as `Pairs` has them."""
    return _summary(per_class(matrix), int(np.trace(matrix)), int(matrix.sum()))


def _summary(found: Scores, right: int, images: int) -> dict[str, float]:
    return {
        "top1": right / images if images else 0.0,
        "macro_f1": _mean_of_present(found, "f1"),
        "balanced_accuracy": _mean_of_present(found, "recall"),
    }


@dataclass
class Pairs:
    """How often which class was taken for which, over images of one label, batch by batch. Sparse: 20,000 classes
    squared would be 3 GB, and 16 bytes for each pair that was seen are never more than 16 bytes an image."""

    classes: int
    _keys: Matrix = field(default_factory=lambda: np.empty(0, np.int64))
    _counts: Matrix = field(default_factory=lambda: np.empty(0, np.int64))
    _waiting: list[Matrix] = field(default_factory=list)
    _rows: int = 0

    def add(self, labels: npt.ArrayLike, predicted: npt.ArrayLike) -> None:
        """A batch: the true and the predicted ids, both [B]."""
        self._waiting.append(np.asarray(labels, np.int64) * self.classes + np.asarray(predicted, np.int64))
        self._rows += len(self._waiting[-1])
        if self._rows >= _WAITING:
            self._merge()

    def _merge(self) -> None:
        found, number = np.unique(np.concatenate([self._keys[:0], *self._waiting]), return_counts=True)
        self._keys, inverse = np.unique(np.concatenate([self._keys, found]), return_inverse=True)
        counts = np.concatenate([self._counts, number])
        self._counts = np.bincount(inverse, counts, len(self._keys)).astype(np.int64)
        self._waiting, self._rows = [], 0

    def cells(self) -> tuple[Matrix, Matrix, Matrix]:
        """True ids, predicted ids and counts, int64 [pairs], each pair once, ordered by the true id."""
        self._merge()
        return self._keys // max(1, self.classes), self._keys % max(1, self.classes), self._counts

    def per_class(self) -> Scores:
        """`scores` of each class."""
        truth, said, counts = self.cells()
        right = truth == said
        return scores(*(np.bincount(ids, weights, self.classes) for ids, weights in
                        ((truth[right], counts[right]), (said, counts), (truth, counts))))  # fmt: skip

    def summary(self) -> dict[str, float]:
        """All in [0, 1]. `top1`: share of images that are right; `macro_f1` and `balanced_accuracy`: the mean F1 and
        the mean recall of the classes with at least one image (Brodersen et al., "The Balanced Accuracy and Its
        Posterior Distribution", 2010)."""
        truth, said, counts = self.cells()
        return _summary(self.per_class(), int(counts[truth == said].sum()), int(counts.sum()))


@dataclass
class LabelCounts:
    """Counts over images with several labels, batch by batch: of each class the images that have it and were said
    to (`hits`), that were said to (`predicted`) and that have it (`support`), int64 [classes]; of the images all,
    those whose labels are predicted to the last one, and those whose highest-scored class is one of their labels."""

    classes: int
    hits: Matrix = field(init=False)
    predicted: Matrix = field(init=False)
    support: Matrix = field(init=False)
    images: int = 0
    exact: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        self.hits, self.predicted, self.support = (np.zeros(self.classes, np.int64) for _ in range(3))

    def add(self, labels: npt.ArrayLike, predicted: npt.ArrayLike, highest: npt.ArrayLike) -> None:
        """A batch: both [B, classes] of zeros and ones, and int64 [B], the class with the highest score."""
        there, said = np.asarray(labels, np.bool_), np.asarray(predicted, np.bool_)
        self.hits += (there & said).sum(axis=0)
        self.predicted += said.sum(axis=0)
        self.support += there.sum(axis=0)
        self.images += len(there)
        self.exact += int((there == said).all(axis=1).sum())
        self.top += int(there[np.arange(len(there)), np.asarray(highest, np.int64)].sum())

    def per_class(self) -> Scores:
        return scores(self.hits, self.predicted, self.support)

    def summary(self) -> dict[str, float]:
        """All in [0, 1]. `top1`: share of images whose highest-scored class is one of their labels; `macro_f1`: the
        mean F1 of the classes with at least one image; `micro_f1`: F1 over all (image, class) pairs;
        `subset_accuracy`: share of images whose predicted classes are exactly their labels."""
        pairs = int(self.predicted.sum() + self.support.sum())
        return {
            "top1": self.top / self.images if self.images else 0.0,
            "macro_f1": _mean_of_present(self.per_class(), "f1"),
            "micro_f1": 2 * int(self.hits.sum()) / pairs if pairs else 0.0,
            "subset_accuracy": self.exact / self.images if self.images else 0.0,
        }
