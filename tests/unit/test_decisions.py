"""Decisions about all images together: copies, exact splits, near-duplicates, leaks, conflicts, outliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.clean.candidates import CandidateInfo, Candidates, RowDecisions, RowNumbers
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.decide import (
    assign_exact_splits,
    assign_fold,
    compute_robust_scores,
    decide,
    drop_duplicates,
    find_outliers,
    group_equal_pixels,
    to_comparable_scale,
)
from imagemill.components.clean.measures import THUMBNAIL_BYTES
from imagemill.components.clean.near_duplicates import NearDuplicates, check_radius, judge_near_duplicates
from imagemill.components.clean.schema import MEASURES
from imagemill.components.dataset.parts import PartFolder
from imagemill.components.dataset.splits import (
    SPLITS,
    TEST,
    TRAIN,
    TRAINVAL,
    UNDECLARED,
    VAL,
    choose_exact_splits,
    choose_fold_splits,
)
from imagemill.components.storage.errors import UserError

CODES = {name: code for code, name in enumerate(SPLITS)} | {"": UNDECLARED, "trainval": TRAINVAL}


class Toy(Candidates):
    """A table whose names are made up: row n is `n`, its label its class's letter."""

    contents: ClassVar[Sequence[int]] = ()
    splits: ClassVar[Sequence[str]] = ()

    def read_infos(self, rows: RowNumbers) -> dict[int, CandidateInfo]:
        content = self.contents or range(len(self))
        return {
            row: CandidateInfo(f"{row:03d}", f"sha{content[row]}", self.labels[self.label_codes[row]])
            for row in np.asarray(rows).tolist()
        }


def toy(
    pixels: list[int], labels: str = "", splits: list[str] | None = None, declared: list[str] | None = None, **more: Any
) -> Toy:
    """`splits`: of the rows, by default train; `declared`: those that the source declares."""
    number = len(pixels)
    sides = np.ones(number, np.int32)
    table = Toy(
        raw=pa.table({"image_id": [f"{row:03d}" for row in range(number)]}), folder=PartFolder(""), parts=(),
        starts=np.array([0, number]), raw_rows=np.arange(number), rows=np.arange(number, dtype=np.int32),
        labels=[chr(97 + code) for code in range(26)], label_ids=[[code] for code in range(26)],
        label_codes=np.array([ord(c) - 97 for c in labels or "a" * number], np.int32),
        pixel_hash=np.array([[p, 0] for p in pixels], np.uint64).reshape(number, 2),
        phash=np.array(more.get("phash", [0] * number), np.uint64),
        declared=np.array([CODES[s] for s in declared or [""] * number], np.uint8), has_groups="group" in more,
        shuffle_index=np.array(more.get("order", range(number)), np.int64),
        split_position=np.array(more.get("group", (np.arange(number) + 0.5) / max(1, number)), np.float64),
        measures={name: np.ones(number, np.float32) for name in MEASURES} | more.get("measures", {}),
        width=sides, height=sides, image_bytes=sides.astype(np.int64), has_warning=np.zeros(number, bool),
        has_measures=True,
    )  # fmt: skip
    table.contents, table.splits = more.get("content", ()), splits or ["train"] * number  # type: ignore[misc]
    return table


def decisions_of(table: Toy) -> RowDecisions:
    decisions = RowDecisions.of(table, CleanConfig())
    decisions.splits = np.array([CODES[s] for s in table.splits], np.uint8)
    return decisions


def find_copies(table: Toy, policy: str = "keep") -> tuple[dict[int, str], dict[str, Any], dict[str, str]]:
    decisions = decisions_of(table)
    drop_duplicates(decisions, policy)
    details = {f"{reject.raw_row:03d}": reject.detail for reject in decisions.list_rejects()}
    return {r: v.reason for r, v in decisions.dropped.items()}, decisions.findings["duplicates"], details


def test_only_groups_of_equal_pixels_are_found() -> None:
    assert [g.tolist() for g in group_equal_pixels(toy([5, 1, 5, 2, 1, 5]))] == [[0, 2, 5], [1, 4]]
    assert group_equal_pixels(toy([1, 2, 3])) == [] and group_equal_pixels(toy([])) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPLITS), st.sampled_from("ab")), max_size=20))
def test_the_copy_nearest_to_the_test_split_is_kept(rows: list[tuple[int, str, str]]) -> None:
    pixels, splits, labels = ([row[i] for row in rows] for i in range(3))
    dropped, findings, _ = find_copies(toy(pixels, "".join(labels), splits))
    for value in set(pixels):
        members = [r for r, p in enumerate(pixels) if p == value]
        (remaining,) = [r for r in members if r not in dropped]
        assert remaining == min(members, key=lambda r: (("test", "val", "train").index(splits[r]), r))
    assert findings["conflicts"] == sum(
        len({labels[r] for r, p in enumerate(pixels) if p == v}) > 1 for v in set(pixels)
    )


