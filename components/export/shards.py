"""Write shards of many images in scratch space, cut by bytes; each is published while the next one is written.

At most three shards are in scratch space, and the images that `storage.parallel.map_ordered` has in flight in memory.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..step.progress import Progress
from ..storage.parallel import cores, map_ordered
from ..storage.store import map_disk_errors
from .output_folder import ExportedFile, OutputFolder
from .samples import ExportSource, Sample

_ENCODED_FACTOR = 4
"""Memory that is reserved for an image, in its bytes: encoded again it may be larger."""


@dataclass(frozen=True)
class ExportContext:
    """An export under way. `notes`: facts to report at its end, by name."""

    source: ExportSource
    output: OutputFolder
    scratch: Path
    shard_bytes: int
    progress: Progress
    notes: dict[str, Any] = field(default_factory=dict)


class ShardFile(Protocol):
    """A shard that is being written."""

    def add(self, record: Any) -> None:
        """Write one image, as `ShardFormat.encode` returns it."""

    def close(self) -> bytes:
        """Finish the file; return the bytes of its index, empty if the format has none."""

    def abort(self) -> None:
        """Close the file without finishing it."""


class ShardFormat(Protocol):
    """A format with shards. `encode` runs in threads, everything else in the order of the rows."""

    has_shard_count: ClassVar[bool]
    """Whether the number of shards is part of their names: then rows are divided evenly, by an estimate of their bytes.
    Otherwise a shard is closed before the image that would make it too large."""
    converts_to_png: ClassVar[bool]

    def encode(self, sample: Sample) -> Any:
        """Return an image as a record of a shard."""

    def record_size(self, record: Any) -> int:
        """Return the bytes of a record in a shard."""

    def shard_name(self, split: str, number: int, total: int) -> str:
        """Return a shard's path below the output; `total` is 0 without `has_shard_count`."""

    def open_shard(self, path: Path) -> ShardFile: ...

    def write_metadata(self, output: OutputFolder, shards: list[ExportedFile]) -> list[ExportedFile]:
        """Write the files beside the shards, after all of these."""


def export_shards(context: ExportContext, shard_format: ShardFormat) -> list[ExportedFile]:
    """Write the shards of every split and the files beside them."""
    files: list[ExportedFile] = []
    for split in context.source.rows:
        files += _export_split(context, shard_format, split)
    return files + shard_format.write_metadata(context.output, files)


def _export_split(context: ExportContext, shard_format: ShardFormat, split: str) -> list[ExportedFile]:
    reader, rows = context.source.open_split(split, context.scratch), context.source.rows[split]
    estimate = math.ceil(reader.estimate_bytes(shard_format.converts_to_png) / context.shard_bytes)
    total = min(rows, max(1, estimate)) if shard_format.has_shard_count else 0
    records = map_ordered(reader.samples(), shard_format.encode, cores(), lambda sample: _ENCODED_FACTOR * sample.size)
    with _open_publisher(context.output) as publisher:
        writer = _SplitWriter(context, shard_format, split, rows, total)
        for record in records:
            for shard in writer.add(record):
                publisher.publish(shard)
            context.progress.add()
        for shard in writer.close():
            publisher.publish(shard)
    return publisher.files


@dataclass(frozen=True)
class _FinishedShard:
    """A finished shard in scratch space."""

    path: Path
    name: str
    split: str
    rows: int
    index: bytes


class _SplitWriter:
    """Divides a split's records among its shards and writes them."""

    def __init__(self, context: ExportContext, shard_format: ShardFormat, split: str, rows: int, total: int) -> None:
        self._context, self._format, self._split = context, shard_format, split
        self._split_rows, self._total = rows, total
        self._shard: ShardFile | None = None
        self._number, self._first_row, self._bytes = -1, 0, 0
        self._rows = 0

    def add(self, record: Any) -> Iterator[_FinishedShard]:
        """Write one record; yield the shard that is full before it, if there is one."""
        size = self._format.record_size(record)
        if self._shard is not None and self._is_full(size):
            yield from self.close()
        if self._shard is None:
            self._number += 1
            self._first_row, self._bytes = self._rows, 0
            with map_disk_errors(str(self._path)):
                self._shard = self._format.open_shard(self._path)
        try:
            with map_disk_errors(str(self._path)):
                self._shard.add(record)
        except BaseException:  # Ctrl-C included: the file must be closed before its scratch folder is removed
            self._shard.abort()
            raise
        self._bytes += size
        self._rows += 1

    def _is_full(self, size: int) -> bool:
        if self._total:
            return self._rows * self._total // self._split_rows > self._number
        return self._bytes + size > self._context.shard_bytes

    def close(self) -> Iterator[_FinishedShard]:
        """Close the open shard and yield it, if there is one."""
        if self._shard is None:
            return
        with map_disk_errors(str(self._path)):
            index = self._shard.close()
        self._shard = None
        name = self._format.shard_name(self._split, self._number, self._total)
        yield _FinishedShard(self._path, name, self._split, self._rows - self._first_row, index)

    @property
    def _path(self) -> Path:
        return self._context.scratch / f"{self._split}-{self._number}"


class _Publisher:
    """Publishes one shard at a time in a thread, and lets at most one more wait."""

    def __init__(self, output: OutputFolder, pool: ThreadPoolExecutor) -> None:
        self._output, self._pool = output, pool
        self._pending: deque[Future[list[ExportedFile]]] = deque()
        self.files: list[ExportedFile] = []

    def publish(self, shard: _FinishedShard) -> None:
        while len(self._pending) > 1:
            self.files += self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._publish, shard))

    def finish(self) -> None:
        """Wait until all shards are published."""
        while self._pending:
            self.files += self._pending.popleft().result()

    def _publish(self, shard: _FinishedShard) -> list[ExportedFile]:
        files = [self._output.publish(shard.path, shard.name, shard.split, shard.rows)]
        if shard.index:
            stem = shard.name.rpartition(".")[0]
            files.append(self._output.put(f"{stem}.index", shard.index, shard.split))
        return files


@contextmanager
def _open_publisher(output: OutputFolder) -> Iterator[_Publisher]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        publisher = _Publisher(output, pool)
        yield publisher
        publisher.finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
