"""95% confidence intervals of the metrics, for the chance of which images were tested; closed forms, no resampling.

**Proportions** (top-1, subset accuracy): Wilson's interval ("Probable Inference", 1927), with the correction of Brown,
Cai and DasGupta near 0 and 1 ("Interval Estimation for a Binomial Proportion", 2001).

**Means over classes** (balanced accuracy, macro-F1): the same interval for the *effective* number of images, that of a
simple random sample with the same variance (Korn and Graubard, "Confidence Intervals for Proportions with Small
Expected Number of Positive Counts", 1998). An interval of this form stays in [0, 1] and contains the point estimate.
The variance is that of stratified sampling: each class has the test images that it has, so that no class is ever
missing, as one is from a bootstrap's resamples. Macro-F1 is linearized for it (the delta method, or infinitesimal
jackknife), and its bias in small classes, of second order, is taken off before. A class of few images says little of
its own variance, one of a single image nothing: the variance of being right is shrunk to that of all classes (as Smyth,
"Linear Models and Empirical Bayes Methods", 2004, does for genes).

Of images with several labels the sampling is simple, and images' contributions are summed with all their labels.

Coverage, simulated for 2 to 1,000 classes of 1 to 1,000 images and accuracies from 0.8 to 0.99 (see the tables in
tests/benchmarks/README.md): 0.93 to 0.97 as a rule; above where about three mistakes or fewer are expected, since so
few counts have no interval in between; and below for macro-F1, down to 0.82, where classes of few images stand beside
far larger ones, or where a hundred classes have a single image: `too_narrow` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.metrics import ConfusionCounts, LabelCounts, Scores

LEVEL = 0.95
PRIOR_IMAGES = 2.0
"""The weight, in images, of all classes' variance beside a class's own."""
FEW, FAR_LARGER, MANY_SINGLE = 10, 10, 100
"""The F1 of a class with fewer than `FEW` test images has an unreliable variance where another class has `FAR_LARGER`
times as many, whose mistakes may fall into it; so have `MANY_SINGLE` classes with one image each."""
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_LOWEST_MEANS = (0.0, 0.0513, 0.3554, 0.8177)
"""Poisson means of which 95% of samples are below 0, 1, 2 and 3."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Interval = list[float]
Intervals = dict[str, Interval]


def wilson(right: int, images: int, comparisons: int = 1) -> tuple[float, float]:
    """Bounds of a share (Wilson, "Probable Inference", 1927) that hold with 95% for all of so many comparisons
    together (Bonferroni)."""
    if not images:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * max(1, comparisons)))
    return _wilson(right / images, images, z)


def _wilson(share: float, images: float, z: float = _Z) -> tuple[float, float]:
    spread = z * z / images
    center, half = share + spread / 2, z * (share * (1 - share) / images + spread / (4 * images)) ** 0.5
    return max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread))


def proportion(share: float, images: float) -> tuple[float, float]:
    """Return the interval of a share of `images`, which need not be a whole number."""
    low, high = _wilson(share, images)
    right, wrong = share * images, (1 - share) * images
    known = np.arange(len(_LOWEST_MEANS))
    if wrong <= known[-1]:
        high = max(high, 1 - float(np.interp(wrong, known, _LOWEST_MEANS)) / images)
    if right <= known[-1]:
        low = min(low, float(np.interp(right, known, _LOWEST_MEANS)) / images)
    return low, high


def of_pairs(pairs: ConfusionCounts) -> Intervals:
    """Return [low, high] of `top1`, `macro_f1` and `balanced_accuracy`; nothing where there are no images."""
    truth, predicted, counts = pairs.cells()
    images = int(counts.sum())
    if not images:
        return {}
    classes = _Classes.of(pairs.per_class(), np.bincount(predicted, counts, pairs.classes))
    place = np.cumsum(classes.present) - 1  # of a class among those that have images
    right = truth == predicted
    cost = np.zeros(pairs.classes)
    cost[classes.present] = classes.cost
    value = np.where(right, classes.gain[place[truth]], -cost[predicted])
    mean = np.bincount(place[truth], counts * value) / classes.images
    squares = np.bincount(place[truth], counts * value**2) - classes.images * mean**2
    wrong = int(counts[~right].sum())
    mean_cost = float((cost[predicted] * counts)[~right].sum()) / wrong if wrong else float(classes.cost.mean())
    within = classes.shrunk(squares, (classes.gain + mean_cost) ** 2)
    number = len(classes.images)
    found = {
        "top1": proportion(int(counts[right].sum()) / images, images),
        "macro_f1": classes.interval(
            float(classes.f1.mean()), float((classes.images * within).sum()) / number**2, classes.f1_bias()
        ),
        "balanced_accuracy": classes.interval(
            float(classes.recall.mean()), float((classes.of_recall / classes.images).sum()) / number**2
        ),
    }
    return {name: _rounded(interval) for name, interval in found.items()}


