"""Where pixels lie in a Parquet file: found without Parquet where they lie plainly, and never guessed where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.train.data.parquet_pages import find_row_offsets

WIDTH = 48


def written(path: Path, rows: int, nullable: bool = False, **options: Any) -> tuple[memoryview, pq.ParquetFile, Any]:
    values = np.random.default_rng(rows).integers(0, 256, (rows, WIDTH), dtype=np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(WIDTH), rows, [None, pa.py_buffer(values.tobytes())])
    fields = [pa.field("label_id", pa.int32()), pa.field("image", pa.binary(WIDTH), nullable=nullable)]
    table = pa.Table.from_arrays([pa.array(range(rows), pa.int32()), column], schema=pa.schema(fields))
    pq.write_table(table, path, **{"compression": "none", "use_dictionary": False} | options)
    return memoryview(path.read_bytes()), pq.ParquetFile(path), values


@given(
    rows=st.integers(1, 300),
    page=st.integers(1, 5000),
    group=st.integers(1, 120),
    statistics=st.booleans(),
    batch=st.integers(1, 64),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_where_it_is_said_to_be(
    tmp_path_factory: pytest.TempPathFactory, rows: int, page: int, group: int, statistics: bool, batch: int
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file.parquet"
    data, parquet, values = written(
        path, rows, data_page_size=page, row_group_size=group, write_statistics=statistics, write_batch_size=batch
    )
    found = find_row_offsets(data, parquet, "image", WIDTH)
    assert found is not None and len(found) == rows
    for offset, value in zip(found.tolist(), values, strict=True):
        assert bytes(data[offset : offset + WIDTH]) == value.tobytes()


def test_checksums_in_the_headers_are_no_hindrance(tmp_path: Path) -> None:
    data, parquet, values = written(tmp_path / "a", 20, write_page_checksum=True)
    found = find_row_offsets(data, parquet, "image", WIDTH)
    assert found is not None and bytes(data[found[19] : found[19] + WIDTH]) == values[19].tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": True},
        {"nullable": True},
        {"data_page_version": "2.0"},
        {"use_byte_stream_split": ["image"]},
    ],
)
def test_another_form_is_left_to_the_library(tmp_path: Path, options: dict[str, Any]) -> None:
    data, parquet, _ = written(tmp_path / "a", 50, **options)
    assert find_row_offsets(data, parquet, "image", WIDTH) is None


def test_another_width_or_column_is_left_to_the_library(tmp_path: Path) -> None:
    data, parquet, _ = written(tmp_path / "a", 5)
    assert find_row_offsets(data, parquet, "image", WIDTH + 1) is None
    assert find_row_offsets(data, parquet, "label_id", WIDTH) is None
    assert find_row_offsets(data, parquet, "pixels", WIDTH) is None


def test_a_damaged_header_is_left_to_the_library(tmp_path: Path) -> None:
    data, parquet, _ = written(tmp_path / "a", 50, data_page_size=500)
    start = parquet.metadata.row_group(0).column(1).data_page_offset
    for at in range(start, start + 12):
        damaged = bytearray(data)
        damaged[at] ^= 0x2A
        found = find_row_offsets(memoryview(bytes(damaged)), parquet, "image", WIDTH)
        assert found is None or len(found) == 50
    cut = find_row_offsets(data[: start + 600], parquet, "image", WIDTH)
    assert cut is None