@pytest.mark.parametrize(
    ("labels", "policy", "expected"),
    [
        ("aab", "keep", {1: "duplicate_pixels", 2: "duplicate_pixels"}),
        ("aab", "drop_all", dict.fromkeys(range(3), "label_conflict")),
        ("aab", "drop_minority", {2: "label_conflict", 1: "duplicate_pixels"}),
        ("baa", "drop_minority", {0: "label_conflict", 2: "duplicate_pixels"}),
        ("aabb", "drop_minority", dict.fromkeys(range(4), "label_conflict")),
        ("aabbc", "drop_minority", dict.fromkeys(range(5), "label_conflict")),
        ("aaa", "drop_all", {1: "duplicate_pixels", 2: "duplicate_pixels"}),
    ],
)
def test_copies_with_different_labels(labels: str, policy: str, expected: dict[int, str]) -> None:
    dropped, findings, details = find_copies(toy([7] * len(labels), labels), policy)
    assert dropped == expected
    assert findings["conflicts"] == (len(set(labels)) > 1)
    if policy == "keep" and labels == "aab":
        assert details["002"] == "same as 000 (train); labeled b here, a there"
        assert findings["conflict_examples"][0][2] == {"image_id": "002", "label": "b"}


def test_duplicate_bytes_and_pixels_are_distinguished_and_declared_leaks_counted() -> None:
    dropped, findings, _ = find_copies(
        toy([1, 1, 1, 2, 2], splits=["test", "train", "train", "test", "test"],
            declared=["test", "trainval", "train", "test", "test"], content=[9, 9, 8, 7, 7])
    )  # fmt: skip
    assert dropped == {1: "duplicate_bytes", 2: "duplicate_pixels", 4: "duplicate_bytes"}
    assert findings["declared_test_images_in_declared_train"] == 1


FRACTIONS = st.sampled_from([(0.0, 0.0), (0.1, 0.1), (0.25, 0.25), (0.4, 0.4), (0.0, 0.5)])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["", "trainval", *SPLITS])), max_size=60), FRACTIONS)
def test_exact_splits_hold_in_every_class(rows: list[tuple[int, str]], fractions: tuple[float, float]) -> None:
    labels = np.array([r[0] for r in rows], np.int64)
    declared = np.array([CODES[r[1]] for r in rows], np.uint8)
    places = np.random.default_rng(len(rows)).permutation(len(rows)).astype(np.float64)
    splits = choose_exact_splits(declared, labels, places, fractions)
    for label in range(4):
        for part, (val, test) in ((UNDECLARED, fractions), (TRAINVAL, (fractions[0], 0.0))):
            members = splits[(labels == label) & (declared == part)]
            number = len(members)
            if number:
                assert (members == TRAIN).sum() >= 1
            if number >= 5:
                assert abs((members == VAL).sum() - val * number) <= 0.51
                assert abs((members == TEST).sum() - test * number) <= 0.51
    for code in (TRAIN, VAL, TEST):
        assert (splits[declared == code] == code).all()


def test_exact_splits_keep_groups_together_over_all_classes() -> None:
    groups = np.repeat(np.arange(1, 41), 5)
    table = toy(list(range(200)), "ab" * 100, group=groups.tolist())
    decisions = decisions_of(table)
    assign_exact_splits(decisions, CleanConfig(split="exact", val_fraction=0.2, test_fraction=0.1))
    assert all(len(set(decisions.splits[groups == g])) == 1 for g in range(1, 41))
    assert Counter(decisions.splits.tolist()) == {TRAIN: 140, VAL: 40, TEST: 20}


def test_declared_splits_can_be_ignored_in_exact_splits() -> None:
    table = toy(list(range(40)), "ab" * 20, declared=["test"] * 40)
    for respect, expected in (("respect", {TEST: 40}), ("ignore", {TRAIN: 32, VAL: 4, TEST: 4})):
        decisions = decisions_of(table)
        assign_exact_splits(decisions, CleanConfig(split="exact", declared_splits=respect))
        assert Counter(decisions.splits.tolist()) == expected


@given(st.integers(2, 20), st.integers(1, 300))
def test_over_all_folds_each_image_is_test_once_and_others_change_nothing(folds: int, images: int) -> None:
    positions = np.random.default_rng(images).random(images)
    splits = np.array([choose_fold_splits(positions, fold, folds, 0.1) for fold in range(folds)])
    assert ((splits == TEST).sum(0) == 1).all()
    assert np.array_equal(splits[:, ::3], [choose_fold_splits(positions[::3], n, folds, 0.1) for n in range(folds)])


