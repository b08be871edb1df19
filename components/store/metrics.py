"""Classification metrics from a confusion matrix; macro averages run over the classes that are present."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int64]


def confusion(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Matrix:
    """int64 [classes, classes]: rows are true classes, columns predicted ones."""
    pairs = np.asarray(labels, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def per_class(matrix: Matrix) -> dict[str, npt.NDArray[np.float64]]:
    """`precision`, `recall`, `f1` in [0, 1] and `support` (rows), each float64 [classes]; 0 where undefined."""
    hits = np.diag(matrix).astype(np.float64)
    support, predicted = matrix.sum(axis=1).astype(np.float64), matrix.sum(axis=0).astype(np.float64)

    def ratio(top: Any, bottom: Any) -> npt.NDArray[np.float64]:
        share: npt.NDArray[np.float64] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
        return share

    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + predicted),
        "support": support,
    }


def summary(matrix: Matrix) -> dict[str, float]:
    """`top1` and `macro_f1` in [0, 1]; the latter is the mean F1 of the classes with at least one image."""
    total = int(matrix.sum())
    found = per_class(matrix)
    present = found["support"] > 0
    return {
        "top1": float(np.trace(matrix) / total) if total else 0.0,
        "macro_f1": float(found["f1"][present].mean()) if present.any() else 0.0,
    }
