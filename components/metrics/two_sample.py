"""Compare the distributions of two samples that overlap: PSI and KS distance, each with what chance alone gives.

The samples are a reference and a snapshot, of which rows are common to both, removed (the reference's alone) or added
(the snapshot's alone). Two scopes are compared: `all`, the snapshot with the reference; and `new`, the added rows with
the reference, for an addition of one percent hardly moves the whole.

PSI, the population stability index, is the sum of (a - b) ln(a / b) over the shares a and b of bins. Of finite samples
it is above zero without any change: about (1/n + 1/m) times a chi-squared variable of bins - 1 degrees of freedom
(Yurdakul, "Statistical Properties of Population Stability Index", 2018), for samples that share c rows
(1/n + 1/m - 2c/nm) times; with a change of size d it is a noncentral one, by which its interval is. Bins that are too
rare for that are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ALL, NEW = "all", "new"
"""The scopes."""
BINS = 10
MIN_EXPECTED, MIN_EXPECTED_OVERLAP = 1.0, 5.0
"""Rows of the smallest sample that a bin has to expect; of samples with common rows, of the removed or added ones:
half a row a bin steadies the first, and hardly the second."""
_HALF_ROW = 0.5
"""Added to each bin, so that an empty one has a logarithm (Jeffreys' prior)."""

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Rows by bin, int64 [bins], of each part: `common` to both samples, `removed` and `added`."""

    common: Counts
    removed: Counts
    added: Counts

    @property
    def reference(self) -> Counts:
        return self.common + self.removed

    @property
    def snapshot(self) -> Counts:
        return self.common + self.added


@dataclass(frozen=True)
class Shift:
    """The difference of two distributions.

    Attributes:
        psi: less its mean under no change, so 0 in expectation there; at least 0.
        error: half of its 95% interval.
        chance: what `psi` exceeds under no change with a probability of at most `level`.
        p_value: of the chi-squared test.
        is_significant: whether `psi` exceeds `chance`.
    """

    psi: float
    error: float
    chance: float
    p_value: float
    is_significant: bool

    def to_dict(self) -> dict[str, float | bool]:
        """Return the fields with six digits."""
        return {k: v if isinstance(v, bool) else float(f"{v:.6g}") for k, v in asdict(self).items()}


def compute_psi(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Values:
    """Return PSI of counts [..., bins] of two samples, float [...]."""
    bins = first.shape[-1]
    shares = (first + _HALF_ROW) / (first.sum(-1, keepdims=True) + _HALF_ROW * bins)
    others = (second + _HALF_ROW) / (second.sum(-1, keepdims=True) + _HALF_ROW * bins)
    psi: Values = ((shares - others) * np.log(shares / others)).sum(-1)
    return psi


def assign_bins(values: Values, bins: int = BINS) -> Counts:
    """Return the bin of each of [N] finite numbers, from 0 on without gaps.

    Bins are of equal shares of all values. A value that half a bin's share of the rows has gets a bin of its own: where
    most images are 500 pixels wide, those of 640 differ from them.
    """
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
    # Cells in turn: below the first edge, equal to it, between it and the second, …
    cells = np.searchsorted(edges, values, side="left") + np.searchsorted(edges, values, side="right")
    begins = np.ones(2 * len(edges) + 1, np.int64)
    begins[1::2] = np.bincount(cells, minlength=len(begins))[1::2] >= len(values) / (2 * bins)
    merged = np.cumsum(begins)[cells]
    return np.unique(merged, return_inverse=True)[1].astype(np.int64)


def compare_counts(parts: Parts, scopes: Sequence[str], level: float) -> dict[str, Shift]:
    """Compare samples by their rows in each bin, by scope. `level`: of one test."""
    return {scope: _compare_scope(parts, scope, level) for scope in scopes}


def _compare_scope(parts: Parts, scope: str, level: float) -> Shift:
    from scipy.stats import chi2

    sizes = (int(parts.common.sum()), int(parts.removed.sum()), int(parts.added.sum()))
    parts, variance = _pool_rare_bins(parts, sizes, scope), compute_variance(sizes, scope)
    freedom = len(parts.common) - 1
    if not freedom or not variance:
        return Shift(0.0, 0.0, 0.0, 1.0, False)
    psi = float(compute_psi(parts.added if scope == NEW else parts.snapshot, parts.reference))
    excess, chance = psi - variance * freedom, variance * (float(chi2.isf(level, freedom)) - freedom)
    error = 1.96 * math.sqrt(2 * variance**2 * freedom + 4 * variance * max(0.0, excess))
    return Shift(max(0.0, excess), error, chance, float(chi2.sf(psi / variance, freedom)), excess > chance)


def _pool_rare_bins(parts: Parts, sizes: tuple[int, int, int], scope: str) -> Parts:
    """Make one bin of those that expect too few rows of the smallest sample."""
    common, removed, added = sizes
    smallest = min(
        (size for size in ((common + removed, added) if scope == NEW else (removed, added)) if size), default=0
    )
    pooled = parts.common + parts.removed + parts.added
    least = MIN_EXPECTED_OVERLAP if scope == ALL and common else MIN_EXPECTED
    is_rare = pooled * smallest < least * max(1, int(pooled.sum()))
    if not is_rare.any():
        return parts
    return Parts(
        *(np.append(part[~is_rare], part[is_rare].sum()) for part in (parts.common, parts.removed, parts.added))
    )


def compute_ks(common: Values, removed: Values, added: Values, scope: str) -> float:
    """Return the largest difference of the cumulative shares of two samples of numbers, 0 to 1."""
    reference = np.concatenate([common, removed])
    sample = added if scope == NEW else np.concatenate([common, added])
    points = np.concatenate([reference, sample])
    shares = (
        np.searchsorted(np.sort(values), points, side="right") / max(1, len(values)) for values in (reference, sample)
    )
    return float(np.abs(next(shares) - next(shares)).max(initial=0.0))


def bound_ks(sizes: tuple[int, int, int], scope: str, level: float) -> float:
    """Return the KS distance that chance exceeds with a probability of at most `level`.

    `sizes`: rows that are common, removed and added. Smirnov's limit with the constant of Dvoretzky, Kiefer, Wolfowitz
    and Massart (for two samples Wei and Dudley, 2012); rows common to both samples add nothing to the distance.
    """
    return min(1.0, math.sqrt(compute_variance(sizes, scope) * math.log(2 / level) / 2))


def compute_variance(sizes: tuple[int, int, int], scope: str) -> float:
    """Return the variance of the difference of two means, of rows of variance 1 that are common, removed and added."""
    common, removed, added = sizes
    reference, snapshot = max(1, common + removed), max(1, common + added)
    if scope == NEW:
        return 1 / reference + 1 / max(1, added)
    return max(0.0, 1 / reference + 1 / snapshot - 2 * common / (reference * snapshot))


def compare_shares(parts: Parts, sizes: tuple[int, int, int], scope: str) -> tuple[Values, Values]:
    """Return the change of each class's share of the rows, from the reference to the scope's sample, and half of its
    95% interval, float [classes] each.

    `parts`: rows of each class; a row may be of several. `sizes`: rows that are common, removed and added.
    """
    reference, snapshot, new = (max(1, number) for number in (sizes[0] + sizes[1], sizes[0] + sizes[2], sizes[2]))
    weights = (-1 / reference, -1 / reference, 1 / new)
    if scope == ALL:
        weights = (1 / snapshot - 1 / reference, -1 / reference, 1 / snapshot)
    change, variance = np.zeros(len(parts.common)), np.zeros(len(parts.common))
    for counts, size, weight in zip((parts.common, parts.removed, parts.added), sizes, weights, strict=True):
        shares = (counts + 1) / (size + 2)  # Agresti and Caffo 2000: an empty class has an interval, too
        change += weight * counts
        variance += weight**2 * size * shares * (1 - shares)
    return change, 1.96 * np.sqrt(variance)
