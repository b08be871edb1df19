"""A small Kubernetes API on loopback for the tests of tests/e2e: objects, watches, logs. e2e_play.py gives it life.

It speaks HTTP and the API's documents, so that the official client can't tell: lists with a resource version, watches
as a stream of lines, Status documents for errors, background deletion of what an object owns.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Doc = dict[str, Any]
KINDS = {
    "pods": "Pod", "events": "Event", "serviceaccounts": "ServiceAccount", "secrets": "Secret",
    "workflows": "Workflow", "workflowtemplates": "WorkflowTemplate", "cronworkflows": "CronWorkflow",
    "rayjobs": "RayJob", "rayclusters": "RayCluster", "networkpolicies": "NetworkPolicy",
}  # fmt: skip
GROUPS = {
    "/apis/argoproj.io/v1alpha1": ["workflows", "workflowtemplates", "cronworkflows"],
    "/apis/ray.io/v1": ["rayjobs", "rayclusters"],
}


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


class Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Cluster:
    """The objects of one namespace, and what happens to them."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.objects: dict[str, dict[str, Doc]] = {kind: {} for kind in KINDS}
        self.history: list[tuple[int, str, str, Doc]] = []
        """(resource version, kind, change, object)."""
        self.logs: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        """(method, path) of all that was asked."""
        self.documents: dict[str, Doc] = {}
        """Other documents, by path: nodes, deployments, the namespace."""
        self.forbidden: set[str] = set()
        """Resources that SelfSubjectAccessReview says no to."""
        self.on_create: Callable[[str, Doc], None] = lambda kind, document: None
        self.on_delete: Callable[[str, Doc], None] = lambda kind, document: None
        self.over = threading.Event()

    def create(self, kind: str, document: Doc) -> Doc:
        """Store a new object; Refused with 409 when there is one of that name."""
        with self.changed:
            name = document["metadata"]["name"]
            if name in self.objects[kind]:
                raise Refused(409, f'{kind} "{name}" already exists')
            document = copy.deepcopy(document)
            document["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            document.setdefault("kind", KINDS[kind])
            self._store(kind, "ADDED", document)
        self.on_create(kind, document)
        return document

    def update(self, kind: str, name: str, change: Callable[[Doc], None]) -> bool:
        """Change an object in place; False when it is gone."""
        with self.changed:
            current = self.objects[kind].get(name)
            if current is None:
                return False
            document = copy.deepcopy(current)
            change(document)
            self._store(kind, "MODIFIED", document)
            return True

    def delete(self, kind: str, name: str) -> bool:
        """Delete an object and what it owns."""
        with self.changed:
            document = self.objects[kind].pop(name, None)
            if document is None:
                return False
            self._note(kind, "DELETED", document)
            owned = [
                (owned_kind, candidate["metadata"]["name"])
                for owned_kind, documents in self.objects.items()
                for candidate in documents.values()
                if _is_owned(candidate, document)
            ]
        for owned_kind, owned_name in owned:
            self.delete(owned_kind, owned_name)
        self.on_delete(kind, document)
        return True

    def get(self, kind: str, name: str) -> Doc | None:
        with self.changed:
            return self.objects[kind].get(name)

    def list(self, kind: str, selector: str = "") -> list[Doc]:
        with self.changed:
            return [document for document in self.objects[kind].values() if _takes(selector, document)]

    def event(self, kind: str, name: str, reason: str, message: str) -> None:
        involved_object = {"kind": kind, "name": name}
        metadata = {"name": f"{name}.{uuid.uuid4().hex[:8]}"}
        event_fields = {"type": "Normal", "reason": reason, "message": message, "lastTimestamp": now()}
        self.create("events", {"metadata": metadata, "involvedObject": involved_object, **event_fields})

    def _store(self, kind: str, change: str, document: Doc) -> None:
        self.objects[kind][document["metadata"]["name"]] = document
        self._note(kind, change, document)

    def _note(self, kind: str, change: str, document: Doc) -> None:
        version = len(self.history) + 1
        document["metadata"]["resourceVersion"] = str(version)
        self.history.append((version, kind, change, copy.deepcopy(document)))
        self.changed.notify_all()


def _is_owned(document: Doc, owner: Doc) -> bool:
    references = document["metadata"].get("ownerReferences", ())
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in references)


def _takes(selector: str, document: Doc) -> bool:
    labels = document["metadata"].get("labels") or {}
    return all(
        labels.get(key) == value if equals else key in labels
        for key, equals, value in (part.partition("=") for part in selector.split(",") if part)
    )


