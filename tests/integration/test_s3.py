"""Store and pipeline on a real S3 server (Ceph RGW), and their behavior when it fails."""

from __future__ import annotations

import hashlib
import re
import socket
import socketserver
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mill
import pytest

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.storage import uri as uris
from imagemill.components.storage.s3 import S3Store
from imagemill.components.storage.store import CHUNK_BYTES, get_store, hash_object

if TYPE_CHECKING:
    from conftest import Finished
    from rgw import CephRGW

REQUEST = re.compile(rb"(GET|PUT|HEAD|POST|DELETE) (\S+) HTTP")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"


class FaultyProxy(socketserver.ThreadingTCPServer):
    """Proxy on loopback between client and server that drops connections, loses responses, or answers 503 itself.

    `cut_at`: the request (its method and path) at which connections are dropped, until `mend`. `busy`: number of
    requests to answer with 503 SlowDown. `lose_answer`: the request is passed on, and its response is dropped."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = ("127.0.0.1", port)
        self.is_cut = False
        self.busy = 0
        self.cut_at: Callable[[str], bool] = lambda request: False
        self.lose_answer: Callable[[str], bool] = lambda request: False
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def mend(self) -> None:
        self.cut_at, self.is_cut = (lambda request: False), False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore broken connections, which are intended."""


class _Handler(socketserver.BaseRequestHandler):
    server: FaultyProxy

    def handle(self) -> None:
        if self.server.is_cut:
            return
        with socket.create_connection(self.server.upstream) as upstream:
            self._silent = False
            threading.Thread(target=self._answers, args=(upstream,), daemon=True).start()
            while data := self.request.recv(65536):
                if self.server.is_cut or not self._pass(data):
                    return
                upstream.sendall(data)

    def _pass(self, data: bytes) -> bool:
        match = REQUEST.match(data)
        if not match:
            return True
        request = b" ".join(match.groups()).decode()
        proxy = self.server
        with proxy.lock:
            proxy.requests.append(request)
            proxy.is_cut = proxy.is_cut or proxy.cut_at(request)
            busy, proxy.busy = proxy.busy > 0, max(0, proxy.busy - 1)
        if busy:
            head = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(SLOW_DOWN)}\r\n"
            self.request.sendall(head.encode() + b"Connection: close\r\n\r\n" + SLOW_DOWN)
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(65536):
                pass
            return False
        if proxy.lose_answer(request):
            self._silent, proxy.lose_answer = True, lambda request: False
        return not proxy.is_cut

    def _answers(self, upstream: socket.socket) -> None:
        try:
            while data := upstream.recv(65536):
                # "100 Continue" is no answer yet: the body has still to come.
                if self.server.is_cut or (self._silent and not data.startswith(b"HTTP/1.1 100")):
                    break
                self.request.sendall(data)
            self.request.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@contextmanager
def run_proxy(server: CephRGW) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


@pytest.fixture
def proxy(rgw: CephRGW) -> Iterator[FaultyProxy]:
    with run_proxy(rgw) as running:
        yield running


