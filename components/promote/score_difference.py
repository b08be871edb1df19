"""Test the difference of two models' scores, a sum of the images' contributions, at a level that shrinks as the same
test images decide again.

**Contributions.** A contribution changes its sign when the models exchange their predictions for the image, and is zero
where these are the same. Top-1 and balanced accuracy are such sums by themselves. Macro-F1 is made one: each class's F1
is linearized at the mean of both models' counts, which no exchange changes, so that the sign-flip test stays exact; the
sum differs from the difference of the scores by terms of third order.

The variance that images of rare classes don't show is added: a class of two images on which the models agree is no
proof that they always do. The share of images on which the models differ is shrunk to that of all classes, with the
weight of `PRIOR_IMAGES`, as in the intervals of the scores.

**The sign-flip test.** If two models are equally good, it is chance which of them gives which prediction for an image:
the difference of their scores is a sum over images whose signs may be flipped independently (Fisher, "The Design of
Experiments", 1935). The test is exact however few images there are and whatever the sizes of their contributions; of
equal sizes it is the sign test, which McNemar's is for top-1. Up to `ENUMERATED` contributions all sign patterns are
counted; the tail of more is the saddlepoint approximation (Robinson, "Saddlepoint Approximations for Permutation Tests
and Confidence Intervals", 1982; Lugannani and Rice, "Saddle Point Approximation for the Distribution of the Sum of
Independent Random Variables", 1980), corrected for the steps between sums. Of few contributions it is 0.85 to 1.4 of
the exact probability down to one in a hundred, and 0.75 to 2.3 of it at one in 10,000; of many it is closer.

**Alpha spending.** Each challenger that a champion is compared with has another chance to look better by luck, and the
champion that is chosen so has a score that is too high (Dwork et al., "The Reusable Holdout", 2015). So the level is
spent: of a level of 5% the first comparison with a champion gets `FIRST_SHARE`, the k-th one `FIRST_SHARE` / k.
Comparisons with one champion are positively correlated, for its luck is in all of them (Dunnett, "A Multiple Comparison
Procedure for Comparing Several Treatments with a Control", 1955): of independent challengers that gain just `min_gain`,
one or more of 52 pass with a probability of 5%, of 520 with 5.4%; of equal ones far fewer do. A comparison counts with
the share of today's images that it was made on, so that new images give the level back, and so does a new champion. The
images of earlier comparisons are known from a bottom-k sketch of their content, the `SKETCH_SIZE` lowest hashes (Cohen
and Kaplan, "Summarizing Data Using Bottom-k Sketches", 2007), which is exact up to so many images.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataset.records import Verdict
from ..metrics.classification import Scores, compute_scores
from .pairs import PairedPredictions

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
PRIOR_IMAGES = 2.0
METRIC_TITLES = {"macro_f1": "macro-F1", "top1": "top-1", "balanced_accuracy": "balanced accuracy"}


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

    def compute_interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the 95% interval of the gain, with an image more on which the challenger alone is right and one more
        on which the champion is (Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial
        Proportions Based on Paired Data", 2012): models that agree on all images are not known to agree on others."""
        total = float(self.contributions.sum())
        images = max(1, len(self.contributions))
        variance = float((self.contributions**2).sum()) - total**2 / images
        variance = variance + self.unobserved_variance + 2 * self.single_image_square
        half = z * variance**0.5
        return self.gain - half, self.gain + half


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


Hashes = npt.NDArray[np.uint64]
ENUMERATED = 16
"""Maximum number of contributions of which all sign patterns are counted: 65,536 sums."""
_TOLERANCE = 1e-9
FIRST_SHARE = 0.36
"""Share of the level that the first comparison with a champion gets. With it, 52 independent challengers that gain just
`min_gain` are all refused with a probability of 95% (`tests/unit/test_alpha_spending.py`)."""
SKETCH_SIZE = 512
"""Number of content hashes in the sketch of a comparison's images: 11 kB in each verdict."""


def compute_tail_probability(contributions: Floats, threshold: float, variance: float = 0.0) -> float:
    """Return the probability that the sum of `contributions` with random signs is `threshold` or more.

    `variance`: of a normal variable that is added to the sum, for what the contributions don't show.
    """
    sizes = np.abs(contributions[contributions != 0])
    unit = math.sqrt(float((sizes**2).sum()) + variance)
    if not unit:
        return 1.0 if threshold <= 0 else 0.0
    sizes, threshold, variance = sizes / unit, threshold / unit, variance / unit**2
    if len(sizes) <= ENUMERATED:
        return _enumerate_signs(sizes, threshold, variance)
    if not variance:
        if threshold > sizes.sum() - 2 * sizes.min() + _TOLERANCE:  # reached with all signs positive alone
            return float(0.5 ** len(sizes)) if threshold <= sizes.sum() + _TOLERANCE else 0.0
        threshold -= float(sizes.min())  # half a step of a lattice, so that the threshold itself is above
    if threshold <= 0:
        return 1.0 - _approximate_tail(sizes, -threshold, variance)
    return _approximate_tail(sizes, threshold, variance)


