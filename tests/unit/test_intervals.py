"""Intervals of the metrics: what they cover, what they always contain, and where they say that they are too narrow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import equal_counts, geometric_counts, labels_of, predict, true_scores

from imagemill.components.evaluate.intervals import (
    compute_multi_label_intervals,
    compute_proportion_interval,
    compute_single_label_intervals,
    compute_wilson_interval,
    count_unreliable_classes,
)
from imagemill.components.metrics.classification import ConfusionCounts, LabelCounts, summarize_predictions

Ids = npt.NDArray[np.int64]
Labels = npt.NDArray[np.bool_]


def pairs_of(labels: Any, predicted: Any, classes: int) -> ConfusionCounts:
    pairs = ConfusionCounts(classes)
    pairs.add(labels, predicted)
    return pairs


@settings(max_examples=3)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(6, 20), (16, 5), (37, 3)]), st.sampled_from([0.05, 0.2]))
def test_single_label_intervals_contain_the_true_scores(seed: int, shape: tuple[int, int], error: float) -> None:
    """They do in at least 93% of test splits: then 351 or fewer of 400 contain them once in 10,000 times. Intervals of
    the bootstrap, of which 84% did for 37 classes, fail 99 times of 100."""
    rng, (classes, images_per_class) = np.random.default_rng(seed), shape
    counts, errors = np.full(classes, images_per_class), np.full(classes, error)
    labels, truth = labels_of(counts), true_scores(counts, errors)
    contained = dict.fromkeys(truth, 0)
    for _ in range(400):
        intervals = compute_single_label_intervals(pairs_of(labels, predict(labels, errors, rng), classes))
        assert set(intervals) == set(truth)
        for name, (low, high) in intervals.items():
            contained[name] += low <= truth[name] <= high
    assert min(contained.values()) >= 352, contained


@pytest.mark.proof
def test_coverage_over_numbers_of_classes_images_and_accuracies() -> None:
    """With 1,000 samples a cell's standard error is 0.007; the bounds leave three to four of them. The upper one is for
    classes of two images and more: single ones can't show that some classes are harder, which makes intervals wider."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from intervals import COUNTS, ERRORS, coverage

    random = np.random.default_rng()
    for name, counts in COUNTS.items():
        for error, make_errors in ERRORS.items():
            coverages = coverage(counts, make_errors(counts), 1000, random)
            assert coverages["balanced_accuracy"] >= 0.90, (name, error, coverages)
            assert count_unreliable_classes(counts) or coverages["macro_f1"] >= 0.90, (name, error, coverages)
            expected_mistakes = float((make_errors(counts) * counts).sum())
            if expected_mistakes > 20 and len(set(counts.tolist())) == 1:
                message = (name, error, coverages)
                assert coverages["balanced_accuracy"] >= 0.92, message
                assert counts[0] == 1 or (coverages["balanced_accuracy"] <= 0.985 and coverages["macro_f1"] >= 0.91), (
                    message
                )


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 60), st.floats(0, 1))
def test_intervals_lie_in_0_to_1_and_contain_the_scores(seed: int, classes: int, images: int, error: float) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    pairs = pairs_of(labels, predict(labels, np.full(classes, error), random), classes + 1)
    scores = pairs.summary()
    for name, (low, high) in compute_single_label_intervals(pairs).items():
        assert 0 <= low <= scores[name] + 1e-6 and scores[name] - 1e-6 <= high <= 1, name
        assert high > low, "no score of a few images is certain"


def test_rare_classes_weigh_as_much_in_intervals_as_in_the_score() -> None:
    """Of 90 images of one class and one of each of nine others, all others wrong: a bootstrap said 0.0908 to 0.163 of a
    balanced accuracy of 0.0901, because classes that are missing from a resample have no part in it."""
    truth = np.r_[np.zeros(91, np.int64), np.arange(1, 11)]
    predicted = np.where(np.arange(101) < 90, 0, 1)
    predicted[91] = 0
    pairs = pairs_of(truth, predicted, 11)
    low, high = compute_single_label_intervals(pairs)["balanced_accuracy"]
    assert pairs.summary()["balanced_accuracy"] == pytest.approx(0.0899, abs=1e-4)
    assert low < 0.0899 < 0.25 < high


