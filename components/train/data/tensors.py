"""The images of one split of a tensors dataset: which rows of which parts they are, their labels, and their pixels,
which are copied straight from the mapped files into batches.

A part's row group is one page: its pixels are the last rows x H x W x C bytes of its column chunk, which the file's
public metadata locates. JPEGs are held as Arrow columns and decoded. An image costs 24 bytes.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from ...dataset.index import locate_rows, read_index
from ...dataset.labels import MULTI, label_column, multi_hot
from ...dataset.manifest import Dataset, Part
from ...imaging.decoder import Pixels
from ...imaging.pixel_options import JPEG
from ...storage import uri as uris
from ...storage.errors import DatasetError
from ...storage.store import map_disk_errors
from .cache import PartCache

MAX_MAPPED_PARTS = 4096
"""Local parts that a process keeps mapped from epoch to epoch: mapping costs a fifth of the copy."""
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

_mapped_parts: OrderedDict[str, MappedPart] = OrderedDict()
# Without a lock, which a forked worker could inherit locked: each operation on it is atomic, and a part that two
# threads open at the same time is only opened twice.


class OpenPart(Protocol):
    """An open part."""

    def copy_row(self, row: int, out: Pixels) -> None:
        """Copy the pixels of a row into `out` uint8 [H, W, C]."""


@dataclass
class MappedPart:
    """A memory-mapped part of raw pixels; `offsets` int64 [rows] of the pixels in it."""

    data: Pixels
    offsets: Int64Array

    def copy_row(self, row: int, out: Pixels) -> None:
        start = self.offsets[row]
        out.reshape(-1)[:] = self.data[start : start + out.size]


@dataclass
class JpegPart:
    """The column of a part's JPEGs, in memory."""

    column: Any
    colorspace: str
    uri: str

    def copy_row(self, row: int, out: Pixels) -> None:
        data = memoryview(self.column[row].as_buffer()).cast("B")  # Arrow's memoryview is of signed bytes
        try:
            simplejpeg.decode_jpeg(data, self.colorspace, buffer=out)
        except ValueError as error:
            raise DatasetError(f"{self.uri}: row {row}: expected a JPEG of {out.shape}, found {error}") from None


def gather_rows(parts: Sequence[OpenPart], positions: Int32Array, rows: Int32Array, out: Pixels) -> None:
    """Copy the pixels of rows into `out` uint8 [rows, H, W, C]; `positions` are those of their parts in `parts`."""
    if not all(isinstance(part, MappedPart) for part in parts):
        for image, position, row in zip(out, positions.tolist(), rows.tolist(), strict=True):
            parts[position].copy_row(row, image)
        return
    # The same without a call for each image, which would take most of the time for small images.
    offsets = np.empty(len(rows), np.int64)
    for position in np.unique(positions).tolist():
        in_part = positions == position
        offsets[in_part] = parts[position].offsets[rows[in_part]]  # type: ignore[attr-defined]
    data = [part.data for part in parts]  # type: ignore[attr-defined]
    flat = out.reshape(len(rows), -1)
    width = flat.shape[1]
    for image, position, start in zip(flat, positions.tolist(), offsets.tolist(), strict=True):
        image[:] = data[position][start : start + width]


