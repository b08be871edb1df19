"""scikit-learn's logistic regression on frozen features, by which a head is solved and a probe is cross-validated.

Classes weigh alike, however many images they have, unless the metric is top1. Features are standardized. A penalty is
a factor of half the squared norm of the weights beside the mean loss: 1 / (C · images) in scikit-learn's terms.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..models.features import Floats, Labels, LinearProbe
from .classification import summarize_predictions

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Tried in this order, each from the solution of the one before."""
DEFAULT_PENALTY = 0.03
"""Without validation images."""
MAX_ITERATIONS = 100
MIN_RELATIVE_STD = 1e-3
"""Of the median feature's standard deviation: features that vary less are noise, or no feature at all."""
ABSENT_BIAS = -20.0
"""Of a class without images: others' logits add up to 0, so that one of them is higher."""

Rows = npt.NDArray[np.int64]
Split = tuple[Rows, Rows]
"""Rows that are fitted to, and rows that are held out."""


class Selection(NamedTuple):
    """The chosen penalty; `loss`, `top1`, `macro_f1` and `balanced_accuracy` of all held-out rows with it, and their
    `logits` float32 [held out, classes] and `labels`."""

    penalty: float
    scores: dict[str, float]
    logits: Floats
    labels: Labels


class ProbeFitter:
    """Fits linear probes to features float32 [N, D] and labels int64 [N], each from the solution of the one before."""

    def __init__(self, features: Floats, labels: Labels, classes: int, metric: str = "macro_f1") -> None:
        from sklearn.linear_model import LogisticRegression

        self._mean = features.mean(0, dtype=np.float64).astype(np.float32)
        centered = features - self._mean
        std = np.sqrt(np.square(centered).mean(0, dtype=np.float64)).astype(np.float32)
        self._std = np.maximum(std, MIN_RELATIVE_STD * max(float(np.median(std)), 1e-12))
        self._inputs, self._labels, self._classes = centered / self._std, labels, classes
        weight = None if metric == "top1" else "balanced"
        self._model = LogisticRegression(class_weight=weight, max_iter=MAX_ITERATIONS, warm_start=True)

    def fit(self, penalty: float) -> LinearProbe:
        """Return the probe with a penalty, for features as they are."""
        from sklearn.exceptions import ConvergenceWarning

        weight = np.zeros((self._classes, self._inputs.shape[1]), np.float32)
        bias = np.full(self._classes, ABSENT_BIAS, np.float32)
        present = np.unique(self._labels)
        if len(present) < 2:
            bias[present] = 0
            return LinearProbe(weight, bias)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is as good
            self._model.set_params(C=1 / (penalty * len(self._labels))).fit(self._inputs, self._labels)
        coefficients, intercept = self._model.coef_, self._model.intercept_
        if len(present) == 2:  # of the second class against the first
            coefficients, intercept = (np.concatenate([-array, array]) / 2 for array in (coefficients, intercept))
        weight[present] = coefficients / self._std
        bias[present] = intercept - weight[present] @ self._mean
        return LinearProbe(weight, bias)


def select_penalty(
    features: Floats, labels: Labels, splits: Sequence[Split], classes: int, metric: str = "macro_f1"
) -> Selection:
    """Return the penalty with the best `metric` on the held-out rows of all splits; of several the lowest loss."""
    fitters = [ProbeFitter(features[fitted], labels[fitted], classes, metric) for fitted, _ in splits]
    held_out = np.concatenate([rows for _, rows in splits])
    best: tuple[tuple[float, float], Selection] | None = None
    for penalty in PENALTIES:
        logits = np.concatenate(
            [fitter.fit(penalty)(features[rows]) for fitter, (_, rows) in zip(fitters, splits, strict=True)]
        )
        scores = score_logits(logits, labels[held_out])
        rank = scores[metric], -scores["loss"]
        if best is None or rank > best[0]:
            best = rank, Selection(penalty, scores, logits, labels[held_out])
    assert best is not None
    return best[1]


def score_logits(logits: Floats, labels: Labels) -> dict[str, float]:
    """Return `loss`, `top1`, `macro_f1` and `balanced_accuracy` of logits [N, classes]."""
    from scipy.special import log_softmax

    loss = -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
    return {"loss": loss, **summarize_predictions(labels, logits.argmax(1), logits.shape[1])}


def predict_out_of_fold(features: Floats, labels: Labels, folds: Rows, classes: int) -> Floats:
    """Return logits float32 [N, classes] of each image by a probe that was fitted to the other folds, from 0, without
    gaps.

    The penalty is chosen among these by the fold that follows, so that an image has no part in it either.
    """
    numbers = int(folds.max()) + 1
    logits = np.empty((len(labels), classes), np.float32)
    for fold in range(numbers):
        is_out, is_tuning = folds == fold, folds == (fold + 1) % numbers
        split = np.flatnonzero(~(is_out | is_tuning)), np.flatnonzero(is_tuning)
        penalty = select_penalty(features, labels, [split], classes).penalty
        logits[is_out] = ProbeFitter(features[~is_out], labels[~is_out], classes).fit(penalty)(features[is_out])
    return logits
