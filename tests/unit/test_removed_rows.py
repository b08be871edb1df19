"""Rows that a manifest lists as removed: no reader returns them, though the files hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cleaned import raw_dataset, raw_row
from test_clean_reuse import grow
from test_clean_rules import encoded, noise, run_clean, table_of, toy_rows

from imagemill.components.clean import slices as slicing
from imagemill.components.dataset.kinds import RawExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, parse_manifest
from imagemill.components.dataset.shards import read_columns, row_groups
from imagemill.components.report.pictures import encode_picture, find_images, make_thumbnails
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cli.inspection import _sum_files


@pytest.fixture
def replaced(tmp_path: Path) -> tuple[Dataset, list[dict[str, Any]]]:
    """A dataset without every fifth row of an older one, with another image under the first name; its rows."""
    old = toy_rows()
    base = raw_dataset(tmp_path, old, shards=3)
    removed_ids = {row["image_id"] for row in old[::5]}
    new = [raw_row(old[0]["image_id"], encoded(noise(999)), "b")]
    remaining = [row for row in old if row["image_id"] not in removed_ids] + new
    return grow(tmp_path, base, old, removed_ids, new, "02"), remaining


def sort_by_id(rows: Any) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["image_id"]))


def test_readers_skip_removed_rows_for_any_columns(replaced: tuple[Dataset, list[dict[str, Any]]]) -> None:
    dataset, remaining = replaced
    for columns in (["image_id", "sha256", "label"], ["sha256", "label"], ["label"]):
        tables = list(read_columns(dataset, "data", columns))
        assert all(sorted(table.column_names) == sorted(columns) for table in tables)
        rows = [row for table in tables for row in table.to_pylist()]
        expected = [{name: row[name] for name in columns} for row in remaining]
        assert sorted(map(repr, rows)) == sorted(repr({n: r[n] for n in rows[0]}) for r in expected)
    whole = [row for file in dataset.files() for table in row_groups(dataset, file) for row in table.to_pylist()]
    assert [row["image"] for row in sort_by_id(whole)] == [row["image"] for row in sort_by_id(remaining)]
    assert sum(file.rows for file in dataset.files()) > len(remaining), "files say what they hold"
    assert sum(len(dataset.removed_ids(file)) for file in dataset.files()) == 26
    assert _sum_files(dataset)[0]["rows"] == len(remaining), "inspect counts rows of the dataset"


def test_slices_include_removed_rows(
    replaced: tuple[Dataset, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, remaining = replaced
    for size in (slicing.SLICE_BYTES, 1):
        monkeypatch.setattr(slicing, "SLICE_BYTES", size)
        assert sum(part.rows for part in slicing.plan_slices(dataset)) == len(remaining) + 26


def test_clean_equals_that_without_the_rows(replaced: tuple[Dataset, list[dict[str, Any]]], tmp_path: Path) -> None:
    dataset, remaining = replaced
    fresh = run_clean(tmp_path / "new", raw_dataset(tmp_path / "new", remaining))
    cleaned = run_clean(tmp_path, dataset)
    for role in ("data", "rejected"):
        assert sort_by_id(table_of(cleaned, role).to_pylist()) == sort_by_id(table_of(fresh, role).to_pylist())
    assert cleaned.manifest.totals == fresh.manifest.totals


def test_pictures_of_replaced_rows_are_the_new_ones(replaced: tuple[Dataset, list[dict[str, Any]]]) -> None:
    dataset, remaining = replaced
    old, new = toy_rows()[0], remaining[-1]
    assert old["image_id"] == new["image_id"] and old["image"] != new["image"]
    groups = [(file, None) for file in dataset.files()]
    images = dict(find_images(dataset, groups, {new["image_id"], "good-5.png"}, ["image"]))
    assert images == {new["image_id"]: {"image": new["image"]}}, "the replaced row's image, and none of a removed one"
    thumbnails = make_thumbnails(dataset, {new["image_id"], "good-5.png"})
    assert thumbnails[new["image_id"]].src == encode_picture(new["image"])[0] and not thumbnails["good-5.png"].src


@pytest.mark.parametrize("removed", [["a"], {"f": "a"}, {"f": [1]}, 3])
def test_invalid_removed_rows_are_refused(removed: Any) -> None:
    data = Manifest("raw", "00", extra=RawExtra(removed=removed)).to_json()
    with pytest.raises(UserError, match=r"extra\.removed"):
        parse_manifest(data, "here")
