"""Areas and curves from histograms, against scikit-learn's from every score."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from imagemill.components.evaluate import curves
from imagemill.components.evaluate.curves import (
    FALSE_POSITIVE_RATES,
    MAX_LOG_ODDS,
    RECALLS,
    ScoreHistograms,
    choose_num_bins,
    compute_log_odds,
    describe_curves,
)

TOLERANCE = 3e-3
"""Of an area, with hundreds of images: what falls into one bin of 4,096 counts as a tie."""


def count_scores(scores: npt.NDArray[Any], labels: npt.NDArray[np.bool_], batch: int = 64) -> ScoreHistograms:
    """Histograms of log-odds [N, C]."""
    histograms = ScoreHistograms(scores.shape[1])
    for n in range(0, len(scores), batch):
        part = slice(n, n + batch)
        histograms.add(torch.from_numpy(scores[part]), np.arange(scores.shape[1]), labels[part])
    return histograms


def softmaxed(rows: int, classes: int, sharp: float, seed: int) -> tuple[torch.Tensor, npt.NDArray[np.bool_]]:
    """Logits of a model that is right more or less often, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, rows)
    logits = random.normal(0, 1, (rows, classes))
    logits[np.arange(rows), labels] += 1.5
    return torch.from_numpy((sharp * logits).astype(np.float32)), labels[:, None] == np.arange(classes)


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("several", [False, True])
def test_areas_are_scikit_learns(sharp: float, several: bool) -> None:
    logits, labels = softmaxed(900, 7, sharp, 3)
    odds = compute_log_odds(logits, several).numpy()
    histograms = count_scores(odds, labels)
    areas = histograms.compute_areas()
    for c in range(7):
        assert areas.pr[c] == pytest.approx(average_precision_score(labels[:, c], odds[:, c]), abs=TOLERANCE)
        assert areas.roc[c] == pytest.approx(roc_auc_score(labels[:, c], odds[:, c]), abs=TOLERANCE)
    micro = histograms.compute_micro_areas()
    assert micro.pr[0] == pytest.approx(average_precision_score(labels.ravel(), odds.ravel()), abs=TOLERANCE)
    assert micro.roc[0] == pytest.approx(roc_auc_score(labels.ravel(), odds.ravel()), abs=TOLERANCE)


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=2, max_size=60), st.integers(1, 60))
@settings(deadline=None)
def test_ties_count_as_scikit_learn_counts_them(rows: list[tuple[int, bool]], batch: int) -> None:
    """Whole log-odds fall into bins of their own, so nothing may differ but for rounding."""
    scores, labels = np.array([[float(r[0])] for r in rows]), np.array([[r[1]] for r in rows])
    areas = count_scores(scores, labels, batch).compute_areas()
    if labels.any():
        assert areas.pr[0] == pytest.approx(average_precision_score(labels.ravel(), scores.ravel()))
    else:
        assert np.isnan(areas.pr[0])
    if labels.any() and not labels.all():
        assert areas.roc[0] == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()))
    else:
        assert np.isnan(areas.roc[0])


def test_the_error_of_an_area_is_bounded_by_the_pairs_of_one_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_BINS", 64)
    logits, labels = softmaxed(500, 3, 1.0, 1)
    odds = compute_log_odds(logits, False).numpy()
    histograms = count_scores(odds, labels)
    assert histograms.bins == 64
    positive = histograms.positive.astype(np.int64)
    negative = histograms.total - positive
    bound = (positive * negative).sum(1) / (positive.sum(1) * negative.sum(1)) / 2
    exact = np.array([roc_auc_score(labels[:, c], odds[:, c]) for c in range(3)])
    assert (np.abs(histograms.compute_areas().roc - exact) <= bound).all() and bound.min() > 0.005


