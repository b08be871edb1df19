"""Better than a guess or not: the scores of whoever does not look, what intervals say, and what comes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.evaluate.chance import Chance, Guess
from imagemill.components.evaluate.intervals import PoissonCounts, of_pairs
from imagemill.components.promote.gate import judge
from imagemill.components.store.labels import MULTI, SINGLE
from imagemill.components.store.manifest import Dataset, Manifest
from imagemill.components.store.metrics import LabelCounts, Pairs, confusion, summary


def scored(truth: np.ndarray, said: np.ndarray, classes: int, resamples: int = 200) -> Chance | None:
    pairs = Pairs(classes)
    pairs.add(truth, said)
    found = pairs.per_class()["support"]
    return Chance.of(found, len(truth), SINGLE, pairs.summary(), of_pairs(pairs, resamples))


def better(truth: np.ndarray, said: np.ndarray, classes: int) -> bool:
    found = scored(truth, said, classes)
    assert found is not None
    return found.better


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_nobody_who_does_not_look_scores_more(support: list[int], said: list[int]) -> None:
    """Each image is said to be of each class with the same chance: the expected confusion matrix, in 1000s of images.
    Macro-F1, by which models are promoted, is not above 1 / classes either."""
    chances = np.array(said[: len(support)]) + 1
    expected = np.outer(np.array(support) * 10_000, chances / chances.sum()).round().astype(np.int64)
    found, guess = summary(expected), Guess.of(support, sum(support), SINGLE)
    assert guess is not None and guess.most == int(np.argmax(support))
    assert found["top1"] <= guess.top1 + 1e-3
    assert found["balanced_accuracy"] <= guess.value + 1e-3 and found["macro_f1"] <= guess.value + 1e-3


def test_a_guess_is_no_better_and_what_looks_is() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    half = np.where(random.random(300) < 0.5, truth, random.integers(0, 3, 300))
    assert not better(truth, random.integers(0, 3, 300), 3) and better(truth, half, 3) and better(truth, truth, 3)
    rare = (np.arange(300) < 15).astype(np.int64)  # 5%: to find most of them, and take as many others for them
    found = np.where(np.arange(300) < 12, 1, 0) | (np.arange(300) > 285)
    assert not better(rare, np.zeros(300, np.int64), 2) and better(rare, found, 2)
    assert summary(confusion(rare, found, 2))["top1"] < 0.95, "though the majority's top-1 is higher"


def test_a_few_images_can_not_tell_even_if_all_are_right() -> None:
    few, more = np.arange(3) % 2, np.arange(8) % 2
    assert not better(few, few, 2) and better(more, more, 2)
    one = scored(np.zeros(50, np.int64), np.zeros(50, np.int64), 2)
    assert one is not None and not one.better
    said = one.described(("cat", "dog"), 50, {"top1": 1.0, "balanced_accuracy": 1.0})
    assert said["why"] == "all test images are 'cat': their scores can't tell a model from a guess"
    assert Guess.of([0, 0], 0, SINGLE) is None


def test_of_several_labels_the_best_guess_is_to_say_them_all() -> None:
    random = np.random.default_rng(1)
    truth = random.random((400, 4)) < np.array([0.5, 0.3, 0.2, 0.1])
    for said, expected in (
        (np.ones_like(truth), False),
        (random.random(truth.shape) < 0.5, False),
        (truth ^ (random.random(truth.shape) < 0.05), True),
    ):
        highest = np.where(said.any(1), said.argmax(1), 0)
        counts, resampled = LabelCounts(4), PoissonCounts(4, 200)
        counts.add(truth, said, highest)
        resampled.add(truth, said, truth[np.arange(400), highest])
        found = Chance.of(counts.support, 400, MULTI, counts.summary(), resampled.intervals())
        assert found is not None and found.better is expected and found.guess.most == 0
        if said.all():
            assert counts.summary()["macro_f1"] == pytest.approx(found.guess.value)
            why = found.described(("a", "b", "c", "d"), 400, counts.summary())["why"]
            assert why.startswith("no better than chance, as far as 400 test images can tell: top-1 is 0.") and (
                "'a' every time; macro-F1 0." in why
            )


@pytest.mark.parametrize(("old", "says"), [(None, True), (0.1, True), (0.9, False)])
def test_who_reigns_without_being_better_than_chance_has_it_in_the_reason(old: float | None, says: bool) -> None:
    def evaluation(score: float) -> Dataset:
        extra = {"metrics": {"macro_f1": score, "top1": score}, "model_classes": ["a", "b"]}
        return Dataset(
            "/e", Manifest("evaluation", "01", extra=extra | {"chance": {"why": "no better than chance"}}), ""
        )

    found = judge(evaluation(0.5), None if old is None else evaluation(old), 0.005, "auto")
    assert found.promoted is says and found.reason.endswith("; no better than chance") is says
