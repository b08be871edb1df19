"""The order of a clean split's rows, by whatever way they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cleaned
import numpy as np
import pytest
from cleaned import Row
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.dataset.kinds import CleanExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.export.samples import index_split, partition, read_in_order


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A split of several files, as clean writes many."""
    uri = str(tmp_path_factory.mktemp("order") / "clean" / "01")
    drafts = [
        cleaned.draft(uri, [Row(f"{part}-{n}.jpg") for n in range(40)], row_group_rows=5).manifest for part in range(4)
    ]
    files = tuple(file for manifest in drafts for file in manifest.files)
    return commit(uri, Manifest("clean", "01", classes=("cat",), files=files, extra=CleanExtra(dataset_name="toy")))


def rows(source: Dataset, scratch: Path, **bounds: int) -> list[dict[str, Any]]:
    index = index_split(source, "train")
    return list(read_in_order(source, index, ["image_id", "image.bytes"], scratch, **bounds))


@pytest.mark.parametrize(("window", "spill"), [(1 << 30, 1 << 30), (9_000, 1 << 30), (9_000, 50_000), (1, 20_000)])
def test_each_row_is_read_once_in_the_order_of_the_shuffle_index(
    source: Dataset, tmp_path: Path, window: int, spill: int
) -> None:
    ordered = rows(source, tmp_path, window=window, spill=spill)
    keys = [(row["shuffle_index"], row["image_id"]) for row in ordered]
    assert keys == sorted(keys)
    assert {row["image_id"] for row in ordered} == {f"{part}-{n}.jpg" for part in range(4) for n in range(40)}
    assert len(ordered) == 160
    assert all(row["image"]["bytes"] == cleaned.picture(row["image_id"]) for row in ordered)
    assert not list(tmp_path.iterdir())


def test_small_windows_use_scratch_files(source: Dataset, tmp_path: Path) -> None:
    index = index_split(source, "train")
    ordered = read_in_order(source, index, ["image_id", "image.bytes"], tmp_path, window=9_000, spill=1 << 30)
    next(ordered)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 5 and max(sizes) < 3 * 9_000
    ordered.close()


def test_the_survey_knows_every_byte(source: Dataset) -> None:
    pictures = [cleaned.picture(f"{part}-{n}.jpg") for part in range(4) for n in range(40)]
    assert index_split(source, "train").total == sum(map(len, pictures))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_partitions_hold_the_budget_and_cover_all_rows(sizes: list[int], budget: int) -> None:
    counts = np.array(sizes, np.int64)
    ranges = partition(counts, 0, len(counts), budget)
    assert [place for low, high in ranges for place in range(low, high)] == list(range(len(sizes)))
    assert all(counts[low:high].sum() <= max(budget, counts[low:high].max()) for low, high in ranges)
