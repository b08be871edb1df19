"""Interval of the difference of two configurations over images and seeds: by definition, by SciPy and by simulation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from imagemill.pipelines.experiments.differences import compute_mean_difference

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))


def test_interval_of_a_single_training_is_over_images() -> None:
    contributions = np.array([[0.1, 0.1, 0.0, 0.0, -0.1, 0.1, 0.0, 0.0, 0.1, 0.0]])
    result = compute_mean_difference(contributions, contributions.sum(1))
    expected = stats.ttest_1samp(contributions[0] * 10, 0)
    assert result.p == pytest.approx(expected.pvalue, abs=1e-5)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-5)
    assert result.training_error == 0 and not result.is_credible


def test_interval_without_image_variance_is_students_over_trainings() -> None:
    """Without a difference between images the interval is that of the t-test on the trainings' gains."""
    gains = np.array([0.02, 0.05, -0.01, 0.03])
    result = compute_mean_difference(np.repeat(gains[:, None] / 50, 50, axis=1), gains)
    expected = stats.ttest_1samp(gains, 0)
    assert result.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-5)
    assert result.p == pytest.approx(expected.pvalue, abs=1e-5) and result.image_error < 1e-12


def test_variances_are_those_of_a_two_way_model() -> None:
    """The mean squares of the analysis of variance, by their definitions."""
    random = np.random.default_rng(5)
    trainings, images = 4, 30
    values = (
        random.normal(0, 1, (trainings, 1)) + random.normal(0, 2, images) + random.normal(0, 1, (trainings, images))
    )
    mean, by_image, by_training = values.mean(), values.mean(0), values.mean(1)
    square_images = trainings * ((by_image - mean) ** 2).sum() / (images - 1)
    square_trainings = images * ((by_training - mean) ** 2).sum() / (trainings - 1)
    rest = values - by_image - by_training[:, None] + mean
    square_rest = (rest**2).sum() / ((trainings - 1) * (images - 1))
    cells = trainings * images
    result = compute_mean_difference(values / images, by_training)
    assert result.gain == pytest.approx(mean)
    assert result.image_error**2 == pytest.approx(square_images / cells)
    assert result.training_error**2 == pytest.approx((square_trainings - square_rest) / cells)


def test_equal_predictions_have_an_interval_by_unobserved_variance() -> None:
    result = compute_mean_difference(np.zeros((3, 40)), np.zeros(3), extra_variance=2 / 40**2)
    assert result.interval[0] < 0 < result.interval[1] and result.p == 1
    assert compute_mean_difference(np.zeros((3, 40)), np.zeros(3)).interval == (0, 0)


def test_the_interval_covers_images_and_seeds() -> None:
    """400 comparisons of 3 seeds whose accuracies spread by 3 points. An interval that covers in 95% of cases covers in
    fewer than 90.5% of 400 in one of 10,000 runs; that over the images of one seed covers in fewer than 85%."""
    from trainings import SHAPES, measure

    shares = measure(SHAPES["118 images, 6 classes"], 3, 0.03, 200, np.random.default_rng())
    assert shares["covered"] >= 0.905, shares
    assert shares["equal"] <= 0.115, shares  # of 200: 5% give more in one of 10,000 runs
