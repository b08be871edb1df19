"""A local cache of tensor files that lie elsewhere: bounded, shared by processes, and nothing in it is taken on trust.

A file's name is the hash of its content. A copy is checked by sha256 when it is made, and again when a process first
meets one that another has made. The oldest ones go when there is no room; a file in use stays readable though its name
is gone.
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

from ..store.errors import DatasetError, wrong
from ..store.filesystem import get_store, map_disk_errors
from ..store.manifest import File

USUAL_BYTES = 20 * 10**9
SHARE_OF_FREE = 0.5
BEING_WRITTEN_S = 3600
"""A temporary file that is older was left by a process that was killed."""


@dataclass
class ShardCache:
    """At most `most` bytes in `folder` (but for a file that is larger alone)."""

    folder: Path
    most: int
    _checked: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, folder: str = "", most: int | None = None) -> ShardCache:
        """The cache in `folder` (default: the user's own below the system's temporary folder), which is made; `most`
        bytes (default: 20 GB, or half of what is free there). UserError where somebody else has put the default there,
        who could change what was checked."""
        place = Path(folder) if folder else Path(tempfile.gettempdir()) / f"imagemill-cache-{os.getuid()}"
        with map_disk_errors(str(place)):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder and place.lstat().st_uid != os.getuid():
                raise wrong("cache_dir", "a folder of your own", f"{place}, which is another user's")
            free = shutil.disk_usage(place).free
        held = sum(size for _, size, _ in _entries(place))
        return cls(place, most or min(USUAL_BYTES, int(SHARE_OF_FREE * (free + held))))

    def open(self, uri: str, file: File) -> int:
        """A file descriptor of the local copy of `uri`, fetched if there is none. DatasetError where the content is not
        what the manifest says; errors of the store as they are."""
        path = self.folder / f"{file.sha256}{Path(file.uri).suffix}"
        with self._alone(path):
            found = self._there(path, file)
            if found is None:
                self._make_room(file.bytes)
                found = self._fetch(uri, file, path)
            self._checked.add(file.sha256)
            return found

    def _there(self, path: Path, file: File) -> int | None:
        """The copy that is there, if it is what it should be."""
        with map_disk_errors(str(path)):
            try:
                found = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                right = self._is_right(found, file)
            except OSError:
                os.close(found)
                raise
        if right:
            with contextlib.suppress(OSError):
                os.utime(path)  # the oldest go first
            return found
        os.close(found)
        return None

    def _is_right(self, found: int, file: File) -> bool:
        """By what is open: another thread may take the name away."""
        if os.fstat(found).st_size != file.bytes:
            return False
        if file.sha256 in self._checked:
            return True
        with os.fdopen(os.dup(found), "rb") as copy:
            return hashlib.file_digest(copy, "sha256").hexdigest() == file.sha256

    def _fetch(self, uri: str, file: File, path: Path) -> int:
        """The new copy, opened before it has its name: from then on another thread that makes room may delete it."""
        try:
            data = get_store(uri).read(uri)
        except FileNotFoundError:
            raise DatasetError(f"{uri}: expected a file that the manifest lists, found none") from None
        if (content := hashlib.sha256(data).hexdigest()) != file.sha256:
            raise DatasetError(f"{uri}: expected content with sha256 {file.sha256}, found {content}")
        temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
        with map_disk_errors(str(temporary)):
            try:
                temporary.write_bytes(data)
                found = os.open(temporary, os.O_RDONLY)
                try:
                    temporary.replace(path)
                except OSError:
                    os.close(found)
                    raise
                return found
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        entries = sorted(_entries(self.folder))
        held = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            if held + wanted <= self.most:
                return
            if path.suffix == ".tmp" and time.time() - used < BEING_WRITTEN_S:
                continue
            path.unlink(missing_ok=True)
            held -= size

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """One process or thread at a time for one file; the others find it there. A folder that somebody has cleared
        away since is made again."""
        lock = path.with_suffix(".lock")
        with map_disk_errors(str(lock)):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(time of the last use, bytes, path) of what is in the cache."""
    for path in folder.iterdir():
        if path.suffix in (".parquet", ".tmp"):
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                yield about.st_mtime, about.st_size, path
