"""Order of an epoch: every row once, determined by (seed, epoch), permuted as a whole or in windows of bounded size."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset, Manifest, Part
from imagemill.components.train.data import order
from imagemill.components.train.data.order import WINDOW_BYTES, EpochOrder, sample_repeats
from imagemill.components.train.data.tensors import TensorSplit

TENSORS = Dataset("/w/tensors/01", Manifest("tensors", "01", image=ImageSpec((4, 4, 3))), "")


def make_split(rows: list[int], size: int = 10) -> TensorSplit:
    """A split of parts with so many rows, of `size` bytes each; image n is row n of all."""
    parts = [Part(str(n), number, size, "") for n, number in enumerate(rows)]
    positions = np.repeat(np.arange(len(rows)), rows).astype(np.int32)
    numbers = np.concatenate([np.arange(number) for number in rows] or [np.empty(0)]).astype(np.int32)
    return TensorSplit(TENSORS, parts, positions, numbers, np.zeros(len(numbers), np.int64))


def list_rows(plan: EpochOrder) -> list[int]:
    """Return the images of an epoch in its order."""
    rows: list[int] = []
    for window in plan.iter_windows():
        assert window.first == len(rows)
        numbers = plan.locate_rows(window)
        assert len(numbers) == window.rows
        assert set(plan.split.positions[numbers].tolist()) <= set(window.parts)
        rows += numbers.tolist()
    return rows


@given(rows=st.lists(st.integers(1, 3000), max_size=12), seed=st.integers(0, 9), epoch=st.integers(-1, 3),
       size=st.sampled_from([10, WINDOW_BYTES // 3, WINDOW_BYTES]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_every_row_occurs_once(rows: list[int], seed: int, epoch: int, size: int) -> None:
    plan = EpochOrder(make_split(rows, size), seed, epoch)
    epoch_rows = list_rows(plan)
    assert len(epoch_rows) == plan.count_rows() == sum(rows)
    assert sorted(epoch_rows) == list(range(sum(rows)))
    if epoch < 0:
        assert epoch_rows == sorted(epoch_rows)
    elif sum(rows) > 20:
        assert epoch_rows != sorted(epoch_rows)


def test_split_that_fits_is_permuted_as_a_whole() -> None:
    """Neighbors in an epoch are independent: as far from one another in the parts as in any permutation."""
    epoch_rows = np.array(list_rows(EpochOrder(make_split([1000] * 20), 1, 2)))
    assert abs(np.corrcoef(np.arange(20_000), epoch_rows)[0, 1]) < 0.03
    distance = np.abs(np.diff(epoch_rows)).mean()
    assert abs(distance / 20_000 - 1 / 3) < 0.01  # of two uniform numbers
    first = np.bincount(epoch_rows[:2000] // 1000, minlength=20)
    assert first.min() > 60 and first.max() < 145, "each part has its share of the first tenth: 100, 4 deviations"


def test_windows_are_bounded_by_bytes_and_mix_whole_parts() -> None:
    plan = EpochOrder(make_split([20] * 50, size=WINDOW_BYTES // 10), 0, 0)
    windows = list(plan.iter_windows())
    assert {len(window.parts) for window in windows} == {10} and [w.number for w in windows] == list(range(5))
    assert sorted(windows[0].parts) != list(range(10)), "parts are shuffled, too"
    one_too_large = EpochOrder(make_split([20] * 3, size=2 * WINDOW_BYTES), 0, 0)
    assert [len(window.parts) for window in one_too_large.iter_windows()] == [1, 1, 1]


def test_rows_are_repeated_by_balanced_sampling() -> None:
    plan = EpochOrder(make_split([3, 2]), 0, 0, np.array([2, 0, 1, 0, 3], np.uint32))
    assert sorted(list_rows(plan)) == [0, 0, 2, 4, 4, 4] and plan.count_rows() == 6


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=500),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    epoch=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_balanced_sampling_repeats_rows_in_proportion_to_their_weights(
    labels: list[int], weights: list[float], epoch: int
) -> None:
    ids = np.array(labels, np.int64)
    repeats = sample_repeats(ids, weights, 3, epoch)
    assert int(repeats.sum()) == len(ids)
    share = np.array(weights)[ids]
    assert (np.abs(repeats - share / share.sum() * len(ids)) < 1 + 1e-6).all()


def test_balanced_sampling_differs_by_epoch_and_is_uniform_over_many() -> None:
    labels = np.array([0] * 90 + [1] * 10, np.int64)
    repeats = np.array([sample_repeats(labels, [1 / 90, 1 / 10], 0, epoch) for epoch in range(400)])
    assert (repeats.sum(axis=1) == 100).all() and (repeats[0] != repeats[1]).any()
    assert abs(repeats[:, 90:].sum(axis=1).mean() - 50) < 1
    assert np.abs(repeats[:, :90].mean(axis=0) - 50 / 90).max() < 0.15, "every row of a frequent class has its turn"


def test_single_image_of_a_class_is_repeated_as_often_as_other_classes() -> None:
    labels = np.r_[np.zeros(1, np.int64), np.arange(999_999) % 9 + 1]
    repeats = sample_repeats(labels, [1.0, *[9 / 999_999] * 9], 0, 0)
    assert int(repeats[0]) == 100_000 and int(repeats.sum()) == 1_000_000


@pytest.mark.parametrize(
    ("rows", "size", "ranks", "expected"),
    [(100, 50, 1, 2), (101, 50, 1, 2), (102, 50, 1, 3), (1, 50, 1, 1), (0, 50, 1, 0), (103, 50, 2, 2), (104, 50, 2, 3)],
)
def test_too_small_last_batch_is_dropped(rows: int, size: int, ranks: int, expected: int) -> None:
    assert order.count_batches(rows, size, True, ranks) == expected


def test_order_does_not_change() -> None:
    """Another value here makes a training that is resumed after an update see other batches."""
    rows = list_rows(EpochOrder(make_split([700, 1500, 50]), 3, 5))
    assert hashlib.sha256(np.array(rows, "<i8").tobytes()).hexdigest()[:16] == "024d3f31100bf1bd"