def of_labels(counts: LabelCounts, rows: Iterable[pa.Table]) -> Intervals:
    """Return [low, high] of `top1`, `macro_f1`, `micro_f1` and `subset_accuracy` of images with several labels.

    `rows`: the columns `label_ids` and `predicted_ids` of the images that were counted, a table at a time.
    """
    if not counts.images or not counts.support.any():
        return {}
    classes = _Classes.of(counts.per_class(), counts.predicted)
    hit, labeled_or_predicted = np.zeros(counts.classes), np.zeros(counts.classes)
    hit[classes.present], labeled_or_predicted[classes.present] = 2 / classes.bottom, classes.cost
    total = int(counts.support.sum() + counts.predicted.sum())
    micro = 2 * int(counts.hits.sum()) / total
    macro_squares = micro_squares = 0.0
    for table in rows:
        labels, predictions = (_flat(table.column(name)) for name in ("label_ids", "predicted_ids"))
        hits = np.isin(_keys(*labels, counts.classes), _keys(*predictions, counts.classes))
        macro, pooled = (
            _per_image(labels, predictions, hits, table.num_rows, *weights)
            for weights in (
                (hit, labeled_or_predicted),
                (np.full(counts.classes, 2 / total), np.full(counts.classes, micro / total)),
            )
        )
        macro_squares += float((macro**2).sum())
        micro_squares += float((pooled**2).sum())
    number = len(classes.images)
    own = classes.images * classes.recall * (1 - classes.recall)
    jump = classes.gain**2
    missing = classes.images * (classes.shrunk(own * jump, jump)) - own * jump
    variance = (macro_squares + float(missing.sum())) / number**2
    found = {
        "top1": proportion(counts.top / counts.images, counts.images),
        "macro_f1": classes.interval(float(classes.f1.mean()), variance, classes.f1_bias()),
        "micro_f1": _effective(micro, micro_squares, counts.images),
        "subset_accuracy": proportion(counts.exact / counts.images, counts.images),
    }
    return {name: _rounded(interval) for name, interval in found.items()}


def too_narrow(support: npt.ArrayLike) -> int:
    """Return the number of classes whose few test images (`support`, [classes]) make macro-F1's interval too narrow."""
    images = np.asarray(support, np.int64)
    few = (images > 0) & (images < FEW) & (FAR_LARGER * images <= images.max(initial=0))
    single = images == 1
    return int((few | single).sum() if single.sum() >= MANY_SINGLE else few.sum())


class _Classes:
    """The classes that have test images, each array float64 [classes]: `images`, `recall`, `f1`, and `bottom`, images
    with the label plus images predicted to have it. `gain` and `cost`: what one more image adds to a class's F1 when it
    is recognized, and takes from it when it is taken for it wrongly."""

    def __init__(self, present: npt.NDArray[np.bool_], scores: Scores, predicted: Floats) -> None:
        self.present = present
        self.images, self.recall, self.f1 = (scores[name][present] for name in ("support", "recall", "f1"))
        self.predicted = predicted[present]
        self.bottom = self.images + self.predicted
        self.gain, self.cost = (2 - self.f1) / self.bottom, self.f1 / self.bottom
        error, weight = 1 - self.recall, 1 / self.images
        pooled = (error.mean(), np.average(error, weights=weight), np.average(error, weights=self.images))
        likely = min(0.5, float(max(pooled)))
        self._pooled = likely * (1 - likely)
        self.of_recall = self.shrunk(self.images * self.recall * error, np.ones_like(error))
        """The variance of being recognized, of one image."""

    @classmethod
    def of(cls, scores: Scores, predicted: npt.ArrayLike) -> _Classes:
        return cls(scores["support"] > 0, scores, np.asarray(predicted, np.float64))

    def shrunk(self, squares: Floats, scale: Floats) -> Floats:
        """Return variances within classes from sums of squared deviations, shrunk to that of all classes times
        `scale`."""
        return (squares + PRIOR_IMAGES * self._pooled * scale) / (self.images - 1 + PRIOR_IMAGES)

    def f1_bias(self) -> float:
        """Return the bias of macro-F1: the second-order term of the mean of 2 hits / (images + predicted)."""
        hits = self.images * self.recall
        of_hits = self.images * self.of_recall
        of_predicted = of_hits + self.predicted - hits
        return float((2 * hits * of_predicted / self.bottom**3 - 2 * of_hits / self.bottom**2).mean())

    def interval(self, value: float, variance: float, bias: float = 0.0) -> tuple[float, float]:
        """Return the interval of a mean over these classes. Where all or nothing is right, the effective number of
        images is that of classes that are equally hard."""
        equally_hard = len(self.images) ** 2 / float((1 / self.images).sum())
        low, high = _effective(min(1.0, max(0.0, value - bias)), variance, equally_hard)
        return min(low, value), max(high, value)


def _effective(value: float, variance: float, otherwise: float) -> tuple[float, float]:
    """Return the interval for so many images that a share of `value` has the variance, or `otherwise` at 0 and 1."""
    spread = value * (1 - value)
    return proportion(value, spread / variance if spread > 1e-12 and variance > 0 else otherwise)


def _flat(column: pa.ChunkedArray) -> tuple[Counts, Counts]:
    """Return (row, id) of all ids in a column of lists, each int64 [ids]."""
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths(), np.int64)
    return np.repeat(np.arange(len(lengths)), lengths), np.asarray(lists.flatten(), np.int64)


def _keys(rows: Counts, ids: Counts, classes: int) -> Counts:
    return rows * classes + ids


def _per_image(
    labels: tuple[Counts, Counts],
    predictions: tuple[Counts, Counts],
    hits: npt.NDArray[np.bool_],
    images: int,
    hit: Floats,
    labeled_or_predicted: Floats,
) -> Floats:
    """Return each image's contribution to a linearized F1, [images], from what a class's hit, label or prediction
    weighs, [classes]."""
    found = np.bincount(labels[0][hits], hit[labels[1][hits]], images).astype(np.float64)
    for rows, ids in (labels, predictions):
        found -= np.bincount(rows, labeled_or_predicted[ids], images)
    return found


def _rounded(interval: tuple[float, float]) -> Interval:
    return [round(bound, 6) for bound in interval]
