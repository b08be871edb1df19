"""Files behind http, from a real server on loopback that breaks, changes, redirects and refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import re
import socket
import struct
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from imagemill.components.download import STEP, streams
from imagemill.components.download.archives import Member
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.sources import ArchiveSource
from imagemill.components.download.streams import HttpFile, fetch
from imagemill.components.storage import errors
from imagemill.components.storage.errors import TransientError, UserError

BODY = b"".join(hashlib.sha256(n.to_bytes(4, "big")).digest() for n in range(20_000))
SECRETS = ("s3cr3t-user", "s3cr3t-pass", "s3cr3t-token")


@dataclass
class Behavior:
    """Behavior of the server: it breaks connections after `breaks[0]`, `breaks[1]`, … bytes of body, then no more."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    advertise: bool = True
    etag: str = '"one"'
    chunked: bool = False
    breaks: list[int] = field(default_factory=list)
    reset: bool = False
    statuses: list[int] = field(default_factory=list)
    change_after: int = 0
    changed: dict[str, bytes] = field(default_factory=dict)
    changed_etag: str = '"two"'
    redirects: dict[str, str] = field(default_factory=dict)
    encoding: str = ""
    authorization: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    base: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behavior: Behavior

    def log_message(self, *_: Any) -> None:
        pass

    def _refuse(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        behavior, path = self.behavior, self.path.partition("?")[0]
        behavior.requests.append((self.path, dict(self.headers)))
        if path in behavior.redirects:
            return self._refuse(302, {"Location": behavior.redirects[path]})
        if behavior.statuses:
            return self._refuse(behavior.statuses.pop(0))
        if behavior.authorization and self.headers.get("Authorization") != behavior.authorization:
            return self._refuse(401)
        changed = bool(behavior.change_after) and len(behavior.requests) > behavior.change_after
        body = (behavior.changed if changed else behavior.files).get(path)
        etag = behavior.changed_etag if changed else behavior.etag
        if body is None:
            return self._refuse(404)
        start = 0
        range_match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if range_match and behavior.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(range_match[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if etag:
            self.send_header("ETag", etag)
        if behavior.ranges and behavior.advertise:
            self.send_header("Accept-Ranges", "bytes")
        if behavior.encoding:
            self.send_header("Content-Encoding", behavior.encoding)
        self.send_header(
            *(("Transfer-Encoding", "chunked") if behavior.chunked else ("Content-Length", str(len(body) - start)))
        )
        self.end_headers()
        remaining = body[start:]
        end = behavior.breaks.pop(0) if behavior.breaks else len(remaining)
        if behavior.chunked:
            for offset in range(0, min(end, len(remaining)), 5000):
                piece = remaining[offset : min(offset + 5000, end)]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if end >= len(remaining):
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(remaining[:end])
        self.wfile.flush()
        if end < len(remaining):
            self.close_connection = True
            if behavior.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Behavior]:
    behavior = Behavior(files={"/file": BODY})
    handler = type("Bound", (Handler,), {"behavior": behavior})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(streams, "RESUME_S", 0.01)
    monkeypatch.setattr(streams, "STALL_S", 0.5)
    monkeypatch.setattr(errors.with_retry, "__defaults__", (1.5,))  # the deadline
    monkeypatch.setattr(errors.random, "uniform", lambda low, high: 0.05)
    behavior.base = f"http://127.0.0.1:{running.server_address[1]}"
    try:
        yield behavior
    finally:
        running.shutdown()
        running.server_close()


def read(url: str, buffer: int = 4 * 2**20) -> bytes:
    with io.BufferedReader(HttpFile(url), buffer) as file:
        return file.read()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_broken_connections_are_resumed_and_the_data_is_the_same(
    server: Behavior, ranges: bool, chunked: bool, reset: bool
) -> None:
    server.ranges, server.chunked, server.reset = ranges, chunked, reset
    server.breaks = [150_000, 5, 100_000, 3] if ranges else [150_000, 5, 300_000, 200_000]
    assert read(f"{server.base}/file") == BODY
    assert len(server.requests) == 5


def test_resumed_transfer_requests_the_missing_range_only(server: Behavior) -> None:
    server.breaks = [300_000]
    assert read(f"{server.base}/file") == BODY
    assert server.requests[1][1]["Range"] == "bytes=300000-"
    assert server.requests[1][1]["If-Range"] == '"one"'


@pytest.mark.parametrize(
    ("breaks", "change_after", "message"),
    [([1000] + [0] * 1000, 0, "broke after 1,000 bytes"), ([1000], 1, "went away")],
    ids=["always breaks", "deleted"],
)
def test_a_transfer_that_cannot_be_resumed_is_a_transient_error(
    server: Behavior, breaks: list[int], change_after: int, message: str
) -> None:
    server.breaks, server.change_after = breaks, change_after
    with pytest.raises(TransientError, match=message):
        read(f"{server.base}/file")


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize(
    "etags", [('"one"', '"two"'), ('W/"one"', 'W/"two"'), ("", "")], ids=["strong", "weak", "none"]
)
def test_file_that_changes_during_a_transfer_is_an_error(
    server: Behavior, ranges: bool, etags: tuple[str, str]
) -> None:
    server.ranges, server.change_after = ranges, 1
    server.etag, server.changed_etag = etags
    server.changed = {"/file": bytes(len(BODY) if etags[0] else len(BODY) + 1)}
    server.breaks = [1000]
    with pytest.raises(TransientError, match="changed while it was read"):
        read(f"{server.base}/file")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (403, UserError), (401, UserError), (400, UserError),
     (500, TransientError), (503, TransientError), (429, TransientError), (408, TransientError)],
)  # fmt: skip
def test_each_status_has_its_error(server: Behavior, status: int, error: type[Exception]) -> None:
    server.statuses = [status] * 50
    with pytest.raises(error) as raised:
        HttpFile(f"{server.base}/file")
    assert isinstance(raised.value, FileNotFoundError) or str(status) in str(raised.value)


