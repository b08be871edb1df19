"""Drift by features: whether a frozen network sees other images now than in the data of the champion.

Clean compares measures, sizes and classes before training. Features exist once train has computed them, so this
comparison is made here; it warns, and stops nothing. It is of two datasets of features of the same network and weights,
is made once, and is stored beside clean's.

The rows are those of `two_sample.py`, common, removed and added, and so are the scopes. The statistic is the squared
Mahalanobis distance of the samples' means on the leading principal components of all rows, which is Hotelling's T² but
for a factor. Of two normal distributions of one covariance it is the symmetric Kullback-Leibler divergence, as PSI is
of bins, so that both have one scale. Covariance and components are of all rows together, whichever part they are in:
of normal rows without a change it is then a multiple of a beta variable, whatever the parts share. On the features of a
pretrained network a test of this kind finds shifts of images that measures of single images miss (Rabanser, Günnemann
and Lipton, "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift", 2019).

Only a change of the mean is seen: images that are more varied, around the same mean, are no change here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.manifest import Dataset, read_dataset
from ..dataset.shards import read_columns
from ..metrics.two_sample import ALL, NEW, Shift, compute_variance
from ..models.features import find_features, iter_features, read_image_ids
from ..step.step import Context
from ..storage.errors import DatasetError, UserError

COMPONENTS = 32
"""Principal components: from 20 new images more of them would hide a distance of 1 in what chance gives."""
MIN_VARIANCE = 1e-6
"""Of a component, as a share of the first one's: below it there is rounding alone."""

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
VERSION = 1
"""Raised when the same datasets must give another comparison."""
LEVEL = 0.01
"""The probability that, without any change, chance reaches any of a comparison's numbers."""
SPLITS = ("train", "val", "test")


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

    `sizes`: number of each; `level`: of one test. A shift's `psi` is the distance.
    """
    from scipy.stats import beta

    common, removed, _ = sizes
    parts = np.split(rows, [common, common + removed])
    number, dimensions = rows.shape
    shifts = {}
    for scope in scopes:
        # z'z of whitened rows, z their difference of means, is a share of `largest`, as R² is of a regression on noise.
        largest = number * compute_variance(sizes, scope)
        if not largest or not 0 < dimensions < number - 1:
            shifts[scope] = Shift(0.0, 0.0, 0.0, 1.0, False)
            continue
        difference = _subtract_means(parts[1].sum(0), parts[2].sum(0), sizes, scope)
        distance, mean = float(difference @ difference), largest * dimensions / (number - 1)
        null = beta(dimensions / 2, (number - 1 - dimensions) / 2)
        chance = largest * float(null.isf(level))
        error = 1.96 * _estimate_deviation(difference, parts, sizes, scope)
        p_value = float(null.sf(distance / largest))
        shifts[scope] = Shift(max(0.0, distance - mean), error, chance - mean, p_value, distance > chance)
    return shifts


def _subtract_means(removed: Floats, added: Floats, sizes: tuple[int, int, int], scope: str) -> Floats:
    """Return the mean of the scope's sample less that of the reference, from the sums of parts of rows of mean 0."""
    reference, snapshot = sizes[0] + sizes[1], sizes[0] + sizes[2]
    if scope == NEW:
        return added / max(1, sizes[2]) + added / max(1, reference)  # the reference's sum is that of the added, negated
    return -removed / max(1, snapshot) + added / max(1, reference)


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


