"""Compare the predictions of two configurations' models, image by image and seed by seed.

The difference varies with the test images and with the seeds of the trainings, and both are samples: of the images that
the model will see, and of the trainings that could have been. Readers who judge the same cases pose the same problem in
radiology, where it is known as multi-reader multi-case analysis: trainings are readers, test images are cases. The
variance is that of a two-way random-effects model with one observation in each cell, training x image (Dorfman,
Berbaum and Metz, "Receiver Operating Characteristic Rating Analysis", 1992; Roe and Metz, "Variance-Component Modeling
in the Analysis of Receiver Operating Characteristic Index Estimates", 1997):

    variance of the mean = variance over images + variance over trainings - variance of the residual

where the first two each contain the residual's. The first also has what promote's interval adds for images that say too
little (score_difference.py of promote). The quantile is Student's, with the degrees of freedom of Satterthwaite ("An
Approximate Distribution of Estimates of Variance Components", 1946), as in Hillis ("A Comparison of Denominator Degrees
of Freedom Methods for Multiple Observer ROC Analysis", 2007): few trainings say little of their variance, and widen the
interval only as far as it is the trainings that vary. That the variance over trainings is taken to be no smaller than
zero, although its estimate may be, errs to the wide side. Simulated coverage is in tests/benchmarks/README.md.

In cross-validation each image is tested once, by the model of its fold. The models' training images overlap, so that
their mistakes go together, which no variance within one cross-validation shows. Nadeau and Bengio ("Inference for the
Generalization Error", 2003) add the ratio of test to training images to the 1/n of a mean of n folds; here the variance
over images, which many more values tell than the n folds' means, is made as much larger: by 1 + n/(n - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...components.dataset.manifest import Dataset
from ...components.promote.pairs import Mask, PairedPredictions, Predictions
from ...components.promote.score_difference import ScoreDifference, compute_difference
from ...components.step.config import METRIC_TITLES

LEVEL = 0.95
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MeanDifference:
    """The mean `gain` of several pairs of trainings, with its 95% `interval`.

    `gains`: of each pair, [trainings]. `image_error` and `training_error`: standard errors of the mean that come from
    the test images and from the trainings. `p`: two-sided p value of no difference.
    """

    gain: float
    interval: tuple[float, float]
    gains: tuple[float, ...]
    image_error: float
    training_error: float
    p: float

    @property
    def is_credible(self) -> bool:
        """Return whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def compute_mean_difference(
    contributions: Floats, gains: Floats, extra_variance: float = 0.0, folds: int = 0
) -> MeanDifference:
    """Return the mean of `gains`, [trainings], with its interval.

    Args:
        contributions: each image's part of the gain of each training, [trainings, images]. A row sums to the gain, or
            nearly so where the score is not linear in the images.
        extra_variance: a part of the variance over images that the contributions don't show.
        folds: of cross-validation, in which each training is one model a fold; 0 without.

    With a single training the interval is over the images alone.
    """
    from scipy import stats

    trainings, images = contributions.shape
    gain = float(gains.mean())
    by_image = contributions.mean(0)
    centered = by_image - by_image.mean()
    image_variance = float((centered**2).sum()) * images / max(1, images - 1) + extra_variance
    image_variance *= correct_for_folds(folds)
    training_variance = residual_variance = 0.0
    if trainings > 1:
        training_variance = float(gains.var(ddof=1)) / trainings
        residual = contributions - by_image - (contributions.mean(1) - by_image.mean())[:, None]
        degrees = max(1, images - 1) * (trainings - 1)
        residual_variance = float((residual**2).sum()) * images / (degrees * trainings)
    surplus = max(0.0, training_variance - residual_variance)
    variance = image_variance + surplus
    degrees = _count_degrees(variance, [
        (image_variance, images - 1), (training_variance if trainings > 1 else 0.0, trainings - 1),
        (residual_variance, (images - 1) * (trainings - 1)),
    ])  # fmt: skip
    error = math.sqrt(variance)
    half = float(stats.t.isf((1 - LEVEL) / 2, degrees)) * error
    p = 2 * float(stats.t.sf(abs(gain) / error, degrees)) if error else float(not gain)
    return MeanDifference(
        gain, (gain - half, gain + half), tuple(gains.tolist()), math.sqrt(image_variance), math.sqrt(surplus), p
    )


def correct_for_folds(folds: int) -> float:
    """Return the factor on the variance over images that Nadeau and Bengio's correction amounts to; 1 without folds."""
    return 1 + folds / (folds - 1) if folds else 1.0


