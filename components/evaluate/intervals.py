"""95% confidence intervals of the metrics over the sampling of test images; closed forms, no resampling. And a test
whether a model is better than a guess that does not look at the images.

**Proportions** (top-1, subset accuracy): Wilson's interval ("Probable Inference", 1927), with the correction of Brown,
Cai and DasGupta near 0 and 1 ("Interval Estimation for a Binomial Proportion", 2001).

**Means over classes** (balanced accuracy, macro-F1): the same interval for the *effective* number of images, that of a
simple random sample with the same variance (Korn and Graubard, "Confidence Intervals for Proportions with Small
Expected Number of Positive Counts", 1998). An interval of this form stays in [0, 1] and contains the point estimate.
The variance is that of stratified sampling: each class has the test images that it has, so that no class is ever
missing, as one is from a bootstrap's resamples. Macro-F1 is linearized for it (the delta method, or infinitesimal
jackknife), and its bias in small classes, of second order, is subtracted before. A class of few images says little of
its own variance, one of a single image nothing: the variance of being right is shrunk to that of all classes (as Smyth,
"Linear Models and Empirical Bayes Methods", 2004, does for genes).

Of images with several labels the sampling is simple, and images' contributions are summed with all their labels.

Coverage, simulated for 2 to 1,000 classes of 1 to 1,000 images and accuracies from 0.8 to 0.99 (see the tables in
tests/benchmarks/README.md): 0.93 to 0.97 as a rule; above where about three mistakes or fewer are expected, since so
few counts have no interval in between; and below for macro-F1, down to 0.82, where classes of few images stand beside
far larger ones, or where a hundred classes have a single image: `count_unreliable_classes` says so.

**Test against chance**: either of two comparisons is enough. Top-1 is significantly above the share of the most
frequent class, the best score of a constant prediction. Or the mean over classes (balanced accuracy; macro-F1 where
images have several labels) is above its expectation if labels were independent of predictions: mean and standard
deviation over all permutations (Hoeffding, "A Combinatorial Central Limit Theorem", 1951).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.kinds import Chance
from ..dataset.labels import MULTI
from ..metrics.classification import ConfusionCounts, LabelCounts, Scores
from ..step.config import METRIC_TITLES

LEVEL = 0.95
PRIOR_IMAGES = 2.0
"""The weight, in images, of all classes' variance beside a class's own."""
FEW_IMAGES, SIZE_RATIO, MANY_SINGLE = 10, 10, 100
"""The F1 of a class with fewer than `FEW_IMAGES` test images has an unreliable variance where another class has
`SIZE_RATIO` times as many, whose mistakes may fall into it; so have `MANY_SINGLE` classes with one image each."""
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
_POISSON_MEANS = (0.0, 0.0513, 0.3554, 0.8177)
"""Poisson means of which 95% of samples are below 0, 1, 2 and 3."""

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Interval = list[float]
Intervals = dict[str, Interval]


def compute_wilson_interval(right: int, images: int, comparisons: int = 1) -> tuple[float, float]:
    """Return the bounds of a proportion (Wilson, "Probable Inference", 1927) that hold with 95% for all of
    `comparisons` together (Bonferroni)."""
    if not images:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * max(1, comparisons)))
    return _wilson(right / images, images, z)


def _wilson(share: float, images: float, z: float = _Z) -> tuple[float, float]:
    spread = z * z / images
    center, half = share + spread / 2, z * (share * (1 - share) / images + spread / (4 * images)) ** 0.5
    return max(0.0, (center - half) / (1 + spread)), min(1.0, (center + half) / (1 + spread))


def compute_proportion_interval(share: float, images: float) -> tuple[float, float]:
    """Return the corrected interval of a share of `images`, which need not be a whole number."""
    low, high = _wilson(share, images)
    right, wrong = share * images, (1 - share) * images
    counts = np.arange(len(_POISSON_MEANS))
    if wrong <= counts[-1]:
        high = max(high, 1 - float(np.interp(wrong, counts, _POISSON_MEANS)) / images)
    if right <= counts[-1]:
        low = min(low, float(np.interp(right, counts, _POISSON_MEANS)) / images)
    return low, high


def compute_single_label_intervals(pairs: ConfusionCounts) -> Intervals:
    """Return [low, high] of `top1`, `macro_f1` and `balanced_accuracy`; empty where there are no images."""
    labels, predicted, counts = pairs.cells()
    images = int(counts.sum())
    if not images:
        return {}
    classes = _PresentClasses(pairs.per_class(), np.bincount(predicted, counts, pairs.classes))
    index = np.cumsum(classes.is_present) - 1  # of a class among those that have images
    is_right = labels == predicted
    cost = np.zeros(pairs.classes)
    cost[classes.is_present] = classes.cost
    value = np.where(is_right, classes.gain[index[labels]], -cost[predicted])
    mean = np.bincount(index[labels], counts * value) / classes.images
    squares = np.bincount(index[labels], counts * value**2) - classes.images * mean**2
    wrong = int(counts[~is_right].sum())
    mean_cost = float((cost[predicted] * counts)[~is_right].sum()) / wrong if wrong else float(classes.cost.mean())
    within = classes.shrink_variance(squares, (classes.gain + mean_cost) ** 2)
    number = len(classes.images)
    intervals = {
        "top1": compute_proportion_interval(int(counts[is_right].sum()) / images, images),
        "macro_f1": classes.compute_interval(
            float(classes.f1.mean()), float((classes.images * within).sum()) / number**2, classes.compute_f1_bias()
        ),
        "balanced_accuracy": classes.compute_interval(
            float(classes.recall.mean()), float((classes.recall_variance / classes.images).sum()) / number**2
        ),
    }
    return {name: _round(interval) for name, interval in intervals.items()}


def compute_multi_label_intervals(counts: LabelCounts, tables: Iterable[pa.Table]) -> Intervals:
    """Return [low, high] of `top1`, `macro_f1`, `micro_f1` and `subset_accuracy` of images with several labels.

    `tables`: the columns `label_ids` and `predicted_ids` of the images that were counted.
    """
    if not counts.images or not counts.support.any():
        return {}
    classes = _PresentClasses(counts.per_class(), counts.predicted)
    hit_weight, assigned_weight = np.zeros(counts.classes), np.zeros(counts.classes)
    hit_weight[classes.is_present], assigned_weight[classes.is_present] = 2 / classes.assigned, classes.cost
    total = int(counts.support.sum() + counts.predicted.sum())
    micro_f1 = 2 * int(counts.hits.sum()) / total
    macro_squares = micro_squares = 0.0
    for table in tables:
        labels, predictions = (_flatten(table.column(name)) for name in ("label_ids", "predicted_ids"))
        is_hit = np.isin(_encode(*labels, counts.classes), _encode(*predictions, counts.classes))
        macro, micro = (
            _sum_per_image(labels, predictions, is_hit, table.num_rows, *weights)
            for weights in (
                (hit_weight, assigned_weight),
                (np.full(counts.classes, 2 / total), np.full(counts.classes, micro_f1 / total)),
            )
        )
        macro_squares += float((macro**2).sum())
        micro_squares += float((micro**2).sum())
    number = len(classes.images)
    squares = classes.images * classes.recall * (1 - classes.recall)
    scale = classes.gain**2
    missing = classes.images * (classes.shrink_variance(squares * scale, scale)) - squares * scale
    variance = (macro_squares + float(missing.sum())) / number**2
    intervals = {
        "top1": compute_proportion_interval(counts.top / counts.images, counts.images),
        "macro_f1": classes.compute_interval(float(classes.f1.mean()), variance, classes.compute_f1_bias()),
        "micro_f1": _compute_effective_interval(micro_f1, micro_squares, counts.images),
        "subset_accuracy": compute_proportion_interval(counts.exact / counts.images, counts.images),
    }
    return {name: _round(interval) for name, interval in intervals.items()}


def count_unreliable_classes(support: npt.ArrayLike) -> int:
    """Return the number of classes whose few test images (`support`, [classes]) make macro-F1's interval too narrow."""
    images = np.asarray(support, np.int64)
    few = (images > 0) & (images < FEW_IMAGES) & (SIZE_RATIO * images <= images.max(initial=0))
    single = images == 1
    return int((few | single).sum() if single.sum() >= MANY_SINGLE else few.sum())


