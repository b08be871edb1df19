"""The difference of two models' scores as a sum of what each image contributes to it.

A contribution changes its sign when the models exchange their predictions for the image, and is zero where these are
the same. Top-1 and balanced accuracy are such sums by themselves. Macro-F1 is made one: each class's F1 is linearized
at the mean of both models' counts, which no exchange changes, so that the sign-flip test stays exact; the sum differs
from the difference of the scores by terms of third order.

What images of rare classes don't show is added as a variance: a class of two images on which the models agree is no
proof that they always do. The share of images on which the models differ is shrunk to that of all classes, with the
weight of `PRIOR_IMAGES`, as in the intervals of the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..store.metrics import Scores, scores
from .paired import Assignments, Pair

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
PRIOR_IMAGES = 2.0
NAMES = {"macro_f1": "macro-F1", "top1": "top-1", "balanced_accuracy": "balanced accuracy"}


@dataclass(frozen=True)
class Difference:
    """Scores of both models on the images that count, `contributions` float64 [images] to challenger minus champion,
    and the `unseen` variance of what rare classes don't show. `one_image`: the mean square of what an image on which
    one model alone is right contributes."""

    champion: float
    challenger: float
    contributions: Floats
    unseen: float
    one_image: float

    @property
    def gain(self) -> float:
        return self.challenger - self.champion

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the 95% interval of the gain, with an image more on which the challenger alone is right and one more
        on which the champion is (Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial
        Proportions Based on Paired Data", 2012): models that agree on all images are not known to agree on others."""
        total = float(self.contributions.sum())
        images = max(1, len(self.contributions))
        variance = float((self.contributions**2).sum()) - total**2 / images + self.unseen + 2 * self.one_image
        half = z * variance**0.5
        return self.gain - half, self.gain + half


@dataclass(frozen=True)
class ClassCounts:
    """By class, [classes]: images with the label, images that each model predicts to have it, and those of them that
    have it; images of the label that only one model recognizes."""

    support: Counts
    predicted: tuple[Counts, Counts]
    hits: tuple[Counts, Counts]
    only_champion: Counts
    only_challenger: Counts

    @classmethod
    def of(cls, pair: Pair) -> ClassCounts:
        classes = len(pair.classes)

        def count(ids: Counts) -> Counts:
            return np.bincount(ids, minlength=classes)

        recognized = [_contains(one, pair.labels, classes) for one in (pair.champion, pair.challenger)]
        ids = pair.labels.classes
        return cls(
            support=count(ids),
            predicted=(count(pair.champion.classes), count(pair.challenger.classes)),
            hits=(count(ids[recognized[0]]), count(ids[recognized[1]])),
            only_champion=count(ids[recognized[0] & ~recognized[1]]),
            only_challenger=count(ids[recognized[1] & ~recognized[0]]),
        )

    def scores(self) -> tuple[Scores, Scores]:
        """Return precision, recall, F1 and support by class, of champion and challenger."""
        first, second = (scores(self.hits[one], self.predicted[one], self.support) for one in range(2))
        return first, second


def difference(pair: Pair, metric: str) -> Difference:
    """Return the difference in `macro_f1`, `top1` or `balanced_accuracy`. `pair` has at least one image."""
    return _METRICS[metric](pair)


def _top1(pair: Pair) -> Difference:
    champion, challenger = (right.astype(np.float64) for right in pair.right)
    one = 1 / pair.images
    return Difference(float(champion.mean()), float(challenger.mean()), (challenger - champion) * one, 0.0, one**2)


def _macro_f1(pair: Pair) -> Difference:
    counts = ClassCounts.of(pair)
    bottom = counts.support + (counts.predicted[0] + counts.predicted[1]) / 2
    hits = (counts.hits[0] + counts.hits[1]) / 2
    present, number = counts.support > 0, int((counts.support > 0).sum())
    per_hit = np.divide(2 / number, bottom, out=np.zeros(len(present)), where=present)
    per_prediction = np.divide(2 * hits / number, bottom**2, out=np.zeros(len(present)), where=present)
    return _mean_over_classes(pair, counts, "f1", per_hit, per_prediction)


def _balanced_accuracy(pair: Pair) -> Difference:
    counts = ClassCounts.of(pair)
    present, number = counts.support > 0, int((counts.support > 0).sum())
    per_hit = np.divide(1 / number, counts.support, out=np.zeros(len(present)), where=present)
    return _mean_over_classes(pair, counts, "recall", per_hit, np.zeros(len(present)))


def _mean_over_classes(
    pair: Pair, counts: ClassCounts, score: str, per_hit: Floats, per_prediction: Floats
) -> Difference:
    """From what a hit adds to the mean over the classes, and a prediction takes from it, each [classes]."""
    present = counts.support > 0
    champion, challenger = (float(one[score][present].mean()) for one in counts.scores())
    contributions = np.zeros(pair.images)
    for sign, predictions in ((-1, pair.champion), (1, pair.challenger)):
        hit = _contains(pair.labels, predictions, len(pair.classes))
        value = hit * per_hit[predictions.classes] - per_prediction[predictions.classes]
        contributions += sign * np.bincount(predictions.images, value, pair.images)
    contributions[np.abs(contributions) < 1e-15] = 0.0  # rounding errors of equal predictions
    support = counts.support[present].astype(np.float64)
    return Difference(
        champion,
        challenger,
        contributions,
        _unseen(counts, per_hit),
        float(np.average(per_hit[present] ** 2, weights=support)),
    )


def _unseen(counts: ClassCounts, per_hit: Floats) -> float:
    """The variance that images of rare classes would add if the models differed on them as often as on others."""
    present = counts.support > 0
    support = counts.support[present].astype(np.float64)
    differing = (counts.only_champion + counts.only_challenger)[present]
    share = differing / support
    usual = max(share.mean(), np.average(share, weights=1 / support), np.average(share, weights=support))
    expected = support * (differing + PRIOR_IMAGES * usual) / (support + PRIOR_IMAGES)
    return max(0.0, float((per_hit[present] ** 2 * (expected - differing)).sum()))


def _contains(wanted: Assignments, among: Assignments, classes: int) -> npt.NDArray[np.bool_]:
    """Which of `among` are also `wanted`, [among]."""
    ours, theirs = (one.images * max(1, classes) + one.classes for one in (among, wanted))
    return np.isin(ours, theirs)


_METRICS: dict[str, Callable[[Pair], Difference]] = {
    "macro_f1": _macro_f1,
    "top1": _top1,
    "balanced_accuracy": _balanced_accuracy,
}
