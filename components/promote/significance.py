"""Test the difference of two models' scores, at a level that shrinks as the same test images decide again.

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
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..dataset.records import Verdict

Floats = npt.NDArray[np.float64]
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