class _PresentClasses:
    """Statistics of the classes that have test images, float64 [classes] each.

    `images`, `recall`, `f1`, `predicted`; `assigned`: images with the label plus images predicted to have it; `gain`
    and `cost`: the change of a class's F1 by one more hit, and by one more false positive; `recall_variance`: the
    variance of being recognized, of one image. `is_present`: bool [all classes].
    """

    def __init__(self, scores: Scores, predicted: npt.ArrayLike) -> None:
        self.is_present = scores["support"] > 0
        self.images, self.recall, self.f1 = (scores[name][self.is_present] for name in ("support", "recall", "f1"))
        self.predicted = np.asarray(predicted, np.float64)[self.is_present]
        self.assigned = self.images + self.predicted
        self.gain, self.cost = (2 - self.f1) / self.assigned, self.f1 / self.assigned
        error, weight = 1 - self.recall, 1 / self.images
        pooled = (error.mean(), np.average(error, weights=weight), np.average(error, weights=self.images))
        rate = min(0.5, float(max(pooled)))
        self._pooled_variance = rate * (1 - rate)
        self.recall_variance = self.shrink_variance(self.images * self.recall * error, np.ones_like(error))

    def shrink_variance(self, squares: Floats, scale: Floats) -> Floats:
        """Return variances within classes from sums of squared deviations, shrunk to that of all classes times
        `scale`."""
        return (squares + PRIOR_IMAGES * self._pooled_variance * scale) / (self.images - 1 + PRIOR_IMAGES)

    def compute_f1_bias(self) -> float:
        """Return the bias of macro-F1: the second-order term of the mean of 2 hits / (images + predicted)."""
        hits = self.images * self.recall
        hits_variance = self.images * self.recall_variance
        predicted_variance = hits_variance + self.predicted - hits
        return float((2 * hits * predicted_variance / self.assigned**3 - 2 * hits_variance / self.assigned**2).mean())

    def compute_interval(self, value: float, variance: float, bias: float = 0.0) -> tuple[float, float]:
        """Return the interval of a mean over these classes. Where all or nothing is right, the effective number of
        images is that of classes that are equally hard."""
        equally_hard = len(self.images) ** 2 / float((1 / self.images).sum())
        low, high = _compute_effective_interval(min(1.0, max(0.0, value - bias)), variance, equally_hard)
        return min(low, value), max(high, value)


