"""Where the pixels of each image lie in a Parquet file of raw tensors, so that they can be read without Parquet.

A column of fixed_size_binary without nulls, compression and dictionary is, page after page, a header and then the
values side by side. Reading it by its library copies every page into fresh memory, and a batch is then gathered from
those: two copies, where a mapped file needs one. The format of pages:
https://parquet.apache.org/docs/file-format/data-pages/, of their headers:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_HEADER = 4096
"""Bytes that a page's header has at most: ours have some 30."""
_DATA_PAGE, _PLAIN = 0, 0
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12


def row_offsets(data: memoryview, parquet: pq.ParquetFile, column: str, width: int) -> npt.NDArray[np.int64] | None:
    """int64 [rows]: the offset in the file `data` of each row's `width` bytes. None where they do not lie so."""
    schema, footer = parquet.schema, parquet.metadata
    index = next((i for i in range(len(schema)) if schema.column(i).path == column), -1)
    if index < 0 or schema.column(index).max_definition_level or schema.column(index).length != width:
        return None
    found: list[npt.NDArray[np.int64]] = []
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(index)
        if chunk.compression != "UNCOMPRESSED" or chunk.dictionary_page_offset:
            return None
        starts = _chunk(data, chunk.data_page_offset, chunk.num_values, width)
        if starts is None:
            return None
        found.extend(starts)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _chunk(data: memoryview, at: int, rows: int, width: int) -> list[npt.NDArray[np.int64]] | None:
    """The offsets of a column chunk's rows, page by page; None for a page of another form."""
    found = []
    while rows > 0:
        try:
            header, length = _struct(bytes(data[at : at + _HEADER]), 0)
        except (IndexError, RecursionError):  # no header
            return None
        page = header.get(5)
        if not isinstance(page, dict) or not all(type(n) is int for n in (page.get(1), header.get(2), header.get(3))):
            return None
        number, size = page[1], header[3]
        plain = header.get(1) == _DATA_PAGE and page.get(2) == _PLAIN and size == header.get(2)
        if not plain or number <= 0 or number > rows or number * width != size or at + length + size > len(data):
            return None
        found.append(at + length + np.arange(number, dtype=np.int64) * width)
        at += length + size
        rows -= number
    return found


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """(whole numbers and structs by field id, the offset after it) of a struct in Thrift's compact protocol."""
    fields: dict[int, Any] = {}
    last = 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        if step:
            last += step
        else:
            last, at = _number(data, at)
        fields[last], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _BYTE:
        return data[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return None, at + length
    if kind in (_LIST, _SET):
        number, inner = data[at] >> 4, data[at] & 15
        at += 1
        if number == 15:
            number, at = _unsigned(data, at)
        if number > len(data):
            raise IndexError("a list that is longer than the header")
        for _ in range(number):
            at = _value(data, at, inner)[1] if inner > _FALSE else at + 1
        return None, at
    if kind == _STRUCT:
        return _struct(data, at)
    if kind == _MAP:
        raise IndexError("a page header has no map")
    return _number(data, at)


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
