"""Order of an epoch: every row once, determined by (seed, epoch), in windows of bounded size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from imagemill.components.dataset.manifest import File
from imagemill.components.train.data import order
from imagemill.components.train.data.order import WINDOW_BYTES, WINDOW_FILES, WINDOW_ROWS, EpochOrder, sample_repeats


def make_files(rows: list[int], size: int = 10) -> list[File]:
    return [File(f"data/train/part-{n}.parquet", "data", "train", r, size, str(n)) for n, r in enumerate(rows)]


def list_rows(plan: EpochOrder) -> list[tuple[int, int]]:
    """Return (file, row) of each row of an epoch in its order."""
    rows = []
    for window in plan.iter_windows():
        assert window.first == len(rows)
        window_rows = [
            (window.files[position], row)
            for position, row in zip(*(a.tolist() for a in plan.locate_rows(window)), strict=True)
        ]
        assert len(window_rows) == window.rows
        rows += window_rows
    return rows


@given(
    rows=st.lists(st.integers(1, 3000), max_size=12), seed=st.integers(0, 9), epoch=st.integers(-1, 3),
    generations=st.one_of(st.just([]), st.lists(st.integers(0, 3), min_size=12, max_size=12)),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_every_row_occurs_once(rows: list[int], seed: int, epoch: int, generations: list[int]) -> None:
    plan = EpochOrder(make_files(rows), seed, epoch, None, generations[: len(rows)])
    epoch_rows = list_rows(plan)
    assert len(epoch_rows) == plan.count_rows() == sum(rows)
    stored = [(file, row) for file, number in enumerate(rows) for row in range(number)]
    assert sorted(epoch_rows) == stored
    if epoch < 0:
        assert epoch_rows == stored
    elif sum(rows) > 20:
        assert epoch_rows != stored


def test_rows_are_shuffled_within_windows_of_several_files() -> None:
    plan = EpochOrder(make_files([1000] * 40), 1, 2)
    windows = list(plan.iter_windows())
    assert [w.number for w in windows] == list(range(len(windows)))
    assert all(len(w.files) >= WINDOW_FILES and w.rows >= WINDOW_ROWS for w in windows)
    assert all(w.rows < WINDOW_ROWS + 1000 for w in windows), "not more than is needed"
    first = {file for file, _ in list_rows(plan)[:200]}
    assert first == set(windows[0].files), "mixed from the first batch on"
    assert sorted(windows[0].files) != list(range(len(windows[0].files)))


def test_window_of_large_files_is_limited_by_bytes() -> None:
    plan = EpochOrder(make_files([20] * 50, size=-(-WINDOW_BYTES // 10)), 0, 0)
    assert {len(w.files) for w in plan.iter_windows()} == {10}


def test_rows_are_repeated_by_balanced_sampling() -> None:
    repeats = [np.array([2, 0, 1], np.uint32), np.array([0, 3], np.uint32)]
    plan = EpochOrder(make_files([3, 2]), 0, 0, repeats)
    assert sorted(list_rows(plan)) == [(0, 0), (0, 0), (0, 2), (1, 1), (1, 1), (1, 1)] and plan.count_rows() == 6


@given(
    labels=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=200), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    epoch=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_balanced_sampling_repeats_rows_in_proportion_to_their_weights(
    labels: list[list[int]], weights: list[float], epoch: int
) -> None:
    parts = [np.array(part, np.int64) for part in labels]
    repeats = sample_repeats(parts, weights, 3, epoch)
    assert sum(int(part.sum()) for part in repeats) == sum(len(part) for part in labels)
    all_labels = np.concatenate(parts)
    share = np.array(weights)[all_labels]
    expected = share / share.sum() * len(all_labels)
    assert (np.abs(np.concatenate(repeats) - expected) < 1 + 1e-6).all()


def test_balanced_sampling_differs_by_epoch_and_is_uniform_over_many() -> None:
    labels = [np.array([0] * 90 + [1] * 10, np.int64)]
    weights = [1 / 90, 1 / 10]
    repeats = np.array([sample_repeats(labels, weights, 0, epoch)[0] for epoch in range(400)])
    assert (repeats.sum(axis=1) == 100).all() and (repeats[0] != repeats[1]).any()
    assert abs(repeats[:, 90:].sum(axis=1).mean() - 50) < 1
    assert np.abs(repeats[:, :90].mean(axis=0) - 50 / 90).max() < 0.15, "every row of a frequent class has its turn"


def test_single_image_of_a_class_is_repeated_as_often_as_other_classes() -> None:
    labels = [np.r_[np.zeros(1, np.int64), np.arange(999_999) % 9 + 1]]
    (repeats,) = sample_repeats(labels, [1.0, *[9 / 999_999] * 9], 0, 0)
    assert int(repeats[0]) == 100_000 and int(repeats.sum()) == 1_000_000


@pytest.mark.parametrize(
    ("rows", "size", "ranks", "expected"),
    [(100, 50, 1, 2), (101, 50, 1, 2), (102, 50, 1, 3), (1, 50, 1, 1), (0, 50, 1, 0), (103, 50, 2, 2), (104, 50, 2, 3)],
)
def test_too_small_last_batch_is_dropped(rows: int, size: int, ranks: int, expected: int) -> None:
    assert order.count_batches(rows, size, True, ranks) == expected


@pytest.mark.parametrize(("seed", "epoch", "expected"), [(3, 5, "d2978403b77f7c9b"), (0, 0, "a882d6190a7d8655")])
def test_order_of_one_generation_is_stable(seed: int, epoch: int, expected: str) -> None:
    rows = [700, 1500, 900, 400, 2500, 1200, 50, 3000, 800, 10]
    for generations in ([], [0] * 10, [4] * 10):
        plan, digest = EpochOrder(make_files(rows), seed, epoch, None, generations), hashlib.sha256()
        for window in plan.iter_windows():
            positions, in_file = plan.locate_rows(window)
            numbers = [window.files[position] for position in positions.tolist()]
            digest.update(json.dumps([window.first, window.rows, numbers, in_file.tolist()]).encode())
        assert digest.hexdigest()[:16] == expected


LARGE = [1000] * 40
LATER = [[430], [430, 430, 43], [17], [1]]
"""Rows of the files of the first generation, and of later ones."""


def make_order(seed: int, epoch: int) -> EpochOrder:
    """-"""
    numbers = [0] * len(LARGE) + [number for number, rows in enumerate(LATER, 1) for _ in rows]
    return EpochOrder(make_files(LARGE + [count for rows in LATER for count in rows]), seed, epoch, None, numbers)


def test_each_window_has_its_share_of_every_generation() -> None:
    """Within a row, and in expectation exactly; of few files, one after the other."""
    counts = np.zeros((40, len(LATER), len(list(make_order(0, 0).iter_windows()))))
    for epoch in range(40):
        plan = make_order(1, epoch)
        last_window: dict[int, int] = {}
        for window in plan.iter_windows():
            large = [index for index in window.files if plan.generations[index] == 0]
            assert len(large) >= WINDOW_FILES and window.files[: len(large)] == tuple(large)
            for index, (begin, end) in zip(window.files[len(large) :], window.shares, strict=True):
                counts[epoch, plan.generations[index] - 1, window.number] += end - begin
                assert window.number - last_window.get(index, window.number - 1) == 1, "no file is needed again later"
                last_window[index] = window.number
            assert len(window.files) - len(large) <= sum(1 + (len(rows) > 1) for rows in LATER) + 1
    size = np.array([window.rows for window in EpochOrder(make_files(LARGE), 1, 0).iter_windows()])
    for number, rows in enumerate(LATER):
        expected = sum(rows) * size / size.sum()
        assert (np.abs(counts[:, number] - expected) < 1 + 1e-9).all()
        assert np.abs(counts[:, number].mean(axis=0) - expected).max() < 4.5 * 0.5 / np.sqrt(40)


def compute_chi_squared(plan: EpochOrder, batch: int = 256) -> list[float]:
    """Return, per later generation, the sum of squared deviations of its rows in batches from the mean, in units of the
    variance in a uniformly random order: chi-squared with one degree of freedom less than there are batches."""
    order = np.array([plan.generations[file] for file, _ in list_rows(replace(plan))])
    batches = len(order) // batch
    counts = np.array([np.bincount(part, minlength=5)[1:] for part in order[: batches * batch].reshape(batches, batch)])
    share = np.array([sum(rows) for rows in LATER]) / len(order)
    return list(((counts - batch * share) ** 2 / (batch * share * (1 - share))).sum(axis=0)[:2])


def test_generations_are_mixed_uniformly_over_batches() -> None:
    """A uniformly random order of all rows would fail in one of 10,000 runs of these 40 comparisons; blocks of a
    generation's own fail in each."""
    batches = make_order(0, 0).count_rows() // 256
    threshold = chi2.ppf(1 - 1e-4 / 40, batches - 1)
    for seed in range(20):
        plan = make_order(seed, seed % 3)
        assert max(compute_chi_squared(plan)) < threshold
        separate = EpochOrder(plan.files, seed, seed % 3)
        as_blocks = [(plan.generations[file], row) for file, row in list_rows(separate)]
        counts = np.array([n == 2 for n, _ in as_blocks[: batches * 256]]).reshape(batches, 256).sum(axis=1)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() > 3 * threshold


