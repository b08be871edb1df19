"""Better than chance or not: what permuted labels would score, what whoever always says the same, and what follows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.evaluate.chance import ChanceTest, ClassTotals, compute_chance_f1, compute_chance_recall
from imagemill.components.metrics.classification import ConfusionCounts, LabelCounts, confusion, summarize_confusion

Ids = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]


def chance_of(truth: Ids, said: Ids, classes: int) -> ChanceTest:
    pairs = ConfusionCounts(classes)
    pairs.add(truth, said)
    counts = ClassTotals(np.bincount(truth, minlength=classes), np.bincount(said, minlength=classes), len(truth))
    found = ChanceTest.run(counts, SINGLE, pairs.summary())
    assert found is not None
    return found


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 4))
def test_mean_and_spread_are_those_of_all_permutations_of_the_labels(seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    truth, said = random.integers(0, classes, images), random.integers(0, classes + 1, images)  # one is never there
    counts = ClassTotals(np.bincount(truth, minlength=classes + 1), np.bincount(said, minlength=classes + 1), images)
    scores = [
        summarize_confusion(confusion(truth[list(order)], said, classes + 1))["balanced_accuracy"]
        for order in permutations(range(images))
    ]
    mean, spread = compute_chance_recall(counts)
    assert mean == pytest.approx(np.mean(scores))
    assert spread == pytest.approx(np.std(scores), abs=1e-7), "a root, of a difference of rounded numbers"


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_of_several_labels_too(seed: int, images: int) -> None:
    random = np.random.default_rng(seed)
    truth, said = (random.random((images, 4)) < random.random(4) for _ in range(2))
    scores = []
    for order in permutations(range(images)):
        counts = LabelCounts(4)
        counts.add(truth[list(order)], said, np.zeros(images, np.int64))
        scores.append(counts.summary()["macro_f1"])
    assume(truth.any())
    mean, spread = compute_chance_f1(ClassTotals(truth.sum(0), said.sum(0), images))
    assert mean == pytest.approx(np.mean(scores)) and spread >= np.std(scores) - 1e-7


def test_a_guess_is_no_better_and_what_looks_is() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    half = np.where(random.random(300) < 0.5, truth, random.integers(0, 3, 300))
    assert chance_of(truth, half, 3).is_better and chance_of(truth, truth, 3).is_better
    guesses = [chance_of(truth, random.integers(0, 3, 300), 3).is_better for _ in range(200)]
    assert sum(guesses) <= 12, "one in forty"


def test_of_rare_classes_finding_them_counts_though_top1_is_below_the_majoritys() -> None:
    rare = (np.arange(300) < 15).astype(np.int64)
    found = ((np.arange(300) < 12) | (np.arange(300) > 285)).astype(np.int64)
    assert summarize_confusion(confusion(rare, found, 2))["top1"] < 0.95
    assert chance_of(rare, found, 2).is_better and not chance_of(rare, np.zeros(300, np.int64), 2).is_better


def test_saying_the_same_of_every_image_is_no_better_whatever_classes_there_are() -> None:
    truth = np.r_[np.zeros(90, np.int64), np.arange(1, 10)]
    for said in range(10):
        assert not chance_of(truth, np.full(99, said), 10).is_better
    several = np.eye(100, dtype=np.bool_)
    counts = LabelCounts(100)
    counts.add(several, np.ones_like(several), np.zeros(100, np.int64))
    found = ChanceTest.run(ClassTotals(counts.support, counts.predicted, 100), MULTI, counts.summary())
    assert found and not found.is_better and found.limit == pytest.approx(counts.summary()["macro_f1"])


def test_a_few_images_can_not_tell_even_if_all_are_right() -> None:
    few, more = np.arange(3) % 2, np.arange(8) % 2
    assert not chance_of(few, few, 2).is_better and chance_of(more, more, 2).is_better
    assert not chance_of(np.zeros(50, np.int64), np.zeros(50, np.int64), 2).is_better, "of one class"
    assert ChanceTest.run(ClassTotals([0, 0], [0, 0], 0), SINGLE, {"top1": 0.0, "balanced_accuracy": 0.0}) is None


def test_what_is_said_of_several_labels() -> None:
    random = np.random.default_rng(1)
    truth: Labels = random.random((400, 4)) < np.array([0.5, 0.3, 0.2, 0.1])
    for said, better in (
        (random.random(truth.shape) < 0.5, False),
        (truth ^ (random.random(truth.shape) < 0.05), True),
    ):
        counts = LabelCounts(4)
        counts.add(truth, said, np.where(said.any(1), said.argmax(1), 0))
        metrics = counts.summary()
        found = ChanceTest.run(ClassTotals(counts.support, counts.predicted, 400), MULTI, metrics)
        assert found is not None and found.is_better is better and found.majority_class == 0
        about = found.summarize(("a", "b", "c", "d"), 400, metrics)
        assert about.better is better and set(about.limits) == {"top1", "macro_f1"}
        start = "" if better else "no better than chance, as far as 400 test images can tell: top-1 is 0."
        assert about.why.startswith(start) and ("macro-F1 is 0." in about.why) is not better