def make_store(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    return S3Store()


def upload_folder(folder: Path, uri: str) -> None:
    """Upload a local workspace into the bucket."""
    store = S3Store()
    for path in folder.rglob("*"):
        if path.is_file() and "runs" not in path.parts:
            store.put(uris.join(uri, str(path.relative_to(folder))), path.read_bytes())


def list_keys(uri: str) -> list[str]:
    return [entry.uri.removeprefix(f"{uri}/") for entry in S3Store().list(uri)]


# One winner


def test_one_of_many_threads_wins(s3_workspace: str) -> None:
    store = S3Store()
    with ThreadPoolExecutor(16) as pool:
        for key in (f"{s3_workspace}/race/{number}.json" for number in range(8)):
            results = list(pool.map(lambda n, key=key: store.put_if_absent(key, b"%d" % n), range(16)))  # type: ignore[misc]
            assert results.count(True) == 1
            assert store.read(key) == b"%d" % results.index(True)


def test_one_of_many_processes_wins(s3_workspace: str) -> None:
    script = (
        "import sys; from imagemill.components.storage.s3 import S3Store; store = S3Store(); print(flush=True)\n"
        "sys.stdin.readline(); place, me = sys.argv[1], sys.argv[2].encode()\n"
        "print([n for n in range(20) if store.put_if_absent(f'{place}/{n}', me)])"
    )
    command = [sys.executable, "-c", script, s3_workspace]
    racers = [
        subprocess.Popen([*command, str(racer)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for racer in range(4)
    ]
    for racer in racers:  # all have their client, so that they start together
        assert racer.stdout and racer.stdout.readline() == "\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    wins = [eval(racer.communicate(timeout=120)[0]) for racer in racers]
    assert sorted(number for numbers in wins for number in numbers) == list(range(20))
    store = S3Store()
    for racer, numbers in enumerate(wins):
        assert {store.read(f"{s3_workspace}/{number}") for number in numbers} <= {str(racer).encode()}


def test_lost_response_still_wins(s3_workspace: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first PUT arrives, its answer does not; the second meets our own object."""
    store = make_store(proxy, monkeypatch)
    proxy.lose_answer = lambda request: request.startswith("PUT")
    assert store.put_if_absent(f"{s3_workspace}/mine", b"mine")
    assert [r.split()[0] for r in proxy.requests] == ["PUT", "PUT", "GET"]
    proxy.lose_answer = lambda request: request.startswith("PUT")
    assert not store.put_if_absent(f"{s3_workspace}/mine", b"another's")


# A server that is busy


def test_busy_server_is_retried(
    s3_workspace: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from conftest import forget_s3_clients

    store, uri = make_store(proxy, monkeypatch), f"{s3_workspace}/busy"
    (tmp_path / "file").write_bytes(b"content")

    def read_by_open() -> bytes:
        forget_s3_clients()
        with store.open(uri) as file:
            return bytes(file.read())

    operations: list[tuple[Callable[[], object], object]] = [
        (lambda: store.put_if_absent(uri, b"content"), True),
        (lambda: store.read(uri), b"content"),
        (lambda: [entry.size for entry in store.list(s3_workspace)], [7]),
        (lambda: store.stat(uri).size, 7),  # type: ignore[union-attr]
        (lambda: store.publish(tmp_path / "file", f"{uri}-2"), None),
        (read_by_open, b"content"),
    ]
    for operation, expected in operations:
        proxy.busy = 2
        assert operation() == expected
        assert proxy.busy == 0


# What is wrong from the start


def run_refused(*arguments: str, env: dict[str, str]) -> mill.Result:
    result = mill.run("run", "--json", *arguments, env=env)
    assert result.rc == 2, result.stderr
    assert "Traceback" not in result.stderr and result.json["exit_code"] == 2
    assert result.worked < 5 and "trying again" not in result.stderr
    return result


def test_wrong_credentials(s3_workspace: str, rgw: CephRGW) -> None:
    for wrong in ({"AWS_SECRET_ACCESS_KEY": "no-such-secret-0123"}, {"AWS_ACCESS_KEY_ID": "NOSUCHKEY0123456"}):
        result = run_refused("--workspace", s3_workspace, env=wrong)
        assert "expected credentials that may use it" in result.error and s3_workspace in result.error
        for secret in (rgw.secret_key, *wrong.values()):
            assert secret not in result.stderr + result.stdout


def test_no_credentials(s3_workspace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    result = run_refused("--workspace", s3_workspace, env={"HOME": str(tmp_path)})
    assert "expected S3 credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in result.error


def test_invalid_endpoint(s3_workspace: str) -> None:
    assert "AWS_ENDPOINT_URL" in run_refused("--workspace", s3_workspace, env={"AWS_ENDPOINT_URL": "not a url"}).error


# The pipeline


IMPATIENT_COMMAND = """
import sys
from imagemill.components.storage import errors
errors.with_retry.__defaults__ = (6.0,)
from imagemill.pipelines.cli.main import main
sys.exit(main())
"""
"""The command, trying a request for six seconds only."""
CUTS = {
    # The new dataset's flags, and the request in the middle of the step at which the wire is cut.
    "clean, reading": ("clean", "raw", ["--color", "gray"], r"GET \S+/raw/_shards/part-"),
    "clean, writing": ("clean", "raw", ["--color", "gray"], r"PUT \S+/parts/clean/"),
    "resize, reading": ("resize", "clean", ["--image-size", "24"], r"GET \S+/clean/\w+/data/\w+/part-(?s:.*)"),
    "resize, writing": ("resize", "clean", ["--image-size", "24"], r"PUT \S+/parts/tensors/"),
}
QUICK_CUTS = ("clean, writing", "resize, writing")


@pytest.mark.parametrize(
    "cases", [QUICK_CUTS, pytest.param(("clean, reading", "resize, reading"), marks=pytest.mark.proof)]
)
def test_lost_connection_rejects_no_image(
    cases: tuple[str, ...],
    s3_workspace: str,
    rgw: CephRGW,
    finished_once: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 75, nothing rejected, nothing committed; when the wire is mended the same command completes."""
    monkeypatch.setattr(mill, "COMMAND", [sys.executable, "-c", IMPATIENT_COMMAND])
    upload_folder(finished_once.workspace, s3_workspace)
    before = set(list_keys(s3_workspace))
    with ThreadPoolExecutor(len(cases)) as pool:
        for check in [pool.submit(_check_cut, case, s3_workspace, rgw, finished_once, before) for case in cases]:
            check.result()


def _check_cut(case: str, workspace: str, rgw: CephRGW, finished: Finished, before: set[str]) -> None:
    step, parent, flags, request = CUTS[case]
    kind = {"clean": "clean", "resize": "tensors"}[step]
    parent_uri = f"{workspace}/{parent}/{Path(finished.result.json[parent]).name}"
    words = [step, f"--{parent}", parent_uri, "--workspace", workspace, "--name", "photos", *flags]
    with run_proxy(rgw) as proxy:
        proxy.cut_at = lambda line: bool(re.match(request, line))
        cut = mill.run(*words, env={"AWS_ENDPOINT_URL": proxy.endpoint})
        assert proxy.is_cut, f"the step never came to {request}"
        assert cut.rc == 75, cut.stderr
        assert "Traceback" not in cut.stderr
        new = [key for key in list_keys(workspace) if key not in before and key.startswith(f"{kind}/")]
        assert not [key for key in new if key.endswith("_manifest.json") or "/rejected/" in key]
        proxy.mend()
        mended = mill.run(*words, env={"AWS_ENDPOINT_URL": proxy.endpoint})
        assert mended.rc == 0, mended.stderr
    manifests = [
        key for key in list_keys(workspace) if key not in before and re.match(rf"{kind}/\w+/_manifest.json$", key)
    ]
    assert len(manifests) == 1
    totals = read_dataset(f"{workspace}/{manifests[0].removesuffix('/_manifest.json')}", kind).manifest.totals
    assert (totals.rows, totals.rejected) == (60, 0)


def test_object_is_hashed_in_chunks(s3_workspace: str) -> None:
    """Weights may be larger than the pod that only has to tell whether they are known."""
    uri = f"{s3_workspace}/weights.safetensors"
    with pytest.raises(FileNotFoundError):
        hash_object(uri)
    data = b"".join(number.to_bytes(8, "big") for number in range(5 * CHUNK_BYTES // 8 + 3))
    get_store(uri).put(uri, data)
    expected = hashlib.sha256(data).hexdigest()
    del data
    tracemalloc.start()
    try:
        assert hash_object(uri) == expected
        assert tracemalloc.get_traced_memory()[1] < 3 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
