"""Labels that are probably wrong, by confident learning on features (Northcutt, Jiang and Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", 2021), with cleanlab's thresholds, counts and scores.

It needs probabilities for each image from a classifier that never saw its label. The network did see it, so a linear
discriminant with a shrunk common covariance (Friedman, "Regularized Discriminant Analysis", 1989) is fitted to its
features, five times, each time without the fifth of the images that it then judges. A fold is counts, sums and
products of features, so fitting needs no second look at the images. What was found is left out, all is fitted once
more, and everything judged again: wrong labels widen the classes and hide one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.calibration import fit_temperature
from ..store.labels import SINGLE
from ..store.metrics import ConfusionCounts
from .chance import Chance, Counts

FOLDS = 5
FEWEST = 10
"""Training images that a class must have for its labels to be judged: two in each fold."""
SHRINKAGE = 0.1
"""Share of the covariance that is replaced by the same variance in every direction."""
STRICT = 20
"""How much rarer than others guesses may seem to be better, for the folds share images, and so their luck."""
_CHUNK = 1 << 21
"""Probabilities in memory at a time: 16 MB as float64, some four times over."""

Features = npt.NDArray[np.float16]
Labels = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass
class Folds:
    """What a discriminant is fitted from, by fold: `counts` [F, K], `sums` [F, K, D], `products` [F, D, D], float64."""

    classes: int
    dimensions: int
    counts: Numbers = field(init=False)
    sums: Numbers = field(init=False)
    products: Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((FOLDS, self.classes))
        self.sums = np.zeros((FOLDS, self.classes, self.dimensions))
        self.products = np.zeros((FOLDS, self.dimensions, self.dimensions))

    def add(self, features: Features, labels: Labels, folds: npt.NDArray[np.int8], sign: int = 1) -> None:
        """Count images in, or with `sign` -1 out again. `features` [B, D]."""
        for fold in np.unique(folds):
            here = folds == fold
            x, y = features[here].astype(np.float64), labels[here]
            np.add.at(self.counts[fold], y, sign)
            np.add.at(self.sums[fold], y, sign * x)
            self.products[fold] += sign * (x.T @ x)

    def without(self, fold: int) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
        """(weights [D, K], bias [K], classes it knows [K]) of the discriminant fitted to all folds but one.

        Logits are `x @ weights + bias`: those of Gaussian classes with one covariance, divided by the square root of
        D, since dimensions that depend on each other are counted as if they did not.
        """
        rest = [other for other in range(FOLDS) if other != fold]
        counts, sums = self.counts[rest].sum(0), self.sums[rest].sum(0)
        known, total = counts > 0, max(1.0, counts.sum())
        means = sums / np.maximum(counts, 1)[:, None]
        within = (self.products[rest].sum(0) - (means * counts[:, None]).T @ means) / total
        spread = max(float(np.trace(within)) / self.dimensions, 1e-12)
        within *= 1 - SHRINKAGE
        within[np.diag_indices(self.dimensions)] += SHRINKAGE * spread
        weights = np.linalg.solve(within, means.T)
        bias = np.log(np.maximum(counts, 1) / total) - 0.5 * (means * weights.T).sum(1)
        scale = 1 / np.sqrt(self.dimensions)
        return weights * scale, bias * scale, known


@dataclass(frozen=True)
class Doubts:
    """What was found. `rows` int64 [M] are the suspects, the surest first; `suggested` int64 [M] the class each looks
    like instead; `given` and `likely` float32 [M] the probabilities of its label and of that class; `quality` float32
    [M] cleanlab's score of the label in [0, 1], low where it is wrong. `agreement` is the share of all labels that the
    classifiers agree with, `judged` the number of images whose class has `FEWEST` or more. `better`: than a guess, or
    the classifiers can't tell a wrong label from a right one, and there are no suspects."""

    rows: Labels
    suggested: Labels
    given: npt.NDArray[np.float32]
    likely: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    agreement: float
    judged: int
    better: bool = True


def doubts(features: Features, labels: Labels, classes: int) -> Doubts:
    """Search the labels int64 [N] of images with `features` [N, D]; the same input gives the same result.

    Needs some 40 bytes an image beside its input, and 100 MB for what it works on. At least two
    classes must have `FEWEST` images.
    """
    place = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    folds = place.astype(np.int8)
    fitted = Folds(classes, features.shape[1])
    for part in _chunks(len(labels), features.shape[1]):
        fitted.add(features[part], labels[part], folds[part])
    first = _Judges(fitted, folds, features, labels, np.ones(len(labels), np.bool_)).judge()
    if not first.better:  # seen only now: what is left when they have taken out what they disagree with agrees
        return first
    for part in _chunks(len(first.rows), features.shape[1]):
        rows = first.rows[part]
        fitted.add(features[rows], labels[rows], folds[rows], -1)
    kept = np.ones(len(labels), np.bool_)
    kept[first.rows] = False
    return _Judges(fitted, folds, features, labels, kept).judge()


