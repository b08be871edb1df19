"""Report section on test images that are nearly the same picture as a training image, by their frozen features.

Clean drops twins by perceptual hash from train. These are near by meaning, such as another photograph of the same
scene, are only listed, and make scores look better than they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dataset.manifest import Dataset
from ..metrics.near_pairs import FALSE_PAIRS, Floats, Neighbors
from ..models.features import find_features, iter_features, read_features, read_image_ids
from .thumbnails import make_thumbnails

MAX_TEST, MAX_TRAIN = 5_000, 50_000
"""Images that are compared, the first ones as they are stored, in random order: 300 billion products of 1,280 features,
some ten seconds."""
MAX_PAIRS = 18


def describe_near_pairs(model: Dataset, tensors: Dataset, clean: Dataset) -> dict[str, Any] | None:
    """Return the template's variables; None where the model has no features of these images, or tensors hold further
    copies of them, which would be nearer than any other image."""
    features = find_features(model)
    if features is None or features.parent_uri("tensors") != tensors.uri or tensors.parent_uri("clean") != clean.uri:
        return None
    if features.manifest.totals.by_split != clean.manifest.totals.by_split:
        return None
    test, test_labels = read_features(features, "test", MAX_TEST)
    neighbors = Neighbors.search(test, _iter_train(features))
    rows = neighbors.find_near_copies()
    shown = [(row, int(neighbors.rows[row, 0]), float(neighbors.cosines[row, 0])) for row in rows[:MAX_PAIRS].tolist()]
    test_ids, train_ids = (read_image_ids(features, (split,)) if shown else [] for split in ("test", "train"))
    train_labels = _read_labels(features) if shown else np.empty(0, np.int64)
    tests = make_thumbnails(clean, clean.files("data", "test"), [test_ids[row] for row, _, _ in shown])
    trains = make_thumbnails(clean, clean.files("data", "train"), [train_ids[other] for _, other, _ in shown])
    names = clean.manifest.classes
    return {
        "number": len(rows),
        "test_images": len(test),
        "train_images": min(MAX_TRAIN, clean.manifest.totals.by_split.get("train", 0)),
        "expected": FALSE_PAIRS,
        "pairs": [
            {
                "test": tests[test_ids[row]], "train": trains[train_ids[other]], "cosine": cosine,
                "test_label": names[test_labels[row]], "train_label": names[train_labels[other]],
            }
            for row, other, cosine in shown
        ],
    }  # fmt: skip


def _iter_train(features: Dataset) -> Iterator[Floats]:
    """Yield the features of the first `MAX_TRAIN` training images."""
    left = MAX_TRAIN
    for batch, _ in iter_features(features, "train"):
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return


def _read_labels(features: Dataset) -> Any:
    return np.concatenate([labels for _, labels in iter_features(features, "train")])
