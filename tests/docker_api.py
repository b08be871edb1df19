"""A stand-in for a Docker engine: the documents of its HTTP API that a command asks for, and faults."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest


@dataclass
class Engine:
    """A Docker engine's state (`images` by name, all with `labels`), and requests that fail: those whose path `fails`
    matches, by a reset or a status."""

    images: set[str] = field(default_factory=set)
    labels: dict[str, str] = field(default_factory=dict)
    fails: str = ""
    broken: str = ""
    """Requests whose answer breaks off."""
    status: int = 0
    url: str = ""
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By their ids: state, time of creation and labels."""
    asked: list[str] = field(default_factory=list)
    """All but GET, in their order, with what is behind the question mark."""

    def answer(self, method: str, path: str, query: str = "") -> tuple[int, Any]:
        name = path.partition("/containers/")[2].partition("/")[0]
        if name in self.containers:
            return self._container(method, path, name)
        if path.endswith("/containers/json"):
            return 200, self._listed(parse_qs(query))
        if path.endswith("/_ping"):
            return 200, "OK"
        if path.endswith("/version"):
            return 200, {"ApiVersion": "1.41"}
        if path.endswith("/images/json"):
            return 200, []
        if path.endswith("/info"):
            return 200, {"SecurityOptions": [], "MemTotal": 0}
        if "/containers/" in path:
            return (201 if path.endswith("/create") else 200), {
                "Id": "c0",
                "Warnings": [],
                "StatusCode": 0,
                "Config": {"Tty": False},
            }
        image = path.partition("/images/")[2].removesuffix("/json").replace("%3A", ":")
        if image in self.images:
            return 200, {
                "Id": "sha256:0",
                "Config": {"Entrypoint": None, "Labels": self.labels},
                "Size": 1,
                "RepoTags": [image],
            }
        return 404, {"message": f"No such image: {image}"}

    def _listed(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """List containers by the filters for labels and state; without a state the running ones, or all."""
        filters = json.loads(query.get("filters", ["{}"])[0])
        states = filters.get("status") or ([] if query.get("all") == ["1"] else ["running"])
        selected = {
            name: container for name, container in self.containers.items() if not states or container["state"] in states
        }
        required_labels = filters.get("label", [])
        return [
            {"Id": name}
            for name, container in selected.items()
            if all(_has(container["labels"], label) for label in required_labels)
        ]

    def _container(self, method: str, path: str, name: str) -> tuple[int, Any]:
        container = self.containers[name]
        if method == "DELETE":
            del self.containers[name]
        elif path.endswith("/stop"):
            container["state"] = "exited"
        return 200, {
            "Id": name,
            "Name": f"/{name}",
            "Created": container.get("created", ""),
            "State": {"Status": container["state"]},
            "Config": {"Labels": container["labels"]},
        }


def _has(labels: dict[str, str], filter_text: str) -> bool:
    """Return whether the labels match a filter: `key`, or `key=value`."""
    key, equals, value = filter_text.partition("=")
    return key in labels and (not equals or labels[key] == value)


class _Handler(BaseHTTPRequestHandler):
    engine: ClassVar[Engine]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if self.command != "GET":
            self.engine.asked.append(f"{self.command} {self.path}")
        if length := int(self.headers.get("content-length") or 0):
            self.rfile.read(length)
        if self.engine.fails and re.search(self.engine.fails, path):
            if self.engine.status:
                return self._answer(self.engine.status, {"message": "no"})
            return self._reset(upgraded=path.endswith("/attach"))
        if self.engine.broken and re.search(self.engine.broken, path):
            return self._break_off()
        self._answer(*self.engine.answer(self.command, path, query))

    do_POST = do_DELETE = do_GET

    def _reset(self, upgraded: bool) -> None:
        """The connection's end without a word, as when the engine is killed; where it is upgraded, after that."""
        if upgraded:
            self.wfile.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            self.wfile.write(b"\x01\0\0\0\0\0\0\x04one\n")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _break_off(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{}\r\n")
        self.close_connection = True

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def finish(self) -> None:
        if not self.close_connection or self.connection.fileno() >= 0:
            super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Engine]:
    """An engine at a port of loopback, until the block ends."""
    engine = Engine()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"engine": engine}))
    server.daemon_threads = True
    engine.url = f"tcp://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine that DOCKER_HOST names."""
    with serving() as server:
        monkeypatch.setenv("DOCKER_HOST", server.url)
        yield server
