"""A local cache of remote tensor files: bounded, shared by processes, and verified by checksums.

A file's name is the hash of its content. A copy's sha256 is checked when it is fetched, and again when a process first
opens one that another has fetched. The least recently used ones are deleted when there is no room; a file in use stays
readable though its name is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...dataset.manifest import Part
from ...storage.errors import DatasetError, wrong
from ...storage.store import get_store, map_disk_errors

DEFAULT_BYTES = 20 * 10**9
MAX_SHARE_OF_FREE = 0.5
STALE_TEMPORARY_S = 3600
"""A temporary file that is older was left by a process that was killed."""


@dataclass
class PartCache:
    """At most `max_bytes` in `folder`, unless one file alone is larger."""

    folder: Path
    max_bytes: int
    _verified: set[str] = field(default_factory=set)

    @classmethod
    def create(cls, folder: str = "", max_bytes: int | None = None) -> PartCache:
        """Open the cache in `folder` (default: the user's own below the system's temporary folder), created if needed.

        `max_bytes`: default 20 GB, or half of the free space if that is less. UserError where the default folder
        belongs to another user, who could change files that were verified.
        """
        path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"imagemill-cache-{os.getuid()}"
        with map_disk_errors(str(path)):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder and path.lstat().st_uid != os.getuid():
                raise wrong("cache_dir", "a folder of your own", f"{path}, which is another user's")
            free = shutil.disk_usage(path).free
        cached_bytes = sum(size for _, size, _ in _iter_entries(path))
        return cls(path, max_bytes or min(DEFAULT_BYTES, int(MAX_SHARE_OF_FREE * (free + cached_bytes))))

    def open(self, uri: str, part: Part) -> int:
        """Return a file descriptor of the local copy of `uri`, which is fetched if there is none. DatasetError where
        the content is not what the manifest says; errors of the store as they are."""
        path = self.folder / f"{part.sha256}.parquet"
        with self._lock(path):
            descriptor = self._open_cached(path, part)
            if descriptor is None:
                self._make_room(part.bytes)
                descriptor = self._fetch(uri, part, path)
            self._verified.add(part.sha256)
            return descriptor

    def _open_cached(self, path: Path, part: Part) -> int | None:
        """Open the cached copy, if there is a valid one."""
        with map_disk_errors(str(path)):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                is_valid = self._is_valid(descriptor, part)
            except OSError:
                os.close(descriptor)
                raise
        if is_valid:
            with contextlib.suppress(OSError):
                os.utime(path)  # the time of the last use
            return descriptor
        os.close(descriptor)
        return None

    def _is_valid(self, descriptor: int, part: Part) -> bool:
        """Check size and content of the open file: another thread may delete its name."""
        if os.fstat(descriptor).st_size != part.bytes:
            return False
        if part.sha256 in self._verified:
            return True
        with os.fdopen(os.dup(descriptor), "rb") as copy:
            return hashlib.file_digest(copy, "sha256").hexdigest() == part.sha256

    def _fetch(self, uri: str, part: Part, path: Path) -> int:
        """Write a new copy; open it before it has its name, since another thread may delete it from then on."""
        try:
            data = get_store(uri).read(uri)
        except FileNotFoundError:
            raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None
        if (sha256 := hashlib.sha256(data).hexdigest()) != part.sha256:
            raise DatasetError(f"{uri}: expected content with sha256 {part.sha256}, found {sha256}")
        temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
        with map_disk_errors(str(temporary)):
            try:
                temporary.write_bytes(data)
                descriptor = os.open(temporary, os.O_RDONLY)
                try:
                    temporary.replace(path)
                except OSError:
                    os.close(descriptor)
                    raise
                return descriptor
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Delete the least recently used files until `num_bytes` more fit."""
        entries = sorted(_iter_entries(self.folder))
        cached_bytes = sum(size for _, size, _ in entries)
        for last_use, size, path in entries:
            if cached_bytes + num_bytes <= self.max_bytes:
                return
            if path.suffix == ".tmp" and time.time() - last_use < STALE_TEMPORARY_S:
                continue
            path.unlink(missing_ok=True)
            cached_bytes -= size

    @contextlib.contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        """Hold a lock of one file against other processes and threads. Creates the folder again if it was deleted."""
        lock = path.with_suffix(".lock")
        with map_disk_errors(str(lock)):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _iter_entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield (time of the last use, bytes, path) of each cached file."""
    for path in folder.iterdir():
        if path.suffix in (".parquet", ".tmp"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path
