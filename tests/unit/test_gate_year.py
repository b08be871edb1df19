"""The gate over simulated years: accuracy in service is that of the best policy, and accidents are not promoted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from gate import WORLDS, simulate


def test_years_of_small_test_sets_with_accidents() -> None:
    """Ten years with 118 test images, in which one training in twenty is worse by five points."""
    random = np.random.default_rng(0)
    years = [simulate(118, WORLDS["accidents of 5 points"], random) for _ in range(10)]
    means = {rule: np.mean([year[rule][0] for year in years]) for rule in years[0]}
    assert means["unless-worse"] >= max(means.values()) - 0.002 and means["better"] < means["unless-worse"] - 0.005
    promoted, happened = (sum(year["unless-worse"][column] for year in years) for column in (3, 4))
    assert happened >= 10 and promoted <= 0.1 * happened, (promoted, happened)
