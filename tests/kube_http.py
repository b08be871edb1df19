"""Request handler of the Kubernetes API test server, with injected faults."""

from __future__ import annotations

import contextlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from kube_api import Fault, KubeApi

Json = dict[str, Any]
NAMESPACE = "mill"
RAYJOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
KINDS = {
    RAYJOBS: ("RayJob", "ray.io/v1", "rayjobs"),
    PODS: ("Pod", "v1", "pods"),
    EVENTS: ("Event", "v1", "events"),
}


class Handler(BaseHTTPRequestHandler):
    kube: KubeApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    broken_after: int | None = None
    """Bytes of the answer's body after which the connection breaks off."""
    lost = False

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PATCH(self) -> None:
        self._serve("PATCH")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self.kube.requests.append(f"{method} {self.path}")
        self.broken_after, self.lost = None, False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.headers.get("Authorization") not in ("Bearer the-token", "Bearer the-mounted-token"):
                return self._status(401, "Unauthorized")
            if (fault := self._fault(method)) and self._suffer(fault):
                return None
            return self._answer(method, body)
        return None

    def _fault(self, method: str) -> Fault | None:
        with self.kube.changed:
            for fault in self.kube.faults:
                if fault.times and fault.method == method and fault.part in self.path:
                    fault.times -= 1
                    return fault
        return None

    def _suffer(self, fault: Fault) -> bool:
        """Inject the fault of a request; return whether it was the response."""
        time.sleep(fault.wait_s)
        if fault.ignored:
            self.lost = True
        elif fault.status:
            self._status(fault.status, fault.body)
            return True
        elif fault.wait_s == 0:
            self.broken_after = fault.after
        return False

    def _answer(self, method: str, body: Json) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, name, subresource = _place(url.path)
        if kind is None:
            return self._send(404, b"404 page not found\n", "text/plain")
        if subresource == "/log":
            return self._log(name, query)
        if method == "POST":
            return self._create(kind, body)
        if not name:
            return self._watch(kind, query) if query.get("watch") else self._list(kind, query)
        document: Json | None = self.kube.objects[kind].get(name)
        if method == "PATCH" and self.headers["Content-Type"] != "application/merge-patch+json":
            return self._status(415, "the body of the request was in an unknown format")  # as of any custom resource
        if document is not None and method == "PATCH":
            document = self.kube.update(kind, name, body)
        elif document is not None and method == "DELETE":
            self.kube.deletions.append(body)
            if body.get("preconditions", {}).get("uid", document["metadata"]["uid"]) != document["metadata"]["uid"]:
                return self._status(409, "Precondition failed: UID in precondition", "Conflict")
            document = self.kube.delete(name)
        return self._json(200, document) if document else self._missing(kind, name)

    def _create(self, kind: str, body: Json) -> None:
        name = body["metadata"]["name"]
        if name in self.kube.objects[kind]:
            return self._status(409, f'{KINDS[kind][2]}.ray.io "{name}" already exists', "AlreadyExists")
        document = self.kube.put(kind, body)
        self.kube.created.append(document)
        self.kube.play(document)
        return self._json(201, document)

    def _list(self, kind: str, query: dict[str, str]) -> None:
        items = [document for document in self.kube.objects[kind].values() if _matches(document, query)]
        metadata = {"resourceVersion": str(self.kube.version)}
        self._json(200, {"kind": KINDS[kind][0] + "List", "apiVersion": KINDS[kind][1], "metadata": metadata,
                         "items": items})  # fmt: skip

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        api, version_seen, until = (
            self.kube,
            int(query["resourceVersion"]),
            time.monotonic() + int(query["timeoutSeconds"]),
        )
        self._begin_chunks("application/json")
        if version_seen < api.oldest:
            expired = _status_document(410, f"too old resource version: {version_seen} ({api.oldest})", "Expired")
            self._chunk(json.dumps({"type": "ERROR", "object": expired}).encode() + b"\n")
            return self._end_chunks()
        while not api.closed and time.monotonic() < until:
            with api.changed:
                new = [
                    event
                    for event in api.events
                    if event[0] > version_seen and event[1] == kind and _matches(event[3], query)
                ]
                if not new:
                    api.changed.wait(0.2)
            for version, _, change, document in new:
                self._chunk(json.dumps({"type": change, "object": document}).encode() + b"\n")
                version_seen = version
        return self._end_chunks()

    def _log(self, pod: str, query: dict[str, str]) -> None:
        api, sent = self.kube, 0
        if pod not in api.objects[PODS]:
            return self._missing(PODS, pod)
        self._begin_chunks("text/plain")
        while True:
            with api.changed:
                lines, pod_document = api.logs.get(pod, [])[sent:], api.objects[PODS].get(pod)
                over = api.closed or pod_document is None or pod_document["status"]["phase"] in ("Succeeded", "Failed")
                if not lines and not over:
                    api.changed.wait(0.2)
            for line in lines:
                self._chunk(line)
            sent += len(lines)
            if not lines and (over or not query.get("follow")):
                return self._end_chunks()

    # Answers

    def _missing(self, kind: str, name: str) -> None:
        plural = KINDS[kind][2] + (".ray.io" if kind == RAYJOBS else "")
        self._status(404, f'{plural} "{name}" not found', "NotFound", {"name": name, "kind": KINDS[kind][2]})

    def _status(self, code: int, message: str | Json, reason: str = "", details: Json | None = None) -> None:
        if isinstance(message, dict):
            self._json(code, message)
        elif code in (200, 404) and not reason:
            self._send(code, message.encode(), "text/plain")
        else:
            reasons = {403: "Forbidden", 422: "Invalid", 500: "InternalError", 503: "ServiceUnavailable"}
            self._json(code, _status_document(code, message, reason or reasons.get(code, ""), details))

    def _json(self, code: int, document: Json) -> None:
        self._send(code, json.dumps(document).encode(), "application/json")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        if self.lost:
            self.close_connection = True
            return
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.broken_after is not None:
            self.wfile.write(body[: self.broken_after])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _begin_chunks(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        if self.broken_after is not None:
            data, remaining = data[: self.broken_after], self.broken_after - len(data)
            self.broken_after = max(remaining, 0)
        if data:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        if self.broken_after == 0:
            self.close_connection = True
            raise BrokenPipeError

    def _end_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


def _place(path: str) -> tuple[str | None, str, str]:
    """The kind, the name and what comes after it."""
    for kind in KINDS:
        if match := re.fullmatch(rf"{kind}(?:/([^/]+))?(/log)?", path):
            return kind, match[1] or "", match[2] or ""
    return None, "", ""


def _matches(document: Json, query: dict[str, str]) -> bool:
    """Equality selectors, as they are used here."""
    labels = document["metadata"].get("labels") or {}
    label_pairs = [term.split("=", 1) for term in query.get("labelSelector", "").split(",") if term]
    field_name = query.get("fieldSelector", "").partition("metadata.name=")[2]
    return all(labels.get(key) == value for key, value in label_pairs) and field_name in (
        "",
        document["metadata"]["name"],
    )


def _status_document(code: int, message: str, reason: str, details: Json | None = None) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, "details": details or {}, "code": code}  # fmt: skip
