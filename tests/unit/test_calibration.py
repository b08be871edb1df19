"""Temperatures and reliability curves, against known truths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from imagemill.components.metrics import calibration
from imagemill.components.metrics.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Reliability, ece, fit_temperature
from imagemill.components.storage.errors import MillError


def draw_logits(
    temperature: float, rows: int = 4000, classes: int = 10
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits that are too large by `temperature`, and labels drawn by what they would be without it."""
    random = np.random.default_rng(7)
    logits = random.normal(0, 3, (rows, classes))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(1)  # a draw of the softmax
    return (temperature * logits).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.2, 1.0, 2.5, 12.0])
def test_the_temperature_that_was_put_in_comes_out(temperature: float) -> None:
    assert fit_temperature(*draw_logits(temperature)) == pytest.approx(temperature, rel=0.04)


def test_fitted_temperature_maximizes_the_likelihood() -> None:
    logits, labels = draw_logits(3.0, 20_000, 4)

    def loss(t: float) -> float:
        return float(-log_softmax(logits.astype(np.float64) / t, 1)[np.arange(len(labels)), labels].mean())

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6}).x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-3)


def test_multi_label_temperature_calibrates_the_sigmoids() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (5000, 6))
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    assert fit_temperature((4 * logits).astype(np.float32), labels) == pytest.approx(4, rel=0.05)


def test_temperature_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw_logits(2.0, 500)
    expected = fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "_CHUNK", 64)
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 10**6), st.floats(1e-6, 1e6), st.booleans())
@settings(deadline=None)
def test_temperature_is_always_finite_and_positive(
    rows: int, classes: int, seed: int, scale: float, several: bool
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(0, 1, (rows, classes)) * scale).astype(np.float32)
    labels = random.integers(0, 2, logits.shape).astype(np.uint8) if several else random.integers(0, classes, rows)
    assert MIN_TEMPERATURE <= fit_temperature(logits, labels) <= MAX_TEMPERATURE


def test_perfect_predictions_get_a_bounded_temperature() -> None:
    labels = np.arange(40) % 4
    logits = 10 * np.eye(4, dtype=np.float32)[labels]
    assert 1 < fit_temperature(logits, labels) < 5
    assert fit_temperature(logits, (labels + 1) % 4) == pytest.approx(MAX_TEMPERATURE)
    assert fit_temperature(logits * 1e-5, labels) == pytest.approx(MIN_TEMPERATURE)


def test_temperature_without_data_is_one() -> None:
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) == 1
    assert fit_temperature(np.full((8, 3), 5, np.float32), np.zeros(8, np.int64)) == 1


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, -1, 2]])
def test_labels_that_do_not_fit_are_an_error(labels: list[int]) -> None:
    with pytest.raises(MillError, match=r"^labels: expected"):
        fit_temperature(np.zeros((3, 3), np.float32), np.array(labels))


def test_numbers_by_hand() -> None:
    counted = Reliability(bins=2)
    counted.add([0.1, 0.5, 0.9, 0.9, 1.0], [0, 1, 1, 0, 1])
    assert counted.curve() == [
        {"images": 2, "confidence": pytest.approx(0.3), "accuracy": 0.5},
        {"images": 3, "confidence": pytest.approx(2.8 / 3), "accuracy": pytest.approx(2 / 3)},
    ]
    assert counted.ece == pytest.approx(2 / 5 * 0.2 + 3 / 5 * (2.8 - 2) / 3)
    assert Reliability().curve() == [] and ece([], []) == 0.0


def test_parts_add_up_and_edges_belong_to_the_lower_bin() -> None:
    random = np.random.default_rng(0)
    sure = np.concatenate([random.random(1000), np.arange(11) / 10])
    right = random.random(len(sure)) < sure
    parts = Reliability(10)
    for rows in np.array_split(np.arange(len(sure)), 7):
        parts.add(sure[rows], right[rows])
    assert parts.ece == pytest.approx(ece(sure, right, 10))
    expected = 0.0
    for b in range(10):
        inside = (sure * 10 > b) & (sure * 10 <= b + 1) | ((b == 0) & (sure == 0))
        expected += abs(sure[inside].sum() - right[inside].sum())
    assert parts.ece == pytest.approx(expected / len(sure))