def test_log_odds_distinguish_probabilities_that_round_to_one() -> None:
    logits = torch.tensor([[18.0, 0.0, 0.0], [22.0, 0.0, 0.0]])
    assert (logits.softmax(1)[:, 0] > 1 - 1e-6).all()
    odds = compute_log_odds(logits, False)
    assert odds[:, 0].tolist() == pytest.approx([18 - np.log(2), 22 - np.log(2)], abs=1e-6)
    assert odds[:, 1].tolist() == pytest.approx([-18, -22], abs=1e-6)
    assert compute_log_odds(torch.tensor([[1000.0, -1000.0]]), False).tolist() == [[np.inf, -2000]]


def test_extreme_scores_stay_in_the_last_bins() -> None:
    scores = np.array([[np.inf, 1e9], [-np.inf, -1e9], [MAX_LOG_ODDS, 0.0]])
    histograms = count_scores(scores, np.array([[True, True], [False, False], [True, False]]))
    assert histograms.compute_areas().roc.tolist() == [1, 1]
    assert histograms.total[:, 0].tolist() == [1, 1] and histograms.total[:, -1].tolist() == [2, 1]


def test_a_class_that_the_model_does_not_know_is_a_guess() -> None:
    histograms = ScoreHistograms(3)
    labels = np.array([[True, False, False], [False, True, False], [False, False, True], [False, False, True]])
    histograms.add(torch.tensor([[3.0], [-1.0], [-2.0], [-3.0]]).double(), np.array([1]), labels)
    assert histograms.compute_areas().roc.tolist() == [0.5, pytest.approx(2 / 3), 0.5]
    assert histograms.compute_areas().pr.tolist() == [0.25, 0.5, 0.5]


def test_the_points_lie_on_scikit_learns_curves() -> None:
    logits, labels = softmaxed(400, 4, 1.0, 5)
    odds = compute_log_odds(logits, False).numpy()
    histograms = count_scores(odds, labels)
    precision, true = histograms.compute_curves(2)
    exact_fpr, exact_tpr, _ = roc_curve(labels[:, 2], odds[:, 2], drop_intermediate=False)
    np.testing.assert_allclose(true, np.interp(FALSE_POSITIVE_RATES, exact_fpr, exact_tpr), atol=0.02)
    exact_precision, exact_recall, _ = precision_recall_curve(labels[:, 2], odds[:, 2])
    for position, value in zip(RECALLS[1:], precision[1:], strict=True):
        reached = exact_recall[exact_recall >= position - 1e-9].min()
        assert value == pytest.approx(exact_precision[exact_recall == reached].max(), abs=0.02)
    macro = histograms.compute_macro_curves()
    np.testing.assert_allclose(macro, np.mean([histograms.compute_curves(c) for c in range(4)], axis=0))
    described = describe_curves(histograms, ("a", "b", "c", "d"), histograms.compute_areas())
    assert [c.pr_auc for c in described.classes] == sorted(np.round(histograms.compute_areas().pr, 5))
    fpr, tpr, threshold = vars(histograms.compute_roc(2)).values()
    assert (fpr[0], tpr[0], threshold[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1, 1)
    p = 1 / (1 + np.exp(-odds[:, 2]))
    for f, t, threshold_ in zip(fpr, tpr, threshold, strict=True):
        predicted = p >= threshold_ - 1e-9
        assert t == pytest.approx(predicted[labels[:, 2]].mean(), abs=0.02)
        assert f == pytest.approx(predicted[~labels[:, 2]].mean(), abs=0.02)


def test_nothing_is_described_where_nothing_is_defined() -> None:
    assert describe_curves(ScoreHistograms(3), ("a", "b", "c"), ScoreHistograms(3).compute_areas()) is None
    only = count_scores(np.ones((4, 1)), np.ones((4, 1), np.bool_))
    assert describe_curves(only, ("a",), only.compute_areas()) is None


@pytest.mark.parametrize(("classes", "bins"), [(2, 4096), (1000, 4096), (2048, 4096), (20_000, 419), (10**6, 64)])
def test_memory_is_bounded(classes: int, bins: int) -> None:
    assert choose_num_bins(classes) == bins
    assert 8 * classes * bins <= curves.MAX_BYTES or bins == curves.MIN_BINS
