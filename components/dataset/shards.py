"""Shards: the Parquet files of a dataset, named by a hash of their content, with row groups bounded by bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import uri as uris
from ..storage.errors import DatasetError, MillError, with_retry
from ..storage.store import get_store, hash_file, map_disk_errors
from .manifest import Dataset, File, Part

READ_THREADS = 16
"""Small files that are read at a time: from an object store each of them is some round trips."""
INDEX_LAYOUT_COLUMNS = ("part", "label", "split", "group")
"""Texts of an index that repeat."""
ROW_GROUP_BYTES = 8 * 2**20
"""Image bytes in a row group of raw and clean, which a reader holds at once per open file."""


@dataclass(frozen=True)
class Layout:
    """The schema and encoding of one kind of file.

    Attributes:
        plain: no column is compressed (image bytes never are), and a row group is one page.
        is_index: texts that repeat are stored as dictionaries.
    """

    schema: pa.Schema
    plain: bool = False
    is_index: bool = False
    row_group_rows: int = 1 << 20
    row_group_bytes: int = ROW_GROUP_BYTES


class ShardWriter:
    """Writes one Parquet file to local scratch space; `publish` moves it to a name made of its content.

    Rows are buffered up to one row group. Used as a context manager, so that nothing is left behind.
    """

    def __init__(self, dataset_uri: str, layout: Layout) -> None:
        self._dataset_uri, self._layout = dataset_uri, layout
        self._scratch = get_store(dataset_uri).scratch(dataset_uri)
        self._path = self._scratch / "shard.parquet"
        try:
            with map_disk_errors(str(self._path)):
                self._sink = _HashedFile(self._path)
                self._writer = pq.ParquetWriter(self._sink, layout.schema, **_writer_options(layout))
        except MillError:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self._rows: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self.rows = 0
        self.image_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with map_disk_errors(str(self._path)):
                self._writer.close()
                self._sink.close()
        except MillError:
            if error is None:  # else this error is a consequence of that one
                raise
        finally:
            self._sink.abandon()
            shutil.rmtree(self._scratch, ignore_errors=True)

    def add(self, row: dict[str, Any], size: int) -> None:
        """Add one row, whose image has `size` bytes."""
        self._rows.append(row)
        self._pending_bytes += size
        self.rows += 1
        self.image_bytes += size
        if self._pending_bytes >= self._layout.row_group_bytes or len(self._rows) >= self._layout.row_group_rows:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Add a complete row group, in the layout's schema."""
        self._flush()
        with map_disk_errors(str(self._path)):
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.rows += table.num_rows

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._layout.schema)
            with map_disk_errors(str(self._path)):
                self._writer.write_table(table, row_group_size=len(self._rows))
            self._rows, self._pending_bytes = [], 0

    def publish(self, name: str, role: str = "data", split: str = "") -> File:
        """Finish the file and move it to `<name>-<hash>.parquet` below the dataset."""
        self._flush()
        with map_disk_errors(str(self._path)):
            self._writer.close()
            self._sink.close()
        sha256 = self._sink.sha256.hexdigest()
        return publish_file(self._dataset_uri, self._path, f"{name}-", role, split, self.rows, sha256)

    def publish_part(self, key: str, split: str = "") -> Part:
        """Finish the file and move it to `<key>.parquet` in the folder of parts; one that is there stays."""
        self._flush()
        with map_disk_errors(str(self._path)):
            self._writer.close()
            self._sink.close()
            size = self._path.stat().st_size
        get_store(self._dataset_uri).publish(self._path, uris.join(self._dataset_uri, f"{key}.parquet"))
        return Part(key, self.rows, size, self._sink.sha256.hexdigest(), split)


