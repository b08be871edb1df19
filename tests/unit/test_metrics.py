"""Classification metrics compared with scikit-learn, including classes without images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from imagemill.components.metrics import classification as metrics
from imagemill.components.metrics.classification import ConfusionCounts, summarize_predictions

CLASSES = 5
PAIRS = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60)


@given(PAIRS, st.integers(1, 9))
@settings(deadline=None)
def test_metrics_match_scikit_learn(pairs: list[tuple[int, int]], batch: int) -> None:
    true, predicted = (list(side) for side in zip(*pairs, strict=True))
    labels, counts = list(range(CLASSES)), ConfusionCounts(CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_MAX_PENDING", 7)
        for n in range(0, len(true), batch):
            counts.add(true[n : n + batch], predicted[n : n + batch])
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    truth, predictions, numbers = counts.cells()
    matrix[truth, predictions] = numbers
    assert len(numbers) == np.count_nonzero(matrix)
    np.testing.assert_array_equal(matrix, confusion_matrix(true, predicted, labels=labels))
    expected = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(counts.per_class()[name], values, atol=1e-12)
    summary = counts.summary()
    assert summary == summarize_predictions(true, predicted, CLASSES)
    assert summary["top1"] == pytest.approx(accuracy_score(true, predicted))
    present = sorted(set(true))
    assert summary["macro_f1"] == pytest.approx(
        f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted only
        assert summary["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted))


def test_macro_average_is_over_present_classes() -> None:
    summary = summarize_predictions([0, 0, 1, 1], [0, 0, 1, 2], 4)
    assert summary == {"top1": 0.75, "macro_f1": pytest.approx((1 + 2 / 3) / 2), "balanced_accuracy": 0.75}


def test_per_class_scores_of_an_example() -> None:
    counts = ConfusionCounts(2)
    counts.add([0, 0, 0, 1], [0, 0, 1, 1])
    scores = counts.per_class()
    assert scores["precision"].tolist() == [1, 0.5]
    assert scores["recall"].tolist() == [2 / 3, 1]
    assert scores["f1"].tolist() == [0.8, 2 / 3]
    assert scores["support"].tolist() == [3, 1]


def test_no_images_give_zeros() -> None:
    zeros = {"top1": 0.0, "macro_f1": 0.0, "balanced_accuracy": 0.0}
    assert summarize_predictions([], [], 3) == zeros
    assert ConfusionCounts(3).summary() == zeros and ConfusionCounts(3).per_class()["f1"].tolist() == [0, 0, 0]
