"""Single files as streams: from disk, S3 or http, with the errors and retries of each."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from ..storage import uri as uris
from ..storage.errors import TransientError, UserError, wrong
from ..storage.retry import with_retry
from ..storage.s3 import map_s3_errors
from ..storage.store import get_store
from .archives import BUFFER
from .http import HttpFile, fetch


def open_stream(uri: str, field: str = "source") -> io.BufferedReader:
    """Open any single file as a buffered stream that survives broken connections.

    A local file is read, not mapped: one that shrinks meanwhile is then an error, and not SIGBUS.
    """
    if uris.is_http(uri):
        raw: Any = open_http(uri, field)
    elif uris.is_s3(uri):
        raw = _S3Stream(uri)
    else:
        try:
            raw = io.FileIO(uri)
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{uri}: {os.strerror(error.errno or 0)} (expected a file that can be read)") from None
    return io.BufferedReader(raw, BUFFER)


def open_http(uri: str, field: str) -> HttpFile:
    try:
        return HttpFile(uri)
    except FileNotFoundError:
        raise wrong(field, "a file that is there", uris.redact(uri)) from None


class _S3Stream(io.RawIOBase):
    """A file on S3, with the errors and retries of the store; each read requests a range."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = get_store(uri).open(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        position = self._file.tell()

        def read() -> bytes:
            try:
                with map_s3_errors(self._uri):
                    self._file.seek(position)
                    return bytes(self._file.read(len(buffer)))
            except OSError as error:  # not to be taken for a damaged archive
                raise TransientError(f"{self._uri}: the store broke off ({type(error).__name__})") from None

        data = with_retry(read, f"read {self._uri}")
        buffer[: len(data)] = data
        return len(data)


def read_small(uri: str, field: str, limit: int = 512 * 2**20) -> bytes:
    """Read a small file from anywhere; UserError if it does not exist or is larger than `limit` bytes."""
    if uris.is_http(uri):
        data = fetch(uri, limit)
        if data is None:
            raise wrong(field, "a file that is there", uris.redact(uri))
        if len(data) > limit:
            raise UserError(f"{field}: expected at most {limit:,} bytes, found more in {uris.redact(uri)}")
        return data
    absolute = uris.normalize(uri, field)
    entry = get_store(absolute).stat(absolute)
    if entry is None:
        folder = " (a folder)" if not uris.is_s3(absolute) and Path(absolute).is_dir() else ""
        raise UserError(f"{wrong(field, 'a file that is there', uri)}{folder}")
    if entry.size > limit:
        raise UserError(f"{field}: expected at most {limit:,} bytes, found {entry.size:,} in {uri}")
    return get_store(absolute).read(absolute)