def test_a_server_error_is_tried_again(server: Behavior) -> None:
    server.statuses = [500, 503]
    assert read(f"{server.base}/file") == BODY


def test_refused_connection_is_a_transient_error(server: Behavior) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TransientError, match="no answer"):
            HttpFile(f"http://127.0.0.1:{unused.getsockname()[1]}/file")


def test_redirects_are_followed_and_a_redirect_loop_is_a_user_error(server: Behavior) -> None:
    server.redirects = {"/old": f"{server.base}/older", "/older": "/file", "/round": "/round"}
    assert read(f"{server.base}/old") == BODY
    with pytest.raises(UserError, match="redirects"):
        HttpFile(f"{server.base}/round")


def test_password_is_not_sent_to_another_host(server: Behavior) -> None:
    server.authorization = "Basic dXM6cCA="  # us:p and a space
    with_password = server.base.replace("http://", "http://us:p%20@")
    assert read(f"{with_password}/file") == BODY
    server.redirects = {"/away": server.base.replace("127.0.0.1", "localhost") + "/file"}
    with pytest.raises(UserError, match="401"):
        HttpFile(f"{with_password}/away")


def test_content_encoding_is_decoded_in_small_files_only(server: Behavior) -> None:
    server.files, server.encoding = {"/file": gzip.compress(BODY)}, "gzip"
    assert read(f"{server.base}/file") == server.files["/file"]
    assert fetch(f"{server.base}/file", 10**7) == BODY


def test_fetch_returns_none_for_missing_files_and_limits_the_size(server: Behavior) -> None:
    assert fetch(f"{server.base}/nothing", 10) is None
    assert fetch(f"{server.base}/file", len(BODY)) == BODY
    assert fetch(f"{server.base}/file", 10) == BODY[:11]