def _count_degrees(variance: float, terms: list[tuple[float, int]]) -> float:
    """Return Satterthwaite's degrees of freedom of a variance made of `terms`, (variance, degrees) each."""
    spread = sum(term**2 / degrees for term, degrees in terms if degrees > 0)
    return max(1.0, variance**2 / spread) if spread else math.inf


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the `images` that are test images of both.

    `excluded`: test images of one configuration only, or that a model has seen in training. `scores`: of each
    configuration by metric, [seeds]. `differences`: second less first, by metric. `right`: for each image, the share of
    each configuration's models that are right, float64 [2, images].
    """

    images: int
    excluded: int
    scores: dict[str, tuple[Floats, Floats]]
    differences: dict[str, MeanDifference]
    image_ids: tuple[str, ...]
    labels: tuple[str, ...]
    right: Floats

    @property
    def won(self) -> int:
        """Images on which more of the second configuration's models are right."""
        return int((self.right[1] > self.right[0]).sum())

    @property
    def lost(self) -> int:
        """Images on which more of the first configuration's models are right."""
        return int((self.right[1] < self.right[0]).sum())

    def find_changes(self, limit: int) -> list[dict[str, Any]]:
        """Return the images with the largest differences, at most `limit`, those that B wins first: `image_id`,
        `label`, and the shares of A's and B's models that are right."""
        change = self.right[1] - self.right[0]
        rows = [int(row) for row in np.argsort(-np.abs(change), kind="stable")[:limit] if change[row]]
        return [
            {
                "image_id": self.image_ids[row],
                "label": self.labels[row],
                "A": self.right[0, row],
                "B": self.right[1, row],
            }
            for row in sorted(rows, key=lambda row: (-change[row], self.image_ids[row]))
        ]  # fmt: skip


def compare_evaluations(first: Sequence[Dataset], second: Sequence[Dataset], folds: int = 0) -> Comparison:
    """Compare evaluations of both configurations' models, of which the n-th two belong together (one seed).

    With `folds`, each seed has so many, one after the other, whose images are taken together. All have the same
    classes. An image counts if it is a test image for every seed of both, and no model that is tested on it has seen
    it.
    """
    classes, step = first[0].manifest.classes, max(1, folds)
    rows = [
        [Predictions.read(side[at], classes, *side[at + 1 : at + step]) for at in range(0, len(side), step)]
        for side in (first, second)
    ]
    common = _find_common_images([predictions for side in rows for predictions in side])
    pairs = [_pair(classes, *sides, common) for sides in zip(rows[0], rows[1], strict=True)]
    by_metric = {metric: [compute_difference(pair, metric) for pair in pairs] for metric in METRIC_TITLES}
    labels = [""] * len(common)
    for image, class_id in zip(*pairs[0].labels, strict=True):
        labels[image] = f"{labels[image]}, {classes[class_id]}" if labels[image] else classes[class_id]
    total = len(set().union(*(side[0].image_ids.to_pylist() for side in rows)))
    return Comparison(
        images=len(common),
        excluded=total - len(common),
        scores={
            metric: (np.array([d.champion for d in differences]), np.array([d.challenger for d in differences]))
            for metric, differences in by_metric.items()
        },
        differences={metric: combine_differences(differences, folds) for metric, differences in by_metric.items()},
        image_ids=tuple(common.to_pylist()),
        labels=tuple(labels),
        right=np.array([np.mean([pair.is_right[side] for pair in pairs], axis=0) for side in (0, 1)]),
    )


def combine_differences(differences: Sequence[ScoreDifference], folds: int = 0) -> MeanDifference:
    """Return the mean difference over seeds, with an interval over images and seeds, and with `folds` training images.

    As in the gate's own interval, two images on which one model alone is right are added, and the variance that images
    of rare classes don't show.
    """
    extra = np.mean([d.unobserved_variance + 2 * d.single_image_square for d in differences])
    contributions = np.array([difference.contributions for difference in differences])
    return compute_mean_difference(contributions, np.array([d.gain for d in differences]), float(extra), folds)


def _find_common_images(rows: Sequence[Predictions]) -> pa.Array:
    """Return the sorted ids of the images that all models were tested on and none has seen."""
    common = rows[0].image_ids.combine_chunks()
    for predictions in rows:
        unseen = predictions.image_ids.filter(pa.array(~predictions.is_seen))
        common = common.filter(pc.is_in(common, unseen.combine_chunks()))
    return common


def _pair(classes: tuple[str, ...], first: Predictions, second: Predictions, common: pa.Array) -> PairedPredictions:
    """Return both models' predictions for the images `common`, the first one's as the champion's."""
    masks: list[Mask] = [
        np.asarray(pc.is_in(rows.image_ids.combine_chunks(), common).to_numpy(zero_copy_only=False), np.bool_)
        for rows in (first, second)
    ]
    return PairedPredictions(
        classes=classes,
        images=len(common),
        labels=first.labels.select(masks[0]),
        champion=first.predicted.select(masks[0]),
        challenger=second.predicted.select(masks[1]),
        is_right=(first.is_right[masks[0]], second.is_right[masks[1]]),
        confidence=(first.confidence[masks[0]], second.confidence[masks[1]]),
    )
