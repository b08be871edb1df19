"""Precision-recall and ROC curves of each class against the rest, and the areas under them, by scikit-learn.

Average precision is the sum over the thresholds of precision times the gain in recall, without interpolation. All
scores are in memory: 5 bytes an image and class.

Beside them what KFP's UI draws of a stored evaluation: its confusion matrix, and the ROC curve of two classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import ClassCurves, EvaluationExtra, MacroCurves, RocCurve, ScoreCurves
from ..dataset.labels import MULTI
from ..dataset.manifest import read_dataset
from ..dataset.shards import read_columns
from ..metrics.classification import ConfusionCounts

if TYPE_CHECKING:
    import torch

_MAX_LOG_ODDS = 1e30
"""Bound of the log-odds, since scikit-learn takes finite scores only."""
POINTS = 51
"""Points of a stored curve."""
HARDEST_CLASSES = 5
"""Classes with the lowest average precision, whose curves are stored."""

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
RECALLS = np.linspace(0, 1, POINTS)
FALSE_POSITIVE_RATES = np.linspace(0, 1, POINTS) ** 2
"""Denser near 0, where a good model's curve rises."""
MAX_CLASSES = 50
"""Classes of the matrix, of which KFP's UI draws every cell."""


def compute_log_odds(logits: torch.Tensor, is_multi_label: bool) -> torch.Tensor:
    """Return log p - log(1 - p), float64 [B, C], of the softmax of logits [B, C], or of each logit's sigmoid.

    From logits and not from probabilities, which are 1 to the last digit for many images of a good model.
    """
    import torch

    if is_multi_label:
        return logits.double()
    p = logits.double().log_softmax(1)
    return p - torch.log(-torch.expm1(p))


@dataclass
class ClassifierScores:
    """Log-odds of each class, float32 [images, classes], and whether each image has it: of all images, in memory."""

    classes: int
    _log_odds: list[Scores] = field(default_factory=list)
    _labels: list[Labels] = field(default_factory=list)

    def add(self, log_odds: torch.Tensor, class_ids: Ids, labels: Labels) -> None:
        """Add a batch.

        Args:
            log_odds: float64 [B, M], of the classes that the model knows; all others get the lowest score.
            class_ids: int64 [M], the class of each column.
            labels: [B, classes], True where the image has the class.
        """
        scores = np.full(labels.shape, -_MAX_LOG_ODDS, np.float32)
        scores[:, class_ids] = log_odds.nan_to_num(0.0).clamp(-_MAX_LOG_ODDS, _MAX_LOG_ODDS).cpu().numpy()
        self._log_odds.append(scores)
        self._labels.append(labels)

    def compute_curves(self) -> list[ThresholdCurves]:
        """Return the curves of each class."""
        if not self._labels:
            return [ThresholdCurves.compute(np.empty(0, np.bool_), np.empty(0, np.float32))] * self.classes
        labels, scores = np.concatenate(self._labels), np.concatenate(self._log_odds)
        return [ThresholdCurves.compute(labels[:, c], scores[:, c]) for c in range(self.classes)]

    def compute_micro_pr_auc(self) -> float:
        """Return the average precision over all (image, class) pairs; NaN without a label."""
        if not self._labels:
            return float("nan")
        labels, scores = np.concatenate(self._labels), np.concatenate(self._log_odds)
        return ThresholdCurves.compute(labels.ravel(), scores.ravel()).pr_auc

    def compute_roc(self, class_id: int, points: int = 101) -> RocCurve:
        """Return the ROC curve of one class, thresholds as probabilities from 1 down, as KFP's UI takes it."""
        from scipy.special import expit
        from sklearn.metrics import roc_curve

        labels, scores = (np.concatenate([part[:, class_id] for part in p]) for p in (self._labels, self._log_odds))
        fpr, tpr, thresholds = roc_curve(labels, scores)
        used = np.unique(np.linspace(0, len(fpr) - 1, min(points, len(fpr))).astype(np.int64))
        return RocCurve(*map(_to_list, (fpr[used], tpr[used], expit(thresholds[used]))))


@dataclass(frozen=True)
class ThresholdCurves:
    """Precision-recall and ROC curve of one class against the rest: `precision` at the first threshold with each of
    `RECALLS`, and the interpolated `true_positive_rate` at each of `FALSE_POSITIVE_RATES`; `pr_auc` and `roc_auc` are
    NaN where they are not defined: without positives, and the latter without negatives."""

    pr_auc: float
    roc_auc: float
    precision: Floats
    true_positive_rate: Floats

    @classmethod
    def compute(cls, labels: Labels, scores: Scores) -> ThresholdCurves:
        """Return the curves of labels [images] and scores [images]."""
        from sklearn.metrics import auc, precision_recall_curve, roc_curve

        empty, nan = np.empty(0), float("nan")
        if not labels.any():
            return cls(nan, nan, empty, empty)
        precision, recall, _ = precision_recall_curve(labels, scores)
        pr_auc = float(-(np.diff(recall) * precision[:-1]).sum())
        if labels.all():
            return cls(pr_auc, nan, empty, empty)
        # Recall falls from 1 to 0, a point that is no threshold.
        reached = len(recall) - 1 - np.searchsorted(recall[::-1], np.maximum(RECALLS - 1e-9, 1e-12))
        fpr, tpr, _ = roc_curve(labels, scores)
        return cls(pr_auc, float(auc(fpr, tpr)), precision[reached], np.interp(FALSE_POSITIVE_RATES, fpr, tpr))


def describe_curves(curves: Sequence[ThresholdCurves], names: tuple[str, ...]) -> ScoreCurves | None:
    """Return the means of the classes' curves and those of the `HARDEST_CLASSES`; None where none is defined."""
    defined = [(curve, name) for curve, name in zip(curves, names, strict=True) if np.isfinite(curve.roc_auc)]
    if not defined:
        return None
    hardest = sorted(defined, key=lambda pair: pair[0].pr_auc)[:HARDEST_CLASSES]
    classes = [
        ClassCurves(
            name,
            _round(curve.pr_auc),
            _round(curve.roc_auc),
            *map(_to_list, (curve.precision, curve.true_positive_rate)),
        )
        for curve, name in hardest
    ]
    means = (
        np.mean([getattr(curve, name) for curve, _ in defined], axis=0) for name in ("precision", "true_positive_rate")
    )
    macro = MacroCurves(*map(_to_list, means))
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
