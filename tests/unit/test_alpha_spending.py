"""The level that earlier decisions on the same images leave, and how they are counted."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from simulated import Models, equal_counts, pair_of

from imagemill.components.dataset.records import Verdict
from imagemill.components.promote.gate import compute_p_value
from imagemill.components.promote.score_difference import (
    SKETCH_SIZE,
    compute_difference,
    compute_level,
    count_comparisons,
    make_sketch,
    measure_overlap,
)

Hashes = npt.NDArray[np.uint64]


def images(number: int, start: int = 0) -> Hashes:
    random = np.random.default_rng(0)
    return random.integers(0, 2**64, 100_000, np.uint64)[start : start + number]


def test_the_level_is_spent() -> None:
    levels = [compute_level(0.05, uses) for uses in range(52)]
    assert levels[0] == pytest.approx(0.018) and levels == sorted(levels, reverse=True)
    assert compute_level(0.05, 0.5) < levels[0] and compute_level(0.1, 3) == pytest.approx(2 * levels[3])


@pytest.mark.parametrize(("weeks", "bound"), [(52, 0.0505), (520, 0.0555)])
def test_family_wise_error_rate_stays_within_the_level(weeks: int, bound: float) -> None:
    """The differences are normal and share the champion's part, by the integral over that part (Dunnett)."""
    normal = NormalDist()
    shared = np.linspace(-7, 7, 701)
    weight = np.exp(-(shared**2) / 2)
    log_none = np.zeros_like(shared)
    for uses in range(weeks):
        z = normal.inv_cdf(1 - compute_level(0.05, uses))
        log_none += np.log([max(1e-300, normal.cdf(2**0.5 * z + x)) for x in shared])
    assert 0.045 < 1 - float((weight * np.exp(log_none)).sum() / weight.sum()) < bound


def test_sketches_estimate_the_number_of_shared_images() -> None:
    today = make_sketch(images(300))
    assert len(today) < 4_000 and measure_overlap(today, today) == 1
    assert measure_overlap(today, make_sketch(images(150))) == 0.5
    assert measure_overlap(today, make_sketch(images(300, 150))) == 0.5
    assert measure_overlap(today, make_sketch(images(5000))) == pytest.approx(1, abs=0.01)
    assert measure_overlap(make_sketch(images(0)), today) == 0 == measure_overlap(today, make_sketch(images(300, 300)))


@pytest.mark.parametrize(("number", "start"), [(20_000, 0), (20_000, 5_000), (40_000, 10_000), (3_000, 18_000)])
def test_sketches_of_many_images_are_approximate(number: int, start: int) -> None:
    """The share of 512 sampled images, fewer where the other set is larger: four standard errors of 0.5 of 256."""
    today = make_sketch(images(20_000))
    assert len(today) <= 12 * SKETCH_SIZE
    truth = len(np.intersect1d(images(20_000), images(number, start))) / 20_000
    assert measure_overlap(today, make_sketch(images(number, start))) == pytest.approx(truth, abs=0.125)


def test_each_other_challenger_counts_once_with_its_share_of_todays_images() -> None:
    def comparison(model: str, content: Hashes) -> Verdict:
        return Verdict(challenger_model=model, sketch=make_sketch(content))

    past = [comparison("a", images(300)), comparison("a", images(150)), comparison("b", images(300, 150))]
    past += [comparison("me", images(300)), Verdict(challenger_model="too few images"), Verdict()]
    assert count_comparisons(make_sketch(images(300)), "me", past) == 1.5
    assert count_comparisons(make_sketch(images(300, 450)), "me", past) == 0, "new images have decided nothing"
    assert count_comparisons(make_sketch(images(300)), "me", []) == 0


@pytest.mark.proof
@pytest.mark.parametrize("size", [118, 400])
def test_a_year_of_equal_challengers_leaves_the_champion(size: int) -> None:
    """52 of them against one champion: it is replaced in at most 3% of years; in more than 18 of 200 once in 10,000."""
    random, counts = np.random.default_rng(), equal_counts(6, size)
    replaced = 0
    for _ in range(200):
        models = Models.draw(counts, np.full(6, 0.1), 0.5, random)
        champion = models.model(random)
        replaced += any(
            compute_p_value(
                compute_difference(pair_of(models.labels, champion, models.model(random), 6), "macro_f1"), 0.005
            )
            <= compute_level(0.05, uses)
            for uses in range(52)
        )
    assert replaced <= 18
