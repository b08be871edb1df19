"""Difference of two models' scores as a sum of contributions of single images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import Models, equal_counts, pair_of, true_scores, zipf_counts
from sklearn.metrics import balanced_accuracy_score, f1_score

from imagemill.components.promote.pairs import Assignments, PairedPredictions
from imagemill.components.promote.score_difference import compute_difference

METRICS = ("macro_f1", "top1", "balanced_accuracy")


def draw_pair(seed: int, classes: int = 5, images: int = 60, error: float = 0.3) -> PairedPredictions:
    random = np.random.default_rng(seed)
    models = Models.draw(equal_counts(classes, images), np.full(classes, error), 0.4, random)
    return pair_of(models.labels, models.model(random), models.model(random), classes)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_scores_match_scikit_learn(seed: int) -> None:
    pair = draw_pair(seed)
    for metric, score in (("macro_f1", f1_score), ("balanced_accuracy", balanced_accuracy_score)):
        options = {"average": "macro"} if metric == "macro_f1" else {}
        difference = compute_difference(pair, metric)
        for value, predicted in ((difference.champion, pair.champion), (difference.challenger, pair.challenger)):
            assert value == pytest.approx(score(pair.labels.classes, predicted.classes, **options))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(METRICS))
def test_contributions_add_up_to_the_gain(seed: int, metric: str) -> None:
    pair = draw_pair(seed)
    difference = compute_difference(pair, metric)
    close = {"abs": 0.01} if metric == "macro_f1" else {"abs": 1e-12}
    assert difference.contributions.sum() == pytest.approx(difference.gain, **close)
    same = pair.champion.classes == pair.challenger.classes
    assert not difference.contributions[same].any(), "where both say the same there is no difference"


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(METRICS))
def test_swapped_predictions_change_the_sign(seed: int, metric: str) -> None:
    """For any of the images."""
    pair = draw_pair(seed)
    flipped = np.random.default_rng(seed).random(pair.images) < 0.5
    a, b = pair.champion.classes, pair.challenger.classes
    other = pair_of(pair.labels.classes, np.where(flipped, b, a), np.where(flipped, a, b), len(pair.classes))
    before, after = compute_difference(pair, metric), compute_difference(other, metric)
    np.testing.assert_allclose(after.contributions, np.where(flipped, -1, 1) * before.contributions, atol=1e-12)
    assert after.unobserved_variance == pytest.approx(before.unobserved_variance)


def test_classes_without_images_do_not_count() -> None:
    pair = draw_pair(1)
    more = PairedPredictions(**{**vars(pair), "classes": (*pair.classes, "nobody")})
    for metric in METRICS:
        assert compute_difference(more, metric).gain == compute_difference(pair, metric).gain


def test_rare_classes_with_equal_predictions_add_unobserved_variance() -> None:
    """30 classes in which they differ, 7 of two images in which they don't: a share that differs is assumed there."""
    counts = np.r_[np.full(30, 100), np.full(7, 2)]
    random = np.random.default_rng(0)
    models = Models.draw(counts, np.r_[np.full(30, 0.08), np.zeros(7)], 0.5, random)
    rare = compute_difference(pair_of(models.labels, models.model(random), models.model(random), 37), "macro_f1")
    observed_variance = float((rare.contributions**2).sum())
    assert 0.2 * observed_variance < rare.unobserved_variance < 20 * observed_variance
    even = Models.draw(np.full(37, 100), np.full(37, 0.08), 0.5, random)
    common = compute_difference(pair_of(even.labels, even.model(random), even.model(random), 37), "macro_f1")
    assert common.unobserved_variance < 0.1 * float((common.contributions**2).sum())
    assert compute_difference(draw_pair(0), "top1").unobserved_variance == 0


def test_single_labels_are_a_case_of_multi_label() -> None:
    pair = draw_pair(3)
    two = 2 * np.arange(pair.images)
    doubled = PairedPredictions(**{**vars(pair), "images": 2 * pair.images, **{
        name: Assignments(np.r_[two, two + 1], np.r_[assignments.classes, assignments.classes])
        for name, assignments in (("labels", pair.labels), ("champion", pair.champion), ("challenger", pair.challenger))
    }})  # fmt: skip
    difference, single = compute_difference(doubled, "macro_f1"), compute_difference(pair, "macro_f1")
    assert (difference.champion, difference.challenger) == pytest.approx((single.champion, single.challenger))
    np.testing.assert_allclose(difference.contributions[::2], single.contributions / 2, atol=1e-12)


def test_multi_label_images() -> None:
    """Two images; the challenger adds a right label to the first one and a wrong one to the second."""
    labels = Assignments(np.array([0, 0, 1]), np.array([0, 1, 1]))
    champion = Assignments(np.array([0, 1]), np.array([0, 1]))
    challenger = Assignments(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    right = np.ones(2, np.bool_)
    pair = PairedPredictions(("a", "b"), 2, labels, champion, challenger, (right, right), (right * 0.9, right * 0.9))
    difference = compute_difference(pair, "macro_f1")
    assert (difference.champion, difference.challenger) == pytest.approx(((1 + 2 / 3) / 2, (2 / 3 + 1) / 2))
    first, second = difference.contributions
    assert first > 0 > second and difference.contributions.sum() == pytest.approx(difference.gain, abs=0.02)


@settings(max_examples=2)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 120), (37, 118)]))
def test_coverage_of_the_interval(seed: int, shape: tuple[int, int]) -> None:
    """Of the intervals 94% contain the true gain: 175 or fewer of 200 less than once in 1,000 times."""
    random, (classes, images) = np.random.default_rng(seed), shape
    counts, error = zipf_counts(classes, images), np.full(classes, 0.12)
    truth = true_scores(counts, error + 0.01)["macro_f1"] - true_scores(counts, error)["macro_f1"]
    contained = 0
    for _ in range(200):
        models = Models.draw(counts, error, 0.5, random)
        pair = pair_of(models.labels, models.model(random), models.model(random, -0.01), classes)
        low, high = compute_difference(pair, "macro_f1").compute_interval()
        contained += low <= truth <= high
    assert contained >= 176, contained
