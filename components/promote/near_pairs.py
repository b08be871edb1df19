"""Find test images that are nearly the same picture as a training image, by their frozen features.

Clean drops near-duplicates by perceptual hash from train. These are near by meaning, such as another photograph of the
same scene, are only listed, and make scores look better than they are.

An image has a near copy where its nearest neighbor is far nearer than the next ones. If neighbors lie around an image
at random, and at one density as far as the k-th, then (r1 / rk)^m of the distances to the first and to the k-th is
Beta(1, k - 1) distributed, m being the intrinsic dimension (Facco, d'Errico, Rodriguez and Laio, "Estimating the
intrinsic dimension of datasets by a minimal neighborhood information", 2017, who use k = 2). So no cosine has to be
chosen that suits a network, and an image of a class with many similar ones needs a nearer copy than another. m is
estimated without the nearest: (r5 / r10)^m is Beta(5, 5) distributed, with a median of 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataset.manifest import Dataset
from ..models.features import find_features, normalize, read_features, read_image_ids
from ..report.mistakes import NearPair, NearPairs

NEIGHBORS = 10
"""k, which is even: an image may have fewer copies than that without hiding them."""
MIN_IMAGES = 30
"""Images below which m is not estimated."""
FALSE_PAIRS = 0.05
"""Expected number of pairs that are near by chance, of all that are returned."""
_BATCH = 256

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
MAX_TEST, MAX_TRAIN = 5_000, 50_000
"""Images that are compared, the first ones as they are stored, in random order: 300 billion products of 1,280 features,
some ten seconds."""
MAX_PAIRS = 18


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of another sample, the nearest first: `cosines` float32 [N, k] and `rows` int64 [N, k]."""

    cosines: Floats
    rows: Rows

    @classmethod
    def search(cls, images: Floats, others: Floats, k: int = NEIGHBORS) -> Neighbors:
        """Compare features [N, D] with those of the other sample, [M, D]; no rows where it has fewer than k."""
        cosines, rows = [np.empty((0, k), np.float32)], [np.empty((0, k), np.int64)]
        bank = normalize(others)
        for start in range(0, len(images) if len(others) >= k else 0, _BATCH):
            batch = normalize(images[start : start + _BATCH]) @ bank.T
            nearest = np.argpartition(-batch, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(batch, nearest, 1), axis=1, kind="stable")
            rows.append(np.take_along_axis(nearest, order, 1))
            cosines.append(np.take_along_axis(batch, rows[-1], 1))
        return cls(np.concatenate(cosines), np.concatenate(rows))

    def find_near_copies(self) -> Rows:
        """Return the images [M] whose nearest neighbor is a near copy, the nearest first; by chance alone
        `FALSE_PAIRS` are expected. None below `MIN_IMAGES` images or k neighbors."""
        if len(self.rows) < MIN_IMAGES:
            return np.empty(0, np.int64)
        probabilities = self.compute_probabilities()
        order = np.lexsort((np.arange(len(probabilities)), -self.cosines[:, 0]))
        return order[probabilities[order] <= FALSE_PAIRS / len(order)].astype(np.int64)

    def compute_probabilities(self) -> npt.NDArray[np.float64]:
        """Return the probability [N] that chance gives a nearest neighbor as near as an image's, or nearer."""
        k = self.rows.shape[1]
        distances = np.sqrt(np.maximum(2 - 2 * self.cosines.astype(np.float64), 1e-7))  # float32 cosines are no nearer
        log_ratios = np.log(distances[:, 0] / distances[:, -1])
        halfway = np.log(distances[:, k // 2 - 1] / distances[:, -1])
        dimension = np.log(0.5) / min(-1e-6, float(np.median(halfway)))
        return np.asarray(-np.expm1((k - 1) * np.log1p(-np.exp(np.minimum(dimension * log_ratios, -1e-12)))))


def find_near_pairs(model: Dataset, tensors: Dataset, clean: Dataset) -> NearPairs | None:
    """Return the near pairs; None where the model has no features of these images, or tensors hold further copies of
    them, which would be nearer than any other image."""
    features = find_features(model)
    if features is None or features.parent_uri("tensors") != tensors.uri or tensors.parent_uri("clean") != clean.uri:
        return None
    by_split = clean.manifest.totals.by_split
    if features.manifest.totals.by_split != by_split:
        return None
    test, test_labels = read_features(features, "test", MAX_TEST)
    train, train_labels = read_features(features, "train", MAX_TRAIN)
    neighbors = Neighbors.search(test, train)
    rows = neighbors.find_near_copies()
    test_ids, train_ids = (read_image_ids(features, (split,)) if len(rows) else [] for split in ("test", "train"))
    names = clean.manifest.classes
    pairs = [
        NearPair(test_ids[row], names[test_labels[row]], train_ids[other], names[train_labels[other]], cosine)
        for row in rows[:MAX_PAIRS].tolist()
        for other, cosine in [(int(neighbors.rows[row, 0]), float(neighbors.cosines[row, 0]))]
    ]
    return NearPairs(len(rows), len(test), len(train), FALSE_PAIRS, tuple(pairs))
