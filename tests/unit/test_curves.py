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


def counted(scores: npt.NDArray[Any], there: npt.NDArray[np.bool_], batch: int = 64) -> ScoreHistograms:
    """Histograms of log-odds [N, C]."""
    found = ScoreHistograms(scores.shape[1])
    for n in range(0, len(scores), batch):
        part = slice(n, n + batch)
        found.add(torch.from_numpy(scores[part]), np.arange(scores.shape[1]), there[part])
    return found


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
    logits, there = softmaxed(900, 7, sharp, 3)
    odds = compute_log_odds(logits, several).numpy()
    found = counted(odds, there)
    areas = found.compute_areas()
    for c in range(7):
        assert areas.pr[c] == pytest.approx(average_precision_score(there[:, c], odds[:, c]), abs=TOLERANCE)
        assert areas.roc[c] == pytest.approx(roc_auc_score(there[:, c], odds[:, c]), abs=TOLERANCE)
    micro = found.compute_micro_areas()
    assert micro.pr[0] == pytest.approx(average_precision_score(there.ravel(), odds.ravel()), abs=TOLERANCE)
    assert micro.roc[0] == pytest.approx(roc_auc_score(there.ravel(), odds.ravel()), abs=TOLERANCE)


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=2, max_size=60), st.integers(1, 60))
@settings(deadline=None)
def test_ties_count_as_scikit_learn_counts_them(rows: list[tuple[int, bool]], batch: int) -> None:
    """Whole log-odds fall into bins of their own, so nothing may differ but for rounding."""
    scores, there = np.array([[float(r[0])] for r in rows]), np.array([[r[1]] for r in rows])
    areas = counted(scores, there, batch).compute_areas()
    if there.any():
        assert areas.pr[0] == pytest.approx(average_precision_score(there.ravel(), scores.ravel()))
    else:
        assert np.isnan(areas.pr[0])
    if there.any() and not there.all():
        assert areas.roc[0] == pytest.approx(roc_auc_score(there.ravel(), scores.ravel()))
    else:
        assert np.isnan(areas.roc[0])


def test_the_error_of_an_area_is_bounded_by_the_pairs_of_one_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MAX_BINS", 64)
    logits, there = softmaxed(500, 3, 1.0, 1)
    odds = compute_log_odds(logits, False).numpy()
    found = counted(odds, there)
    assert found.bins == 64
    positive = found.positive.astype(np.int64)
    negative = found.total - positive
    bound = (positive * negative).sum(1) / (positive.sum(1) * negative.sum(1)) / 2
    exact = np.array([roc_auc_score(there[:, c], odds[:, c]) for c in range(3)])
    assert (np.abs(found.compute_areas().roc - exact) <= bound).all() and bound.min() > 0.005


def test_odds_tell_probabilities_apart_that_are_one_in_float32() -> None:
    logits = torch.tensor([[18.0, 0.0, 0.0], [22.0, 0.0, 0.0]])
    assert (logits.softmax(1)[:, 0] > 1 - 1e-6).all()
    odds = compute_log_odds(logits, False)
    assert odds[:, 0].tolist() == pytest.approx([18 - np.log(2), 22 - np.log(2)], abs=1e-6)
    assert odds[:, 1].tolist() == pytest.approx([-18, -22], abs=1e-6)
    assert compute_log_odds(torch.tensor([[1000.0, -1000.0]]), False).tolist() == [[np.inf, -2000]]


def test_extreme_scores_stay_in_the_last_bins() -> None:
    scores = np.array([[np.inf, 1e9], [-np.inf, -1e9], [MAX_LOG_ODDS, 0.0]])
    found = counted(scores, np.array([[True, True], [False, False], [True, False]]))
    assert found.compute_areas().roc.tolist() == [1, 1]
    assert found.total[:, 0].tolist() == [1, 1] and found.total[:, -1].tolist() == [2, 1]


def test_a_class_that_the_model_does_not_know_is_a_guess() -> None:
    found = ScoreHistograms(3)
    there = np.array([[True, False, False], [False, True, False], [False, False, True], [False, False, True]])
    found.add(torch.tensor([[3.0], [-1.0], [-2.0], [-3.0]]).double(), np.array([1]), there)
    assert found.compute_areas().roc.tolist() == [0.5, pytest.approx(2 / 3), 0.5]
    assert found.compute_areas().pr.tolist() == [0.25, 0.5, 0.5]


def test_the_points_lie_on_scikit_learns_curves() -> None:
    logits, there = softmaxed(400, 4, 1.0, 5)
    odds = compute_log_odds(logits, False).numpy()
    found = counted(odds, there)
    precision, true = found.compute_curves(2)
    exact_fpr, exact_tpr, _ = roc_curve(there[:, 2], odds[:, 2], drop_intermediate=False)
    np.testing.assert_allclose(true, np.interp(FALSE_POSITIVE_RATES, exact_fpr, exact_tpr), atol=0.02)
    exact_precision, exact_recall, _ = precision_recall_curve(there[:, 2], odds[:, 2])
    for at, value in zip(RECALLS[1:], precision[1:], strict=True):
        reached = exact_recall[exact_recall >= at - 1e-9].min()
        assert value == pytest.approx(exact_precision[exact_recall == reached].max(), abs=0.02)
    macro = found.compute_macro_curves()
    np.testing.assert_allclose(macro, np.mean([found.compute_curves(c) for c in range(4)], axis=0))
    about = describe_curves(found, ("a", "b", "c", "d"), found.compute_areas())
    assert [c.pr_auc for c in about.classes] == sorted(np.round(found.compute_areas().pr, 5))
    fpr, tpr, threshold = vars(found.compute_roc(2)).values()
    assert (fpr[0], tpr[0], threshold[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1, 1)
    p = 1 / (1 + np.exp(-odds[:, 2]))
    for f, t, at in zip(fpr, tpr, threshold, strict=True):
        said = p >= at - 1e-9
        assert t == pytest.approx(said[there[:, 2]].mean(), abs=0.02)
        assert f == pytest.approx(said[~there[:, 2]].mean(), abs=0.02)


def test_nothing_is_described_where_nothing_is_defined() -> None:
    assert describe_curves(ScoreHistograms(3), ("a", "b", "c"), ScoreHistograms(3).compute_areas()) is None
    only = counted(np.ones((4, 1)), np.ones((4, 1), np.bool_))
    assert describe_curves(only, ("a",), only.compute_areas()) is None


@pytest.mark.parametrize(("classes", "bins"), [(2, 4096), (1000, 4096), (2048, 4096), (20_000, 419), (10**6, 64)])
def test_memory_is_bounded(classes: int, bins: int) -> None:
    assert choose_num_bins(classes) == bins
    assert 8 * classes * bins <= curves.MAX_BYTES or bins == curves.MIN_BINS