def test_folds_have_the_sizes_asked_for() -> None:
    positions = (np.arange(1000) + 0.5) / 1000
    for fold in range(5):
        counts = Counter(choose_fold_splits(positions, fold, 5, 0.1).tolist())
        assert counts == {TRAIN: 700, VAL: 100, TEST: 200}


def test_folds_keep_groups_together_with_declared_splits() -> None:
    groups = np.repeat((np.arange(40) + 0.5) / 40, 5)
    table = toy(list(range(200)), "ab" * 100, group=groups.tolist(), declared=["test"] * 200)
    decisions = decisions_of(table)
    config = CleanConfig(fold="2/4", val_fraction=0.25)
    assign_fold(decisions, *config.parse_fold(), config.val_fraction)
    assert all(len(set(decisions.splits[groups == g])) == 1 for g in np.unique(groups))
    assert Counter(decisions.splits.tolist()) == {TRAIN: 100, VAL: 50, TEST: 50} and not config.respects_declared_splits


@pytest.mark.parametrize("values", [{"fold": "0/5"}, {"fold": "6/5"}, {"fold": "1/1"}, {"fold": "1"}, {"fold": "1/21"}])
def test_a_wrong_fold_is_named(values: dict[str, str]) -> None:
    with pytest.raises(UserError, match="fold: expected i/n with i from 1 to n"):
        CleanConfig.from_values({"raw": "r", "workspace": "w"} | values)


def find_dropped_duplicates(
    table: Toy, pairs: list[tuple[int, int]], **options: Any
) -> tuple[dict[int, str], RowDecisions]:
    first, second = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    duplicates = NearDuplicates(
        first, second, np.ones(len(pairs), np.uint8), np.ones(len(pairs), np.float32), len(pairs), True
    )
    decisions = decisions_of(table)
    judge_near_duplicates(decisions, duplicates, CleanConfig(**options))
    return {row: v.reason for row, v in decisions.dropped.items()}, decisions


LEAK = "near_duplicate_of_test"


@pytest.mark.parametrize(
    ("declared", "policy", "dropped"),
    [
        (["", ""], "auto", {0: LEAK}),
        (["", ""], "report", {}),
        (["train", "test"], "auto", {}),
        (["train", "test"], "drop", {0: LEAK}),
        (["trainval", "test"], "auto", {}),
        (["", "test"], "auto", {0: LEAK}),
        (["train", ""], "auto", {0: LEAK}),
    ],
)
def test_a_train_image_with_a_twin_in_test_is_dropped_unless_the_source_declares_both(
    declared: list[str], policy: str, dropped: dict[int, str]
) -> None:
    for order in ([(0, 1)], [(1, 0)]):
        actual, decisions = find_dropped_duplicates(
            toy([0, 1], splits=["train", "test"], declared=declared), order, leakage=policy
        )
        assert actual == dropped
        leakage = decisions.findings["leakage"]
        assert (leakage["dropped"], leakage["kept"]) == ((1, 0) if dropped else (0, 1))
        assert leakage["test_images_with_twin_in_train"] == 1 and leakage["test_images_with_twin_in_val"] == 0
        expected = declared[0] in ("train", "trainval") and declared[1] == "test"
        assert leakage["declared_test_images_with_twin_in_declared_train"] == expected


def test_leaks_are_dropped_where_declared_splits_are_ignored() -> None:
    table = toy([0, 1], splits=["val", "test"], declared=["train", "test"])
    actual, decisions = find_dropped_duplicates(table, [(0, 1)], declared_splits="ignore")
    assert actual == {0: LEAK} and decisions.findings["leakage"]["test_images_with_twin_in_val"] == 1
    assert next(decisions.list_rejects()).detail == "near twin of 001 (test)"


def test_near_duplicates_are_not_transitive() -> None:
    table = toy(range(4), splits=["test", "train", "train", "train"])  # type: ignore[arg-type]
    actual, _ = find_dropped_duplicates(table, [(0, 1), (1, 2), (2, 3)])
    assert actual == {1: LEAK}


def test_near_duplicates_within_a_split_are_reported_or_all_but_one_dropped() -> None:
    table = toy(range(6), splits=["train", "train", "train", "val", "test", "test"], order=[5, 0, 9, 1, 2, 3])  # type: ignore[arg-type]
    pairs = [(0, 1), (1, 2), (2, 3), (4, 5)]
    actual, decisions = find_dropped_duplicates(table, pairs)
    by_splits = decisions.findings["near_duplicates"]["by_splits"]
    assert actual == {} and by_splits == {"train-train": 2, "train-val": 1, "test-test": 1}
    actual, decisions = find_dropped_duplicates(table, pairs, near_duplicates="drop")
    # Kept first: test by order (4), val (3), then train by order: 1; 0 and 2 are near-duplicates of kept ones.
    assert actual == dict.fromkeys((0, 2, 5), "near_duplicate")
    assert decisions.findings["near_duplicates"]["dropped"] == 3


