"""The confusion matrix of an evaluation, from its predictions: for KFP's UI."""

from __future__ import annotations

import numpy as np

from ..store.labels import MULTI
from ..store.manifest import read_dataset
from ..store.metrics import confusion
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
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    for table in read_columns(evaluation, "data", ["label_id", "predicted_id"]):
        matrix += confusion(table.column("label_id").to_numpy(), table.column("predicted_id").to_numpy(), len(classes))
    order = np.argsort(-matrix.sum(axis=1), kind="stable")[:SHOWN]
    order.sort()
    return [classes[i] for i in order], matrix[np.ix_(order, order)].tolist()
