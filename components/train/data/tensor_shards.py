"""Files of tensors, opened for reading: their labels, and their pixels, which are copied into batches.

Raw tensors are copied straight from the mapped file into the batch; JPEGs, and files that another program wrote in
another form, are read by pyarrow. Row offsets and labels of a file are kept for the next epoch: 16 bytes an image.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from ...dataset.kinds import TensorsExtra
from ...dataset.labels import MULTI, label_column
from ...dataset.manifest import Dataset, File
from ...imaging.decoder import Pixels
from ...imaging.pixel_options import JPEG
from ...imaging.tensors import decode_column
from ...storage import uri as uris
from ...storage.errors import DatasetError
from ...storage.store import map_disk_errors
from .cache import ShardCache
from .parquet_pages import find_row_offsets

MAX_LAYOUTS = 2**16
"""Files whose offsets and labels a process keeps."""
MAX_MAPPED_FILES = 64
"""Files of 64 MB that a process keeps mapped: with up to 28,000 images of 224 pixels, only the first epoch maps any."""


class LayoutKey(NamedTuple):
    """Identifies a `Layout`; `row_bytes` are those of a row of raw pixels, 0 where they are not raw."""

    sha256: str
    label_column: str
    row_bytes: int
    classes: int


class Layout(NamedTuple):
    """`offsets` int64 [rows] of raw pixels in a file, or None; `labels` of all rows as in `Shard`."""

    offsets: npt.NDArray[np.int64] | None
    labels: Any


_mapped_files: OrderedDict[tuple[str, str], MappedShard] = OrderedDict()
_layouts: dict[LayoutKey, Layout] = {}
# Without a lock, which a forked worker could inherit locked: each operation on them is atomic, and a file that two
# threads open at the same time is only opened twice.


class Shard(Protocol):
    """An open file; `labels` of all rows: int64 [rows], or Arrow lists of ids where an image may have several."""

    labels: Any

    def copy_row(self, row: int, out: Pixels) -> None:
        """Copy the pixels of a row into `out` uint8 [H, W, C]."""


@dataclass
class MappedShard:
    """A memory-mapped file of raw tensors; `offsets` int64 [rows] of the pixels in it."""

    data: Pixels
    offsets: npt.NDArray[np.int64]
    labels: Any

    def copy_row(self, row: int, out: Pixels) -> None:
        start = self.offsets[row]
        out.reshape(-1)[:] = self.data[start : start + out.size]


@dataclass
class TableShard:
    """The column `image` in memory: with a `colorspace` JPEGs, which are decoded one by one; else pixels."""

    column: Any
    labels: Any
    colorspace: str = ""
    uri: str = ""

    def copy_row(self, row: int, out: Pixels) -> None:
        if self.colorspace:
            data = memoryview(self.column[row].as_buffer()).cast("B")  # Arrow's memoryview is of signed bytes
            try:
                simplejpeg.decode_jpeg(data, self.colorspace, buffer=out)
            except ValueError as error:
                raise DatasetError(f"{self.uri}: row {row}: expected a JPEG of {out.shape}, found {error}") from None
        else:
            out[...] = self.column[row]


def gather_rows(
    shards: Sequence[Shard], positions: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], out: Pixels
) -> None:
    """Copy the pixels of rows into `out` uint8 [rows, H, W, C]; `positions` are those of their files in `shards`."""
    if not all(isinstance(shard, MappedShard) for shard in shards):
        for image, position, row in zip(out, positions.tolist(), rows.tolist(), strict=True):
            shards[position].copy_row(row, image)
        return
    # The same without a call for each image, which would take most of the time for small images.
    offsets = np.empty(len(rows), np.int64)
    for position in np.unique(positions).tolist():
        in_shard = positions == position
        offsets[in_shard] = shards[position].offsets[rows[in_shard]]  # type: ignore[attr-defined]
    data = [shard.data for shard in shards]  # type: ignore[attr-defined]
    flat = out.reshape(len(rows), -1)
    width = flat.shape[1]
    for image, position, start in zip(flat, positions.tolist(), offsets.tolist(), strict=True):
        image[:] = data[position][start : start + width]


@dataclass(frozen=True)
class TensorSplit:
    """The files of one split of a tensors dataset, in the manifest's order; those of S3 are read through `cache`."""

    dataset: Dataset
    files: Sequence[File]
    cache: ShardCache | None = None

    @classmethod
    def from_dataset(cls, dataset: Dataset, split: str, cache: ShardCache | None = None) -> TensorSplit:
        if cache is None and uris.is_s3(dataset.uri):
            cache = ShardCache.create()
        return cls(dataset, [file for file in dataset.files("data", split) if file.rows], cache)

    @property
    def generations(self) -> list[int]:
        """Return the generation of each of `files`."""
        extra = TensorsExtra.of(self.dataset.manifest)
        return [extra.generation(file.uri) for file in self.files]

    def open_shard(self, index: int) -> Shard:
        """Open one of `files`. DatasetError for a file that is missing or broken; errors of the store as they are.

        The last `MAX_MAPPED_FILES` local files stay mapped, since mapping costs a fifth of the copy: that takes no
        memory but the system's cache. Files of S3 do not: they would use disk space even after the cache deletes them.
        """
        file = self.files[index]
        uri = self.dataset.locate(file)
        if uris.is_s3(uri):
            return self._map(uri, file)
        key = (uri, file.sha256)
        mapped: MappedShard | None = _mapped_files.pop(key, None)
        shard = mapped or self._map(uri, file)
        if isinstance(shard, MappedShard):
            _mapped_files[key] = shard
            while len(_mapped_files) > MAX_MAPPED_FILES:
                _mapped_files.popitem(last=False)
        return shard

    def _map(self, uri: str, file: File) -> Shard:
        image, key = self.dataset.manifest.image_spec, self._layout_key(file)
        mapped = _map_file(uri, self._open_file(uri, file))
        offsets, labels = _get_layout(uri, mapped, file, key)
        if offsets is not None:
            with suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_WILLNEED)
            return MappedShard(np.frombuffer(mapped, np.uint8), offsets, labels)
        column = _read_columns(uri, mapped, ["image"]).column("image")
        if key.row_bytes:
            return TableShard(decode_column(column, image), labels)
        return TableShard(column.combine_chunks(), labels, "RGB" if image.shape[2] == 3 else "GRAY", uri)

    def read_labels(self) -> list[npt.NDArray[np.int64]]:
        """Return int64 [rows] of each file, of images with one label each. A process opens a file only once for them:
        those of S3 may have left the cache by the next epoch."""
        labels = []
        for index, file in enumerate(self.files):
            layout = _layouts.get(self._layout_key(file))
            labels.append(layout.labels if layout else self.open_shard(index).labels)
        return labels

    def _layout_key(self, file: File) -> LayoutKey:
        manifest = self.dataset.manifest
        row_bytes = 0 if manifest.image_spec.encoding == JPEG else int(np.prod(manifest.image_spec.shape))
        return LayoutKey(file.sha256, label_column(manifest.task), row_bytes, len(manifest.classes))

    def _open_file(self, uri: str, file: File) -> int:
        """Return a file descriptor of the local file, or of the cached copy of a remote one."""
        if self.cache is not None and uris.is_s3(uri):
            return self.cache.open(uri, file)
        try:
            with map_disk_errors(uri):
                return os.open(uri, os.O_RDONLY)
        except FileNotFoundError:
            raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None


