"""Areas and curves of each class, against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from imagemill.components.evaluate.curves import (
    FALSE_POSITIVE_RATES,
    RECALLS,
    ClassifierScores,
    compute_log_odds,
    describe_curves,
)


def add_scores(scores: npt.NDArray[Any], labels: npt.NDArray[np.bool_], batch: int = 64) -> ClassifierScores:
    """Log-odds [N, C], added in batches."""
    added = ClassifierScores(scores.shape[1])
    for n in range(0, len(scores), batch):
        part = slice(n, n + batch)
        added.add(torch.from_numpy(scores[part]), np.arange(scores.shape[1]), labels[part])
    return added


def softmaxed(rows: int, classes: int, sharp: float, seed: int) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """Logits of a model that is right more or less often, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(0, 1, (rows, classes))
    logits[np.arange(rows), labels] += 1.5
    return torch.from_numpy((sharp * logits).astype(np.float32)), labels[:, None] == np.arange(classes)


@pytest.mark.parametrize("several", [False, True])
def test_areas_are_scikit_learns(several: bool) -> None:
    logits, labels = softmaxed(900, 7, 1.0, 3)
    odds = compute_log_odds(logits, several).numpy().astype(np.float32)
    scores = add_scores(odds, labels)
    for c, curve in enumerate(scores.compute_curves()):
        assert curve.pr_auc == pytest.approx(average_precision_score(labels[:, c], odds[:, c]), abs=1e-9)
        assert curve.roc_auc == pytest.approx(roc_auc_score(labels[:, c], odds[:, c]), abs=1e-9)
    micro = average_precision_score(labels.ravel(), odds.ravel())
    assert scores.compute_micro_pr_auc() == pytest.approx(micro, abs=1e-9)


def test_areas_without_positives_or_negatives_are_not_defined() -> None:
    labels = np.array([[True, False], [True, False], [True, False]])
    always, never = add_scores(np.array([[1.0, 0], [2, 1], [3, 2]]), labels).compute_curves()
    assert always.pr_auc == 1 and np.isnan([always.roc_auc, never.pr_auc, never.roc_auc]).all()


def test_log_odds_distinguish_probabilities_that_round_to_one() -> None:
    logits = torch.tensor([[18.0, 0.0, 0.0], [22.0, 0.0, 0.0]])
    assert (logits.softmax(1)[:, 0] > 1 - 1e-6).all()
    odds = compute_log_odds(logits, False)
    assert odds[:, 0].tolist() == pytest.approx([18 - np.log(2), 22 - np.log(2)], abs=1e-6)
    assert odds[:, 1].tolist() == pytest.approx([-18, -22], abs=1e-6)
    assert compute_log_odds(torch.tensor([[1000.0, -1000.0]]), False).tolist() == [[np.inf, -2000]]


def test_infinite_scores_are_the_highest() -> None:
    scores = np.array([[np.inf, 1e9], [-np.inf, -1e9], [24.0, 0.0]])
    curves = add_scores(scores, np.array([[True, True], [False, False], [True, False]])).compute_curves()
    assert [curve.roc_auc for curve in curves] == [1, 1]


def test_a_class_that_the_model_does_not_know_is_a_guess() -> None:
    scores = ClassifierScores(3)
    labels = np.array([[True, False, False], [False, True, False], [False, False, True], [False, False, True]])
    scores.add(torch.tensor([[3.0], [-1.0], [-2.0], [-3.0]]).double(), np.array([1]), labels)
    curves = scores.compute_curves()
    assert [curve.roc_auc for curve in curves] == [0.5, pytest.approx(2 / 3), 0.5]
    assert [curve.pr_auc for curve in curves] == [0.25, 0.5, 0.5]


def test_the_points_lie_on_scikit_learns_curves() -> None:
    logits, labels = softmaxed(400, 4, 1.0, 5)
    odds = compute_log_odds(logits, False).numpy().astype(np.float32)
    scores = add_scores(odds, labels)
    curves = scores.compute_curves()
    precision, true = curves[2].precision, curves[2].true_positive_rate
    exact_fpr, exact_tpr, _ = roc_curve(labels[:, 2], odds[:, 2], drop_intermediate=False)
    np.testing.assert_allclose(true, np.interp(FALSE_POSITIVE_RATES, exact_fpr, exact_tpr), atol=1e-9)
    exact_precision, exact_recall, _ = precision_recall_curve(labels[:, 2], odds[:, 2])
    for position, value in zip(RECALLS[1:], precision[1:], strict=True):
        reached = exact_recall[exact_recall >= position - 1e-9].min()
        assert value == exact_precision[exact_recall == reached].max()
    assert precision[0] == labels[odds[:, 2].argmax(), 2], "at the highest score"
    described = describe_curves(curves, ("a", "b", "c", "d"))
    assert described is not None
    np.testing.assert_allclose(described.macro.precision, np.mean([c.precision for c in curves], axis=0), atol=1e-5)
    assert [c.pr_auc for c in described.classes] == sorted(round(c.pr_auc, 5) for c in curves)
    fpr, tpr, threshold = vars(scores.compute_roc(2)).values()
    assert (fpr[0], tpr[0], threshold[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1, 1) and len(fpr) <= 101
    p = 1 / (1 + np.exp(-odds[:, 2].astype(np.float64)))
    for f, t, threshold_ in zip(fpr[1:-1], tpr[1:-1], threshold[1:-1], strict=True):
        predicted = p >= threshold_ - 1e-5
        assert t == pytest.approx(predicted[labels[:, 2]].mean(), abs=0.02)
        assert f == pytest.approx(predicted[~labels[:, 2]].mean(), abs=0.02)


def test_nothing_is_described_where_nothing_is_defined() -> None:
    assert describe_curves(ClassifierScores(3).compute_curves(), ("a", "b", "c")) is None
    assert describe_curves(add_scores(np.ones((4, 1)), np.ones((4, 1), np.bool_)).compute_curves(), ("a",)) is None