def test_seeking_reads_the_right_bytes(server: Behavior) -> None:
    with HttpFile(f"{server.base}/file") as file:
        assert file.seekable()
        file.seek(-10, io.SEEK_END)
        assert file.read(100) == BODY[-10:]
        file.seek(77_777)
        assert file.read(5) == BODY[77_777:77_782]
        with pytest.raises(OSError, match="before the file's start"):
            file.seek(-len(BODY) - 1, io.SEEK_END)


@pytest.mark.parametrize(("ranges", "chunked"), [(True, False), (False, False), (True, True)])
def test_a_zip_is_read_with_ranges_and_without(server: Behavior, ranges: bool, chunked: bool) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.jpg", BODY[number * 1000 :][:50_000])
    server.files, server.ranges, server.chunked, server.breaks = {"/x": target.getvalue()}, ranges, chunked, [60_000]
    members = list(ArchiveSource(f"{server.base}/x").members())
    assert members == [Member(f"{number}.jpg", BODY[number * 1000 :][:50_000]) for number in range(5)]


def test_only_sources_with_length_and_validator_have_a_listing(server: Behavior) -> None:
    first = ArchiveSource(f"{server.base}/file").listing()
    assert first and first == ArchiveSource(f"{server.base}/file").listing()
    server.etag = '"other"'
    assert ArchiveSource(f"{server.base}/file").listing() != first
    server.etag = ""
    assert ArchiveSource(f"{server.base}/file").listing() is None
    server.etag, server.chunked = '"one"', True
    assert ArchiveSource(f"{server.base}/file").listing() is None


@pytest.mark.parametrize("url", ["http://", "http:///x", "http://host:99999/x", "http://host:port/x", "http://[::1/x"])
def test_invalid_url_is_a_user_error_without_its_password(url: str) -> None:
    secret = url.replace("://", "://s3cr3t-user:s3cr3t-pass@")
    for source in (url, secret):
        with pytest.raises(UserError) as raised:
            DownloadConfig(dataset="folder", source=source).check()
        assert "s3cr3t" not in str(raised.value)


def everything_below(folder: Path) -> bytes:
    return b"\n".join(str(p).encode() + (p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*"))


def secret_url(base: str, path: str) -> str:
    return base.replace("http://", f"http://{SECRETS[0]}:{SECRETS[1]}@") + f"{path}?token={SECRETS[2]}"


@pytest.mark.parametrize("failure", ["", "statuses", "404", "break", "broken zip", "one class"])
def test_secrets_of_a_url_are_in_no_file_and_no_log(
    server: Behavior, failure: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("cat/1.jpg", BODY)
        archive.writestr("dog/1.jpg", BODY[:900])
    server.files = {"/pets.zip": target.getvalue(), "/1.jpg": BODY, "/2.jpg": BODY[:99]}
    other = "dog" if failure != "one class" else "cat"
    server.files["/t.csv"] = (
        f"path,label\n{secret_url(server.base, '/1.jpg')},cat\n{secret_url(server.base, '/2.jpg')},{other}\n".encode()
    )
    server.statuses = [503] if failure == "statuses" else []
    server.breaks = [30_000] * (failure == "break")
    if failure == "broken zip":
        server.files["/pets.zip"] = server.files["/pets.zip"][:50_000]
    with caplog.at_level(logging.WARNING):
        for number, (dataset, path) in enumerate([("folder", "/pets.zip"), ("csv", "/t.csv")]):
            source = secret_url(server.base, "/none" if failure == "404" else path)
            arguments = ["--dataset", dataset, "--source", source, "--workspace", str(tmp_path)]
            code = STEP.main([*arguments, "--run", f"run{number}", "--result", str(tmp_path / f"result{number}")])
            is_wrong = failure == "404" or (failure, dataset) in [("broken zip", "folder"), ("one class", "csv")]
            assert code == (2 if is_wrong else 0)
    captured = capfd.readouterr()
    outputs = everything_below(tmp_path).decode("latin-1") + captured.out + captured.err + caplog.text
    assert "127.0.0.1" in outputs
    for secret in SECRETS:
        assert secret not in outputs
