"""Write shards of many images in scratch space, cut by bytes; each is published while the next one is written.

At most three shards are in scratch space, and the images that `storage.parallel.map_ordered` has in flight in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

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

    def encode(self, sample: Sample) -> Any:
        """Return an image as a record of a shard."""

    def record_size(self, record: Any) -> int:
        """Return the bytes of a record in a shard."""

    def shard_name(self, split: str, number: int) -> str:
        """Return a shard's path below the output."""

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
    """Write and publish the shards of a split: one is published in a thread, at most one more waits."""
    files: list[ExportedFile] = []
    pending: deque[Future[list[ExportedFile]]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        for shard in _write_shards(context, shard_format, split):
            if len(pending) > 1:
                files += pending.popleft().result()
            pending.append(pool.submit(_publish, context.output, shard))
        for future in pending:
            files += future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return files


@dataclass(frozen=True)
class _FinishedShard:
    """A finished shard in scratch space."""

    path: Path
    name: str
    split: str
    rows: int
    index: bytes


def _write_shards(context: ExportContext, shard_format: ShardFormat, split: str) -> Iterator[_FinishedShard]:
    """Write the records of a split to one shard after another."""
    samples = context.source.read_samples(split)
    records = map_ordered(samples, shard_format.encode, cores(), lambda sample: _ENCODED_FACTOR * sample.size)
    numbered = _number_shards(records, shard_format.record_size, context.shard_bytes)
    for number, group in groupby(numbered, key=itemgetter(0)):
        path, rows = context.scratch / f"{split}-{number}", 0
        with map_disk_errors(str(path)):
            shard = shard_format.open_shard(path)
        try:
            for _, record in group:
                with map_disk_errors(str(path)):
                    shard.add(record)
                rows += 1
                context.progress.add()
        except BaseException:  # Ctrl-C included: the file must be closed before its scratch folder is removed
            shard.abort()
            raise
        with map_disk_errors(str(path)):
            index = shard.close()
        yield _FinishedShard(path, shard_format.shard_name(split, number), split, rows, index)


def _number_shards(
    records: Iterable[Any], record_size: Callable[[Any], int], max_bytes: int
) -> Iterator[tuple[int, Any]]:
    """Yield each record with the number of its shard: one is closed before the image that would make it too large."""
    number = shard_bytes = 0
    for record in records:
        size = record_size(record)
        if shard_bytes and shard_bytes + size > max_bytes:
            number, shard_bytes = number + 1, 0
        shard_bytes += size
        yield number, record


def _publish(output: OutputFolder, shard: _FinishedShard) -> list[ExportedFile]:
    files = [output.publish(shard.path, shard.name, shard.split, shard.rows)]
    if shard.index:
        files.append(output.put(f"{shard.name.rpartition('.')[0]}.index", shard.index, shard.split))
    return files
