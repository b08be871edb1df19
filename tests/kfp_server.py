"""A server that speaks Kubeflow Pipelines' API v2beta1 over real HTTP, for KFP's real client, and its pages' routes.

Logins are asked for and faults injected here: before a request has its effect, or after it.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kfp_state import KfpService, Refused

__all__ = ["KfpService", "serving"]

LOGIN_PAGE = "<!DOCTYPE html><html><title>Log in to Your Account</title><body>dex</body></html>"


class _Handler(BaseHTTPRequestHandler):
    service: KfpService
    open_ones: set[socket.socket]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    """Else each answer waits 40 ms between its head and its body."""

    def setup(self) -> None:
        super().setup()
        self.open_ones.add(self.connection)

    def finish(self) -> None:
        self.open_ones.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._do()

    do_POST = do_DELETE = do_GET

    def _do(self) -> None:
        parts = urlsplit(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        content = self.rfile.read(int(headers.get("content-length", 0)))
        self.service.requests.append((self.command, parts.path, headers))
        if self.service.on_request:
            self.service.on_request(self.command, parts.path)
        fault = next((f for f in self.service.faults if f.matches(self.command, parts.path)), None)
        if fault:
            fault.times -= 1
            if self._fault(fault.kind):
                return
        if self.service.refuse(headers):
            return self._send(401, "Jwt verification fails" if self.service.token else LOGIN_PAGE, "text/html")
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        if response := self.service.storage.answer(parts.path, query, content):
            return self._send_bytes(*response)
        try:
            answer = self.service.answer(self.command, parts.path, query, _body(headers, content))
        except Refused as error:
            text = {"error": str(error), "code": error.code, "message": str(error), "details": []}
            return self._send(error.status, json.dumps(text), "application/json")
        if fault and fault.kind == "drop after":
            return self._drop()
        self._send(200, json.dumps(answer), "application/json")

    def _fault(self, kind: str) -> bool:
        if kind == "drop":
            self._drop()
        elif kind == "hang":
            time.sleep(1.5)
            self._drop()
        elif kind == "html":
            self._send(200, LOGIN_PAGE, "text/html; charset=utf-8")
        elif kind == "404 plain":
            self._send(404, "404 page not found", "text/plain")
        elif kind.isdigit():
            text = {"error": "no healthy upstream", "code": 14, "message": "no healthy upstream"}
            self._send(int(kind), json.dumps(text), "application/json")
        else:
            return False
        return True

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the client may be gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, text: str, kind: str) -> None:
        self._send_bytes(status, text.encode(), kind)

    def _send_bytes(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _body(headers: dict[str, str], content: bytes) -> Any:
    kind = headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
        parts = message.iter_parts()  # type: ignore[attr-defined]
        return {p.get_param("name", header="content-disposition"): (p.get_filename(), p.get_content()) for p in parts}
    return json.loads(content) if content else None


@contextmanager
def serving(service: KfpService, port: int = 0) -> Iterator[KfpService]:
    """The service on a port of loopback, until the block ends."""
    connections: set[socket.socket] = set()
    handler = type("Handler", (_Handler,), {"service": service, "open_ones": connections})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in list(connections):  # as with a process that ends; clients keep connections
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
