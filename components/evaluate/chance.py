"""Test whether a model is better than a guess that does not look at the images.

Either of two comparisons is enough. Top-1 is significantly above the share of the most frequent class, the best score
of a constant prediction. Or the mean over classes (balanced accuracy; macro-F1 where images have several labels) is
above its expectation if labels were independent of predictions: mean and standard deviation over all permutations
(Hoeffding, "A Combinatorial Central Limit Theorem", 1951).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import Chance
from ..dataset.labels import MULTI
from .intervals import LEVEL, compute_wilson_interval

_TITLES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
Floats = npt.NDArray[np.float64]


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
    """Result of the comparison with chance. `majority_class` has `majority_share` of the images; `top1_interval` is
    Wilson's; `metric` is the mean over classes, which reaches at most `limit` by chance."""

    is_better: bool
    majority_class: int
    majority_share: float
    top1_interval: tuple[float, float]
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
        limit = mean + NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * comparisons)) * deviation
        is_better = top1[0] > share or metrics[metric] > limit + 1e-9
        return cls(bool(is_better), int(support.argmax()), float(share), top1, metric, float(limit))

    def summarize(self, classes: Sequence[str], images: int, metrics: Mapping[str, float]) -> Chance:
        """Return the manifest's entry."""
        limits = {"top1": round(self.majority_share, 6), self.metric: round(self.limit, 6)}
        majority = classes[self.majority_class]
        why = "" if self.is_better else self._describe(majority, images, metrics)
        return Chance(self.is_better, majority, limits, why)

    def _describe(self, majority: str, images: int, metrics: Mapping[str, float]) -> str:
        number = f"{images:,} test image{'s' if images != 1 else ''}"
        low, high = self.top1_interval
        top1 = f"{metrics['top1']:.3f} ({low:.3f} to {high:.3f})"
        return (
            f"no better than chance, as far as {number} can tell: top-1 is {top1}, and {self.majority_share:.3f} for "
            f"{majority!r} every time; {_TITLES[self.metric]} is {metrics[self.metric]:.3f}, and up to "
            f"{self.limit:.3f} by chance"
        )
