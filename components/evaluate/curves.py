"""Precision-recall and ROC curves of each class against the rest, from histograms of scores.

A class's scores are counted in bins of its log-odds, so that memory does not grow with the images: 32 KB a class with
4,096 bins, and fewer bins where there are more than 2,000 classes, 64 MB in all at most. The bins are of equal width in
the inverse hyperbolic sine of the log-odds: 0.002 wide at a probability of one half, 0.02 at 0.00005. Scores of one bin
count as ties, as equal scores do in scikit-learn, which needs all scores in memory: an area under the ROC curve is off
by at most half the share of (positive, negative) pairs that fall into one bin; tests hold both areas to 0.003. Average
precision is the sum over the thresholds of precision times the gain in recall, without interpolation.

Beside them what KFP's UI draws of a stored evaluation: its confusion matrix, and the ROC curve of two classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import ClassCurves, EvaluationExtra, MacroCurves, RocCurve, ScoreCurves
from ..dataset.labels import MULTI
from ..dataset.manifest import read_dataset
from ..dataset.shards import read_columns
from ..metrics.classification import ConfusionCounts

if TYPE_CHECKING:
    import torch

MAX_BINS, MIN_BINS, MAX_BYTES = 4096, 64, 64 * 2**20
MAX_LOG_ODDS = 24.0
"""Log-odds beyond which (4e-11 from 0 or 1) all scores fall into the last bin."""
POINTS = 51
"""Points of a stored curve."""
HARDEST_CLASSES = 5
"""Classes with the lowest average precision, whose curves are stored."""
_CHUNK = 64
"""Classes in memory as int64 at a time."""

Counts = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
RECALLS = np.linspace(0, 1, POINTS)
FALSE_POSITIVE_RATES = np.linspace(0, 1, POINTS) ** 2
"""Denser near 0, where a good model's curve rises."""
MAX_CLASSES = 50
"""Classes of the matrix, of which KFP's UI draws every cell."""