@dataclass(frozen=True)
class TensorSplit:
    """The N images of one split of a tensors dataset, in the index's order; parts of S3 are read through `cache`.

    Attributes:
        parts: those that have images of the split.
        positions, rows: int32 [N], the place of each image: its part's position in `parts`, and its row there.
        labels: int64 [N], or lists of ids where an image may have several.
    """

    dataset: Dataset
    parts: Sequence[Part]
    positions: Int32Array
    rows: Int32Array
    labels: Any
    cache: PartCache | None = None

    @classmethod
    def from_dataset(cls, dataset: Dataset, split: str, cache: PartCache | None = None) -> TensorSplit:
        """Read the index. DatasetError for a label that is no class: on a GPU it would end the process unnamed."""
        manifest = dataset.manifest
        column = label_column(manifest.task)
        index = read_index(dataset, ["part", "row", column], split)
        labels = index.column(column).combine_chunks()
        ids = np.asarray(labels.flatten() if manifest.task == MULTI else labels)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(manifest.classes):
            expected = f"expected {column} from 0 to {len(manifest.classes) - 1}"
            raise DatasetError(f"{dataset.uri}: {expected}, found {ids.min()} to {ids.max()}")
        numbers, rows = locate_rows(dataset, index)
        named, positions = np.unique(numbers, return_inverse=True)
        if cache is None and uris.is_s3(dataset.uri):
            cache = PartCache.create()
        parts = [manifest.parts[number] for number in named.tolist()]
        labels = labels if manifest.task == MULTI else ids.astype(np.int64)
        return cls(dataset, parts, positions.astype(np.int32), rows, labels, cache)

    @classmethod
    def from_part(cls, dataset: Dataset, part: Part, cache: PartCache | None = None) -> TensorSplit:
        """Return every row of a part, also those that the index does not name; labels are 0."""
        rows = np.arange(part.rows, dtype=np.int32)
        return cls(dataset, [part], np.zeros_like(rows), rows, rows.astype(np.int64) * 0, cache)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def starts(self) -> Int64Array:
        """int64 [parts + 1], the first image of each part."""
        return np.searchsorted(self.positions, np.arange(len(self.parts) + 1)).astype(np.int64)

    def take_labels(self, numbers: Int64Array) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
        """Return the labels of images: int64 [B], or uint8 [B, classes] of zeros and ones."""
        if isinstance(self.labels, np.ndarray):
            taken: npt.NDArray[np.int64] = self.labels[numbers]
            return taken
        return multi_hot(self.labels.take(pa.array(numbers)).to_pylist(), len(self.dataset.manifest.classes))

    def open_part(self, position: int) -> OpenPart:
        """Open one of `parts`. DatasetError for a file that is missing or broken; errors of the store as they are.

        Local parts stay mapped: that takes no memory but the system's cache. Those of S3 do not: they would use disk
        space even after the cache deletes them.
        """
        part = self.parts[position]
        uri = self.dataset.locate_part(part)
        if uris.is_s3(uri):
            return self._map(uri, part)
        opened: OpenPart | None = _mapped_parts.pop(uri, None)
        opened = opened or self._map(uri, part)
        if isinstance(opened, MappedPart):
            _mapped_parts[uri] = opened
            while len(_mapped_parts) > MAX_MAPPED_PARTS:
                _mapped_parts.popitem(last=False)
        return opened

    def _map(self, uri: str, part: Part) -> OpenPart:
        image = self.dataset.manifest.image_spec
        mapped = _map_file(uri, self._open_file(uri, part))
        parquet = _open_parquet(uri, mapped)
        if parquet.metadata.num_rows != part.rows:
            raise DatasetError(f"{uri}: expected {part.rows} rows, found {parquet.metadata.num_rows}")
        if image.encoding == JPEG:
            column = parquet.read(["image"], use_threads=False).column("image").combine_chunks()
            return JpegPart(column, "RGB" if image.shape[2] == 3 else "GRAY", uri)
        with suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_WILLNEED)
        return MappedPart(np.frombuffer(mapped, np.uint8), find_row_offsets(uri, parquet, int(np.prod(image.shape))))

    def _open_file(self, uri: str, part: Part) -> int:
        """Return a file descriptor of the local file, or of the cached copy of a remote one."""
        if self.cache is not None and uris.is_s3(uri):
            return self.cache.open(uri, part)
        try:
            with map_disk_errors(uri):
                return os.open(uri, os.O_RDONLY)
        except FileNotFoundError:
            raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None


def find_row_offsets(uri: str, parquet: pq.ParquetFile, width: int) -> Int64Array:
    """Return int64 [rows], the offset in the file of each row's `width` bytes of the column `image`.

    A column chunk of one page of plain values ends with them, whatever header is before them. DatasetError for a file
    of another form.
    """
    metadata = parquet.metadata
    index = parquet.schema_arrow.get_field_index("image")
    column = parquet.schema.column(index)
    offsets: list[Int64Array] = []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(index)
        size = chunk.num_values * width
        is_plain = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        if not is_plain or column.max_definition_level or column.length != width or chunk.total_compressed_size < size:
            raise DatasetError(f"{uri}: expected images of {width} bytes as plain values, found another form")
        end = chunk.data_page_offset + chunk.total_compressed_size
        offsets.append(end - size + np.arange(chunk.num_values, dtype=np.int64) * width)
    return np.concatenate(offsets) if offsets else np.zeros(0, np.int64)


def _map_file(uri: str, descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file
        raise DatasetError(f"{uri}: expected a Parquet file, found an empty one") from None
    finally:
        os.close(descriptor)


def _open_parquet(uri: str, mapped: mmap.mmap) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: expected a Parquet file, found something else: {error}") from None
