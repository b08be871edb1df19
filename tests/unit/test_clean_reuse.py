"""A snapshot that has grown is cleaned at the cost of what is new, and is what a clean of everything would give."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cleaned import raw_dataset, raw_row
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_clean_rules import encoded, noise, run_clean, table_of, toy_rows

from imagemill.components.clean import clean, final_files, reuse
from imagemill.components.clean import slices as slicing
from imagemill.components.clean.audit import gather
from imagemill.components.clean.config import DECISION_FIELDS, LABEL_FIELDS, CleanConfig
from imagemill.components.clean.labels import LabelRules
from imagemill.components.clean.reuse import make_slice_key
from imagemill.components.clean.slices import RowRules, Slice, plan_slices
from imagemill.components.dataset.kinds import ClassChanges, CleanExtra, RawExtra
from imagemill.components.dataset.manifest import (
    Dataset,
    File,
    Manifest,
    Totals,
    commit,
    count_values,
    find_damaged,
    read_dataset,
)
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.decoder import ImageRejected
from imagemill.components.report.audit import list_pictured, make_page
from imagemill.components.report.page import render
from imagemill.components.report.pictures import make_thumbnails
from imagemill.components.step.step import Context
from imagemill.components.storage.store import LocalStore

Row = dict[str, Any]


@dataclasses.dataclass
class Work:
    """Work since `restart`: cleaned slices and rewritten files."""

    cleaned: list[Slice] = dataclasses.field(default_factory=list)
    rewritten: list[File] = dataclasses.field(default_factory=list)

    def restart(self) -> None:
        self.cleaned.clear()
        self.rewritten.clear()


def start(folder: Path, work: Work, shards: int = 2, **options: Any) -> tuple[list[Row], Dataset, Dataset]:
    """Clean the toy rows, and count the work of what follows; return the rows, raw and clean."""
    rows = toy_rows()
    raw = raw_dataset(folder, rows, shards)
    dataset = run_clean(folder, raw, **options)
    work.restart()
    return rows, raw, dataset


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work, clean_slices, rewrite_file = Work(), reuse.clean_slices, final_files.rewrite_file

    def count_cleaned(raw: Dataset, parts: list[Slice], *arguments: Any) -> Iterator[Any]:
        work.cleaned += parts
        return clean_slices(raw, parts, *arguments)

    def count_rewritten(uri: str, file: File, *arguments: Any) -> Iterator[File]:
        work.rewritten.append(file)
        return rewrite_file(uri, file, *arguments)

    monkeypatch.setattr(reuse, "clean_slices", count_cleaned)
    monkeypatch.setattr(final_files, "rewrite_file", count_rewritten)
    return work


def by_id(dataset: Dataset, role: str) -> dict[str, Row]:
    return {row["image_id"]: row for row in table_of(dataset, role).to_pylist()} if dataset.files(role) else {}


def assert_equal_rows(first: Dataset, second: Dataset) -> None:
    """The same kept and rejected rows with all columns, the same totals and findings, in whatever files."""
    for role in ("data", "rejected"):
        assert by_id(first, role) == by_id(second, role)
    assert first.manifest.totals == second.manifest.totals and first.manifest.classes == second.manifest.classes
    assert first.manifest.extra.found == second.manifest.extra.found
    assert first.manifest.extra.by_class_and_split == second.manifest.extra.by_class_and_split


def grow(workspace: Path, base: Dataset, rows: list[Row], removed_ids: set[str], new: list[Row], name: str) -> Dataset:
    """A snapshot of `rows`, which `base` holds, without those that are gone and with new ones in other shards."""
    files: list[File] = []
    removed_by_file: dict[str, list[str]] = {}
    for file in base.files():
        files.append(dataclasses.replace(file, uri=f"../{base.locate(file).partition('/raw/')[2]}"))
        ids = pq.read_table(base.locate(file), columns=["image_id"]).column("image_id").to_pylist()
        if leaving := [i for i in ids if i in removed_ids or i in base.removed_ids(file)]:
            removed_by_file[files[-1].uri] = leaving
    if new:
        other = raw_dataset(workspace, new, shards=2 if len(new) > 1 else 1, name=f"{name}-new")
        files += [dataclasses.replace(file, uri=f"../{name}-new/{file.uri}") for file in other.files()]
    remaining = [row for row in rows if row["image_id"] not in removed_ids] + new
    totals = Totals(rows=len(remaining), by_class=count_values(row["label"] or "" for row in remaining))
    extra = dataclasses.replace(RawExtra.of(base.manifest), removed=removed_by_file)
    return commit(str(workspace / "raw" / name), Manifest("raw", name, files=tuple(files), totals=totals, extra=extra))


def near_copy(seed: int) -> bytes:
    """A picture that is a near-duplicate of that of `smooth(seed)`."""
    pixels = smooth(seed).copy()
    pixels[0, 0] ^= 1
    return encoded(pixels)


def smooth(seed: int) -> Any:
    return noise(seed, (3, 3, 3)).repeat(20, axis=0).repeat(20, axis=1)


PICTURES = [encoded(noise(n)) for n in range(40)] + [encoded(smooth(n)) for n in range(10)]
PICTURES += [near_copy(n) for n in range(10)] + [b"broken", b""]
KIND = st.tuples(st.integers(0, len(PICTURES) - 1), st.sampled_from(["a", "b", "c", "d", ""]))
STEP = st.tuples(st.lists(KIND, max_size=12), st.sets(st.integers(0, 60), max_size=20), st.sets(st.integers(0, 60)))
OPTIONS = st.sampled_from(
    [{}, {}, {"split": "exact"}, {"fold": "2/3"}, {"near_duplicates": "drop"}, {"label_encoding": "one_hot"},
     {"rare_classes": "drop", "rare_below": 4}, {"rare_classes": "merge", "rare_below": 5},
     {"label_conflicts": "drop_minority"}, {"outliers": "drop", "outlier_threshold": 2.0}],
)  # fmt: skip


HISTORIES = given(st.lists(KIND, min_size=20, max_size=60), st.lists(STEP, min_size=1, max_size=3), OPTIONS)
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@settings(max_examples=5, deadline=None, phases=PHASES)
@HISTORIES
def test_a_history_of_snapshots_equals_a_clean_of_the_last_from_nothing(
    start: list[tuple[int, str]], history: list[Any], options: dict[str, Any]
) -> None:
    check_history(start, history, options)


@pytest.mark.proof
@settings(max_examples=60, deadline=None, phases=PHASES)
@HISTORIES
def test_many_histories_equal_a_clean_from_nothing(
    start: list[tuple[int, str]], history: list[Any], options: dict[str, Any]
) -> None:
    check_history(start, history, options)


def check_history(start: list[tuple[int, str]], history: list[Any], options: dict[str, Any]) -> None:
    """Rows are added, removed and replaced under their names, and classes come and go."""
    kinds = [(label, split) for label in "abcdo" for split in ("train", "train", "test")]
    needed = [raw_row(f"{label}{n}", encoded(noise(900 + n)), label, split) for n, (label, split) in enumerate(kinds)]
    rows = needed + [raw_row(f"{n:03d}", PICTURES[k], label or None) for n, (k, label) in enumerate(start)]
    with tempfile.TemporaryDirectory() as folder:
        workspace, fresh = Path(folder) / "grown", Path(folder) / "fresh"
        classes = Path(folder) / "classes.txt"
        classes.write_text("a\nb\nc\nd\no\nother\n")
        options = options | {"class_list": str(classes), "other_class": "other"}
        raw = raw_dataset(workspace, rows, shards=3)
        run_clean(workspace, raw, **options)
        number = len(start)
        for step, (added, removed, replaced) in enumerate(history):
            loose = [row["image_id"] for row in rows if row["split"] is None]
            removed_ids = {loose[n] for n in removed | replaced if n < len(loose)}
            names = sorted(loose[n] for n in replaced - removed if n < len(loose))
            new = [raw_row(name, PICTURES[(step * 7 + n) % len(PICTURES)], "abcd"[n % 4])
                   for n, name in enumerate(names)]  # fmt: skip
            new += [raw_row(f"{number + n:03d}", PICTURES[k], label or None) for n, (k, label) in enumerate(added)]
            number += len(added)
            raw = grow(workspace, raw, rows, removed_ids, new, f"{step + 1:02d}")
            rows = [row for row in rows if row["image_id"] not in removed_ids] + new
            grown = run_clean(workspace, raw, **options)
        shuffled = random.Random(0).sample(rows, len(rows))
        assert_equal_rows(grown, run_clean(fresh, raw_dataset(fresh, shuffled, shards=2), **options))
        assert_same_page(grown)


def assert_same_page(dataset: Dataset) -> None:
    """The page and the audit are those that a reader of the dataset's files would make."""
    (page,) = dataset.files("report")
    audit = gather(dataset)
    ids = list_pictured(audit)
    raw = make_thumbnails(read_dataset(dataset.parent_uri("raw")), ids, max_read=float("inf"))
    kept = make_thumbnails(dataset, ids, max_read=float("inf"))
    thumbnails = {image_id: kept[image_id] if kept[image_id].src else raw[image_id] for image_id in ids}
    assert Path(dataset.locate(page)).read_text() == render(make_page(audit, thumbnails))


