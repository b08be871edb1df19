"""A dataset that grows: no image that was there changes its split, its place in the order, or anything of its row."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cleaned import raw_dataset, raw_row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_clean_rules import encoded, noise, run_clean, table_of

POOL = [encoded(noise(n, (12, 15, 3))) for n in range(80)]
ROWS = st.tuples(
    st.sampled_from(["a", "b", "c", "d"]), st.sampled_from([None, None, "train", "trainval", "val", "test"]),
    st.sampled_from([None, None, "g1", "g2", "g3", "g4"]),
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {
        "val_fraction": st.sampled_from([0.0, 0.1, 0.3]),
        "test_fraction": st.sampled_from([0.1, 0.3]),
        "color": st.sampled_from(["rgb", "gray"]),
        "declared_splits": st.sampled_from(["respect", "ignore"]),
        "equalize": st.sampled_from(["off", "autocontrast"]),
        "label_encoding": st.sampled_from(["integer", "integer", "one_hot"]),
    }
)


def make_row(number: int, values: tuple[str, str | None, str | None]) -> dict[str, Any]:
    return raw_row(f"{number:03d}.png", POOL[number], values[0], values[1]) | {"group": values[2]}


# Two images of each kind that a clean dataset can't do without; their places are fixed, the others are drawn.
NEEDED = [(label, split, None) for label in "ab" for split in ("train", "test")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROWS, min_size=10, max_size=60), OPTIONS)
def test_added_images_change_no_earlier_row(rows: list[Any], options: dict[str, Any]) -> None:
    options["declared_splits"] = "respect" if len(rows) < 40 else options["declared_splits"]
    all_rows = [make_row(n, values) for n, values in enumerate([*NEEDED, *rows])]
    new = max(1, len(all_rows) // 11)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        first = run_clean(workspace, raw_dataset(workspace, all_rows[:-new]), **options)
        reordered = all_rows[-new:] + all_rows[:-new]  # they come first, and shards are cut anew
        second = run_clean(workspace, raw_dataset(workspace, reordered, shards=3, name="01"), **options)
        before, after = (table_of(d, "data").to_pylist() for d in (first, second))
    classes = second.manifest.classes
    assert classes[: len(first.manifest.classes)] == first.manifest.classes
    rows_after = {row["image_id"]: row for row in after}
    for row in before:
        row_after = rows_after[row["image_id"]]
        if "label_one_hot" in row:  # as long as the class list, which grows at its end
            row_after["label_one_hot"] = row_after["label_one_hot"][: len(row["label_one_hot"])]
        assert row_after == row
    assert len(after) == len(before) + new
    for split in ("train", "val", "test"):
        orders = [
            [r["image_id"] for r in sorted(rows, key=lambda r: r["shuffle_index"]) if r["split"] == split]
            for rows in (before, after)
        ]
        olds = {row["image_id"] for row in before}
        assert orders[0] == [image_id for image_id in orders[1] if image_id in olds]


def test_options_by_which_earlier_images_are_cleaned_again_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = raw_dataset(tmp_path, [make_row(n, ("ab"[n % 2], None, None)) for n in range(40)])
    for options, expected in (
        ({}, None),
        ({"near_duplicates": "off", "outliers": "off"}, None),  # read by the decision on all images
        ({"near_duplicates": "off", "color": "gray", "val_fraction": 0.2}, "color, val_fraction"),
    ):
        clean = run_clean(tmp_path, raw, **options)
        named = re.findall(r"options that differ from clean/[0-9a-f]{16}: (.+)", capsys.readouterr().err)
        assert sorted(", ".join(named).split(", ")) == sorted((expected or "").split(", ")), clean.uri
