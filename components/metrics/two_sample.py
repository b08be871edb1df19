"""Compare the distributions of two samples that overlap: PSI and KS distance, each with what chance alone gives.

The samples are a reference and a snapshot, of which rows are common to both, removed (the reference's alone) or added
(the snapshot's alone). Two scopes are compared: `all`, the snapshot with the reference; and `new`, the added rows with
the reference, for an addition of one percent hardly moves the whole.

PSI, the population stability index, is the sum of (a - b) ln(a / b) over the shares a and b of bins. Of finite samples
it is above zero without any change: about (1/n + 1/m) times a chi-squared variable of bins - 1 degrees of freedom
(Yurdakul, "Statistical Properties of Population Stability Index", 2018), for samples that share c rows
(1/n + 1/m - 2c/nm) times. That holds for many rows a bin; here the distribution under no change is drawn by permutation
of the rows over the three parts, which is exact for any number of rows that are exchangeable (Phipson and Smyth,
"Permutation p-values should never be zero", 2010).
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
PERMUTATIONS, RESAMPLES = 4_999, 400
_CHUNK = 2_000_000
"""Numbers of a chunk of permutations, which bounds memory where there are many bins."""
_ROUNDING = 1e-12
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
        error: half of its 95% interval, by resampling of the rows.
        chance: what `psi` exceeds under no change with a probability of at most `level`.
        p_value: of the permutation test.
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
    """Compare samples by their rows in each bin, by scope.

    `level`: of one test, from 1 / (PERMUTATIONS + 1) on.
    """
    rng = np.random.default_rng(0)
    under_no_change = _permute(parts, scopes, rng)
    resampled = _compute_scopes(_resample(parts, rng), scopes)
    observed = _compute_scopes(parts, scopes)
    allowed = int(level * (PERMUTATIONS + 1))  # permutations that may reach the observed one, itself included
    shifts = {}
    for scope in scopes:
        null, psi = under_no_change[scope], float(observed[scope])
        mean, limit = float(null.mean()), float(np.sort(null)[-max(1, allowed)])
        # Equal histograms differ in the last digit, by the order in which their numbers were added.
        p_value = (1 + int((null >= psi - _ROUNDING).sum())) / (1 + PERMUTATIONS)
        error = 1.96 * float(resampled[scope].std())
        shifts[scope] = Shift(max(0.0, psi - mean), error, limit - mean, p_value, psi > limit + _ROUNDING)
    return shifts


def _compute_scopes(parts: Parts, scopes: Sequence[str]) -> dict[str, Values]:
    samples = {ALL: parts.snapshot, NEW: parts.added}
    return {scope: compute_psi(samples[scope], parts.reference) for scope in scopes}


def _permute(parts: Parts, scopes: Sequence[str], rng: np.random.Generator) -> dict[str, Values]:
    """Return PSI by scope, float [PERMUTATIONS], of the same rows dealt out at random to parts of the same sizes."""
    pooled = parts.common + parts.removed + parts.added
    sizes = [int(part.sum()) for part in (parts.added, parts.removed)]
    chunk = max(1, _CHUNK // len(pooled))
    draws: dict[str, list[Values]] = {scope: [] for scope in scopes}
    for start in range(0, PERMUTATIONS, chunk):
        number = min(chunk, PERMUTATIONS - start)
        added = _draw(np.tile(pooled, (number, 1)), sizes[0], rng)
        removed = _draw(pooled - added, sizes[1], rng)
        dealt = Parts(pooled - added - removed, removed, added)
        for scope, psi in _compute_scopes(dealt, scopes).items():
            draws[scope].append(psi)
    return {scope: np.concatenate(chunks) for scope, chunks in draws.items()}


def _draw(counts: Counts, size: int, rng: np.random.Generator) -> Counts:
    """Draw `size` rows without replacement of each of [draws, bins] counts; return them by bin, [draws, bins]."""
    drawn = np.zeros_like(counts)
    if not size:
        return drawn
    remaining, size_left = counts.sum(1), np.full(len(counts), size)
    if int(remaining[0]) == size:
        return counts.copy()
    for index in range(counts.shape[1]):  # a hypergeometric number a bin, given those of the bins before
        remaining -= counts[:, index]
        drawn[:, index] = rng.hypergeometric(counts[:, index], remaining, size_left)
        size_left -= drawn[:, index]
    return drawn


def _resample(parts: Parts, rng: np.random.Generator) -> Parts:
    """Draw each part's rows with replacement; counts [RESAMPLES, bins]."""

    def resample(counts: Counts) -> Counts:
        total = int(counts.sum())
        return rng.multinomial(total, counts / max(1, total), RESAMPLES) if total else counts

    return Parts(resample(parts.common), resample(parts.removed), resample(parts.added))


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
    common, removed, added = sizes
    reference = common + removed
    if scope == NEW:
        variance = 1 / max(1, reference) + 1 / max(1, added)
    else:
        snapshot = max(1, common + added)
        variance = 1 / max(1, reference) + 1 / snapshot - 2 * common / (max(1, reference) * snapshot)
    return min(1.0, math.sqrt(max(0.0, variance) * math.log(2 / level) / 2))


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