class Api:
    """The cluster behind a server; `kubeconfig(path)` writes the file that leads to it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.cluster.over.set()
        with self.cluster.changed:
            self.cluster.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path) -> Path:
        named = {"name": "stand-in"}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
            "clusters": [{**named, "cluster": {"server": self.url}}],
            "users": [{**named, "user": {"token": "a-token"}}],
            "contexts": [{**named, "context": {"cluster": "stand-in", "user": "stand-in"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(self._get)

        def do_POST(self) -> None:
            self._answer(self._post)

        def do_DELETE(self) -> None:
            self._answer(self._delete)

        def do_PATCH(self) -> None:
            self._answer(self._patch)

        def _answer(self, method: Callable[[str, dict[str, str], Doc], Any]) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            cluster.requests.append((self.command, self.path))
            try:
                if self.headers.get("Authorization") != "Bearer a-token":
                    raise Refused(401, "Unauthorized")
                response = method(parts.path, query, body)
            except Refused as error:
                self._send(error.code, {"kind": "Status", "code": error.code, "message": str(error)})
                return
            if response is not None:
                self._send(200, response)

        def _send(self, code: int, response: Any) -> None:
            data = response.encode() if isinstance(response, str) else json.dumps(response).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _get(self, path: str, query: dict[str, str], body: Doc) -> Any:
            if path in cluster.documents:
                return cluster.documents[path]
            if path in GROUPS:
                return {"resources": [{"name": kind} for kind in GROUPS[path]]}
            kind, name, sub = _place(path)
            if sub == "log":
                if name not in cluster.logs:
                    raise Refused(400, f"container of {name} has not started")
                return cluster.logs[name]
            if name:
                document = cluster.get(kind, name)
                if document is None:
                    raise Refused(404, f'{kind} "{name}" not found')
                return document
            if "watch" in query:
                return self._watch(kind, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
            with cluster.changed:
                items = cluster.list(kind, query.get("labelSelector", ""))
                return {"metadata": {"resourceVersion": str(len(cluster.history))}, "items": items}

        def _watch(self, kind: str, version: int, seconds: float) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while not cluster.over.is_set():
                with cluster.changed:
                    news = [entry for entry in cluster.history[version:] if entry[1] == kind]
                    version = len(cluster.history)
                    if not news:
                        cluster.changed.wait(1.0)
                        continue
                lines = "".join(
                    json.dumps({"type": change, "object": document}) + "\n" for _, _, change, document in news
                )
                data = lines.encode()
                try:
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                except OSError:
                    return

        def _post(self, path: str, query: dict[str, str], body: Doc) -> Any:
            if path.endswith("/selfsubjectaccessreviews"):
                asked = body["spec"]["resourceAttributes"]
                return {"status": {"allowed": asked["resource"] not in cluster.forbidden}}
            kind, _, _ = _place(path)
            return body if query.get("dryRun") else cluster.create(kind, body)

        def _delete(self, path: str, query: dict[str, str], body: Doc) -> Any:
            kind, name, _ = _place(path)
            if not cluster.delete(kind, name):
                raise Refused(404, f'{kind} "{name}" not found')
            return {"kind": "Status", "status": "Success"}

        def _patch(self, path: str, query: dict[str, str], body: Doc) -> Any:
            if path in cluster.documents:
                return _merged(cluster.documents[path], body)
            kind, name, _ = _place(path)
            if not cluster.update(kind, name, lambda document: document["spec"].update(body["spec"])):
                raise Refused(404, f'{kind} "{name}" not found')
            return cluster.get(kind, name)

    return Handler


def _merged(document: Doc, patch: Doc) -> Doc:
    """A JSON merge patch of a document's maps: null takes a key away."""
    for key, value in patch.items():
        if isinstance(value, dict):
            _merged(document.setdefault(key, {}), value)
        elif value is None:
            document.pop(key, None)
        else:
            document[key] = value
    return document


def _place(path: str) -> tuple[str, str, str]:
    """(kind, name, subresource) of …/namespaces/NS/kind/name/sub; Refused with 404 for what is unknown."""
    parts = path.partition("/namespaces/")[2].split("/")
    kind, name, sub = (*parts[1:], "", "", "")[:3]
    if kind not in KINDS:
        raise Refused(404, f"the server could not find the requested resource: {path}")
    return kind, name, sub
