"""Loading: every row once, in an order that is a function of the seed and the epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import SHAPE, numbered, rows_of

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.imaging.tensors import decode_column, encode_jpeg
from imagemill.components.storage.errors import DatasetError
from imagemill.components.train.data.loader import iter_batches
from imagemill.components.train.data.tensors import JpegPart


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return numbered(tmp_path_factory.mktemp("hundred"), rows=101, group=7, files=3)


@given(batch_size=st.integers(2, 130), epoch=st.integers(0, 3), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_row_is_read_once_per_epoch_with_any_batch_size(
    hundred: Dataset, batch_size: int, epoch: int, seed: int
) -> None:
    batches = list(iter_batches(hundred, "train", batch_size, seed, epoch))
    rows = [label for batch in batches for label in batch.labels.tolist()]
    left_out = 1 if batch_size < 101 and 101 % batch_size == 1 else 0
    assert len(rows) == len(set(rows)) == 101 - left_out
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        assert batch.images.shape == (len(batch.labels), *SHAPE) and batch.labels.dtype == np.int64
        assert (batch.images[:, 0, 0, 0] == batch.labels).all(), "image and label stay together"


def test_order_depends_on_seed_and_epoch(hundred: Dataset) -> None:
    order = rows_of(iter_batches(hundred, "train", 10, 3, 5))
    assert order == rows_of(iter_batches(hundred, "train", 10, 3, 5))
    assert order != rows_of(iter_batches(hundred, "train", 10, 3, 6))
    assert order != rows_of(iter_batches(hundred, "train", 10, 4, 5))
    assert order != sorted(order)


def test_the_order_of_the_rows_does_not_depend_on_the_batch_size(hundred: Dataset) -> None:
    tens, thirties = (rows_of(iter_batches(hundred, "train", size, 3, 5)) for size in (10, 33))
    assert tens[:99] == thirties[:99]


def test_validation_is_in_stored_order_and_leaves_nothing_out(hundred: Dataset) -> None:
    rows = [label for batch in iter_batches(hundred, "train", 100) for label in batch.labels.tolist()]
    assert rows == [n for start in range(3) for n in range(start, 101, 3)]


def test_a_last_batch_of_one_is_left_out_only_in_training(hundred: Dataset, tmp_path: Path) -> None:
    assert [len(b.labels) for b in iter_batches(hundred, "train", 50, 0, 0)] == [50, 50]
    assert [len(b.labels) for b in iter_batches(hundred, "train", 50)] == [50, 50, 1]
    assert [len(b.labels) for b in iter_batches(numbered(tmp_path, rows=1, group=4), "train", 50, 0, 0)] == [1]


def test_a_split_without_files_has_no_batches(hundred: Dataset) -> None:
    assert list(iter_batches(hundred, "val", 10)) == []


def test_a_sliced_column_gives_its_own_images() -> None:
    values = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    column = pa.chunked_array([pa.array([v.tobytes() for v in values], pa.binary(12))])
    for sliced in (
        column,
        column.slice(1, 3),
        pa.chunked_array([column.chunk(0).slice(2), column.chunk(0).slice(0, 1)]),
    ):
        expected = np.array([np.frombuffer(v.as_py(), np.uint8).reshape(2, 2, 3) for v in sliced])
        np.testing.assert_array_equal(decode_column(sliced, ImageSpec((2, 2, 3))), expected)


def test_a_label_that_is_none_of_the_classes_is_named(tmp_path: Path) -> None:
    ten = numbered(tmp_path, rows=10, group=4)
    few = replace(ten, manifest=replace(ten.manifest, classes=("a", "b")))
    with pytest.raises(DatasetError, match=r"tensors/01: expected label_id from 0 to 1, found 0 to 9$"):
        list(iter_batches(few, "train", 8))


def test_error_of_a_damaged_jpeg_names_file_and_row(tmp_path: Path) -> None:
    jpeg = encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90, "420")
    shard = JpegPart(pa.array([jpeg, jpeg[:40]]), "RGB", "part-1.parquet")
    out = np.empty((8, 8, 3), np.uint8)
    shard.copy_row(0, out)
    with pytest.raises(DatasetError, match=r"part-1.parquet: row 1: expected a JPEG of \(8, 8, 3\), found "):
        shard.copy_row(1, out)
