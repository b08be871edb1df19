"""Byte offsets of pixels in Parquet pages: found in plain pages, None for any other encoding."""

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


def write_table(
    path: Path, rows: int, nullable: bool = False, **options: Any
) -> tuple[memoryview, pq.ParquetFile, Any]:
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
def test_offsets_locate_every_row(
    tmp_path_factory: pytest.TempPathFactory, rows: int, page: int, group: int, statistics: bool, batch: int
) -> None:
    path = tmp_path_factory.mktemp("pages") / "file.parquet"
    data, parquet, values = write_table(
        path, rows, data_page_size=page, row_group_size=group, write_statistics=statistics, write_batch_size=batch
    )
    offsets = find_row_offsets(data, parquet, "image", WIDTH)
    assert offsets is not None and len(offsets) == rows
    for offset, value in zip(offsets.tolist(), values, strict=True):
        assert bytes(data[offset : offset + WIDTH]) == value.tobytes()


def test_pages_with_checksums(tmp_path: Path) -> None:
    data, parquet, values = write_table(tmp_path / "a", 20, write_page_checksum=True)
    offsets = find_row_offsets(data, parquet, "image", WIDTH)
    assert offsets is not None and bytes(data[offsets[19] : offsets[19] + WIDTH]) == values[19].tobytes()


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
def test_other_encodings_have_no_offsets(tmp_path: Path, options: dict[str, Any]) -> None:
    data, parquet, _ = write_table(tmp_path / "a", 50, **options)
    assert find_row_offsets(data, parquet, "image", WIDTH) is None


def test_other_columns_have_no_offsets(tmp_path: Path) -> None:
    data, parquet, _ = write_table(tmp_path / "a", 5)
    assert find_row_offsets(data, parquet, "image", WIDTH + 1) is None
    assert find_row_offsets(data, parquet, "label_id", WIDTH) is None
    assert find_row_offsets(data, parquet, "pixels", WIDTH) is None


def test_damaged_header_has_no_offsets(tmp_path: Path) -> None:
    data, parquet, _ = write_table(tmp_path / "a", 50, data_page_size=500)
    start = parquet.metadata.row_group(0).column(1).data_page_offset
    for position in range(start, start + 12):
        damaged = bytearray(data)
        damaged[position] ^= 0x2A
        offsets = find_row_offsets(memoryview(bytes(damaged)), parquet, "image", WIDTH)
        assert offsets is None or len(offsets) == 50
    truncated = find_row_offsets(data[: start + 600], parquet, "image", WIDTH)
    assert truncated is None