@pytest.mark.parametrize(
    ("labels", "pairs", "policy", "dropped"),
    [
        ("ab", [(0, 1)], "keep", set()),
        ("ab", [(0, 1)], "drop_all", {0, 1}),
        ("ab", [(0, 1)], "drop_minority", {0, 1}),
        ("aab", [(0, 1), (0, 2), (1, 2)], "drop_minority", {2}),
        ("aab", [(0, 1), (0, 2), (1, 2)], "drop_all", {0, 1, 2}),
        ("aaab", [(0, 1), (0, 2), (2, 3)], "drop_minority", {3}),
        ("aa", [(0, 1)], "drop_all", set()),
    ],
)
def test_near_duplicates_with_different_labels(
    labels: str, pairs: list[tuple[int, int]], policy: str, dropped: set[int]
) -> None:
    actual, decisions = find_dropped_duplicates(toy(list(range(len(labels))), labels), pairs, label_conflicts=policy)
    assert actual == dict.fromkeys(dropped, "label_conflict")
    expected = sum(labels[a] != labels[b] for a, b in pairs)
    assert decisions.findings["near_duplicates"]["conflicts"] == expected
    assert len(decisions.findings["near_duplicates"]["conflict_examples"]) == expected


def test_robust_scores_by_their_definition() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert compute_robust_scores(values).tolist() == pytest.approx([0.6745 * abs(v - 3) for v in values], rel=1e-6)
    mostly_equal = np.array([5.0] * 9 + [6.0])  # median deviation 0: the mean deviation, 0.1
    assert compute_robust_scores(mostly_equal).tolist() == pytest.approx([0.0] * 9 + [0.7979 / 0.1], rel=1e-6)
    assert compute_robust_scores(np.full(7, 3.0)).tolist() == [0.0] * 7
    assert to_comparable_scale("aspect_ratio", np.array([2.0, 0.5], np.float32)).sum() == pytest.approx(0)


def test_outliers_are_reported_by_default_and_dropped_on_request() -> None:
    values = np.r_[np.random.default_rng(0).normal(0.5, 0.01, 200), 0.9, 0.1].astype(np.float32)
    for policy, expected in (("report", set()), ("drop", {200, 201})):
        decisions = decisions_of(toy(list(range(202)), measures={"brightness": values}))
        find_outliers(decisions, ("brightness", "entropy"), 6.0, policy)
        assert set(decisions.dropped) == expected
        outliers = decisions.findings["outliers"]
        assert [*outliers] == ["brightness"] and outliers["brightness"]["count"] == 2
        (far, near) = outliers["brightness"]["examples"]
        assert {far["image_id"], near["image_id"]} == {"200", "201"} and far["score"] >= near["score"] > 30
        if expected:
            detail = next(decisions.list_rejects()).detail
            assert detail.startswith("brightness 0.") and "spreads from the median 0.5" in detail


def test_copies_are_dropped_before_near_duplicates_and_outliers_are_searched() -> None:
    """Rows 0 and 1 are copies; near-duplicates and outliers look at the survivor alone."""

    class Thumbs(Toy):
        def read_thumbnails(self, rows: RowNumbers) -> Any:
            return np.zeros((len(rows), THUMBNAIL_BYTES), np.uint8)

    toy_table = toy([1, 1, 2], phash=[1, 1, 0xFFFF0000FFFF])
    table = Thumbs(**{field.name: getattr(toy_table, field.name) for field in fields(toy_table)})
    table.splits = toy_table.splits  # type: ignore[misc]
    decisions, duplicates = decide(table, CleanConfig())
    assert set(decisions.dropped) == {1} and duplicates is not None and len(duplicates) == 0
    assert set(decisions.findings) == {"duplicates", "near_duplicates", "leakage", "outliers"}
    decisions, duplicates = decide(table, CleanConfig(near_duplicates="off"))
    assert duplicates is None and "near_duplicates" not in decisions.findings


def test_a_wide_radius_is_refused_for_many_images_before_any_is_decoded() -> None:
    check_radius(CleanConfig(near_radius=10), 200_000)
    check_radius(CleanConfig(near_radius=5), 10**9)
    check_radius(CleanConfig(near_radius=10, near_duplicates="off"), 10**9)
    with pytest.raises(UserError, match=r"^near_radius: expected at most 5 for more than 200,000 images, found '10"):
        check_radius(CleanConfig(near_radius=10), 200_001)
