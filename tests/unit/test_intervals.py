"""Intervals by counts against intervals by images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from imagemill.components.evaluate import intervals
from imagemill.components.evaluate.intervals import PoissonCounts, of_pairs, wilson
from imagemill.components.store.metrics import Pairs


def predicted(rows: int = 300, classes: int = 5, seed: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels of unequal frequency, of which three quarters are predicted rightly."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.integers(0, 2 * classes, rows) ** 2 // (4 * classes), classes - 1)
    return labels, np.where(random.random(rows) < 0.75, labels, random.integers(0, classes, rows))


def pairs_of(labels: Any, said: Any, classes: int = 5) -> Pairs:
    pairs = Pairs(classes)
    pairs.add(labels, said)
    return pairs


def test_resampling_cells_is_resampling_images() -> None:
    labels, said = predicted()
    random = np.random.default_rng(9)
    found: dict[str, list[float]] = {"top1": [], "macro_f1": [], "balanced_accuracy": []}
    for _ in range(250):
        rows = random.integers(0, len(labels), len(labels))
        there, told = labels[rows], said[rows]
        found["top1"].append(accuracy_score(there, told))
        found["macro_f1"].append(f1_score(there, told, labels=np.unique(there), average="macro", zero_division=0))
        found["balanced_accuracy"].append(balanced_accuracy_score(there, told))
    ours = of_pairs(pairs_of(labels, said), 4000)
    assert set(ours) == set(found)
    for name, values in found.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.018), name


def test_they_are_the_same_every_time_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(*predicted())
    whole = of_pairs(pairs, 200)
    assert of_pairs(pairs, 200) == whole
    monkeypatch.setattr(intervals, "_NUMBERS", 100)
    assert of_pairs(pairs, 200) == whole


def test_more_images_make_them_narrower() -> None:
    widths = [np.ptp(of_pairs(pairs_of(*predicted(rows)), 500)["macro_f1"]) for rows in (100, 1000, 10_000)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_what_there_is_nothing_of_has_none() -> None:
    assert of_pairs(Pairs(3), 100) == {} and of_pairs(pairs_of(*predicted()), 0) == {}
    labels, _ = predicted()
    assert list(of_pairs(pairs_of(labels, labels), 50).values()) == [[1.0, 1.0]] * 3


def several(rows: int = 400) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    random = np.random.default_rng(2)
    there = random.random((rows, 4)) < (0.1, 0.3, 0.5, 0.7)
    said = there ^ (random.random(there.shape) < 0.2)
    return there, said, random.random(rows) < 0.6


def counted(batch: int, resamples: int = 2000, rows: int = 400) -> PoissonCounts:
    found, data = PoissonCounts(4, resamples), several(rows)
    for n in range(0, rows, batch):
        found.add(*(part[n : n + batch] for part in data))
    return found


def test_of_several_labels_they_are_those_of_resampled_images() -> None:
    there, said, top = several()
    random = np.random.default_rng(4)
    found: dict[str, list[float]] = {"top1": [], "macro_f1": [], "micro_f1": [], "subset_accuracy": []}
    for _ in range(250):
        rows = random.integers(0, len(there), len(there))
        a, b = there[rows], said[rows]
        found["top1"].append(top[rows].mean())
        found["macro_f1"].append(f1_score(a, b, average="macro", zero_division=0))
        found["micro_f1"].append(f1_score(a, b, average="micro", zero_division=0))
        found["subset_accuracy"].append(accuracy_score(a, b))
    ours = counted(64).intervals()
    assert set(ours) == set(found)
    for name, values in found.items():
        assert ours[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.018), name


def test_batches_do_not_matter_and_memory_is_bounded() -> None:
    assert counted(64, 100).intervals() == counted(7, 100).intervals() == counted(400, 100).intervals()
    assert PoissonCounts(20_000, 1000).resamples == 279 and PoissonCounts(100, 1000).resamples == 1000
    assert PoissonCounts(3, 0).intervals() == {}


def test_wilsons_bounds() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # by hand
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10, comparisons=20)
    assert low < 0.4 and high > 0.96
