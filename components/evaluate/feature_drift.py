"""Drift by features: whether a frozen network sees other images now than in the data of the champion.

Clean compares measures, sizes and classes before training. Features exist once train has computed them, so this
comparison is made here; it warns, and stops nothing. It is of two datasets of features of the same network and weights,
is made once, and is stored beside clean's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataset.manifest import Dataset, read_dataset
from ..dataset.shards import read_columns
from ..metrics.feature_shift import Features, Mask, compare_means, whiten
from ..metrics.two_sample import ALL, NEW
from ..models.features import find_features, iter_features, read_image_ids
from ..step.step import Context
from ..storage.errors import DatasetError, UserError

VERSION = 1
"""Raised when the same datasets must give another comparison."""
LEVEL = 0.01
"""The probability that, without any change, chance reaches any of a comparison's numbers."""
SPLITS = ("train", "val", "test")


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
