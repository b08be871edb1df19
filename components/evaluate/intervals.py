"""How far the metrics could be off by the chance of which images were tested: the bootstrap, without the images.

Percentiles of the metrics of many resampled test splits (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993). Memory depends on classes and resamples, never on images. What is never wrong in the split is never wrong in a
resample of it: then the interval is a point, and says nothing of rare mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ..store.metrics import Pairs

LEVEL = 0.95
_NUMBERS = 1 << 20
"""Counts that are in memory at a time: 8 MB."""
_BYTES = 64 * 2**20
SEED = 0

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Intervals = dict[str, list[float]]


def of_pairs(pairs: Pairs, resamples: int) -> Intervals:
    """[low, high] of `top1`, `macro_f1` and `balanced_accuracy`. To draw the cells of the confusion matrix by a
    multinomial distribution is to draw as many images with replacement."""
    truth, said, counts = pairs.cells()
    images = int(counts.sum())
    if not images or not resamples:
        return {}
    random, right = np.random.default_rng(SEED), truth == said
    known, place = np.unique(np.concatenate([truth, said]), return_inverse=True)
    there, told = place[: len(truth)], place[len(truth) :]
    found: dict[str, list[Floats]] = {"top1": [], "macro_f1": [], "balanced_accuracy": []}
    step = max(1, _NUMBERS // max(len(counts), len(known)))
    for first in range(0, resamples, step):
        drawn = random.multinomial(images, counts / images, min(step, resamples - first))
        hits, support, predicted = (
            _by_class(drawn[:, which], ids[which], len(known))
            for which, ids in ((right, there), (slice(None), there), (slice(None), told))
        )
        found["top1"].append(hits.sum(axis=1) / images)
        found["macro_f1"].append(mean_of_present(2 * hits, support + predicted, support))
        found["balanced_accuracy"].append(mean_of_present(hits, support, support))
    return percentiles({name: np.concatenate(values) for name, values in found.items()})


def _by_class(drawn: Counts, ids: Counts, classes: int) -> Counts:
    """Sums of the columns int64 [resamples, cells] by their class: [resamples, classes]."""
    total = np.zeros((len(drawn), classes), np.int64)
    order = np.argsort(ids, kind="stable")
    which, starts = np.unique(ids[order], return_index=True)
    if len(which):
        total[:, which] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return total


def mean_of_present(
    top: npt.NDArray[np.number], bottom: npt.NDArray[np.number], support: npt.NDArray[np.number]
) -> Floats:
    """The mean of top / bottom over the classes that a resample has images of, all [resamples, classes]."""
    share = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    present = support > 0
    mean: Floats = (share * present).sum(axis=1) / np.maximum(1, present.sum(axis=1))
    return mean


def percentiles(found: Mapping[str, Floats]) -> Intervals:
    """[low, high] of each metric's resamples."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: [round(float(v), 6) for v in np.quantile(values, tails)] for name, values in found.items()}


class PoissonCounts:
    """The bootstrap of images with several labels, batch by batch: every image counts in every resample as often as a
    draw of Poisson(1) says, which for many images is resampling them (Chamandy et al., "Estimating Uncertainty for
    Massive Data Streams", 2012). Holds three float32 a class and resample, and so few resamples that they fit 64 MB.
    The draws depend on the number of the image alone, not on batches."""

    def __init__(self, classes: int, resamples: int) -> None:
        self.resamples = min(resamples, max(20, _BYTES // (12 * max(1, classes)))) if resamples else 0
        self._random = np.random.default_rng(SEED)
        self._hits, self._said, self._there = (np.zeros((self.resamples, classes), np.float32) for _ in range(3))
        self._images, self._top, self._exact = (np.zeros(self.resamples) for _ in range(3))

    def add(self, there: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_], top: npt.NDArray[np.bool_]) -> None:
        """A batch: labels and predictions [B, classes], and whether the highest class is one of the labels, [B]."""
        if not self.resamples:
            return
        rows = max(1, _NUMBERS // self.resamples)
        for first in range(0, len(there), rows):
            part = slice(first, first + rows)
            weight = self._random.poisson(1.0, (len(there[part]), self.resamples)).astype(np.float32).T
            self._hits += weight @ (there[part] & said[part]).astype(np.float32)
            self._said += weight @ said[part].astype(np.float32)
            self._there += weight @ there[part].astype(np.float32)
            self._images += weight.sum(axis=1)
            self._top += weight @ top[part].astype(np.float32)
            self._exact += weight @ (there[part] == said[part]).all(axis=1).astype(np.float32)

    def intervals(self) -> Intervals:
        """[low, high] of `top1`, `macro_f1`, `micro_f1` and `subset_accuracy`."""
        if not self._images.any():
            return {}
        images, hits = np.maximum(1, self._images), self._hits.astype(np.float64)
        pairs = (self._said + self._there).astype(np.float64)
        return percentiles(
            {
                "top1": self._top / images,
                "macro_f1": mean_of_present(2 * hits, pairs, self._there),
                "micro_f1": 2 * hits.sum(axis=1) / np.maximum(1, pairs.sum(axis=1)),
                "subset_accuracy": self._exact / images,
            }
        )


def wilson(right: int, images: int, comparisons: int = 1) -> tuple[float, float]:
    """Bounds of a share (Wilson, "Probable Inference", 1927) that hold with 95% for all of so many comparisons
    together (Bonferroni)."""
    if not images:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * max(1, comparisons)))
    share, spread = right / images, z * z / images
    centre, half = share + spread / 2, z * (share * (1 - share) / images + spread / (4 * images)) ** 0.5
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
