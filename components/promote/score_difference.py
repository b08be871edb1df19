"""Measure the difference of two models' scores on the same images, a sum of the images' contributions.

A contribution changes its sign when the models exchange their predictions for the image, and is zero where these are
the same. Top-1 and balanced accuracy are such sums by themselves. Macro-F1 is made one: each class's F1 is linearized
at the mean of both models' counts; the sum differs from the difference of the scores by terms of third order.

The standard error is that of a paired mean, with an image more on which the challenger alone is right and one more on
which the champion is (Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
Based on Paired Data", 2012): models that agree on all images are not known to agree on others. The variance that
images of rare classes don't show is added: a class of two images on which the models agree is no proof that they
always do. The share of images on which the models differ is shrunk to that of all classes, with the weight of
`PRIOR_IMAGES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..metrics.classification import Scores, compute_scores
from .pairs import PairedPredictions

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
PRIOR_IMAGES = 2.0


@dataclass(frozen=True)
class ScoreDifference:
    """Scores of both models, and each image's contribution to challenger minus champion (`contributions`, float64
    [images]). `unobserved_variance`: what images of rare classes don't show. `single_image_square`: the mean square of
    the contribution of an image on which only one model is right."""

    champion: float
    challenger: float
    contributions: Floats
    unobserved_variance: float
    single_image_square: float

    @property
    def gain(self) -> float:
        return self.challenger - self.champion

    @property
    def error(self) -> float:
        """The standard error of the gain."""
        total = float(self.contributions.sum())
        variance = float((self.contributions**2).sum()) - total**2 / max(1, len(self.contributions))
        return float((variance + self.unobserved_variance + 2 * self.single_image_square) ** 0.5)

    def compute_interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the 95% interval of the gain."""
        return self.gain - z * self.error, self.gain + z * self.error


@dataclass(frozen=True)
class ClassCounts:
    """Counts by class, int64 [classes]: `support`, images with the label; of (champion, challenger) `predicted` and
    `hits`; `only_champion` and `only_challenger`, images of the label that only this model recognizes."""

    support: Counts
    predicted: tuple[Counts, Counts]
    hits: tuple[Counts, Counts]
    only_champion: Counts
    only_challenger: Counts

    @classmethod
    def count(cls, pair: PairedPredictions) -> ClassCounts:
        ids, classes = pair.labels.classes, len(pair.classes)
        champion_hits, challenger_hits = (
            pair.labels.find_in(predicted, classes) for predicted in (pair.champion, pair.challenger)
        )

        def bincount(ids: Counts) -> Counts:
            return np.bincount(ids, minlength=classes)

        return cls(
            support=bincount(ids),
            predicted=(bincount(pair.champion.classes), bincount(pair.challenger.classes)),
            hits=(bincount(ids[champion_hits]), bincount(ids[challenger_hits])),
            only_champion=bincount(ids[champion_hits & ~challenger_hits]),
            only_challenger=bincount(ids[challenger_hits & ~champion_hits]),
        )

    def compute_scores(self) -> tuple[Scores, Scores]:
        """Return precision, recall, F1 and support by class, of champion and challenger."""
        champion, challenger = (
            compute_scores(self.hits[model], self.predicted[model], self.support) for model in range(2)
        )
        return champion, challenger


def compute_difference(pair: PairedPredictions, metric: str) -> ScoreDifference:
    """Return the difference in `macro_f1`, `top1` or `balanced_accuracy`. `pair` has at least one image."""
    return _DIFFERENCE_BY_METRIC[metric](pair)


def _compute_top1(pair: PairedPredictions) -> ScoreDifference:
    champion, challenger = (is_right.astype(np.float64) for is_right in pair.is_right)
    weight = 1 / pair.images
    contributions = (challenger - champion) * weight
    return ScoreDifference(float(champion.mean()), float(challenger.mean()), contributions, 0.0, weight**2)


def _compute_macro_f1(pair: PairedPredictions) -> ScoreDifference:
    counts = ClassCounts.count(pair)
    assigned = counts.support + (counts.predicted[0] + counts.predicted[1]) / 2
    hits = (counts.hits[0] + counts.hits[1]) / 2
    is_present, number = counts.support > 0, int((counts.support > 0).sum())
    per_hit = np.divide(2 / number, assigned, out=np.zeros(len(is_present)), where=is_present)
    per_prediction = np.divide(2 * hits / number, assigned**2, out=np.zeros(len(is_present)), where=is_present)
    return _average_classes(pair, counts, "f1", per_hit, per_prediction)


def _compute_balanced_accuracy(pair: PairedPredictions) -> ScoreDifference:
    counts = ClassCounts.count(pair)
    is_present, number = counts.support > 0, int((counts.support > 0).sum())
    per_hit = np.divide(1 / number, counts.support, out=np.zeros(len(is_present)), where=is_present)
    return _average_classes(pair, counts, "recall", per_hit, np.zeros(len(is_present)))


def _average_classes(
    pair: PairedPredictions, counts: ClassCounts, score: str, per_hit: Floats, per_prediction: Floats
) -> ScoreDifference:
    """Return the difference of a mean over classes, to which a hit adds `per_hit`, and from which a prediction takes
    `per_prediction`, [classes] each."""
    is_present = counts.support > 0
    champion, challenger = (float(by_class[score][is_present].mean()) for by_class in counts.compute_scores())
    contributions = np.zeros(pair.images)
    for sign, predictions in ((-1, pair.champion), (1, pair.challenger)):
        is_hit = predictions.find_in(pair.labels, len(pair.classes))
        value = is_hit * per_hit[predictions.classes] - per_prediction[predictions.classes]
        contributions += sign * np.bincount(predictions.images, value, pair.images)
    contributions[np.abs(contributions) < 1e-15] = 0.0  # rounding errors of equal predictions
    support = counts.support[is_present].astype(np.float64)
    return ScoreDifference(
        champion,
        challenger,
        contributions,
        _estimate_unobserved_variance(counts, per_hit),
        float(np.average(per_hit[is_present] ** 2, weights=support)),
    )


def _estimate_unobserved_variance(counts: ClassCounts, per_hit: Floats) -> float:
    """Return the variance that images of rare classes would add if the models differed on them as often as on
    others."""
    is_present = counts.support > 0
    support = counts.support[is_present].astype(np.float64)
    differing = (counts.only_champion + counts.only_challenger)[is_present]
    share = differing / support
    usual = max(share.mean(), np.average(share, weights=1 / support), np.average(share, weights=support))
    expected = support * (differing + PRIOR_IMAGES * usual) / (support + PRIOR_IMAGES)
    return max(0.0, float((per_hit[is_present] ** 2 * (expected - differing)).sum()))


_DIFFERENCE_BY_METRIC: dict[str, Callable[[PairedPredictions], ScoreDifference]] = {
    "macro_f1": _compute_macro_f1,
    "top1": _compute_top1,
    "balanced_accuracy": _compute_balanced_accuracy,
}