@dataclass(frozen=True)
class FeaturePair:
    """Features of two clean datasets by one network: a dataset of features each, and the sha256 of its rows' images, in
    stored order."""

    snapshot: Dataset
    reference: Dataset
    hashes: list[str]
    reference_hashes: list[str]

    @classmethod
    def read(cls, snapshot: Dataset, reference: Dataset) -> FeaturePair:
        """Read the hashes. DatasetError where rows are missing, or images are not those of clean."""
        return cls(snapshot, reference, _read_hashes(snapshot), _read_hashes(reference))

    def iter_rows(self, is_removed: Mask) -> Iterator[Features]:
        """Yield the features of all rows of the snapshot, then of the reference's rows that are removed."""
        for split in SPLITS:
            for batch, _ in iter_features(self.snapshot, split):
                yield batch
        start = 0
        for split in SPLITS:
            for batch, _ in iter_features(self.reference, split):
                yield batch[is_removed[start : start + len(batch)]]
                start += len(batch)

    def compare(self) -> dict[str, Any]:
        """Return the comparison as it is stored."""
        snapshot, reference = set(self.hashes), set(self.reference_hashes)
        is_common = np.array([digest in reference for digest in self.hashes], np.bool_)
        is_removed = np.array([digest not in snapshot for digest in self.reference_hashes], np.bool_)
        rows = whiten(lambda: self.iter_rows(is_removed))
        current, removed = np.split(rows, [len(is_common)])
        sizes = int(is_common.sum()), len(removed), int((~is_common).sum())
        scopes = (ALL, NEW) if sizes[0] and sizes[2] else (ALL,)
        ordered = np.concatenate([current[is_common], removed, current[~is_common]])
        shifts = compare_means(ordered, sizes, scopes, LEVEL / len(scopes))
        return {
            "snapshot": self.snapshot.fingerprint,
            "reference": self.reference.fingerprint,
            "backbone": str(self.snapshot.manifest.config["backbone"]),
            "rows": len(is_common),
            "added": sizes[2],
            "removed": sizes[1],
            "components": rows.shape[1],
        } | {scope: shift.to_dict() for scope, shift in shifts.items()}


def _read_hashes(features: Dataset) -> list[str]:
    """Return the sha256 of each row's image; DatasetError where the rows are not those of the clean dataset."""
    clean = _find_clean(features)
    by_id: dict[str, str] = {}
    for table in read_columns(clean, "data", ["image_id", "sha256"]):
        by_id.update(zip(*(table.column(name).to_pylist() for name in ("image_id", "sha256")), strict=True))
    image_ids = read_image_ids(features)
    if len(image_ids) != len(by_id) or not by_id.keys() >= set(image_ids):
        raise DatasetError(f"{features.uri}: expected features of each of {len(by_id):,} images once, found "
                           f"{len(image_ids):,} rows")  # fmt: skip
    return [by_id[image_id] for image_id in image_ids]


def _find_clean(features: Dataset) -> Dataset:
    return read_dataset(read_dataset(features.parent_uri("tensors"), "tensors").parent_uri("clean"), "clean")


def check_feature_drift(
    model: Dataset, champion: Dataset, promotion: int, name: str, threshold: float, context: Context
) -> dict[str, Any]:
    """Compare the features of a challenger's data with those of the champion's, print the result, and return metrics of
    the step: `feature_drift`, the lines of what drifted, and `feature_drift_comparison`, the key of the comparison.

    Empty where both have the same data, where either has no features, or where they are of other networks or weights.
    """
    snapshot, reference = find_features(model), find_features(champion)
    if snapshot is None:
        return {}
    if reference is None or reference.manifest.config != snapshot.manifest.config:
        context.say(f"drift of features is not checked: there are none of this network of the data of the champion "
                    f"(promotion {promotion})")  # fmt: skip
        return {}
    if reference.fingerprint == snapshot.fingerprint:
        return {}
    key = f"features-{VERSION}-{reference.fingerprint}-{snapshot.fingerprint}"
    comparison = context.workspace.drift(name, key)
    if comparison is None:
        context.refuse_if_only_cached(f"a comparison with {reference.uri}")
        try:
            comparison = FeaturePair.read(snapshot, reference).compare()
        except (UserError, DatasetError) as error:
            context.say(f"drift of features is not checked: {error}")
            return {}
        context.workspace.add_drift(name, key, comparison)
    findings = list_findings(comparison, threshold)
    for line in findings:
        context.say(f"warning: drift of {line}")
    if not findings:
        context.say(f"no drift of the features of {comparison['backbone']} since the data of the champion "
                    f"(promotion {promotion})")  # fmt: skip
    return {"feature_drift": findings, "feature_drift_comparison": key, "feature_drift_promotion": promotion}


def list_findings(comparison: dict[str, Any], threshold: float) -> list[str]:
    """Return a line for each scope whose distance is above `threshold` and above what chance gives."""
    titles = {
        ALL: f"all {comparison['rows']:,} images", NEW: f"the {comparison['added']:,} new images"
    }  # fmt: skip
    return [
        f"{title}: features of {comparison['backbone']}, distance {comparison[scope]['psi']:.2f} ± "
        f"{comparison[scope]['error']:.2f}"
        for scope, title in titles.items()
        if scope in comparison and comparison[scope]["is_significant"] and comparison[scope]["psi"] > threshold
    ]
