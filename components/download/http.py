"""A file behind http(s) as a stream that goes on where a broken connection left it."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead, ProtocolError

from imagemill.components.store.errors import MillError, TransientError, UserError
from imagemill.components.store.progress import say
from imagemill.components.store.retry import with_retry
from imagemill.components.store.uri import safe

_pool: urllib3.PoolManager | None = None
STALL_S = 60.0
"""Seconds without a byte, resumptions included, after which a transfer is given up as transient."""


def pool() -> urllib3.PoolManager:
    """One pool with the system's certificates; no retries of its own, ours have a deadline."""
    global _pool
    if _pool is None:
        import os

        cafile = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
        _pool = urllib3.PoolManager(
            maxsize=32, timeout=urllib3.Timeout(connect=3, read=30), ca_certs=cafile or None,
            headers={"User-Agent": "imagemill", "Accept-Encoding": "identity"},
        )  # fmt: skip
    return _pool


def request(method: str, url: str, headers: Mapping[str, str] | None = None, body: bool = False) -> Any:
    """One request, tried again while transient. FileNotFoundError for 404 and 410, UserError for other 4xx."""

    def once() -> Any:
        merged = {**pool().headers, **(headers or {})}
        try:
            answer = pool().request(method, url, headers=merged, preload_content=body, retries=False, redirect=True)
        except urllib3.exceptions.LocationValueError as error:
            raise UserError(f"{safe(url)}: no valid URL: {error}") from None
        except HTTPError as error:
            raise TransientError(f"{safe(url)}: no answer ({type(error).__name__})") from None
        if answer.status < 400 or answer.status == 416:
            return answer
        answer.release_conn()
        raise _status_error(url, answer.status)

    return with_retry(once, f"{method} {safe(url)}")


def _status_error(url: str, status: int) -> Exception:
    if status in (404, 410):
        return FileNotFoundError(safe(url))
    if status >= 500 or status in (408, 425, 429):
        return TransientError(f"{safe(url)}: the server answered {status}")
    return UserError(f"{safe(url)}: expected a file that can be read, the server answered {status}")


def fetch(url: str, limit: int) -> bytes | None:
    """A whole small file, or None where there is none (404). UserError above `limit` bytes."""
    try:
        with HttpFile(url) as file:
            data = io.BufferedReader(file).read(limit + 1)
    except FileNotFoundError:
        return None
    if len(data) > limit:
        raise UserError(f"{safe(url)}: expected at most {limit:,} bytes, found more")
    return data


class HttpFile(io.RawIOBase):
    """A URL as a file: sequential reads stream; a broken connection is resumed by range if the server can.

    Where it can't, the stream starts again and skips what was read, as long as the file is the same
    (ETag or Last-Modified and length). `seek` needs a server with ranges.
    """

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._answer: Any = None
        head = self._connect(0)
        self.length = int(head.headers.get("Content-Length") or 0)
        self.validator = head.headers.get("ETag") or head.headers.get("Last-Modified") or ""
        self.ranges = head.headers.get("Accept-Ranges", "").lower() == "bytes"
        self._answer = head

    def _connect(self, position: int) -> Any:
        headers = {"Range": f"bytes={position}-"} if position else {}
        if position and self.validator and not self.validator.startswith("W/"):
            headers["If-Range"] = self.validator
        answer = request("GET", self._url, headers)
        if position and answer.status != 206:
            self._check_same(answer)
            self._skip(answer, position)
        elif position and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {position}-"):
            raise TransientError(f"{safe(self._url)}: the server answered another range than the one asked for")
        return answer

    def _check_same(self, answer: Any) -> None:
        found = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if found != self.validator or int(answer.headers.get("Content-Length") or 0) != self.length:
            raise TransientError(f"{safe(self._url)}: the file changed while it was read")

    def _skip(self, answer: Any, number: int) -> None:
        while number:
            number -= len(answer.read(min(number, 1 << 20)) or self._lost())

    def _lost(self) -> bytes:
        raise TransientError(f"{safe(self._url)}: the connection broke")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.ranges and self.length > 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.length}[whence] + offset
        if target != self._position:
            self._drop()
            self._position = target
        return target

    def readinto(self, buffer: Any) -> int:
        """Bytes from where the last read ended; resumes until `STALL_S` passed without one."""
        stalled_since: float | None = None
        while True:
            try:
                if self.length and self._position >= self.length:
                    return 0
                if self._answer is None:
                    self._answer = self._connect(self._position)
                data = self._answer.read(len(buffer))
                if not data and self.length and self._position < self.length:
                    raise ProtocolError("the body ended early")
                buffer[: len(data)] = data
                self._position += len(data)
                return len(data)
            except (HTTPError, IncompleteRead, TransientError) as error:
                self._drop()
                stalled_since = stalled_since or time.monotonic()
                if isinstance(error, TransientError) or time.monotonic() - stalled_since > STALL_S:
                    raise error if isinstance(error, MillError) else TransientError(
                        f"{safe(self._url)}: the connection broke after {self._position:,} bytes"
                    ) from None
                say("download", f"the connection broke after {self._position:,} bytes; resuming")
                time.sleep(0.5)

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def close(self) -> None:
        self._drop()
        super().close()
