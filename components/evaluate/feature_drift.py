"""Drift by features: whether a frozen network sees other images now than in the data of the champion.

Clean compares measures, sizes and classes before training. Features exist once train has computed them, so this
comparison is made here; it warns, and stops nothing. It is of two datasets of features of the same network and weights,
is made once, and is stored beside clean's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dataset.index import read_rows
from ..dataset.manifest import Dataset, read_dataset
from ..metrics.drift import ALL, LEVEL, NEW, Comparison, Values, compare_features
from ..models.features import find_features, read_features, read_image_ids
from ..report.drift import list_drift
from ..step.step import Context
from ..storage.errors import DatasetError, UserError

COMPONENTS = 16
"""Principal components that are compared."""
MAX_ROWS = 10_000
"""Images of a split that are compared, the first ones as they are stored, in random order."""
VERSION = 2
"""Raised when the same datasets must give another comparison."""


def check_feature_drift(
    model: Dataset, champion: Dataset, promotion: int, name: str, context: Context
) -> dict[str, Any]:  # fmt: skip
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
    stored = context.workspace.drift(name, key)
    if stored is None:
        context.refuse_if_only_cached(f"a comparison with {reference.uri}")
        try:
            stored = compare_datasets(snapshot, reference).to_dict()
        except (UserError, DatasetError) as error:
            context.say(f"drift of features is not checked: {error}")
            return {}
        context.workspace.add_drift(name, key, stored)
    comparison = Comparison.from_dict(stored, key)
    lines = list_drift(comparison.drift, comparison)
    for line in lines:
        context.say(f"warning: drift of {line}")
    if not lines:
        context.say(f"no drift of {comparison.changes[0].name} since the data of the champion (promotion {promotion})")
    return {"feature_drift": lines, "feature_drift_comparison": key, "feature_drift_promotion": promotion}


def compare_datasets(snapshot: Dataset, reference: Dataset) -> Comparison:
    """Compare two datasets of features. DatasetError where rows are missing, or images are not those of clean."""
    hashes, earlier_hashes = _read_hashes(snapshot), _read_hashes(reference)
    ids, rows = _read_rows(snapshot, hashes)
    _, earlier_rows = _read_rows(reference, earlier_hashes)
    earlier, current = set(earlier_hashes.values()), set(hashes.values())
    is_new = np.array([hashes[image_id] not in earlier for image_id in ids], np.bool_)
    samples = {ALL: rows} | ({NEW: rows[is_new]} if 0 < is_new.sum() < len(rows) else {})
    name = f"features of {snapshot.manifest.config['backbone']}"
    return Comparison(
        rows=len(hashes),
        added=len(hashes) - sum(digest in earlier for digest in hashes.values()),
        removed=len(earlier - current),
        changes=compare_features(name, earlier_rows, samples, COMPONENTS, LEVEL),
        reference_rows=len(earlier_hashes),
    )


def _read_hashes(features: Dataset) -> dict[str, str]:
    """Return the sha256 of each image by its id."""
    tensors = read_dataset(features.parent_uri("tensors"), "tensors")
    clean = read_dataset(tensors.parent_uri("clean"), "clean")
    hashes: dict[str, str] = {}
    for table in read_rows(clean, ["image_id", "sha256"]):
        hashes.update(zip(*(table.column(name).to_pylist() for name in ("image_id", "sha256")), strict=True))
    return hashes


def _read_rows(features: Dataset, hashes: dict[str, str]) -> tuple[list[str], Values]:
    """Return image ids [N] and features [N, D]; DatasetError where the rows are not those of the clean dataset."""
    ids: list[str] = []
    parts = []
    for split in ("train", "val", "test"):
        ids += read_image_ids(features, (split,))[:MAX_ROWS]
        parts.append(read_features(features, split, MAX_ROWS)[0])
    rows = np.concatenate(parts)
    if len(rows) != len(ids) or not hashes.keys() >= set(ids):
        raise DatasetError(f"{features.uri}: expected features of the images of its clean dataset, found others")
    return ids, rows
