"""Changes of a dataset since an earlier one: of numbers by the Kolmogorov-Smirnov test, of shares by chi-squared.

All images are compared with the earlier ones (`all`), and the new images alone (`new`), for an addition of one percent
hardly moves the whole. The distance is the largest difference of the cumulative shares, or half the sum of the
differences of the shares: from 0, for equal distributions, to 1. Images that both datasets have count in both samples,
by which the test of all images is the more careful.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..dataset.json_object import JsonObject
from ..dataset.kinds import ClassChanges

ALL, NEW = "all", "new"
"""The scopes."""
LEVEL = 0.01
"""The probability that, without any change, chance reaches any of a comparison's distances."""
WARNING = 0.1
"""A change is drift from this distance on, if it is more than chance gives."""
MIN_EXPECTED = 5.0
"""Rows of the smaller sample that a class has to expect; rarer ones, unless it has twice as many, are pooled."""
LISTED_CLASSES = 20

Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Change(JsonObject):
    """The change of a measure, of the class shares or of features in one scope.

    `then`, `now`: quartiles of a measure, or shares of the `classes` that changed most; empty for features.
    """

    name: str
    scope: str
    distance: float
    is_significant: bool
    then: list[float] = field(default_factory=list)
    now: list[float] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    @property
    def is_drift(self) -> bool:
        return self.is_significant and self.distance > WARNING


@dataclass(frozen=True)
class Comparison(JsonObject):
    """The comparison of a snapshot with its `reference`, as it is stored.

    Attributes:
        rows, reference_rows, added, removed, relabeled: numbers of images.
        changed_options: options of clean that differ: the reference's value and the snapshot's.
        left_out: what these options make incomparable.
        class_changes: with the images of each new class (`images`) and each that is gone (`earlier_images`).
    """

    rows: int
    added: int
    removed: int
    changes: list[Change]
    reference_rows: int = 0
    relabeled: int = 0
    changed_options: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    class_changes: ClassChanges = field(default_factory=ClassChanges)
    images: dict[str, int] = field(default_factory=dict)
    earlier_images: dict[str, int] = field(default_factory=dict)

    @property
    def drift(self) -> list[Change]:
        """Return the changes that are drift: those of all images first, the largest first."""
        return sorted((c for c in self.changes if c.is_drift), key=lambda change: (change.scope, -change.distance))


def compare_numbers(name: str, scope: str, then: Values, now: Values, level: float) -> Change:
    """Compare numbers [N] with those of then [M]; `level`: of this test."""
    from scipy.stats import ks_2samp

    test = ks_2samp(then, now, method="asymp")
    then_quartiles, now_quartiles = ([_round(q) for q in np.percentile(sample, (25, 50, 75))] for sample in (then, now))
    return Change(name, scope, _round(test.statistic), bool(test.pvalue <= level), then_quartiles, now_quartiles)


def compare_shares(name: str, scope: str, then: Mapping[str, int], now: Mapping[str, int], level: float) -> Change:
    """Compare the shares of classes with those of then, from the images of each; `level`: of this test."""
    from scipy.stats import chi2_contingency

    classes = sorted(then.keys() | now.keys())
    counts = np.array([[sample.get(label, 0) for label in classes] for sample in (then, now)], float)
    smaller = counts[counts.sum(1).argmin()]
    expected = counts.sum(0) * smaller.sum() / max(1, counts.sum())
    is_rare = (expected < MIN_EXPECTED) & (smaller < 2 * MIN_EXPECTED)
    pooled = np.column_stack([counts[:, ~is_rare], counts[:, is_rare].sum(1)])
    pooled = pooled[:, pooled.sum(0) > 0]
    is_significant = pooled.shape[1] > 1 and bool(chi2_contingency(pooled).pvalue <= level)
    distance = float(np.abs(_compute_shares(pooled) @ [1, -1]).sum() / 2)
    shares = _compute_shares(counts)
    largest = np.argsort(-np.abs(shares @ [1, -1]), kind="stable")[:LISTED_CLASSES]
    then_shares, now_shares = ([_round(share) for share in column] for column in shares[largest].T)
    names = [classes[index] for index in largest]
    return Change(name, scope, _round(distance), is_significant, then_shares, now_shares, names)


def _compute_shares(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the shares [classes, 2] of counts [2, classes]."""
    shares: npt.NDArray[np.float64] = (counts / np.maximum(1, counts.sum(1, keepdims=True))).T
    return shares


def compare_features(
    name: str, then: Values, samples: Mapping[str, Values], components: int, level: float
) -> list[Change]:
    """Compare features [N, D] of each scope with those of then [M, D], by each of the leading principal components.

    The method is "multiple univariate tests after dimension reduction" of Rabanser, Günnemann and Lipton, "Failing
    Loudly: An Empirical Study of Methods for Detecting Dataset Shift", 2019. `level`: of all tests together.
    """
    pooled = np.concatenate([then, samples.get(NEW, samples[ALL])])  # each row once, so that chance treats both alike
    _, eigenvectors = np.linalg.eigh(np.cov(pooled, rowvar=False))  # the variances ascend
    axes = eigenvectors.T[-components:]
    test_level = level / len(axes) / len(samples)
    changes = []
    for scope, sample in samples.items():
        tests = [compare_numbers(name, scope, then @ axis, sample @ axis, test_level) for axis in axes]
        worst = max(tests, key=lambda test: (test.is_significant, test.distance))
        changes.append(Change(name, scope, worst.distance, worst.is_significant))
    return changes


def _round(value: float) -> float:
    return float(f"{value:.6g}")
