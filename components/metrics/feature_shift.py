"""Compare the features of two samples that overlap: the distance of their means, with what chance alone gives.

The rows are those of `two_sample.py`, common, removed and added, and so are the scopes. The statistic is the squared
Mahalanobis distance of the samples' means on the leading principal components of all rows, which is Hotelling's T² but
for a factor. Of two normal distributions of one covariance it is the symmetric Kullback-Leibler divergence, as PSI is
of bins, so that both have one scale. Covariance and components are of all rows together, whichever part they are in, so
that the test by permutation is exact for rows that are exchangeable (Phipson and Smyth, "Permutation p-values should
never be zero", 2010). On the features of a pretrained network a test of this kind finds shifts of images that measures
of single images miss (Rabanser, Günnemann and Lipton, "Failing Loudly: An Empirical Study of Methods for Detecting
Dataset Shift", 2019).

Only a change of the mean is seen: images that are more varied, around the same mean, are no change here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from .two_sample import ALL, NEW, Shift

COMPONENTS = 32
"""Principal components: from 20 new images more of them would hide a distance of 1 in what chance gives."""
PERMUTATIONS = 1_999
MIN_VARIANCE = 1e-6
"""Of a component, as a share of the first one's: below it there is rounding alone."""

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def whiten(read: Callable[[], Iterable[Features]], components: int = COMPONENTS) -> Floats:
    """Return the leading principal components of features, each of mean 0 and variance 1, float64 [N, k].

    `read` yields float32 [B, D], and is called twice, so that memory holds a batch and D² numbers beside the result.
    """
    number, origin, total, scatter = 0, np.zeros(0), np.zeros(0), np.zeros((0, 0))
    for batch in read():
        if not number:  # sums are of differences from the first row, so that their squares lose no digits
            dimensions = batch.shape[1]
            origin, total, scatter = batch[0], np.zeros(dimensions), np.zeros((dimensions, dimensions))
        rows = batch - origin
        total += rows.sum(0, dtype=np.float64)
        scatter += rows.T @ rows
        number += len(rows)
    mean = total / max(1, number)
    covariance, mean = scatter / max(1, number) - np.outer(mean, mean), mean + origin
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1][:components], axes[:, ::-1][:, :components]
    is_kept = variances > max(MIN_VARIANCE * float(variances[0]), 1e-12)
    projection = (axes / np.sqrt(np.maximum(variances, 1e-30)))[:, is_kept]
    return np.concatenate([(batch - mean) @ projection for batch in read()])


def compare_means(rows: Floats, sizes: tuple[int, int, int], scopes: Sequence[str], level: float) -> dict[str, Shift]:
    """Compare whitened rows [N, k], those that are common first, then the removed and the added ones, by scope.

    `sizes`: number of each; `level`: of one test, from 1 / (PERMUTATIONS + 1) on. A shift's `psi` is the distance.
    """
    common, removed, added = sizes
    parts = np.split(rows, [common, common + removed])
    observed = parts[1].sum(0), parts[2].sum(0)
    draws: dict[str, list[float]] = {scope: [] for scope in scopes}
    for sums in _permute(rows, removed, added):
        for scope in scopes:
            draws[scope].append(_square(_subtract_means(*sums, sizes, scope)))
    allowed = int(level * (PERMUTATIONS + 1))  # permutations that may reach the observed one, itself included
    shifts = {}
    for scope in scopes:
        null = np.array(draws[scope])
        difference = _subtract_means(*observed, sizes, scope)
        distance, mean, limit = _square(difference), float(null.mean()), float(np.sort(null)[-max(1, allowed)])
        p_value = (1 + int((null >= distance * (1 - 1e-9)).sum())) / (1 + PERMUTATIONS)
        is_significant = distance > limit * (1 + 1e-9)  # of no images, say, both are 0
        error = 1.96 * _estimate_deviation(difference, parts, sizes, scope)
        shifts[scope] = Shift(max(0.0, distance - mean), error, limit - mean, p_value, is_significant)
    return shifts


def _permute(rows: Floats, removed: int, added: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield the sums of the removed and of the added rows, of the same rows dealt out at random."""
    rng = np.random.default_rng(0)
    for _ in range(PERMUTATIONS):
        order = rng.permutation(len(rows))
        yield rows[order[:removed]].sum(0), rows[order[removed : removed + added]].sum(0)


def _subtract_means(removed: Floats, added: Floats, sizes: tuple[int, int, int], scope: str) -> Floats:
    """Return the mean of the scope's sample less that of the reference, from the sums of parts of rows of mean 0."""
    reference, snapshot = sizes[0] + sizes[1], sizes[0] + sizes[2]
    if scope == NEW:
        return added / max(1, sizes[2]) + added / max(1, reference)  # the reference's sum is that of the added, negated
    return -removed / max(1, snapshot) + added / max(1, reference)


def _square(difference: Floats) -> float:
    return float(difference @ difference)


def _estimate_deviation(
    difference: Floats, parts: Sequence[Floats], sizes: tuple[int, int, int], scope: str
) -> float:  # fmt: skip
    """Return the standard deviation of the squared distance, to the second order, from the spread in each part."""
    reference, snapshot = max(1, sizes[0] + sizes[1]), max(1, sizes[0] + sizes[2])
    weights = (-1 / reference, -1 / reference, 1 / max(1, sizes[2]))
    if scope == ALL:
        weights = (1 / snapshot - 1 / reference, -1 / reference, 1 / snapshot)
    covariance = np.zeros((len(difference),) * 2)
    for part, weight in zip(parts, weights, strict=True):
        if len(part):
            centered = part - part.mean(0)
            covariance += weight**2 * len(part) / max(1, len(part) - 1) * (centered.T @ centered)
    return float(np.sqrt(4 * difference @ covariance @ difference + 2 * (covariance**2).sum()))
