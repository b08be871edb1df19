"""Better than chance or not: what permuted labels would score, what whoever always says the same, and what follows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.evaluate.intervals import ChanceTest, ClassTotals, compute_chance_f1, compute_chance_recall
from imagemill.components.metrics.classification import ConfusionCounts, LabelCounts, summarize_predictions

Ids = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]


def run_chance_test(truth: Ids, predicted: Ids, classes: int) -> ChanceTest:
    pairs = ConfusionCounts(classes)
    pairs.add(truth, predicted)
    counts = ClassTotals(np.bincount(truth, minlength=classes), np.bincount(predicted, minlength=classes), len(truth))
    chance_test = ChanceTest.run(counts, SINGLE, pairs.summary())
    assert chance_test is not None
    return chance_test


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 4))
def test_chance_recall_equals_that_of_all_permutations(seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = (
        random.integers(0, classes, images),
        random.integers(0, classes + 1, images),
    )  # one is never there
    counts = ClassTotals(
        np.bincount(truth, minlength=classes + 1), np.bincount(predicted, minlength=classes + 1), images
    )
    scores = [
        summarize_predictions(truth[list(order)], predicted, classes + 1)["balanced_accuracy"]
        for order in permutations(range(images))
    ]
    mean, spread = compute_chance_recall(counts)
    assert mean == pytest.approx(np.mean(scores))
    assert spread == pytest.approx(np.std(scores), abs=1e-7), "a root, of a difference of rounded numbers"


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_chance_f1_equals_that_of_all_permutations(seed: int, images: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = (random.random((images, 4)) < random.random(4) for _ in range(2))
    scores = []
    for order in permutations(range(images)):
        counts = LabelCounts(4)
        counts.add(truth[list(order)], predicted, np.zeros(images, np.int64))
        scores.append(counts.summary()["macro_f1"])
    assume(truth.any())
    mean, spread = compute_chance_f1(ClassTotals(truth.sum(0), predicted.sum(0), images))
    assert mean == pytest.approx(np.mean(scores)) and spread >= np.std(scores) - 1e-7


def test_random_predictions_are_no_better_than_chance() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    half = np.where(random.random(300) < 0.5, truth, random.integers(0, 3, 300))
    assert run_chance_test(truth, half, 3).is_better and run_chance_test(truth, truth, 3).is_better
    guesses = [run_chance_test(truth, random.integers(0, 3, 300), 3).is_better for _ in range(200)]
    assert sum(guesses) <= 12, "one in forty"


def test_recognizing_rare_classes_is_better_than_chance() -> None:
    rare = (np.arange(300) < 15).astype(np.int64)
    predicted = ((np.arange(300) < 12) | (np.arange(300) > 285)).astype(np.int64)
    assert summarize_predictions(rare, predicted, 2)["top1"] < 0.95
    assert (
        run_chance_test(rare, predicted, 2).is_better
        and not run_chance_test(rare, np.zeros(300, np.int64), 2).is_better
    )


def test_constant_predictions_are_no_better_than_chance() -> None:
    truth = np.r_[np.zeros(90, np.int64), np.arange(1, 10)]
    for class_id in range(10):
        assert not run_chance_test(truth, np.full(99, class_id), 10).is_better
    all_labels = np.eye(100, dtype=np.bool_)
    counts = LabelCounts(100)
    counts.add(all_labels, np.ones_like(all_labels), np.zeros(100, np.int64))
    chance_test = ChanceTest.run(ClassTotals(counts.support, counts.predicted, 100), MULTI, counts.summary())
    assert (
        chance_test and not chance_test.is_better and chance_test.limit == pytest.approx(counts.summary()["macro_f1"])
    )


def test_few_images_are_never_better_than_chance() -> None:
    few, more = np.arange(3) % 2, np.arange(8) % 2
    assert not run_chance_test(few, few, 2).is_better and run_chance_test(more, more, 2).is_better
    chance_test = run_chance_test(few, few, 2)
    assert chance_test.limit == 1.0, "no accuracy is above 1"
    why = chance_test.summarize(("a", "b"), 3, {"top1": 1.0, "balanced_accuracy": 1.0}).why
    assert why.endswith("balanced accuracy is 1.000, and guesses may have any score") and " to " not in why
    assert not run_chance_test(np.zeros(50, np.int64), np.zeros(50, np.int64), 2).is_better, "of one class"
    assert ChanceTest.run(ClassTotals([0, 0], [0, 0], 0), SINGLE, {"top1": 0.0, "balanced_accuracy": 0.0}) is None


def test_chance_of_multi_label_models_is_summarized() -> None:
    random = np.random.default_rng(1)
    truth: Labels = random.random((400, 4)) < np.array([0.5, 0.3, 0.2, 0.1])
    for predicted, better in (
        (random.random(truth.shape) < 0.5, False),
        (truth ^ (random.random(truth.shape) < 0.05), True),
    ):
        counts = LabelCounts(4)
        counts.add(truth, predicted, np.where(predicted.any(1), predicted.argmax(1), 0))
        metrics = counts.summary()
        chance_test = ChanceTest.run(ClassTotals(counts.support, counts.predicted, 400), MULTI, metrics)
        assert chance_test is not None and chance_test.is_better is better and chance_test.majority_class == 0
        summary = chance_test.summarize(("a", "b", "c", "d"), 400, metrics)
        assert summary.better is better and set(summary.limits) == {"top1", "macro_f1"}
        start = "" if better else "no better than chance, as far as 400 test images can tell: top-1 is 0."
        assert summary.why.startswith(start) and ("macro-F1 is 0." in summary.why) is not better