def _map_file(uri: str, descriptor: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file
        raise DatasetError(f"{uri}: expected a Parquet file, found an empty one") from None
    finally:
        os.close(descriptor)


def _get_layout(uri: str, mapped: mmap.mmap, file: File, key: LayoutKey) -> Layout:
    """Return a file's layout, read once by a process. DatasetError for a label that is no class: on a GPU it would end
    the process without naming its file."""
    if (layout := _layouts.get(key)) is not None:
        return layout
    column, has_lists = key.label_column, key.label_column == label_column(MULTI)
    labels = _read_columns(uri, mapped, [column]).column(column).combine_chunks()
    if not has_lists:
        labels = np.from_dlpack(labels).astype(np.int64)  # Arrow's to_numpy imports pandas, which takes 0.3 s
    offsets = None
    if key.row_bytes:
        offsets = find_row_offsets(memoryview(mapped), _open_parquet(uri, mapped), "image", key.row_bytes)
    for num_rows in (len(labels), len(labels) if offsets is None else len(offsets)):
        if num_rows != file.rows:
            raise DatasetError(f"{uri}: expected {file.rows} rows, found {num_rows}")
    ids = np.from_dlpack(labels.flatten()) if has_lists else labels
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < key.classes:
        raise DatasetError(f"{uri}: expected {column} from 0 to {key.classes - 1}, found {ids.min()} to {ids.max()}")
    layout = Layout(offsets, labels)
    if len(_layouts) >= MAX_LAYOUTS:
        _layouts.clear()
    _layouts[key] = layout
    return layout


def _read_columns(uri: str, mapped: mmap.mmap, columns: list[str]) -> pa.Table:
    try:
        return _open_parquet(uri, mapped).read(columns, use_threads=False)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"{uri}: {', '.join(columns)} can't be read: {error}") from None


def _open_parquet(uri: str, mapped: mmap.mmap) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: expected a Parquet file, found something else: {error}") from None