def test_rows_of_a_later_generation_are_shuffled_between_epochs() -> None:
    """Two epochs have as many rows of the first window's share in common as random halves would."""
    firsts = []
    for epoch in range(10):
        plan = make_order(0, epoch)
        window = next(iter(plan.iter_windows()))
        located = zip(*(array.tolist() for array in plan.locate_rows(window)), strict=True)
        firsts.append({(window.files[p], row) for p, row in located if plan.generations[window.files[p]] == 1})
    share = len(firsts[0]) / 430
    common = [len(rows & earlier) / 430 for n, rows in enumerate(firsts) for earlier in firsts[:n]]
    assert np.mean(common) == pytest.approx(share**2, abs=0.01) and len(set(map(frozenset, firsts))) == 10


@pytest.mark.proof
def test_memory_of_the_order_of_a_million_images() -> None:
    import time
    import tracemalloc

    plan = EpochOrder(make_files([430] * 2326, size=64 * 2**20), 0, 0)
    tracemalloc.start()
    started, rows = time.monotonic(), 0
    for window in plan.iter_windows():
        rows += len(plan.locate_rows(window)[0])
    seconds = time.monotonic() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{rows:,} rows ordered in {seconds:.2f} s, {peak / 1e6:.1f} MB at most")
    assert rows == plan.count_rows() > 10**6 and peak < 10 * 10**6