class _Judges:
    """The five classifiers, with the temperature at which their probabilities fit the labels that were `kept`."""

    def __init__(
        self,
        fitted: Folds,
        folds: npt.NDArray[np.int8],
        features: Features,
        labels: Labels,
        kept: npt.NDArray[np.bool_],
    ) -> None:
        self.each = [fitted.without(fold) for fold in range(FOLDS)]
        self.folds, self.features, self.labels, self.classes = folds, features, labels, fitted.classes
        rows = np.flatnonzero(kept)
        rows = rows[:: max(1, -(-len(rows) * self.classes // _CHUNK))]
        self.temperature = fit_temperature(self.logits(rows).astype(np.float32), labels[rows])

    def logits(self, rows: Labels) -> Numbers:
        """float64 [B, K]; a class that a classifier does not know is as unlikely as its unlikeliest."""
        out = np.empty((len(rows), self.classes))
        for fold, (weights, bias, known) in enumerate(self.each):
            here = np.flatnonzero(self.folds[rows] == fold)
            found = self.features[rows[here]].astype(np.float64) @ weights + bias
            if not known.all():
                found[:, ~known] = found[:, known].min(axis=1, keepdims=True)
            out[here] = found
        return out

    def probabilities(self, rows: Labels) -> Numbers:
        """float64 [B, K], rows adding up to 1."""
        z = self.logits(rows) / self.temperature
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def judge(self) -> Doubts:
        """Thresholds and number of wrong labels from all images; so many with the lowest scores are suspects, unless
        the likeliest class is the given one, or the class has too few images to tell."""
        from cleanlab.experimental.label_issues_batched import LabelInspector
        from cleanlab.rank import find_top_issues

        chunks = [np.arange(len(self.labels))[rows] for rows in _chunks(len(self.labels), self.classes)]
        inspector = LabelInspector(
            num_class=self.classes,
            store_results=False,
            verbose=False,
            quality_score_kwargs={"method": "normalized_margin"},
            num_issue_kwargs={"estimation_method": "off_diagonal_calibrated"},
        )
        for rows in chunks:
            inspector.update_confident_thresholds(self.labels[rows], self.probabilities(rows))
        quality, agrees = np.empty(len(self.labels), np.float32), np.zeros(len(self.labels), np.bool_)
        pairs = ConfusionCounts(self.classes)
        for rows in chunks:
            found = self.probabilities(rows)
            quality[rows] = inspector.score_label_quality(self.labels[rows], found)
            pairs.add(self.labels[rows], said := found.argmax(1))
            agrees[rows] = said == self.labels[rows]
        enough = np.bincount(self.labels, minlength=self.classes)[self.labels] >= FEWEST
        number = min(len(quality), int(inspector.get_num_issues()))
        lowest = np.asarray(find_top_issues(quality, top=number)) if number else np.zeros(0, np.int64)
        better = _better(pairs)
        suspects = lowest[~agrees[lowest] & enough[lowest]] if better else lowest[:0]
        return self._told(suspects, quality, float(agrees.mean()), int(enough.sum()), better)

    def _told(
        self, rows: Labels, quality: npt.NDArray[np.float32], agreement: float, judged: int, better: bool
    ) -> Doubts:
        """With what the classifiers say of the suspects; equal scores in the order of the rows."""
        rows = rows[np.lexsort((rows, quality[rows]))]
        suggested = np.empty(len(rows), np.int64)
        given, likely = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
        for part in _chunks(len(rows), self.classes):
            found = self.probabilities(rows[part])
            suggested[part] = found.argmax(1)
            given[part], likely[part] = found[np.arange(len(found)), self.labels[rows[part]]], found.max(1)
        return Doubts(rows, suggested, given, likely, quality[rows], agreement, judged, better)


def _better(pairs: ConfusionCounts) -> bool:
    """Than chance, by the labels and what was said instead of them."""
    truth, said, counts = pairs.cells()
    there, told = (np.bincount(ids, counts, pairs.classes) for ids in (truth, said))
    found = Chance.of(Counts(there, told, int(counts.sum())), SINGLE, pairs.summary(), STRICT)
    return found is not None and found.better


def _chunks(rows: int, width: int) -> Iterator[slice[int, int, Any]]:
    """Slices of rows with at most `_CHUNK` numbers each."""
    step = max(1, _CHUNK // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
