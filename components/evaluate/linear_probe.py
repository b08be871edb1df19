"""Cross-validate the linear probe on the frozen features of the pretrained network that training started from, on all
images, where there are few test images.

In cross-validation each image of train, val and test is scored by a probe that was fitted to other images: an estimate
of the recipe `probe` from ten times as many images as a test split of a tenth has. It decides nothing: no model is
chosen, promoted or changed by it, so that the test images stay untouched.

Folds keep together what belongs together: images of one group (a patient, a product), and near-duplicates.

The interval is that of the test scores (intervals.py), which takes images for independent, made wider by `WIDENING`:
those of cross-validation are not quite, for the folds' probes share training images (Bates, Hastie and Tibshirani,
"Cross-Validation: What Does It Estimate and How Well Does It Do It?", 2023), and a single cross-validation does not
show by how much (Bengio and Grandvalet, "No Unbiased Estimator of the Variance of K-Fold Cross-Validation", 2004). It
is of the expected score of probes trained on as many images as a fold leaves. Simulated coverage is in
tests/benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..dataset.index import read_rows
from ..dataset.kinds import CrossValidation
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..metrics.classification import ConfusionCounts
from ..metrics.logistic_regression import predict_out_of_fold
from ..models.features import read_features, read_image_ids
from .intervals import compute_single_label_intervals

FOLDS = 5
FEW_TEST_IMAGES = 400
"""Test images below which `cross_validate` auto cross-validates: top-1 of 0.9 has an error of 1.5 points there."""
MAX_IMAGES = 20_000
"""Images up to which it does: their features take 100 MB, and the fits a minute."""
WIDENING = 1.2
"""Standard deviation of the simulated scores in those that images alone would give: 1.0 to 1.2."""
SCORES = ("top1", "balanced_accuracy", "macro_f1")

Ids = npt.NDArray[np.int64]


def cross_validate_probe(features: Dataset | None, clean: Dataset, mode: str) -> CrossValidation | None:
    """Return the out-of-fold scores of the probe on all images of a clean dataset.

    `features`: frozen ones of its tensors, None where there are none; `mode`: the config's `cross_validate`. None
    where there is nothing to do: the option says so, features are missing or have seen the labels, tensors hold further
    copies of images, or a class is all that there is.
    """
    totals = clean.manifest.totals
    if features is None or "start" in features.manifest.config or features.manifest.totals.by_split != totals.by_split:
        return None
    is_small = totals.by_split["test"] < FEW_TEST_IMAGES and totals.rows <= MAX_IMAGES
    if mode == "false" or (mode == "auto" and not is_small):
        return None

    parts = [read_features(features, split) for split in ("train", "val", "test")]
    matrix, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    folds = assign_folds(labels, find_units(clean, read_image_ids(features)))
    if folds.max() + 1 < FOLDS:
        return None
    classes = len(features.manifest.classes)
    logits = predict_out_of_fold(matrix, labels, folds, classes)
    counts = ConfusionCounts(classes)
    counts.add(labels, logits.argmax(1))
    summary, intervals = counts.summary(), compute_single_label_intervals(counts)
    scores = {name: round(float(summary[name]), 6) for name in SCORES}
    widened = {name: widen(scores[name], intervals[name]) for name in SCORES}
    return CrossValidation(FOLDS, len(labels), scores, widened, str(features.manifest.config["backbone"]))


def widen(value: float, interval: Sequence[float]) -> list[float]:
    """Return an interval [low, high] in [0, 1] whose bounds are `WIDENING` times as far from the value."""
    return [round(min(1.0, max(0.0, value + WIDENING * (bound - value))), 6) for bound in interval]


def describe_cross_validation(result: CrossValidation, test_images: int) -> str:
    """Return a line for the log."""
    titles = zip(SCORES, ("top-1", "balanced accuracy", "macro-F1"), strict=True)
    scores = " · ".join(
        f"{title} {result.scores[name]:.3f} ({result.intervals[name][0]:.3f} to {result.intervals[name][1]:.3f})"
        for name, title in titles
    )
    return (
        f"beside {test_images:,} test images, the probe on frozen features is cross-validated on all {result.images:,} "
        f"in {result.folds} folds: {scores}"
    )


def find_units(clean: Dataset, image_ids: Sequence[str]) -> Ids:
    """Return, for each of some images of a clean dataset, the number of the images that belong together with it, [N].

    Together are images of one group, near-duplicates, and copies of one image. An id that the dataset lacks is alone.
    """
    index: dict[str, int] = {}
    pairs = [(index.setdefault(image_id, row), row) for row, image_id in enumerate(image_ids)]
    first_of_group: dict[str, int] = {}
    for table in read_rows(clean, ["image_id", "group"]):
        for image_id, group in zip(*(table.column(name).to_pylist() for name in ("image_id", "group")), strict=True):
            if group and image_id in index:
                pairs.append((first_of_group.setdefault(group, index[image_id]), index[image_id]))
    for table in read_columns(clean, "twins", ["image_id", "twin_id"]):
        for names in zip(*(table.column(name).to_pylist() for name in ("image_id", "twin_id")), strict=True):
            if names[0] in index and names[1] in index:
                pairs.append((index[names[0]], index[names[1]]))
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    units = np.arange(len(image_ids))
    while True:  # the lowest number spreads over the pairs
        lowest, before = np.minimum(units[first], units[second]), units.copy()
        np.minimum.at(units, first, lowest)
        np.minimum.at(units, second, lowest)
        if np.array_equal(units, before):
            return units


def assign_folds(labels: Ids, units: Ids, folds: int = FOLDS) -> Ids:
    """Return the fold of each image, [N] from 0: images of one unit in one fold, and each class's units, the largest
    first, dealt to the folds in turn."""
    _, first, unit, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes, labels[first]))
    fold_of_unit = np.empty(len(order), np.int64)
    fold_of_unit[order] = np.arange(len(order)) % folds
    return fold_of_unit[unit]