def choose_num_bins(classes: int) -> int:
    """Return the number of bins of each class that keeps the histograms within `MAX_BYTES`."""
    return max(MIN_BINS, min(MAX_BINS, MAX_BYTES // (8 * max(1, classes))))


def compute_log_odds(logits: torch.Tensor, is_multi_label: bool) -> torch.Tensor:
    """Return log p - log(1 - p), float64 [B, C], of the softmax of logits [B, C], or of each logit's sigmoid.

    From logits and not from probabilities, which are 1 to the last digit for many images of a good model.
    """
    import torch

    if is_multi_label:
        return logits.double()
    p = logits.double().log_softmax(1)
    return p - torch.log(-torch.expm1(p))


class Areas(NamedTuple):
    """Areas under the curves of each class, float64 [classes]; NaN where a class has no positives, or no negatives."""

    pr: Floats
    roc: Floats


@dataclass
class ScoreHistograms:
    """Histograms of each class's scores, uint32 [classes, bins]: of the images that have it (`positive`) and of all
    images (`total`)."""

    classes: int
    positive: Counts = field(init=False)
    total: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.bins = choose_num_bins(self.classes)
        self.positive, self.total = (np.zeros((self.classes, self.bins), np.uint32) for _ in range(2))

    def add(self, log_odds: torch.Tensor, class_ids: Ids, labels: npt.NDArray[np.bool_]) -> None:
        """Add a batch.

        Args:
            log_odds: float64 [B, M], of the classes that the model knows; all others get the lowest score.
            class_ids: int64 [M], the class of each column.
            labels: [B, classes], True where the image has the class.
        """
        end = math.asinh(MAX_LOG_ODDS)
        scaled = ((log_odds.asinh() + end) * (self.bins / (2 * end))).nan_to_num(0.0)
        bins = np.zeros(labels.shape, np.int64)
        bins[:, class_ids] = scaled.clamp(0, self.bins - 1).long().cpu().numpy()
        bins += np.arange(self.classes) * self.bins
        np.add.at(self.total.reshape(-1), bins.reshape(-1), np.uint32(1))
        np.add.at(self.positive.reshape(-1), bins[labels], np.uint32(1))

    def compute_areas(self) -> Areas:
        parts = [_compute_areas(*self._accumulate(slice(n, n + _CHUNK))) for n in range(0, self.classes, _CHUNK)]
        return Areas(*(np.concatenate([part[i] for part in parts]) if parts else np.empty(0) for i in range(2)))

    def compute_micro_areas(self) -> Areas:
        """Return the areas over all (image, class) pairs, float64 [1]."""
        positive, total = (a.sum(axis=0, dtype=np.int64)[None, ::-1] for a in (self.positive, self.total))
        return _compute_areas(*np.cumsum([positive, total - positive], axis=2))

    def compute_macro_curves(self) -> tuple[Floats, Floats]:
        """Return (precision at `RECALLS`, true positive rate at `FALSE_POSITIVE_RATES`), means over the classes that
        have positives and negatives."""
        sums, classes = np.zeros((2, POINTS)), 0
        for n in range(0, self.classes, _CHUNK):
            for tps, fps in zip(*self._accumulate(slice(n, n + _CHUNK)), strict=True):
                if tps[-1] and fps[-1]:
                    sums += _sample_curves(tps, fps)
                    classes += 1
        return sums[0] / max(1, classes), sums[1] / max(1, classes)

    def compute_curves(self, class_id: int) -> tuple[Floats, Floats]:
        """Return the two curves of one class that has positives and negatives."""
        tps, fps = self._accumulate(slice(class_id, class_id + 1))
        return _sample_curves(tps[0], fps[0])

    def compute_roc(self, class_id: int, points: int = 101) -> RocCurve:
        """Return the ROC curve of one class, thresholds as probabilities from 1 down, as KFP's UI takes it."""
        (tps,), (fps,) = self._accumulate(slice(class_id, class_id + 1))
        end = math.asinh(MAX_LOG_ODDS)
        edges = np.sinh(np.linspace(end, -end, self.bins + 1))[1:]  # lower edges of the bins, the highest bin first
        used = np.flatnonzero(np.diff(tps + fps, prepend=0))
        used = used[np.unique(np.linspace(0, len(used) - 1, min(points - 1, len(used))).astype(np.int64))]
        return RocCurve(
            fpr=[0.0, *map(_round, fps[used] / max(1, fps[-1]))],
            tpr=[0.0, *map(_round, tps[used] / max(1, tps[-1]))],
            threshold=[1.0, *map(_round, 1 / (1 + np.exp(-edges[used])))],
        )

    def _accumulate(self, classes: slice) -> tuple[Ids, Ids]:
        """Return true and false positives at every threshold, the highest first, int64 [classes, bins] each."""
        positive, total = (a[classes, ::-1].astype(np.int64) for a in (self.positive, self.total))
        return positive.cumsum(axis=1), (total - positive).cumsum(axis=1)


def _compute_areas(tps: Ids, fps: Ids) -> Areas:
    positives, negatives = tps[:, -1:].astype(np.float64), fps[:, -1:].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(tps / (tps + fps))
        tpr, fpr = tps / positives, fps / negatives
        pr = (np.diff(tpr, axis=1, prepend=0) * precision).sum(axis=1)
        heights = tpr + np.pad(tpr[:, :-1], ((0, 0), (1, 0)))
        roc = (np.diff(fpr, axis=1, prepend=0) * heights).sum(axis=1) / 2
    return Areas(pr, roc)


def _sample_curves(tps: Ids, fps: Ids) -> tuple[Floats, Floats]:
    """Return precision at the first threshold with each of `RECALLS`, and the interpolated true positive rate at each
    of `FALSE_POSITIVE_RATES`."""
    used = np.flatnonzero(tps + fps)
    tps, fps = tps[used], fps[used]
    first = np.searchsorted(tps, np.maximum(1, np.ceil(RECALLS * tps[-1] - 1e-9)))
    precision = tps[first] / (tps[first] + fps[first])
    fpr, tpr = np.r_[0, fps / fps[-1]], np.r_[0, tps / tps[-1]]
    return precision, np.interp(FALSE_POSITIVE_RATES, fpr, tpr)


def describe_curves(histograms: ScoreHistograms, names: tuple[str, ...], areas: Areas) -> ScoreCurves | None:
    """Return the macro curves and those of the `HARDEST_CLASSES`; None where none is defined."""
    is_defined = np.isfinite(areas.roc)
    if not is_defined.any():
        return None
    hardest = [int(c) for c in np.argsort(areas.pr, kind="stable") if is_defined[c]][:HARDEST_CLASSES]
    classes = [
        ClassCurves(names[c], _round(areas.pr[c]), _round(areas.roc[c]), *map(_to_list, histograms.compute_curves(c)))
        for c in hardest
    ]
    macro = MacroCurves(*map(_to_list, histograms.compute_macro_curves()))
    return ScoreCurves(_to_list(RECALLS), _to_list(FALSE_POSITIVE_RATES), macro, classes)


def _to_list(values: Floats) -> list[float]:
    return [_round(value) for value in values]


def _round(value: float) -> float:
    return round(float(value), 5)


def confusion_matrix(uri: str) -> tuple[list[str], list[list[int]]] | None:
    """Return (class names, rows of true classes), of the `MAX_CLASSES` with the most test images; None where images
    have several labels."""
    evaluation = read_dataset(uri, "evaluation")
    if evaluation.manifest.task == MULTI:
        return None
    classes = evaluation.manifest.classes
    pairs = ConfusionCounts(len(classes))
    for table in read_columns(evaluation, "data", ["label_id", "predicted_id"]):
        pairs.add(table.column("label_id").to_numpy(), table.column("predicted_id").to_numpy())
    labels, predicted, counts = pairs.cells()
    ids = np.sort(np.argsort(-pairs.per_class()["support"], kind="stable")[:MAX_CLASSES])
    matrix = np.zeros((len(ids), len(ids)), np.int64)
    is_shown = np.isin(labels, ids) & np.isin(predicted, ids)
    matrix[np.searchsorted(ids, labels[is_shown]), np.searchsorted(ids, predicted[is_shown])] = counts[is_shown]
    return [classes[i] for i in ids], matrix.tolist()


def roc_curve(uri: str) -> tuple[list[float], list[float], list[float]] | None:
    """Return (false positive rates, true positive rates, thresholds) of the second class of two, the highest threshold
    first; None where there are more classes, or where it is not defined."""
    roc = EvaluationExtra.of(read_dataset(uri, "evaluation").manifest).roc
    return (roc.fpr, roc.tpr, roc.threshold) if roc else None