def test_interval_without_mistakes_is_that_of_a_proportion() -> None:
    for classes, images_per_class in ((16, 1), (4, 10)):
        labels = labels_of(np.full(classes, images_per_class))
        intervals = compute_single_label_intervals(pairs_of(labels, labels, classes))
        expected = pytest.approx(compute_proportion_interval(1.0, classes * images_per_class), abs=1e-6)
        assert intervals["balanced_accuracy"] == intervals["macro_f1"] == intervals["top1"] == expected
    uneven = labels_of(np.array([1000, 1]))
    low, _ = compute_single_label_intervals(pairs_of(uneven, uneven, 2))["balanced_accuracy"]
    assert low < 0.6, "of one class nothing is known but one image"


def test_more_images_make_intervals_narrower() -> None:
    random, widths = np.random.default_rng(0), []
    for images in (100, 1000, 10_000):
        labels = labels_of(equal_counts(5, images))
        intervals = compute_single_label_intervals(pairs_of(labels, predict(labels, np.full(5, 0.25), random), 5))
        widths.append(np.ptp(intervals["macro_f1"]))
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_intervals_of_large_test_splits_equal_bootstrap_intervals() -> None:
    random = np.random.default_rng(9)
    labels = np.minimum(random.integers(0, 10, 2000) ** 2 // 20, 4)
    predicted = predict(labels, np.full(5, 0.25), random)
    resampled: dict[str, list[float]] = {"top1": [], "macro_f1": [], "balanced_accuracy": []}
    for _ in range(400):
        rows = random.integers(0, len(labels), len(labels))
        scores = summarize_predictions(labels[rows], predicted[rows], 5)
        for name in resampled:
            resampled[name].append(scores[name])
    intervals = compute_single_label_intervals(pairs_of(labels, predicted, 5))
    for name, values in resampled.items():  # the bounds' standard error is 0.0015
        assert intervals[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.008), name


def test_missing_classes_have_no_interval() -> None:
    assert (
        compute_single_label_intervals(ConfusionCounts(3)) == {}
        and compute_multi_label_intervals(LabelCounts(3), ()) == {}
    )


def test_too_few_images_for_the_mistakes_of_others_are_counted() -> None:
    for support in (np.full(37, 1), np.full(1000, 2), [], [0, 5, 49]):
        assert count_unreliable_classes(support) == 0
    assert count_unreliable_classes(np.r_[np.ones(16), np.full(4, 100)]) == 16
    assert count_unreliable_classes([9, 90, 91, 10]) == 1
    assert (
        count_unreliable_classes(geometric_counts(37, 10, 1000)) == 0 and count_unreliable_classes(np.ones(100)) == 100
    )


# Of several labels.


def make_multi_label(seed: int, rows: int = 2000, error: float = 0.2) -> tuple[Labels, Labels, Ids]:
    """Labels, predictions and the highest class."""
    random = np.random.default_rng(seed)
    truth = random.random((rows, 4)) < (0.1, 0.3, 0.5, 0.7)
    predicted = truth ^ (random.random(truth.shape) < error)
    return truth, predicted, random.integers(0, 4, rows)


def rows_of(truth: Labels, predicted: Labels) -> pa.Table:
    lists = ([np.flatnonzero(row) for row in labels] for labels in (truth, predicted))
    columns = dict(zip(("label_ids", "predicted_ids"), lists, strict=True))
    return pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()})


def count_labels(truth: Labels, predicted: Labels, highest: Ids) -> LabelCounts:
    counts = LabelCounts(truth.shape[1])
    counts.add(truth, predicted, highest)
    return counts