class _HashedFile(io.RawIOBase):
    """A new file that is hashed as it is written, so that it need not be read again for that."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        remaining = memoryview(data).cast("B")
        self.sha256.update(remaining)
        total = len(remaining)
        while remaining:  # a write may be cut short
            remaining = remaining[self._file.write(remaining) :]
        return total

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def abandon(self) -> None:
        """Close and ignore errors: the content does not matter any more."""
        with contextlib.suppress(OSError):
            self._file.close()


def publish_file(dataset_uri: str, path: Path, prefix: str, role: str, split: str, rows: int, sha256: str = "") -> File:
    """Move a finished local file to `<dataset>/<prefix><hash><suffix>`, a name made of its content."""
    sha256, size = sha256 or hash_file(path), path.stat().st_size
    relative = f"{prefix}{sha256[:16]}{path.suffix}"
    get_store(dataset_uri).publish(path, uris.join(dataset_uri, relative))
    return File(relative, role, split, rows, size, sha256)


def publish_bytes(dataset_uri: str, data: bytes, prefix: str, suffix: str, role: str = "data", rows: int = 0) -> File:
    """Publish a small file that is in memory, as `publish_file`."""
    scratch = get_store(dataset_uri).scratch(dataset_uri)
    try:
        path = scratch / f"file{suffix}"
        with map_disk_errors(str(path)):
            path.write_bytes(data)
        return publish_file(dataset_uri, path, prefix, role, "", rows)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _writer_options(layout: Layout) -> dict[str, Any]:
    if layout.plain:
        # In small batches, since rows are large: a third less time than with Arrow's 1,024 rows at a time. One page a
        # row group: its values can be mapped into memory (train/data).
        return {
            "compression": "none", "use_dictionary": False, "write_statistics": False, "write_batch_size": 8,
            "data_page_size": 2**30,
        }  # fmt: skip
    if layout.is_index:
        names = layout.schema.names
        repeated = [name for name in INDEX_LAYOUT_COLUMNS if name in names]
        encodings = {"row": "DELTA_BINARY_PACKED"} if "row" in names else {}
        return {
            "compression": "zstd", "use_dictionary": repeated, "write_statistics": False, "column_encoding": encodings,
        }  # fmt: skip
    blobs = {"image", "mask", "bytes", "image.bytes"}
    small = [str(field.name) for field in layout.schema if field.name not in blobs]
    compression = {**dict.fromkeys(small, "zstd"), "image": "none", "image.bytes": "none"}
    return {"compression": compression, "use_dictionary": False, "write_statistics": False}


def open_parquet(uri: str) -> pq.ParquetFile:
    """Open a Parquet file for one thread (a shared ParquetFile can deadlock). DatasetError when it is none.

    On S3 the columns of a row group that lie side by side are fetched by one request, not by one each.
    """
    try:
        source = get_store(uri).open(uri)
    except FileNotFoundError:
        raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None

    def read_footer() -> pq.ParquetFile:
        with _map_parquet_errors(uri, "expected a Parquet file, found something else"):
            return pq.ParquetFile(source, memory_map=True, pre_buffer=uris.is_s3(uri))

    return with_retry(read_footer, f"open {uri}")


def read_row_group(file: pq.ParquetFile, index: int, uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read one row group; storage errors are retried, a broken file is a DatasetError."""

    def read() -> pa.Table:
        with _map_parquet_errors(uri, f"row group {index} can't be read"):
            return file.read_row_group(index, columns=columns, use_threads=False)

    return with_retry(read, f"read {uri}")


@contextlib.contextmanager
def _map_parquet_errors(uri: str, problem: str) -> Iterator[None]:
    """Map errors of reading Parquet: those of the store to its own, all others to DatasetError."""
    from ..storage.s3 import map_s3_errors

    try:
        with map_s3_errors(uri) if uris.is_s3(uri) else contextlib.nullcontext():
            yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{uri}: {problem}: {error}") from None


def read_file(uri: str, columns: list[str] | None = None, groups: Iterable[int] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file, or those in `groups`, one at a time."""
    with open_parquet(uri) as parquet:
        for index in range(parquet.num_row_groups) if groups is None else groups:
            yield read_row_group(parquet, index, uri, columns)


def read_table(uri: str, columns: list[str] | None = None, dictionaries: Sequence[str] = ()) -> pa.Table:
    """Read a small Parquet file as a whole; `dictionaries`: texts that are read as such, where the file has them."""

    def read() -> pa.Table:
        with get_store(uri).open(uri) as source, _map_parquet_errors(uri, "expected a Parquet file"):
            return pq.read_table(source, columns=columns, read_dictionary=list(dictionaries), use_threads=False)

    try:
        return with_retry(read, f"read {uri}")
    except FileNotFoundError:
        raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None


def read_columns(dataset: Dataset, role: str, columns: list[str] | None) -> Iterator[pa.Table]:
    """Yield columns (None: all) of every row of the files of a role, a row group at a time, in the manifest's order.

    Images and what is known of them lie in parts and an index: `index.read_rows` reads those.
    """
    for file in dataset.files(role):
        yield from read_file(dataset.locate(file), columns)
