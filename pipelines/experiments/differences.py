"""Compare the predictions of two configurations' models, image by image and seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...components.dataset.manifest import Dataset
from ...components.metrics.repeated_trainings import MeanDifference, compute_mean_difference
from ...components.promote.pairs import Mask, PairedPredictions, Predictions
from ...components.promote.score_difference import METRIC_TITLES, ScoreDifference, compute_difference

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageChange:
    """An image on which the configurations differ: the shares of each one's models that are right."""

    image_id: str
    label: str
    first: float
    second: float


@dataclass(frozen=True)
class Comparison:
    """Two configurations on the `images` that are test images of both.

    `excluded`: test images of one configuration only, or that a model has seen in training. `scores`: of each
    configuration by metric, [seeds]. `differences`: second less first, by metric. `right`: for each image, the share of
    each configuration's models that are right, float64 [2, images].
    """

    images: int
    excluded: int
    scores: dict[str, tuple[Floats, Floats]]
    differences: dict[str, MeanDifference]
    image_ids: tuple[str, ...]
    labels: tuple[str, ...]
    right: Floats

    @property
    def won(self) -> int:
        """Images on which more of the second configuration's models are right."""
        return int((self.right[1] > self.right[0]).sum())

    @property
    def lost(self) -> int:
        """Images on which more of the first configuration's models are right."""
        return int((self.right[1] < self.right[0]).sum())

    def find_changes(self, limit: int) -> list[ImageChange]:
        """Return the images with the largest differences, at most `limit`, those that the second wins first."""
        change = self.right[1] - self.right[0]
        order = [int(row) for row in np.argsort(-np.abs(change), kind="stable")[:limit] if change[row]]
        order.sort(key=lambda row: (-change[row], self.image_ids[row]))
        return [
            ImageChange(self.image_ids[row], self.labels[row], float(self.right[0][row]), float(self.right[1][row]))
            for row in order
        ]


def compare_evaluations(first: Sequence[Dataset], second: Sequence[Dataset], folds: int = 0) -> Comparison:
    """Compare evaluations of both configurations' models, of which the n-th two belong together (one seed).

    With `folds`, each seed has so many, one after the other, whose images are taken together. All have the same
    classes. An image counts if it is a test image for every seed of both, and no model that is tested on it has seen
    it.
    """
    classes, step = first[0].manifest.classes, max(1, folds)
    rows = [
        [Predictions.read(side[at], classes, *side[at + 1 : at + step]) for at in range(0, len(side), step)]
        for side in (first, second)
    ]
    common = _find_common_images([predictions for side in rows for predictions in side])
    pairs = [_pair(classes, *sides, common) for sides in zip(rows[0], rows[1], strict=True)]
    by_metric = {metric: [compute_difference(pair, metric) for pair in pairs] for metric in METRIC_TITLES}
    labels = [""] * len(common)
    for image, class_id in zip(*pairs[0].labels, strict=True):
        labels[image] = f"{labels[image]}, {classes[class_id]}" if labels[image] else classes[class_id]
    total = len(set().union(*(side[0].image_ids.to_pylist() for side in rows)))
    return Comparison(
        images=len(common),
        excluded=total - len(common),
        scores={
            metric: (np.array([d.champion for d in differences]), np.array([d.challenger for d in differences]))
            for metric, differences in by_metric.items()
        },
        differences={metric: combine_differences(differences, folds) for metric, differences in by_metric.items()},
        image_ids=tuple(common.to_pylist()),
        labels=tuple(labels),
        right=np.array([np.mean([pair.is_right[side] for pair in pairs], axis=0) for side in (0, 1)]),
    )


def combine_differences(differences: Sequence[ScoreDifference], folds: int = 0) -> MeanDifference:
    """Return the mean difference over seeds, with an interval over images and seeds, and with `folds` training images.

    As in the gate's own interval, two images on which one model alone is right are added, and the variance that images
    of rare classes don't show.
    """
    extra = np.mean([d.unobserved_variance + 2 * d.single_image_square for d in differences])
    contributions = np.array([difference.contributions for difference in differences])
    return compute_mean_difference(contributions, np.array([d.gain for d in differences]), float(extra), folds)


def _find_common_images(rows: Sequence[Predictions]) -> pa.Array:
    """Return the sorted ids of the images that all models were tested on and none has seen."""
    common = rows[0].image_ids.combine_chunks()
    for predictions in rows:
        unseen = predictions.image_ids.filter(pa.array(~predictions.is_seen))
        common = common.filter(pc.is_in(common, unseen.combine_chunks()))
    return common


def _pair(classes: tuple[str, ...], first: Predictions, second: Predictions, common: pa.Array) -> PairedPredictions:
    """Return both models' predictions for the images `common`, the first one's as the champion's."""
    masks: list[Mask] = [
        np.asarray(pc.is_in(rows.image_ids.combine_chunks(), common).to_numpy(zero_copy_only=False), np.bool_)
        for rows in (first, second)
    ]
    return PairedPredictions(
        classes=classes,
        images=len(common),
        labels=first.labels.select(masks[0]),
        champion=first.predicted.select(masks[0]),
        challenger=second.predicted.select(masks[1]),
        is_right=(first.is_right[masks[0]], second.is_right[masks[1]]),
        confidence=(first.confidence[masks[0]], second.confidence[masks[1]]),
        content_hashes=first.content_hashes[masks[0]],
        excluded=0,
        new_classes=(),
    )
