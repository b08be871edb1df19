"""One file of tensors, opened: its labels, and its pixels on their way into a batch.

Raw tensors are copied straight from the mapped file into the batch; JPEGs, and files that somebody wrote in another
form, by way of pyarrow. What is known of a file is kept for the next epoch: 16 bytes an image.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from ..store import uri as uris
from ..store.choices import JPEG
from ..store.errors import DatasetError
from ..store.filesystem import map_disk_errors
from ..store.labels import MULTI, label_column
from ..store.manifest import Dataset, File
from ..store.tensors import decode_column
from .cache import ShardCache
from .pages import row_offsets

Pixels = npt.NDArray[np.uint8]
LAYOUTS = 2**16
"""Files whose offsets and labels a process keeps."""
MAPPED = 64
"""Files of 64 MB that a process keeps mapped: up to 28,000 images of 224 pixels no epoch but the first maps any."""
_mapped_files: OrderedDict[tuple[str, str], MappedShard] = OrderedDict()
Key = tuple[str, str, int, int]
"""Of what is known of a file: its sha256, the column of labels, the bytes of a row of raw pixels or 0, the classes."""
_layouts: dict[Key, tuple[Any, Any]] = {}
_lock = Lock()


def _renew_lock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread of the parent's may hold it, and is not there any more


class Shard(Protocol):
    """`labels` of all rows: int64 [rows], or Arrow lists of ids where an image has several."""

    labels: Any

    def copy(self, row: int, out: Pixels) -> None:
        """The pixels of a row into `out` uint8 [H, W, C]."""


@dataclass
class MappedShard:
    """A mapped file of raw tensors; `offsets` int64 [rows] of the pixels in it."""

    data: Pixels
    offsets: npt.NDArray[np.int64]
    labels: Any

    def copy(self, row: int, out: Pixels) -> None:
        start = self.offsets[row]
        out.reshape(-1)[:] = self.data[start : start + out.size]


@dataclass
class TableShard:
    """The column `image` in memory: JPEGs, decoded one by one, or all rows' pixels."""

    column: Any
    labels: Any
    colorspace: str = ""
    uri: str = ""

    def copy(self, row: int, out: Pixels) -> None:
        if self.colorspace:
            data = memoryview(self.column[row].as_buffer()).cast("B")  # Arrow calls its bytes signed
            try:
                simplejpeg.decode_jpeg(data, self.colorspace, buffer=out)
            except ValueError as error:
                raise DatasetError(f"{self.uri}: row {row}: expected a JPEG of {out.shape}, found {error}") from None
        else:
            out[...] = self.column[row]


def gather(shards: Sequence[Shard], places: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], out: Pixels) -> None:
    """The pixels of some rows, by the places of their shards, into `out` uint8 [rows, H, W, C]."""
    if not all(isinstance(shard, MappedShard) for shard in shards):
        for image, place, row in zip(out, places.tolist(), rows.tolist(), strict=True):
            shards[place].copy(row, image)
        return
    # The same without a call an image: with small images that is most of the time.
    offsets = np.empty(len(rows), np.int64)
    for place in np.unique(places).tolist():
        here = places == place
        offsets[here] = shards[place].offsets[rows[here]]  # type: ignore[attr-defined]
    data = [shard.data for shard in shards]  # type: ignore[attr-defined]
    flat = out.reshape(len(rows), -1)
    width = flat.shape[1]
    for image, place, start in zip(flat, places.tolist(), offsets.tolist(), strict=True):
        image[:] = data[place][start : start + width]