def test_multi_label_intervals_equal_bootstrap_intervals() -> None:
    truth, predicted, highest = make_multi_label(2)
    random = np.random.default_rng(4)
    resampled: dict[str, list[float]] = {"macro_f1": [], "micro_f1": [], "subset_accuracy": []}
    for _ in range(400):
        rows = random.integers(0, len(truth), len(truth))
        scores = count_labels(truth[rows], predicted[rows], highest[rows]).summary()
        for name in resampled:
            resampled[name].append(scores[name])
    table = rows_of(truth, predicted)
    intervals = compute_multi_label_intervals(count_labels(truth, predicted, highest), [table])
    assert set(intervals) == {*resampled, "top1"}
    for name, values in resampled.items():
        assert intervals[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.008), name
    parts = compute_multi_label_intervals(
        count_labels(truth, predicted, highest), [table.slice(0, 700), table.slice(700)]
    )
    for name, interval in intervals.items():
        assert parts[name] == pytest.approx(interval, abs=1e-6), "tables of any size"


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_multi_label_intervals_contain_the_observed_scores(seed: int, rows: int) -> None:
    truth, predicted, highest = make_multi_label(seed, rows)
    counts = count_labels(truth, predicted, highest)
    intervals = compute_multi_label_intervals(counts, [rows_of(truth, predicted)])
    assert bool(intervals) == bool(truth.any())
    for name, (low, high) in intervals.items():
        assert 0 <= low <= counts.summary()[name] + 1e-6 and counts.summary()[name] - 1e-6 <= high <= 1, name


def test_multi_label_intervals_of_single_labels_equal_single_label_intervals() -> None:
    labels = labels_of(equal_counts(4, 300))
    predicted = predict(labels, np.full(4, 0.2), np.random.default_rng(0))
    truth, predictions = (np.eye(4, dtype=np.bool_)[ids] for ids in (labels, predicted))
    intervals = compute_multi_label_intervals(
        count_labels(truth, predictions, predicted), [rows_of(truth, predictions)]
    )
    single = compute_single_label_intervals(pairs_of(labels, predicted, 4))
    assert (
        intervals["micro_f1"]
        == intervals["top1"]
        == intervals["subset_accuracy"]
        == pytest.approx(single["top1"], abs=1e-5)
    )
    assert intervals["macro_f1"] == pytest.approx(single["macro_f1"], abs=0.01), "the classes' images are drawn, too"


@settings(max_examples=2)
@given(st.integers(0, 2**32 - 1))
def test_multi_label_intervals_contain_the_true_scores(seed: int) -> None:
    """As above: of 200, 171 or fewer once in 10,000 times where 93% would."""
    population = make_multi_label(seed, 400_000)
    truth, contained = (
        count_labels(*population).summary(),
        dict.fromkeys(("macro_f1", "micro_f1", "subset_accuracy"), 0),
    )
    for start in range(0, 200 * 60, 60):
        sample = tuple(array[start : start + 60] for array in population)
        intervals = compute_multi_label_intervals(count_labels(*sample), [rows_of(*sample[:2])])
        for name in contained:
            contained[name] += intervals[name][0] <= truth[name] <= intervals[name][1]
    assert min(contained.values()) >= 172, contained


# Proportions.


def test_wilsons_bounds() -> None:
    assert compute_wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # by hand
    assert compute_wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert compute_wilson_interval(0, 0) == (0.0, 1.0)
    low, high = compute_wilson_interval(8, 10, comparisons=20)
    assert low < 0.4 and high > 0.96


def test_near_0_and_1_proportions_are_corrected() -> None:
    """Of 12 images at a true share of 0.99, one mistake happens in 11% of the samples."""
    high = compute_proportion_interval(11 / 12, 12)[1]
    assert compute_wilson_interval(11, 12)[1] < 0.99 < high == pytest.approx(1 - 0.0513 / 12)
    assert compute_proportion_interval(1 / 12, 12)[0] == pytest.approx(0.0513 / 12)
    assert compute_proportion_interval(0, 5)[0] == 0
    assert compute_proportion_interval(0.5, 12) == pytest.approx(compute_wilson_interval(6, 12))
