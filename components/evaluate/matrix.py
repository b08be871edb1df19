"""Read the confusion matrix of an evaluation, and of two classes the ROC curve, for KFP's UI."""

from __future__ import annotations

import numpy as np

from ..dataset.kinds import EvaluationExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import read_dataset
from ..dataset.shards import read_columns
from ..metrics.classification import ConfusionCounts

MAX_CLASSES = 50
"""Classes of the matrix, of which KFP's UI draws every cell."""


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
