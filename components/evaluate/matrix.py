"""The confusion matrix of an evaluation and, of two classes, the ROC curve: for KFP's UI."""

from __future__ import annotations

import numpy as np

from ..store.labels import MULTI
from ..store.manifest import read_dataset
from ..store.metrics import ConfusionCounts
from ..store.shards import read_columns

SHOWN = 50
"""KFP draws every cell; more classes than this are left to the report."""


def confusion_matrix(uri: str) -> tuple[list[str], list[list[int]]] | None:
    """(class names, rows of true classes); the classes with the most test images where there are too many.

    None where images have several labels: then no class is taken for another.
    """
    evaluation = read_dataset(uri, "evaluation")
    if evaluation.manifest.task == MULTI:
        return None
    classes = evaluation.manifest.classes
    pairs = ConfusionCounts(len(classes))
    for table in read_columns(evaluation, "data", ["label_id", "predicted_id"]):
        pairs.add(table.column("label_id").to_numpy(), table.column("predicted_id").to_numpy())
    truth, said, counts = pairs.cells()
    shown = np.sort(np.argsort(-pairs.per_class()["support"], kind="stable")[:SHOWN])
    matrix = np.zeros((len(shown), len(shown)), np.int64)
    inside = np.isin(truth, shown) & np.isin(said, shown)
    matrix[np.searchsorted(shown, truth[inside]), np.searchsorted(shown, said[inside])] = counts[inside]
    return [classes[i] for i in shown], matrix.tolist()


def roc_curve(uri: str) -> tuple[list[float], list[float], list[float]] | None:
    """(share of false positives, of true ones, threshold) of the second class of two, from the highest threshold on;
    None where there are more classes, or where it is not defined."""
    roc = read_dataset(uri, "evaluation").manifest.extra.get("roc")
    return (roc["fpr"], roc["tpr"], roc["threshold"]) if roc else None