def _compute_effective_interval(value: float, variance: float, default_images: float) -> tuple[float, float]:
    """Return the interval for the number of images at which a share of `value` has the variance, or at 0 and 1 for
    `default_images`."""
    unit_variance = value * (1 - value)
    has_variance = unit_variance > 1e-12 and variance > 0
    return compute_proportion_interval(value, unit_variance / variance if has_variance else default_images)


def _flatten(column: pa.ChunkedArray) -> tuple[Counts, Counts]:
    """Return (row, id) of all ids in a column of lists, each int64 [ids]."""
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths(), np.int64)
    return np.repeat(np.arange(len(lengths)), lengths), np.asarray(lists.flatten(), np.int64)


def _encode(rows: Counts, ids: Counts, classes: int) -> Counts:
    return rows * classes + ids


def _sum_per_image(
    labels: tuple[Counts, Counts],
    predictions: tuple[Counts, Counts],
    is_hit: npt.NDArray[np.bool_],
    images: int,
    hit_weight: Floats,
    assigned_weight: Floats,
) -> Floats:
    """Return each image's contribution to a linearized F1, [images], from the weights of a class's hit and of its label
    or prediction, [classes]."""
    sums = np.bincount(labels[0][is_hit], hit_weight[labels[1][is_hit]], images).astype(np.float64)
    for rows, ids in (labels, predictions):
        sums -= np.bincount(rows, assigned_weight[ids], images)
    return sums