def test_only_new_shards_are_cleaned_and_only_files_with_other_verdicts_rewritten(tmp_path: Path, work: Work) -> None:
    rows = toy_rows()
    raw = raw_dataset(tmp_path, rows, shards=5)
    first = run_clean(tmp_path, raw)
    assert [part.file for part in work.cleaned] == raw.files() and work.rewritten
    work.restart()
    new = [raw_row(f"new-{n}.png", encoded(noise(1000 + n)), "ab"[n % 2]) for n in range(6)]
    grown = run_clean(tmp_path, grown_raw := grow(tmp_path, raw, rows, set(), new, "01"))
    assert [part.file for part in work.cleaned] == grown_raw.files()[5:] and not work.rewritten
    assert {f.sha256 for f in first.files()} < {f.sha256 for f in grown.files()}
    assert all(f.uri.startswith("../_shards/") for role in ("data", "candidates") for f in grown.files(role))
    work.restart()
    copy = [raw_row("0-copy.png", rows[0]["image"], "a")]  # of two copies the smaller id stays: its file is rewritten
    run_clean(tmp_path, grow(tmp_path, raw, rows, set(), copy, "02"))
    assert len(work.cleaned) == 1 and len(work.rewritten) == 1


def test_removed_rows_need_no_cleaning(tmp_path: Path, work: Work) -> None:
    rows, raw, _ = start(tmp_path, work, shards=5)
    removed_ids = {row["image_id"] for row in rows[::9]}
    grown = run_clean(tmp_path, grow(tmp_path, raw, rows, removed_ids, [], "01"))
    assert not work.cleaned and work.rewritten
    assert not removed_ids & {*by_id(grown, "data"), *by_id(grown, "rejected")}
    remaining = [row for row in rows if row["image_id"] not in removed_ids]
    assert_equal_rows(grown, run_clean(tmp_path / "fresh", raw_dataset(tmp_path / "fresh", remaining)))


