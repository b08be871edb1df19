"""Confidence interval of the difference of two configurations, trained several times, tested on the same images.

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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
_MAX_DEGREES = 10_000.0
"""Degrees of freedom above which Student's distribution is the normal one to four digits."""
_GRID = 20_001


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
    half = compute_student_quantile(degrees, LEVEL) * error
    p = 1.0 - compute_student_probability(degrees, abs(gain) / error) if error else float(not gain)
    return MeanDifference(
        gain, (gain - half, gain + half), tuple(float(value) for value in gains), math.sqrt(image_variance),
        math.sqrt(surplus), p,
    )  # fmt: skip


def correct_for_folds(folds: int) -> float:
    """Return the factor on the variance over images that Nadeau and Bengio's correction amounts to; 1 without folds."""
    return 1 + folds / (folds - 1) if folds else 1.0


def _count_degrees(variance: float, terms: list[tuple[float, int]]) -> float:
    """Return Satterthwaite's degrees of freedom of a variance made of `terms`, (variance, degrees) each."""
    spread = sum(term**2 / degrees for term, degrees in terms if degrees > 0)
    return min(_MAX_DEGREES, max(1.0, variance**2 / spread)) if spread else _MAX_DEGREES


def compute_student_quantile(degrees: float, level: float) -> float:
    """Return the number that a Student variable's absolute value stays below with probability `level`.

    `degrees` of freedom need not be a whole number, and are at least 1.
    """
    angles, probability = _tabulate_student(degrees)
    return math.sqrt(degrees) * math.tan(float(np.interp(level, probability, angles)))


def compute_student_probability(degrees: float, value: float) -> float:
    """Return the probability that a Student variable's absolute value is below `value`."""
    angles, probability = _tabulate_student(degrees)
    return float(np.interp(math.atan(value / math.sqrt(degrees)), angles, probability))


def _tabulate_student(degrees: float) -> tuple[Floats, Floats]:
    """Return (angles, probability of an absolute value below sqrt(degrees) tan(angle)).

    In the angle the density is cos^(degrees - 1), which is bounded and smooth. scipy.stats.t has both, too, but no
    extra of ours installs scipy by itself.
    """
    angles = np.linspace(0, math.pi / 2, _GRID)
    density = np.cos(angles) ** (degrees - 1)
    sums = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, sums / sums[-1]
