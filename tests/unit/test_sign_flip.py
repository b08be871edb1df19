"""Sign-flip test compared with all sign patterns, sign test with the binomial distribution, and McNemar's mid-p."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.promote import score_difference
from imagemill.components.promote.score_difference import (
    compute_mcnemar_p_value,
    compute_sign_test_p_value,
    compute_tail_probability,
)

Floats = npt.NDArray[np.float64]


def list_signed_sums(sizes: Floats) -> Floats:
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8), st.floats(-5, 5))
def test_few_contributions_are_enumerated(contributions: list[float], threshold: float) -> None:
    sizes = np.abs([contribution for contribution in contributions if contribution])
    patterns = [float(np.dot(signs, sizes)) for signs in product((-1, 1), repeat=len(sizes))]
    if min((abs(total - threshold) for total in patterns), default=1) < 1e-6:
        return  # a tie that rounding may decide
    expected = np.mean([total >= threshold for total in patterns])
    assert compute_tail_probability(np.array(contributions), threshold) == pytest.approx(expected)


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.05, 0.01, 0.001, 0.0001]))
def test_approximate_tail_is_close_to_the_exact_one(seed: int, level: float) -> None:
    random = np.random.default_rng(seed)
    for sizes in (np.ones(17), random.random(18) + 0.05, random.exponential(1, 18), np.r_[np.full(14, 0.1), 5, 5, 4]):
        sums = list_signed_sums(sizes)
        threshold = np.quantile(sums, 1 - level)
        exact = (sums >= threshold - 1e-9).mean()
        assert 0.7 * exact <= compute_tail_probability(sizes, threshold) <= 2.5 * exact


def test_equal_sizes_give_the_sign_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_difference, "ENUMERATED", 3)
    for number in (8, 30, 200):
        ones = np.ones(number)
        assert compute_tail_probability(ones, number) == compute_tail_probability(ones, number - 1.5) == 0.5**number
        assert compute_tail_probability(ones, number + 1) == 0
        for positive in range(number // 2 + 2, number, max(1, number // 9)):
            exact = compute_sign_test_p_value(positive, number - positive)
            assert exact <= compute_tail_probability(ones, 2 * positive - number) <= 1.45 * exact


def test_unobserved_variance_raises_the_p_value() -> None:
    sizes = np.full(40, 0.5)
    probabilities = [compute_tail_probability(sizes, 8, variance) for variance in (0.0, 2.0, 10.0, 40.0)]
    assert probabilities == sorted(probabilities) and probabilities[-1] > 4 * probabilities[0]
    # As normal as 40 coins: variance 10 + 40, without the half step.
    assert probabilities[-1] == pytest.approx(0.5 * math.erfc(8 / math.sqrt(2 * 50)), rel=0.02)
    few = compute_tail_probability(np.array([1.0, -1.0]), 1.5, 0.01)
    assert few == pytest.approx(0.25, abs=0.001)


def test_zero_contributions() -> None:
    assert compute_tail_probability(np.zeros(5), 0) == compute_tail_probability(np.zeros(0), -1) == 1
    assert compute_tail_probability(np.zeros(5), 0.1) == 0
    assert compute_tail_probability(np.zeros(5), 1, 1.0) == pytest.approx(0.1587, abs=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_is_the_binomial_tail(against: int, favorable: int) -> None:
    total = against + favorable
    exact = sum(math.comb(total, k) for k in range(against, total + 1)) / 2**total
    assert compute_sign_test_p_value(against, favorable) == pytest.approx(exact)


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_mid_p(first: int, second: int) -> None:
    total, fewer = first + second, min(first, second)
    below = sum(math.comb(total, k) for k in range(fewer)) / 2**total
    exact = 1.0 if first == second else 2 * (below + math.comb(total, fewer) / 2**total / 2)
    assert compute_mcnemar_p_value(first, second) == compute_mcnemar_p_value(second, first)
    assert compute_mcnemar_p_value(first, second) == pytest.approx(min(1.0, exact))
    assert compute_mcnemar_p_value(6, 16) == pytest.approx(0.0347, abs=1e-4)  # Fagerland et al., 2013, table 1