@pytest.mark.parametrize(("encoding", "cleaned"), [("integer", 2), ("one_hot", 7)])
def test_a_class_that_is_appended_elsewhere_changes_no_slice(
    tmp_path: Path, work: Work, encoding: str, cleaned: int
) -> None:
    """But the lists of ones and zeros become longer by one."""
    rows, raw, _ = start(tmp_path, work, shards=5, label_encoding=encoding)
    new = [raw_row(f"new-{n}.png", encoded(noise(1000 + n)), "A") for n in range(6)]
    grown = run_clean(tmp_path, grow(tmp_path, raw, rows, set(), new, "01"), label_encoding=encoding)
    assert grown.manifest.classes == ("a", "b", "A") and len(work.cleaned) == cleaned


def test_ids_close_up_where_a_class_leaves_and_rows_are_those_of_a_build_from_nothing(tmp_path: Path) -> None:
    """`a` leaves with all of its images, `c` has another name, and `d` becomes `e`, which is there already."""
    rows = [raw_row(f"{n:02d}.png", encoded(noise(n)), "abcde"[n % 5]) for n in range(60)]
    raw = raw_dataset(tmp_path, rows, shards=3)
    assert run_clean(tmp_path, raw).manifest.classes == ("a", "b", "c", "d", "e")
    removed_ids = {row["image_id"] for row in rows if row["label"] == "a"}
    snapshot = grow(tmp_path, raw, rows, removed_ids, [raw_row("new.png", encoded(noise(99)), "A")], "01")
    (tmp_path / "names.csv").write_text("old,new\nc,sea\nd,e\n")
    (tmp_path / "classes.txt").write_text("b\nsea\ne\nA\n")
    options = {"map_labels": str(tmp_path / "names.csv"), "label_encoding": "one_hot"}
    grown = run_clean(tmp_path, snapshot, **options)
    assert grown.manifest.classes == ("b", "sea", "e", "A") and grown.manifest.totals.by_class["e"] == 24
    extra = CleanExtra.of(grown.manifest)
    assert extra.label_map == {"c": "sea", "d": "e"}
    assert extra.class_changes == ClassChanges(("A",), ("a",), {"c": "sea"}, {"e": ("d", "e")})
    remaining = [row for row in rows if row["image_id"] not in removed_ids]
    remaining.append(raw_row("new.png", encoded(noise(99)), "A"))
    fresh = raw_dataset(tmp_path / "fresh", remaining)
    assert_equal_rows(grown, run_clean(tmp_path / "fresh", fresh, class_list=str(tmp_path / "classes.txt"), **options))
    kept = run_clean(tmp_path, snapshot, keep_classes=True)  # without the map: the list of the last run has other names
    assert kept.manifest.classes == ("b", "sea", "e", "A", "c", "d")


