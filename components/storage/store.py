"""The object store on disk (`LocalStore`), and `get_store`, which picks disk or S3 (s3.py) by the URI."""

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
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from . import uri as uris
from .errors import MillError, TransientError, UserError, with_retry
from .protocol import Entry, Store

if TYPE_CHECKING:
    import pyarrow as pa


_SCRATCH, _DAY_S = ".scratch-", 86_400
CHUNK_BYTES = 8 * 2**20


class LocalStore:
    """A folder. Commits go through a temporary file, fsync and `os.link`, of which one racer wins."""

    def read(self, uri: str) -> bytes:
        with map_disk_errors(uri):
            return Path(uri).read_bytes()

    def open(self, uri: str) -> pa.NativeFile:
        import pyarrow as pa

        with map_disk_errors(uri):
            if Path(uri).stat().st_size == 0:  # mmap refuses an empty file
                return pa.BufferReader(b"")
            return pa.memory_map(uri)

    def stat(self, uri: str) -> Entry | None:
        try:
            status = os.stat(uri)  # noqa: PTH116 (for each file of a source; Path takes as long as the call itself)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a link to itself leads nowhere
                return None
            with map_disk_errors(uri):
                raise
        if not stat.S_ISREG(status.st_mode):
            return None
        return Entry(uri, status.st_size, str(status.st_mtime_ns), status.st_mtime)

    def list(self, uri: str) -> Iterator[Entry]:
        """List recursively; symbolic links are followed, to folders too, except in circles."""
        yield from self._list(uri, ())

    def _list(self, uri: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
        """List a folder; `ancestors`: (device, inode) of the folders above it."""
        with map_disk_errors(uri):
            try:
                status = Path(uri).stat()
                inode = (status.st_dev, status.st_ino)
                if inode in ancestors:
                    return
                with os.scandir(uri) as entries:  # names only: some 80 bytes a file of one folder, not whole entries
                    names = sorted(entry.name + "/" if _is_folder(entry) else entry.name for entry in entries)
            except FileNotFoundError:
                return
        for name in names:
            if name.endswith("/"):
                yield from self._list(f"{uri.rstrip('/')}/{name[:-1]}", (*ancestors, inode))
            elif file := self.stat(f"{uri.rstrip('/')}/{name}"):
                yield file

    def put(self, uri: str, data: bytes) -> None:
        with map_disk_errors(uri), self._temporary(uri, data) as temporary:
            temporary.replace(uri)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        with map_disk_errors(uri), self._temporary(uri, data) as temporary:
            return _link(temporary, uri)

    def discard(self, uri: str) -> None:
        with contextlib.suppress(OSError):
            Path(uri).unlink(missing_ok=True)

    def delete(self, uris: Sequence[str]) -> None:
        for uri in uris:
            with map_disk_errors(uri), contextlib.suppress(NotADirectoryError):  # a file has its folder's name by now
                Path(uri).unlink(missing_ok=True)
        for parent in dict.fromkeys(Path(uri).parent for uri in uris):
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                for folder in (parent, *parent.parents):
                    _remove_only_folder(folder)
                    folder.rmdir()

    def publish(self, path: Path, uri: str) -> None:
        with map_disk_errors(uri):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            if not _link(path, uri) and Path(uri).stat().st_size != path.stat().st_size:
                path.replace(uri)  # the existing file is damaged: the name is a hash of this file's content
            path.unlink(missing_ok=True)

    def scratch(self, uri: str) -> Path:
        """Create the folder below `uri` itself, so that publishing is a hard link and never a copy."""
        with map_disk_errors(uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
            for leftover in Path(uri).glob(f"{_SCRATCH}*"):  # of a step that was killed; no shard takes a day
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - leftover.stat().st_mtime > _DAY_S:
                        shutil.rmtree(leftover, ignore_errors=True)
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


def _remove_only_folder(folder: Path) -> None:
    """Remove an empty folder that is all that `folder` holds, as `_work` in a dataset's; OSError if it is not empty."""
    with os.scandir(folder) as entries:
        first = list(islice(entries, 2))
    if len(first) == 1 and first[0].is_dir(follow_symlinks=False):
        Path(first[0].path).rmdir()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _link(source: Path, uri: str) -> bool:
    """Link `source` to a new name; False if the name exists."""
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
def map_disk_errors(uri: str) -> Iterator[None]:
    """Map OSError to UserError (a wrong path or permission), TransientError (a full or failing disk) or MillError."""
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
def _local_store() -> LocalStore:
    return LocalStore()


def get_store(uri: str) -> Store:
    """Return the store that holds `uri`; connections are shared within the process."""
    if uris.is_s3(uri):
        from .s3 import shared_s3

        return shared_s3()
    return _local_store()


def hash_file(path: Path) -> str:
    """Return the hex sha256 of a local file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_object(uri: str) -> str:
    """Return the hex sha256 of a file on disk or in S3, of which a few MiB are in memory at a time.

    FileNotFoundError where there is none; UserError or TransientError for other errors of the storage.
    """
    if not uris.is_s3(uri):
        with map_disk_errors(uri):
            return hash_file(Path(uri))
    from .s3 import map_s3_errors

    def read() -> str:
        digest = hashlib.sha256()
        with get_store(uri).open(uri) as file, map_s3_errors(uri):
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    return with_retry(read, f"read {uri}")