def _round(interval: tuple[float, float]) -> Interval:
    return [round(bound, 6) for bound in interval]


@dataclass(frozen=True)
class ClassTotals:
    """Number of images with each label (`support`) and predicted to have it (`predicted`), [classes] each."""

    support: npt.ArrayLike
    predicted: npt.ArrayLike
    images: int

    def select_present(self) -> tuple[Floats, Floats]:
        """Return (`support`, `predicted`) of the classes with at least one image."""
        support, predicted = np.asarray(self.support, np.float64), np.asarray(self.predicted, np.float64)
        return support[support > 0], predicted[support > 0]


def compute_chance_recall(totals: ClassTotals) -> tuple[float, float]:
    """Return mean and standard deviation of balanced accuracy over all permutations of the labels, one an image."""
    support, predicted = totals.select_present()
    images, classes, total = totals.images, len(support), predicted.sum()
    squares = (predicted / support).sum() - total / images
    squares = squares - (predicted**2 / support).sum() / images + (total / images) ** 2
    return total / images / classes, float(np.sqrt(max(0.0, squares) / max(1, images - 1)) / classes)


def compute_chance_f1(totals: ClassTotals) -> tuple[float, float]:
    """Return the mean of macro-F1 over all permutations of the images' labels, and the upper bound of its standard
    deviation, that of perfectly correlated classes."""
    support, predicted = totals.select_present()
    images = totals.images
    variance = support * predicted * (images - support) * (images - predicted) / (images**2 * max(1, images - 1))
    f1_per_hit = 2 / (support + predicted)
    mean = (f1_per_hit * support * predicted / images).mean()
    return float(mean), float((f1_per_hit * np.sqrt(variance)).mean())


@dataclass(frozen=True)
class ChanceTest:
    """Result of the comparison with chance. `majority_class` has `majority_share` of the images; `metric` is the mean
    over classes, which guesses keep below `limit`."""

    is_better: bool
    majority_class: int
    majority_share: float
    metric: str
    limit: float

    @classmethod
    def run(
        cls, totals: ClassTotals, task: str, metrics: Mapping[str, float], comparisons: int = 1
    ) -> ChanceTest | None:
        """Compare `metrics` with chance; None where no class has an image.

        `comparisons`: Bonferroni's factor; one guess in 40 times as many passes in one of the two comparisons.
        """
        support, images = np.asarray(totals.support, np.float64), totals.images
        if not support.any() or not images:
            return None
        if task == MULTI:
            metric, (mean, deviation) = "macro_f1", compute_chance_f1(totals)
        else:
            metric, (mean, deviation) = "balanced_accuracy", compute_chance_recall(totals)
        top1 = compute_wilson_interval(round(metrics["top1"] * images), images, comparisons)
        share = support.max() / images
        limit = min(1.0, mean + NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * comparisons)) * deviation)
        is_better = top1[0] > share or metrics[metric] > limit + 1e-9
        return cls(bool(is_better), int(support.argmax()), float(share), metric, float(limit))

    def summarize(self, classes: Sequence[str], images: int, metrics: Mapping[str, float]) -> Chance:
        """Return the manifest's entry."""
        limits = {"top1": round(self.majority_share, 6), self.metric: round(self.limit, 6)}
        majority = classes[self.majority_class]
        why = "" if self.is_better else self._describe(majority, images, metrics)
        return Chance(self.is_better, majority, limits, why)

    def _describe(self, majority: str, images: int, metrics: Mapping[str, float]) -> str:
        number = f"{images:,} test image{'s' if images != 1 else ''}"
        reach = "any score" if self.limit >= 1 else f"up to {self.limit:.3f}"
        return (
            f"no better than chance, as far as {number} can tell: top-1 is {metrics['top1']:.3f}, and naming "
            f"{majority!r} every time has {self.majority_share:.3f}; {METRIC_TITLES[self.metric]} is "
            f"{metrics[self.metric]:.3f}, and guesses may have {reach}"
        )