@dataclass(frozen=True)
class Split:
    """The files of one split of a tensors dataset, in the manifest's order; those of S3 by way of `cache`."""

    dataset: Dataset
    files: Sequence[File]
    cache: ShardCache | None = None

    @classmethod
    def of(cls, dataset: Dataset, split: str, cache: ShardCache | None = None) -> Split:
        if cache is None and uris.is_s3(dataset.uri):
            cache = ShardCache.at()
        return cls(dataset, [f for f in dataset.files("data", split) if f.rows], cache)

    def open(self, index: int) -> Shard:
        """DatasetError for a file that is gone or broken; errors of the store as they are.

        The last `MAPPED` files of a disk stay mapped, since mapping costs a fifth of the copy: that takes no memory but
        the system's cache. Files of S3 do not: they would take their place on the disk though the cache let them go.
        """
        uri = self.dataset.locate(self.files[index])
        if uris.is_s3(uri):
            return self._open(uri, self.files[index])
        key = (uri, self.files[index].sha256)
        with _lock:
            found: Shard | None = _mapped_files.pop(key, None)
        if found is None:
            found = self._open(uri, self.files[index])
        if isinstance(found, MappedShard):
            with _lock:
                _mapped_files[key] = found
                while len(_mapped_files) > MAPPED:
                    _mapped_files.popitem(last=False)
        return found

    def _open(self, uri: str, file: File) -> Shard:
        image, (_, label, width, classes) = self.dataset.manifest.image, self._key(file)
        mapped = _mapped(uri, self._handle(uri, file))
        offsets, labels = _layout(uri, mapped, file, label, width, classes)
        if offsets is not None:
            with suppress(OSError, ValueError):
                mapped.madvise(mmap.MADV_WILLNEED)
            return MappedShard(np.frombuffer(mapped, np.uint8), offsets, labels)
        column = _read(uri, mapped, ["image"]).column("image")
        if width:
            return TableShard(decode_column(column, image), labels)
        return TableShard(column.combine_chunks(), labels, "RGB" if image["shape"][2] == 3 else "GRAY", uri)

    def labels(self) -> list[npt.NDArray[np.int64]]:
        """int64 [rows] of each file, of images with one label each. A file is opened for them once by a process: those
        of S3 may have left the cache by the next epoch."""
        found = []
        for index, file in enumerate(self.files):
            with _lock:
                known = _layouts.get(self._key(file))
            found.append(known[1] if known else self.open(index).labels)
        return found

    def _key(self, file: File) -> Key:
        manifest = self.dataset.manifest
        width = 0 if manifest.image.get("encoding") == JPEG else int(np.prod(manifest.image["shape"]))
        return file.sha256, label_column(manifest.task), width, len(manifest.classes)

    def _handle(self, uri: str, file: File) -> int:
        if self.cache is not None and uris.is_s3(uri):
            return self.cache.open(uri, file)
        try:
            with map_disk_errors(uri):
                return os.open(uri, os.O_RDONLY)
        except FileNotFoundError:
            raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None


def _mapped(uri: str, handle: int) -> mmap.mmap:
    try:
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file
        raise DatasetError(f"{uri}: expected a Parquet file, found an empty one") from None
    finally:
        os.close(handle)


def _layout(uri: str, mapped: mmap.mmap, file: File, label: str, width: int, classes: int) -> tuple[Any, Any]:
    """(offsets int64 [rows] of raw pixels of `width` bytes or None, the labels), read once by a process.

    On a GPU an id that is none of the classes would end the process without a word of where it stands."""
    key = (file.sha256, label, width, classes)
    with _lock:
        known = _layouts.get(key)
    if known is not None:
        return known
    column = _read(uri, mapped, [label]).column(label)
    labels = column.combine_chunks()
    if label != label_column(MULTI):
        labels = np.from_dlpack(labels).astype(np.int64)  # Arrow's own way imports pandas, for a third of a second
    offsets = row_offsets(memoryview(mapped), _parquet(uri, mapped), "image", width) if width else None
    for found in (len(labels), len(labels) if offsets is None else len(offsets)):
        if found != file.rows:
            raise DatasetError(f"{uri}: expected {file.rows} rows, found {found}")
    ids = labels if label != label_column(MULTI) else np.from_dlpack(labels.flatten())
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
        raise DatasetError(f"{uri}: expected {label} from 0 to {classes - 1}, found {ids.min()} to {ids.max()}")
    with _lock:
        if len(_layouts) >= LAYOUTS:
            _layouts.clear()
        _layouts[key] = (offsets, labels)
    return offsets, labels


def _read(uri: str, mapped: mmap.mmap, columns: list[str]) -> pa.Table:
    try:
        return _parquet(uri, mapped).read(columns, use_threads=False)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"{uri}: {', '.join(columns)} can't be read: {error}") from None


def _parquet(uri: str, mapped: mmap.mmap) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(pa.BufferReader(pa.py_buffer(mapped)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: expected a Parquet file, found something else: {error}") from None
