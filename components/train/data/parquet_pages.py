"""Locate the pixels of each image in a Parquet file of raw tensors, so that they can be read from a mapped file.

A column of fixed_size_binary without nulls, compression and dictionary is a sequence of pages, each a header and then
the values side by side. pyarrow copies every page into fresh memory, and a batch is then gathered from those: two
copies, where a mapped file needs one. By pyarrow alone loading takes four times the CPU and twice the memory
(tests/benchmarks/README.md, "Loading"). The format of pages: https://parquet.apache.org/docs/file-format/data-pages/,
of their headers: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_MAX_HEADER_BYTES = 4096
"""Headers that this package writes have some 30."""
_DATA_PAGE, _PLAIN = 0, 0
_PAGE_TYPE, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _DATA_PAGE_HEADER = 1, 2, 3, 5
"""Field ids of parquet.thrift's PageHeader."""
_NUM_VALUES, _ENCODING = 1, 2
"""Field ids of parquet.thrift's DataPageHeader."""
_TRUE, _FALSE, _I16, _I32, _I64, _BINARY, _STRUCT = 1, 2, 4, 5, 6, 8, 12
"""Types of Thrift's compact protocol: those that a page header has."""


def find_row_offsets(
    data: memoryview, parquet: pq.ParquetFile, column: str, width: int
) -> npt.NDArray[np.int64] | None:
    """Return int64 [rows], the offset of each row's `width` bytes in the file `data`. None for a column that is not
    stored as plain values of that width."""
    schema, metadata = parquet.schema, parquet.metadata
    index = next((i for i in range(len(schema)) if schema.column(i).path == column), -1)
    if index < 0 or schema.column(index).max_definition_level or schema.column(index).length != width:
        return None
    offsets: list[npt.NDArray[np.int64]] = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(index)
        if chunk.compression != "UNCOMPRESSED" or chunk.dictionary_page_offset:
            return None
        chunk_offsets = _find_chunk_offsets(data, chunk.data_page_offset, chunk.num_values, width)
        if chunk_offsets is None:
            return None
        offsets.extend(chunk_offsets)
    return np.concatenate(offsets) if offsets else np.zeros(0, np.int64)


def _find_chunk_offsets(data: memoryview, start: int, rows: int, width: int) -> list[npt.NDArray[np.int64]] | None:
    """Return the row offsets of a column chunk, an array for each page; None for a page that is not plain."""
    offsets = []
    while rows > 0:
        try:
            header, header_size = _read_struct(bytes(data[start : start + _MAX_HEADER_BYTES]), 0)
        except (IndexError, RecursionError):  # no header
            return None
        page = header.get(_DATA_PAGE_HEADER)
        if not isinstance(page, dict):
            return None
        numbers = (page.get(_NUM_VALUES), header.get(_COMPRESSED_SIZE), header.get(_UNCOMPRESSED_SIZE))
        if not all(type(number) is int for number in numbers):
            return None
        num_values, size = page[_NUM_VALUES], header[_COMPRESSED_SIZE]
        is_plain = header.get(_PAGE_TYPE) == _DATA_PAGE and page.get(_ENCODING) == _PLAIN
        if not is_plain or size != header[_UNCOMPRESSED_SIZE] or not 0 < num_values <= rows:
            return None
        values_start = start + header_size
        start = values_start + size
        if num_values * width != size or start > len(data):
            return None
        offsets.append(values_start + np.arange(num_values, dtype=np.int64) * width)
        rows -= num_values
    return offsets


def _read_struct(data: bytes, position: int) -> tuple[dict[int, Any], int]:
    """Read a struct in Thrift's compact protocol: (numbers and structs by field id, the position after it)."""
    fields: dict[int, Any] = {}
    field_id = 0
    while data[position]:
        value_type, delta = data[position] & 15, data[position] >> 4
        position += 1
        if delta:
            field_id += delta
        else:
            field_id, position = _read_zigzag(data, position)
        fields[field_id], position = _read_value(data, position, value_type)
    return fields, position + 1


def _read_value(data: bytes, position: int, value_type: int) -> tuple[Any, int]:
    """Read a value, or skip text: (the value, or None of text; the position after it). IndexError for a type that a
    page header does not have."""
    if value_type in (_TRUE, _FALSE):
        return value_type == _TRUE, position
    if value_type in (_I16, _I32, _I64):
        return _read_zigzag(data, position)
    if value_type == _BINARY:
        length, position = _read_varint(data, position)
        return None, position + length
    if value_type == _STRUCT:
        return _read_struct(data, position)
    raise IndexError(f"a value of type {value_type}")


def _read_zigzag(data: bytes, position: int) -> tuple[int, int]:
    value, position = _read_varint(data, position)
    return (value >> 1) ^ -(value & 1), position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
