"""Cleaning's rules: splits and order as hashes, class ids that stay, color, and which copy of a picture is kept."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cleaned import raw_dataset, raw_row
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.components.clean.clean import clean
from imagemill.components.clean.config import REASONS, CleanConfig
from imagemill.components.clean.labels import (
    LabelRules,
    compare_class_lists,
    extend_class_list,
    make_label_rules,
    read_class_list,
    read_label_map,
    split_labels,
)
from imagemill.components.clean.part import hash_pixels
from imagemill.components.dataset.index import read_index
from imagemill.components.dataset.kinds import ClassChanges
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.components.dataset.splits import (
    SPLITS,
    choose_splits,
    compute_shuffle_index,
    compute_split_position,
    encode_splits,
)
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.decoder import ImageRejected, decode
from imagemill.components.report.changes import describe_class_changes
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError


def sha(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()


def choose_split(sha256: str, declared: str | None, val: float, test: float, group: str | None = None) -> str:
    codes = encode_splits(pa.chunked_array([[declared]], pa.string()))
    return SPLITS[choose_splits(codes, np.array([compute_split_position(sha256, group)]), val, test)[0]]


HASHES = [sha(n) for n in range(20_000)]
SHA = st.integers(0, 10**9).map(sha)
FRACTION = st.sampled_from([0.0, 0.1, 0.25, 0.4])
DECLARED = st.sampled_from([None, "train", "val", "test", "trainval", "other"])


@pytest.mark.parametrize(("val", "test"), [(0.1, 0.1), (0.2, 0.05), (0.0, 0.3), (0.0, 0.0)])
def test_fractions_hold_in_expectation(val: float, test: float) -> None:
    counts = Counter(choose_split(h, None, val, test) for h in HASHES)
    for split, share in (("val", val), ("test", test), ("train", 1 - val - test)):
        deviation = (share * (1 - share) / len(HASHES)) ** 0.5
        assert abs(counts[split] / len(HASHES) - share) <= 4 * deviation


@given(SHA, DECLARED, FRACTION, FRACTION)
def test_a_declared_split_wins(sha256: str, declared: str | None, val: float, test: float) -> None:
    split = choose_split(sha256, declared, val, test)
    assert split in SPLITS
    if declared in SPLITS:
        assert split == declared
    elif declared == "trainval":
        assert split != "test"


@given(st.text(min_size=1, max_size=9), st.lists(SHA, min_size=2, max_size=5), FRACTION, FRACTION)
def test_a_group_is_on_one_side(group: str, hashes: list[str], val: float, test: float) -> None:
    assert len({choose_split(h, None, val, test, group) for h in hashes}) == 1


def test_groups_are_divided_by_the_fractions() -> None:
    counts = Counter(choose_split("", None, 0.2, 0.1, str(n)) for n in range(20_000))
    assert abs(counts["val"] / 20_000 - 0.2) < 0.012 and abs(counts["test"] / 20_000 - 0.1) < 0.01


@given(SHA, FRACTION, FRACTION)
def test_one_fraction_moves_no_image_of_the_other(sha256: str, val: float, test: float) -> None:
    both = choose_split(sha256, None, val, test)
    assert (both == "val") == (choose_split(sha256, None, val, 0.0) == "val")
    assert (both == "test") == (choose_split(sha256, None, 0.0, test) == "test")


def test_trainval_is_divided_by_the_fraction_of_validation() -> None:
    counts = Counter(choose_split(h, "trainval", 0.2, 0.3) for h in HASHES)
    assert set(counts) == {"train", "val"} and abs(counts["val"] / len(HASHES) - 0.2) < 0.012


def test_split_and_shuffle_order_do_not_change() -> None:
    """Another value here moves images of existing datasets between train and test."""
    for salt, position in (
        ("split", round(compute_split_position(HASHES[0]) * 2**64)),
        ("shuffle", compute_shuffle_index(HASHES[0]) * 2),
    ):
        expected = int.from_bytes(hashlib.sha256(f"{salt}:{HASHES[0]}".encode()).digest()[:8], "big")
        assert abs(position - expected) < 2**12  # a float holds 53 bits


def test_shuffle_index_is_uniform_in_63_bits_and_independent_of_the_split() -> None:
    indices = np.array([compute_shuffle_index(h) for h in HASHES])
    assert indices.dtype == np.int64 and indices.min() >= 0 and len(set(indices.tolist())) == len(HASHES)
    places = np.array([compute_split_position(h) for h in HASHES])
    assert places.min() >= 0 and places.max() < 1
    assert abs(indices.mean() / 2**63 - 0.5) < 0.01 and indices.max() > 0.999 * 2**63
    assert abs(np.corrcoef(indices.astype(float), places)[0, 1]) < 0.03


@given(st.lists(st.text(max_size=3)), st.lists(st.text(max_size=3), unique=True))
def test_class_ids_are_appended_and_never_renumbered(labels: list[str], base: list[str]) -> None:
    classes = extend_class_list(labels, base)
    assert list(classes[: len(base)]) == base
    assert list(classes[len(base) :]) == sorted(set(labels) - set(base))
    assert extend_class_list(labels, classes) == classes


RULES = LabelRules({"cat": 0, "dog": 1, "other": 2}, rare=frozenset({"emu"}), other="other")


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (RULES, " cat ", ["cat"]),
        (RULES, "emu", ["other"]),
        (RULES, None, "no_label"),
        (RULES, "  ", "no_label"),
        (RULES, "cow", "unknown_label"),
        (RULES, "cat|dog", "unknown_label"),
        (LabelRules({"cat": 0}, rare=frozenset({"emu"})), "emu", "rare_class"),
        (LabelRules(RULES.ids, "|"), "dog| cat||dog", ["cat", "dog"]),
        (LabelRules(RULES.ids, "|"), "|", "no_label"),
        (LabelRules(RULES.ids, "|"), "cat|cow", "unknown_label"),
        (LabelRules(RULES.ids, "|", frozenset({"emu"})), "emu|cat", ["cat"]),
        (LabelRules(RULES.ids, "|", frozenset({"emu", "gnu"}), "other"), "emu|gnu|cat", ["cat", "other"]),
    ],
)
def test_labels_are_parsed_by_the_rules(rules: LabelRules, text: str | None, expected: list[str] | str) -> None:
    if isinstance(expected, list):
        assert rules.parse(text) == expected
    else:
        with pytest.raises(ImageRejected) as error:
            rules.parse(text)
        assert error.value.reason == expected and expected in REASONS


def rules_of(counts: dict[str, int], base: tuple[str, ...] = (), **options: Any) -> LabelRules:
    return make_label_rules(counts, base, CleanConfig(**options), "here")


def test_rare_classes_are_kept_merged_or_dropped() -> None:
    counts = {"a": 100, "b": 50, "c": 9, "d": 2}
    assert list(rules_of(counts).ids) == ["a", "b", "c", "d"]
    merged = rules_of(counts, rare_classes="merge")
    assert list(merged.ids) == ["a", "b", "other"] and merged.parse("c") == merged.parse("d") == ["other"]
    dropped = rules_of(counts, rare_classes="drop", rare_below=3)
    assert list(dropped.ids) == ["a", "b", "c"]
    with pytest.raises(UserError, match="at least two classes, found only 'a'"):
        rules_of(counts, rare_classes="drop", rare_below=60)
    # A class that is called as what rare ones are merged into takes them in, and is never rare itself.
    taken = rules_of({"a": 100, "other": 1, "z": 1}, rare_classes="merge")
    assert list(taken.ids) == ["a", "other"] and taken.parse("other") == taken.parse("z") == ["other"]


def test_ids_stay_and_unknown_labels_are_appended_or_rejected() -> None:
    counts = {"a": 5, "b": 5, "new": 5}
    base = ("b", "gone", "a")
    assert list(rules_of(counts, base).ids) == ["b", "a", "new"]
    assert list(rules_of(counts, base, keep_classes=True).ids) == ["b", "gone", "a", "new"]
    assert list(rules_of(counts, base, class_list="a file").ids) == ["b", "gone", "a", "new"]
    assert list(rules_of(counts | {"rare": 1}, ("rare", "a"), rare_classes="drop", rare_below=3).ids) == [
        "a",
        "b",
        "new",
    ]
    fixed = rules_of(counts, ("b", "gone", "a"), unknown_labels="reject")
    assert list(fixed.ids) == ["b", "gone", "a"]
    with pytest.raises(UserError, match="unknown_labels: expected append, or a class_list"):
        rules_of(counts, unknown_labels="reject")


def test_mapped_labels_rename_and_merge_classes_of_the_source_and_of_the_last_run() -> None:
    label_map = {"cat": "feline", "ant": "insect", "bee": "insect", "eel": "fish"}
    counts = {"cat": 4, "dog": 4, "ant": 1, "bee": 1, "insect": 1, "new": 3}
    base = ("dog", "ant", "cat", "gone", "bee")
    rules = make_label_rules(counts, base, CleanConfig(rare_classes="drop", rare_below=3), "here", label_map)
    assert list(rules.ids) == ["dog", "insect", "feline", "new"]  # insects are counted together
    assert [rules.parse(text) for text in ("cat", "feline", "bee")] == [["feline"], ["feline"], ["insect"]]
    multi = make_label_rules({"ant|dog|bee": 2}, (), CleanConfig(label_separator="|"), "here", label_map)
    assert multi.parse("dog|bee|ant") == ["dog", "insect"]
    changes = compare_class_lists(base, list(rules.ids), label_map)
    assert changes == ClassChanges(("new",), ("gone",), {"cat": "feline"}, {"insect": ("ant", "bee")})
    assert describe_class_changes(changes, {"new": 1}, {"gone": 1200}) == [
        "class 'new' is new: 1 image", "class 'gone' is gone: 1,200 images then", "class 'cat' is called 'feline' now",
        "classes 'ant', 'bee' are one now: 'insect'",
    ]  # fmt: skip
    assert describe_class_changes(ClassChanges(tuple("abcdefghij")), {})[8:] == ["2 more classes are new"]
    assert compare_class_lists((), ["a", "b"], {}) == ClassChanges()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the columns old and new, found no line"),
        ("old;new\na;b\n", "the columns old and new, found old;new"),
        ("old,new\na,\n", "a label in both columns, found a blank one in line 2"),
        ("old,new\na\n", "a label in both columns, found a blank one in line 2"),
        ("old,new\na,b\na,c\n", "each old label once, found 'a' again in line 3"),
        ("old,new\na,b\nb,c\n", "not renamed themselves, found 'a' to 'b' to 'c'"),
        ("old,new\na,b\nb,a\n", "not renamed themselves, found 'a' to 'b' to 'a'"),
        ("old,new\na,a\n", "not renamed themselves, found 'a' to 'a' to 'a'"),
        ("old,new\na,b|c\n", "without label_separator '|', found 'b|c'"),
    ],
)
def test_a_map_of_labels_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(UserError, match=rf"map_labels \(.*map.csv\): expected .*{re.escape(message)}"):
        read_label_map(CleanConfig(map_labels=str(tmp_path / "map.csv"), label_separator="|"))


def test_a_map_of_labels_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_bytes('\ufeffnew,old,why\r\n fish , eel,x\r\n"cats, big",Löwe\r\n'.encode())
    assert read_label_map(CleanConfig(map_labels=str(tmp_path / "map.csv"))) == {"eel": "fish", "Löwe": "cats, big"}
    assert read_label_map(CleanConfig()) == {}
    with pytest.raises(UserError, match="map_labels: expected a file that is there"):
        read_label_map(CleanConfig(map_labels=str(tmp_path / "none.csv")))


def test_each_of_several_labels_is_counted() -> None:
    assert split_labels(" a ; b;;", ";") == ["a", "b"] and split_labels(" a;b ", "") == ["a;b"]
    rules = rules_of({"a|b": 6, "b": 6, "c|a": 1}, label_separator="|", rare_classes="drop", rare_below=7)
    assert rules.is_multi_label and list(rules.ids) == ["a", "b"] and rules.parse("c|a") == ["a"]


def test_a_class_list_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffdog\n\n cat \r\nŌkami\n".encode())
    assert read_class_list(str(tmp_path / "classes.txt")) == ("dog", "cat", "Ōkami")
    for number, (data, message) in enumerate(
        [(b"a\nb\na\n", "'a' twice"), (b"\n \n", "no class"), (b"\xff\xfe\x00", "UTF-8")]
    ):
        (tmp_path / str(number)).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_class_list(str(tmp_path / str(number)))
    with pytest.raises(UserError, match="a file that is there"):
        read_class_list(str(tmp_path / "none"))


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, shape: tuple[int, ...] = (16, 20, 3)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_pixel_hashes_see_pixels_and_shape_only() -> None:
    pixels = noise(4)
    assert hash_pixels(decode(encoded(pixels, "PNG")).pixels) == hash_pixels(decode(encoded(pixels, "BMP")).pixels)
    flat = np.zeros((2, 8, 3), np.uint8)
    assert hash_pixels(flat) != hash_pixels(flat.reshape(4, 4, 3))
    flat[0, 0, 0] = 1
    assert hash_pixels(flat) != hash_pixels(np.zeros((2, 8, 3), np.uint8))


def test_of_exact_copies_test_is_kept_before_val_and_then_the_smallest_id(tmp_path: Path) -> None:
    first, second, third = (encoded(noise(n)) for n in range(3))
    rows = [
        raw_row("a", first, "a", "train"), raw_row("c", first, "a", "val"),
        raw_row("z", first, "a", "test"), raw_row("y", first, "a", "test"),
        raw_row("d", second, "a", "train"), raw_row("b", second, "a", "val"),
        raw_row("g", third, "dog", "train"), raw_row("f", encoded(noise(2), "BMP"), "cat", "train"),
        raw_row("alone", encoded(noise(9)), "a", "train"),
    ]  # fmt: skip
    dataset = run_clean(tmp_path, raw_dataset(tmp_path, rows), near_duplicates="off")
    rejected = {row["image_id"]: row for table in read_columns(dataset, "rejected", None) for row in table.to_pylist()}
    reasons = dict.fromkeys("aczd", "duplicate_bytes") | {"g": "duplicate_pixels"}
    assert {i: row["reason"] for i, row in rejected.items()} == reasons
    assert rejected["a"]["detail"] == "same as y (test)"
    assert rejected["g"]["detail"] == "same as f (train); labeled dog here, cat there"
    assert dataset.manifest.totals.by_split == {"train": 2, "val": 1, "test": 1}
    index = read_index(dataset, ["image_id"], "train")
    assert sorted(index.column("image_id").to_pylist()) == ["alone", "f"]


def run_clean(workspace: Path, raw: Dataset, workers: int = 2, **options: Any) -> Dataset:
    config = CleanConfig(raw=raw.uri, workspace=str(workspace), clean_workers=workers, **options)
    outcome = clean(config, Context("clean", Workspace.open(str(workspace)), "run", False))
    return read_dataset(outcome.uri, "clean")