def _enumerate_signs(sizes: Floats, threshold: float, variance: float) -> float:
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    if not variance:
        return float((sums >= threshold - _TOLERANCE).mean())
    return float(np.mean([_upper_tail((threshold - total) / math.sqrt(variance)) for total in sums]))


def _approximate_tail(sizes: Floats, threshold: float, variance: float) -> float:
    """Return the saddlepoint approximation for a sum of variance 1 and a threshold that is not negative."""
    if threshold < _TOLERANCE:
        return 0.5
    # The derivative of the cumulant generating function is concave: Newton's steps come from below and stay there.
    tilt = threshold
    for _ in range(200):
        tanh = np.tanh(tilt * sizes)
        slope = float((sizes * tanh).sum()) + variance * tilt
        curvature = float((sizes**2 * (1 - tanh**2)).sum()) + variance
        step = (threshold - slope) / curvature if curvature else 0.0
        tilt += step
        if step <= _TOLERANCE * tilt:
            break
    cumulant = float((np.logaddexp(tilt * sizes, -tilt * sizes) - math.log(2)).sum()) + variance * tilt**2 / 2
    distance = math.sqrt(max(0.0, 2 * (tilt * threshold - cumulant)))
    width = tilt * math.sqrt(curvature)
    if not distance or not width:
        return 0.5
    density = math.exp(-(distance**2) / 2) / math.sqrt(2 * math.pi)
    return min(1.0, max(0.0, _upper_tail(distance) + density * (1 / width - 1 / distance)))


def _upper_tail(x: float) -> float:
    """Return the probability of a standard normal variable above `x`, exact far out where `NormalDist.cdf` is 1."""
    return 0.5 * math.erfc(x / math.sqrt(2))


def compute_mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided mid-p value of McNemar's test, from the images that only one of two models has right
    (Fagerland, Lydersen and Laake, "The McNemar Test for Binary Matched-Pairs Data", 2013)."""
    total = only_first + only_second
    if not total:
        return 1.0
    pmf = _compute_binomial_pmf(total, range(min(only_first, only_second) + 1))
    return min(1.0, 2 * (math.fsum(pmf) - 0.5 * pmf[-1]) if only_first != only_second else 1.0)


def compute_sign_test_p_value(against: int, favorable: int) -> float:
    """Return the exact one-sided p value of the sign test: so many or more of the differences are `against`."""
    total = against + favorable
    return min(1.0, math.fsum(_compute_binomial_pmf(total, range(against, total + 1))))


def _compute_binomial_pmf(total: int, successes: range) -> list[float]:
    """Return the probabilities of the numbers of successes in `total` trials of probability 1/2.

    scipy.stats.binom has them too, but promote's image has no scipy.
    """
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in successes]
    return [math.exp(log - total * math.log(2)) for log in logs]


def compute_level(level: float, comparisons: float) -> float:
    """Return the level of a comparison on images that have decided `comparisons` times before."""
    return FIRST_SHARE * level / (1 + comparisons)


def make_sketch(content_hashes: Hashes) -> str:
    """Return the lowest of the content hashes as text, 11 kB at most."""
    lowest = np.unique(content_hashes)[:SKETCH_SIZE]
    return base64.b64encode(lowest.astype("<u8").tobytes()).decode()


def measure_overlap(today: str, earlier: str) -> float:
    """Return the share of today's images that an earlier comparison was made on, from both sketches."""
    hashes, earlier_hashes = (np.frombuffer(base64.b64decode(text), "<u8") for text in (today, earlier))
    for sketch in (hashes, earlier_hashes):
        if len(sketch) == SKETCH_SIZE:  # a sketch does not tell which hashes above its highest one there are
            hashes, earlier_hashes = hashes[hashes <= sketch[-1]], earlier_hashes[earlier_hashes <= sketch[-1]]
    return float(np.isin(hashes, earlier_hashes).mean()) if len(hashes) else 0.0


def count_comparisons(today: str, challenger: str, verdicts: Iterable[Verdict]) -> float:
    """Return how often today's images have decided between a champion and other challengers than this one.

    `verdicts`: those on that champion. Several with one challenger, by other rules, count as the one with the most of
    today's images.
    """
    shares: dict[str, float] = {}
    for verdict in verdicts:
        model = verdict.challenger_model
        if model != challenger and verdict.sketch is not None:
            shares[model] = max(shares.get(model, 0.0), measure_overlap(today, verdict.sketch))
    return sum(shares.values())
