"""Single files as streams: from disk, S3 or http, with the errors and retries of each."""

from __future__ import annotations

import errno
import io
import os
import time
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, ProtocolError

from ..step.progress import say
from ..storage import uri as uris
from ..storage.errors import TransientError, UserError, with_retry, wrong
from ..storage.s3 import map_s3_errors
from ..storage.store import get_store
from ..storage.uri import redact
from .archives import BUFFER


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


STALL_S = 60.0
"""Seconds without a byte, resumptions included, after which a transfer fails as transient."""
RESUME_S = 0.5
CHUNK_BYTES = 2**16
"""Bytes read at a time, which are at most lost when a connection breaks."""
_REDIRECTS = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=5)


@cache
def get_pool() -> urllib3.PoolManager:
    """Return the process's connection pool, with the system's certificates; `with_retry` retries, with a deadline."""
    cafile = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    return urllib3.PoolManager(
        maxsize=256, timeout=urllib3.Timeout(connect=3, read=30), ca_certs=cafile or None,
        headers={"User-Agent": "imagemill", "Accept-Encoding": "identity"},
    )  # fmt: skip


def request(method: str, url: str, headers: Mapping[str, str] | None = None, body: bool = False) -> Any:
    """Send a request, again while its error is transient. FileNotFoundError for 404 and 410, UserError for other 4xx.

    The URL is one that `check_uri` passed. Redirects are followed; a user name and password in it go into the
    header and never to another host.
    """

    def send() -> Any:
        merged = {**get_pool().headers, **_make_authorization(url), **(headers or {})}
        try:
            response = get_pool().request(
                method, url, headers=merged, preload_content=body, decode_content=False, retries=_REDIRECTS
            )
        except urllib3.exceptions.LocationValueError:  # its text may hold the whole URL
            raise UserError(
                f"{redact(url)}: expected a valid http(s) URL, found it or its redirect to be none"
            ) from None
        except urllib3.exceptions.MaxRetryError as error:
            if isinstance(error.reason, urllib3.exceptions.ResponseError):
                raise UserError(f"{redact(url)}: expected a file, found more than 5 redirects") from None
            raise TransientError(f"{redact(url)}: no answer ({type(error.reason).__name__})") from None
        except HTTPError as error:
            raise TransientError(f"{redact(url)}: no answer ({type(error).__name__})") from None
        if response.status in (200, 206, 416):
            return response
        response.close()
        raise _make_status_error(url, response.status)

    return with_retry(send, f"{method} {redact(url)}")


def _make_authorization(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    return urllib3.make_headers(basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}")


def _make_status_error(url: str, status: int) -> Exception:
    if status in (404, 410):
        return FileNotFoundError(redact(url))
    if status >= 500 or status in (408, 425, 429):
        return TransientError(f"{redact(url)}: the server answered {status}")
    return UserError(f"{redact(url)}: expected a file that can be read, the server answered {status}")


def fetch(url: str, limit: int) -> bytes | None:
    """Return the content of a small file, or None for 404; of a file above `limit` bytes the first `limit` + 1."""
    try:
        with HttpFile(url) as file:
            data = io.BufferedReader(file).read(limit + 1)
            encoding = file.encoding
    except FileNotFoundError:
        return None
    if "gzip" in encoding and data[:2] == b"\x1f\x8b":  # some servers encode despite Accept-Encoding
        try:
            return zlib.decompressobj(31).decompress(data, limit + 1)
        except zlib.error:
            raise TransientError(f"{redact(url)}: the server's gzip encoding is broken") from None
    return data


def _parse_length(text: str | None) -> int:
    """Return the length in a header, or 0 where it is missing or invalid."""
    return int(text) if text and text.isascii() and text.isdigit() else 0


class HttpFile(io.RawIOBase):
    """A URL as a file: sequential reads stream; a broken connection is resumed by range if the server can.

    Where it can't, the stream starts again and discards what was read before. Either way the file must be the same
    (ETag or Last-Modified, and length), else TransientError: two files are never mixed. `seek` needs a server
    with ranges. The bytes are the server's own: a Content-Encoding is not undone.
    """

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._response: Any = None
        head = request("GET", url)
        self.length = _parse_length(head.headers.get("Content-Length"))
        self._etag, self._modified = head.headers.get("ETag", ""), head.headers.get("Last-Modified", "")
        self.validator = self._etag or self._modified
        self.ranges = head.headers.get("Accept-Ranges", "").lower() == "bytes"
        self.encoding = head.headers.get("Content-Encoding", "").lower()
        self._response = head

    def _connect(self, position: int) -> Any:
        """Request the same file as before, from `position` on."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        if position and self.validator and not self.validator.startswith("W/"):
            headers["If-Range"] = self.validator
        response = request("GET", self._url, headers)
        try:
            if position and response.status == 206:
                span, _, total = str(response.headers.get("Content-Range", "")).partition("/")
                if not span.startswith(f"bytes {position}-"):
                    raise TransientError(
                        f"{redact(self._url)}: the server answered another range than the one asked for"
                    )
                self._check_same(response, self.length and (_parse_length(total) or self.length))  # 0: unknown
            else:
                self._check_same(response, _parse_length(response.headers.get("Content-Length")))
                self._discard(response, position)
        except BaseException:  # also an interrupt: a connection with an unread body must not go back to the pool
            response.close()
            raise
        return response

    def _check_same(self, response: Any, length: int) -> None:
        """Raise TransientError for another file; a partial response may leave out a validator, but not change it."""
        etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        is_partial = response.status == 206
        is_same_etag = etag == self._etag or (is_partial and not etag)
        is_same_date = modified == self._modified or (is_partial and not modified)
        if not is_same_etag or not (self._etag or is_same_date) or length != self.length or response.status == 416:
            raise TransientError(f"{redact(self._url)}: the file changed while it was read")

    def _discard(self, response: Any, number: int) -> None:
        while number:
            data = response.read(min(number, CHUNK_BYTES))
            if not data:
                raise ProtocolError("the body ended early")
            number -= len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.ranges and self.length > 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence] + offset
        if target < 0:
            raise OSError(errno.EINVAL, "a position before the file's start")
        if target != self._position:
            self._disconnect()
            self._position = target
        return target

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the position; resumes until `STALL_S` seconds passed without one."""
        stalled_since: float | None = None
        while True:
            try:
                if self.length and self._position >= self.length:
                    return 0
                if self._response is None:
                    self._response = self._connect(self._position)
                data = self._response.read(min(len(buffer), CHUNK_BYTES))
                if not data and self.length and self._position < self.length:
                    raise ProtocolError("the body ended early")
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            except FileNotFoundError:
                raise TransientError(f"{redact(self._url)}: the file went away while it was read") from None
            except HTTPError:
                self._disconnect()
                stalled_since = stalled_since or time.monotonic()
                if time.monotonic() - stalled_since > STALL_S:
                    raise TransientError(
                        f"{redact(self._url)}: the connection broke after {self._position:,} bytes"
                    ) from None
                say("download", f"the connection broke after {self._position:,} bytes; resuming")
                time.sleep(RESUME_S)

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        self._disconnect()
        super().close()
