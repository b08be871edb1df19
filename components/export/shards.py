"""Large files of many images: cut by bytes, made in scratch space, published while the next one is made.

At most three shards are in scratch space, and what `store.parallel.map_ordered` lets be in flight is in memory.
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

from ..store.filesystem import map_disk_errors
from ..store.parallel import cores, map_ordered
from ..store.progress import Progress
from .place import Place, Written
from .samples import Sample, Source

_COST = 4
"""A picture that is encoded again may become so many times larger, or more where nothing else is in flight."""


@dataclass(frozen=True)
class Work:
    """An export that is being made: from where, to where, and what is found on the way to be told."""

    source: Source
    place: Place
    scratch: Path
    shard_bytes: int
    progress: Progress
    notes: dict[str, Any] = field(default_factory=dict)


class Shard(Protocol):
    """A file that is being written."""

    def add(self, piece: Any) -> None:
        """One image, as `Form.encode` made it."""

    def close(self) -> bytes:
        """Finish the file; returns the bytes of its index, none where the form has none."""

    def drop(self) -> None:
        """Let go of the file, finished or not."""


class Form(Protocol):
    """What a format with shards has of its own. `encode` runs in threads, everything else in the order of the rows."""

    planned: ClassVar[bool]
    """The number of shards is part of their names: rows are shared out evenly by an estimate of their bytes.
    Otherwise a shard is closed before the image that it has no room for."""
    as_png: ClassVar[bool]

    def encode(self, sample: Sample) -> Any: ...
    def size(self, piece: Any) -> int: ...
    def name(self, split: str, number: int, total: int) -> str: ...
    def open(self, path: Path) -> Shard: ...
    def finish(self, place: Place, shards: list[Written]) -> list[Written]: ...


def export_shards(work: Work, form: Form) -> list[Written]:
    """Every split's shards, and the files about them."""
    written: list[Written] = []
    for split in work.source.rows:
        written += _split(work, form, split)
    return written + form.finish(work.place, written)


def _split(work: Work, form: Form, split: str) -> list[Written]:
    reading, rows = work.source.read(split, work.scratch), work.source.rows[split]
    wanted = math.ceil(reading.bytes(form.as_png) / work.shard_bytes)
    total = min(rows, max(1, wanted)) if form.planned else 0
    pieces = map_ordered(reading.samples(), form.encode, cores(), lambda sample: _COST * sample.size)
    with _publisher(work.place) as publish:
        cutter = _Cutter(work, form, split, rows, total)
        for piece in pieces:
            for made in cutter.add(piece):
                publish(made)
            work.progress.add()
        for made in cutter.end():
            publish(made)
    return publish.written


@dataclass(frozen=True)
class _Made:
    """A finished shard in scratch space."""

    path: Path
    name: str
    split: str
    rows: int
    index: bytes


class _Cutter:
    """Shares a split's images out among its shards."""

    def __init__(self, work: Work, form: Form, split: str, rows: int, total: int) -> None:
        self._work, self._form, self._split = work, form, split
        self._planned_rows, self._total = rows, total
        self._shard: Shard | None = None
        self._number, self._begun, self._bytes = -1, 0, 0
        self.rows = 0

    def add(self, piece: Any) -> Iterator[_Made]:
        """Write one image; yields the shard that it did not go into any more."""
        size = self._form.size(piece)
        if self._shard is not None and self._is_full(size):
            yield from self.end()
        if self._shard is None:
            self._number += 1
            self._begun, self._bytes = self.rows, 0
            with map_disk_errors(str(self._path)):
                self._shard = self._form.open(self._path)
        try:
            with map_disk_errors(str(self._path)):
                self._shard.add(piece)
        except BaseException:
            self._shard.drop()
            raise
        self._bytes += size
        self.rows += 1

    def _is_full(self, size: int) -> bool:
        if self._total:
            return self.rows * self._total // self._planned_rows > self._number
        return self._bytes + size > self._work.shard_bytes

    def end(self) -> Iterator[_Made]:
        """Close the shard that is open."""
        if self._shard is None:
            return
        with map_disk_errors(str(self._path)):
            index = self._shard.close()
        self._shard = None
        name = self._form.name(self._split, self._number, self._total)
        yield _Made(self._path, name, self._split, self.rows - self._begun, index)

    @property
    def _path(self) -> Path:
        return self._work.scratch / f"{self._split}-{self._number}"


class _Publisher:
    """Publishes one shard at a time beside the work, and lets at most one more wait."""

    def __init__(self, place: Place, pool: ThreadPoolExecutor) -> None:
        self._place, self._pool = place, pool
        self._waiting: deque[Future[list[Written]]] = deque()
        self.written: list[Written] = []

    def __call__(self, made: _Made) -> None:
        while len(self._waiting) > 1:
            self.collect()
        self._waiting.append(self._pool.submit(self._publish, made))

    def collect(self, all_of_them: bool = False) -> None:
        while self._waiting:
            self.written += self._waiting.popleft().result()
            if not all_of_them:
                return

    def _publish(self, made: _Made) -> list[Written]:
        written = [self._place.publish(made.path, made.name, made.split, made.rows)]
        if made.index:
            stem = made.name.rpartition(".")[0]
            written.append(self._place.put(f"{stem}.index", made.index, made.split))
        return written


@contextmanager
def _publisher(place: Place) -> Iterator[_Publisher]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
    try:
        publisher = _Publisher(place, pool)
        yield publisher
        publisher.collect(all_of_them=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
