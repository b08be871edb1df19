"""A folder on disk as an object store; `store_for` picks the store a URI belongs to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from . import uri as uris
from .errors import MillError, TransientError, UserError
from .objects import Entry, Store

if TYPE_CHECKING:
    import pyarrow as pa


_SCRATCH, _DAY_S = ".scratch-", 86_400
PIECE_BYTES = 8 * 2**20


class LocalStore:
    """A folder. Commits go through a temporary file, fsync and `os.link`, of which one racer wins."""

    def read(self, uri: str) -> bytes:
        with disk_errors(uri):
            return Path(uri).read_bytes()

    def open(self, uri: str) -> pa.NativeFile:
        import pyarrow as pa

        with disk_errors(uri):
            if Path(uri).stat().st_size == 0:  # mmap refuses an empty file
                return pa.BufferReader(b"")
            return pa.memory_map(uri)

    def stat(self, uri: str) -> Entry | None:
        with disk_errors(uri):
            try:
                found = Path(uri).stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link to itself leads nowhere
                    return None
                raise
            return Entry(uri, found.st_size, str(found.st_mtime_ns)) if stat.S_ISREG(found.st_mode) else None

    def list(self, uri: str) -> Iterator[Entry]:
        """Symbolic links are followed, to folders too, but never into a circle."""
        yield from self._list(uri, ())

    def _list(self, uri: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        with disk_errors(uri):
            try:
                about = Path(uri).stat()
                if (about.st_dev, about.st_ino) in above:
                    return
                with os.scandir(uri) as found:  # names only: some 80 bytes a file of one folder, not whole entries
                    names = sorted(e.name + "/" if _is_folder(e) else e.name for e in found)
            except FileNotFoundError:
                return
        for name in names:
            if name.endswith("/"):
                yield from self._list(f"{uri.rstrip('/')}/{name[:-1]}", (*above, (about.st_dev, about.st_ino)))
            elif entry := self.stat(f"{uri.rstrip('/')}/{name}"):
                yield entry

    def put(self, uri: str, data: bytes) -> None:
        with disk_errors(uri), self._temporary(uri, data) as temporary:
            temporary.replace(uri)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        with disk_errors(uri), self._temporary(uri, data) as temporary:
            return _link(temporary, uri)

    def discard(self, uri: str) -> None:
        with contextlib.suppress(OSError):
            Path(uri).unlink(missing_ok=True)

    def publish(self, path: Path, uri: str) -> None:
        with disk_errors(uri):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            if not _link(path, uri) and Path(uri).stat().st_size != path.stat().st_size:
                path.replace(uri)  # damaged: the name says the content, so this is what belongs here
            path.unlink(missing_ok=True)

    def scratch(self, uri: str) -> Path:
        """Below `uri` itself, so that publishing is a link and never a copy."""
        with disk_errors(uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
            for left in Path(uri).glob(f"{_SCRATCH}*"):  # by a step that was killed; no shard takes a day
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _DAY_S:
                        shutil.rmtree(left, ignore_errors=True)
            return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=uri))

    @contextlib.contextmanager
    def _temporary(self, uri: str, data: bytes) -> Iterator[Path]:
        target = Path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _link(source: Path, uri: str) -> bool:
    try:
        os.link(source, uri)
    except FileExistsError:
        return False
    folder = os.open(Path(uri).parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power cut, not only the bytes
    finally:
        os.close(folder)
    return True


@contextlib.contextmanager
def disk_errors(uri: str) -> Iterator[None]:
    """OSError by whose it is: a wrong path or permission is the user's, a full or failing disk may pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise UserError(f"{uri}: {os.strerror(error.errno or 0)} (expected a path that can be used)") from error
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            raise UserError(f"{uri}: {os.strerror(error.errno)}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            raise TransientError(f"{uri}: {os.strerror(error.errno)}") from error
        raise MillError(f"{uri}: {error}") from error


@cache
def _local() -> LocalStore:
    return LocalStore()


def store_for(uri: str) -> Store:
    """The store that holds `uri`; connections are shared within the process."""
    if uris.is_s3(uri):
        from .s3 import shared_s3

        return shared_s3()
    return _local()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a local file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(uri: str) -> str:
    """Hex sha256 of a file on a disk or in S3, of which a few MiB are in memory at a time.

    FileNotFoundError where there is none; UserError or TransientError for other errors of the storage.
    """
    if not uris.is_s3(uri):
        with disk_errors(uri):
            return sha256_file(Path(uri))
    from .retry import with_retry
    from .s3 import s3_errors

    def read() -> str:
        digest = hashlib.sha256()
        with store_for(uri).open(uri) as file, s3_errors(uri):
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    return with_retry(read, f"read {uri}")