def test_killed_clean_continues_after_its_last_finished_slice(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = toy_rows()
    raw = raw_dataset(tmp_path, rows, shards=5)
    clean_slices = reuse.clean_slices

    def stop_after_two(*arguments: Any) -> Iterator[Any]:
        for number, result in enumerate(clean_slices(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reuse, "clean_slices", stop_after_two)
        run_clean(tmp_path, raw)
    assert not list((tmp_path / "clean").glob("*/_manifest.json"))
    work.restart()
    dataset = run_clean(tmp_path, raw)
    # Two processes clean five slices and finish in any order: three are left, whichever they are.
    assert len({part.file.uri for part in work.cleaned}) == len(work.cleaned) == 3
    assert_equal_rows(dataset, run_clean(tmp_path / "fresh", raw_dataset(tmp_path / "fresh", rows)))


CHANGED: dict[str, Any] = {
    "outliers": "drop", "outlier_threshold": 3.0, "outlier_fields": "brightness", "near_duplicates": "drop",
    "near_radius": 5, "leakage": "drop", "label_conflicts": "drop_all", "fold": "2/3",
    "unknown_labels": "reject", "rare_classes": "merge", "rare_below": 3, "other_class": "b",
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGED)
def test_a_field_that_no_row_depends_on_cleans_nothing_again(tmp_path: Path, work: Work, field: str) -> None:
    _, raw, first = start(tmp_path, work)
    second = run_clean(tmp_path, raw, **{field: CHANGED[field]})
    assert second.fingerprint != first.fingerprint and not work.cleaned


@pytest.mark.parametrize(
    "options",
    [{"color": "gray"}, {"min_side": 3}, {"measures": False}, {"val_fraction": 0.2}, {"label_separator": "|"}],
)
def test_a_field_that_rows_depend_on_cleans_all_again(tmp_path: Path, work: Work, options: dict[str, Any]) -> None:
    _, raw, _ = start(tmp_path, work)
    run_clean(tmp_path, raw, **options)
    assert len(work.cleaned) == 2


def test_every_field_of_the_config_is_of_the_rows_the_labels_or_the_decision() -> None:
    """Rows are cleaned with a config that knows no other fields than those in their key."""
    counting = {field.name for field in dataclasses.fields(CleanConfig) if field.metadata["in_fingerprint"]}
    assert {*LABEL_FIELDS, *DECISION_FIELDS} < counting and not {*LABEL_FIELDS} & {*DECISION_FIELDS}
    assert {*CHANGED} == {*LABEL_FIELDS, *DECISION_FIELDS} - {"label_separator"}
    changed = CleanConfig.resolve(preset="ocr", workspace="elsewhere", clean_workers=7, run="r", **CHANGED)
    rows = changed.select_row_options()
    expected = {name: value for name, value in changed.fingerprint_values().items() if name not in CHANGED}
    assert rows.fingerprint_values() == expected and expected
    assert rows == CleanConfig.resolve(preset="ocr").select_row_options() and rows.select_row_options() == rows


def test_rerun_cleans_again_and_its_retry_does_not(tmp_path: Path, work: Work) -> None:
    _, raw, _ = start(tmp_path, work)
    config = CleanConfig(raw=raw.uri, workspace=str(tmp_path), clean_workers=2)
    for cleaned in (2, 0):
        work.restart()
        outcome = clean.clean(config, Context("clean", Workspace.open(str(tmp_path)), "run-2", True))
        assert len(work.cleaned) == cleaned
        (Path(outcome.uri) / "_manifest.json").unlink()


def test_files_replaced_by_rewritten_ones_may_be_deleted(tmp_path: Path, work: Work) -> None:
    """Such a file is written again only where other rows of it are dropped."""
    rows, raw, first = start(tmp_path, work, shards=4)
    listed = {Path(first.locate(file)) for file in first.manifest.files}
    unlisted = [path for path in (tmp_path / "clean").rglob("*.parquet") if path not in listed]
    assert unlisted
    for path in unlisted:
        path.unlink()
    new = [raw_row("new.png", encoded(noise(1000)), "a")]
    grown_raw = grow(tmp_path, raw, rows, set(), new, "01")
    run_clean(tmp_path, grown_raw)
    assert [part.file for part in work.cleaned] == grown_raw.files()[4:] and not work.rewritten
    for path in unlisted:
        path.unlink(missing_ok=True)
    work.restart()
    removed_ids = {row["image_id"] for row in rows[5:110:3]}
    shrunk = run_clean(tmp_path, grow(tmp_path, raw, rows, removed_ids, [], "02"))
    assert work.cleaned and not shrunk.missing()
    remaining = [row for row in rows if row["image_id"] not in removed_ids]
    assert_equal_rows(shrunk, run_clean(tmp_path / "fresh", raw_dataset(tmp_path / "fresh", remaining)))


def test_the_page_is_that_of_the_files(tmp_path: Path) -> None:
    dataset = run_clean(tmp_path, raw_dataset(tmp_path, toy_rows()), label_conflicts="keep")
    assert_same_page(dataset)


TEXT = st.text("ab| x", max_size=5)


@given(
    st.lists(TEXT, max_size=6), st.lists(st.sampled_from(["a", "b", "ab", "x", "o"]), unique=True),
    st.sampled_from(["", "|"]), st.frozensets(st.sampled_from(["a", "b", "ab"])), st.sampled_from(["", "o", "a"]),
)  # fmt: skip
def test_restricted_rules_give_the_same_labels(
    texts: list[str], classes: list[str], separator: str, rare: frozenset[str], other: str
) -> None:
    rules = LabelRules({name: number for number, name in enumerate(classes)}, separator, rare, other)
    restricted = rules.restrict(texts)

    def parse(rules: LabelRules, text: str) -> Any:
        try:
            return [(name, rules.ids[name]) for name in rules.parse(text)]
        except ImageRejected as error:
            return error.reason, error.detail

    assert [parse(rules, text) for text in texts] == [parse(restricted, text) for text in texts]
    assert restricted.restrict(texts) == restricted


def test_the_key_of_a_slice_is_golden(tmp_path: Path) -> None:
    """Another value here cleans the datasets of all users again: raise VERSION if that is meant."""
    part = Slice(File("../_shards/part-0.parquet", "data", "", 9, 9, "0" * 64), 0, 1, 9, 9, ("", "a", "cow"))
    rules = RowRules(CleanConfig(trim="on", near_radius=9), LabelRules({"a": 0, "b": 1}))
    assert make_slice_key(part, rules, {}) == "c7e2803f4f8a1619"
    other = dataclasses.replace(part, file=dataclasses.replace(part.file, uri="../_shards/part-1.parquet", rows=3))
    assert make_slice_key(other, rules, {}) == make_slice_key(part, rules, {})
    for changed in (
        dataclasses.replace(part, last=2), dataclasses.replace(part, labels=("a", "b")),
        dataclasses.replace(part, file=dataclasses.replace(part.file, sha256="1" * 64)),
    ):  # fmt: skip
        assert make_slice_key(changed, rules, {}) != make_slice_key(part, rules, {})


def test_shared_shards_of_other_datasets_are_not_all_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3000):
        (tmp_path / f"part-{number:04d}").write_bytes(b"12345")
    (tmp_path / "part-2999").unlink()
    expected = {str(tmp_path / f"part-{n:04d}"): 5 for n in (*range(15), *range(2990, 3000))}
    expected[str(tmp_path / "part-0003")] = 6
    listed: list[str] = []
    list_all = LocalStore.list

    def count(store: LocalStore, uri: str) -> Iterator[Any]:
        for entry in list_all(store, uri):
            listed.append(entry.uri)
            yield entry

    monkeypatch.setattr(LocalStore, "list", count)
    assert find_damaged(expected) == {str(tmp_path / "part-0003"): 5, str(tmp_path / "part-2999"): None}
    assert len(listed) <= 50 * 25


def test_slices_name_the_labels_that_occur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_dataset(tmp_path, toy_rows(), shards=1)
    (part,) = plan_slices(raw)
    assert part.labels == ("", "a", "b")
    monkeypatch.setattr(slicing, "SLICE_BYTES", 1)
    assert {label for part in plan_slices(raw) for label in part.labels} == {"", "a", "b"}
