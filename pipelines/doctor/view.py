"""The Kubernetes API to look at: documents by path, and questions of who may do what."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from ...components.store.errors import first_line
from ..kube import Json, Kube

_DENIED = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "[^"]*"(?: in the namespace "([^"]+)")?')
PAGE = 500
ACCESS = "/apis/authorization.k8s.io/v1"


class Refused(Exception):
    """The API does not show or do what was asked; `status` is that of HTTP, 0 where nothing answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class View:
    """A cluster as seen from one namespace. `timeout_s`: seconds to connect and to be answered."""

    kube: Kube
    timeout_s: tuple[int, int] = (3, 20)
    _read: dict[str, Json | None] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.kube.namespace

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self.kube.api.configuration.host)

    def read(self, path: str) -> Json | None:
        """A document of the API, None for 404; read once. Raises Refused."""
        if path not in self._read:
            try:
                self._read[path] = self._send("GET", path)
            except Refused as error:
                if error.status != 404:
                    raise
                self._read[path] = None
        return self._read[path]

    def get(self, kind: str, name: str, namespace: str = "", group: str = "api/v1") -> Json | None:
        """A namespaced object, or None. `kind` is its resource, such as secrets."""
        return self.read(f"/{group}/namespaces/{namespace or self.namespace}/{kind}/{name}")

    def poll(self, kind: str, name: str) -> Json | None:
        """An object of the namespace as it is now. Raises Refused."""
        path = f"/api/v1/namespaces/{self.namespace}/{kind}/{name}"
        self._read.pop(path, None)
        return self.read(path)

    def items(self, path: str, **query: str) -> list[Json]:
        """All objects of a list, page by page; none where the kind is unknown. Raises Refused."""
        documents: list[Json] = []
        token = ""
        while True:
            page = self.read(f"{path}?{urlencode({'limit': PAGE, **query, **({'continue': token} if token else {})})}")
            documents += (page or {}).get("items") or []
            token = ((page or {}).get("metadata") or {}).get("continue") or ""
            if not token:
                return documents

    def create(self, kind: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Create an object of the namespace; with `dry_run` only ask whether the API would take it. Raises Refused."""
        path = f"/api/v1/namespaces/{self.namespace}/{kind}"
        return self._send("POST", f"{path}?dryRun=All" if dry_run else path, body)

    def delete(self, kind: str, name: str) -> None:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        self._send("DELETE", f"/api/v1/namespaces/{self.namespace}/{kind}/{name}", body)

    def log(self, pod: str, lines: int = 50) -> str:
        """The last lines of a pod of one container. Raises Refused."""
        return self._text("GET", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log?tailLines={lines}")

    def may(self, group: str, resource: str, verb: str) -> bool:
        """Whether the user of this view may do that in its namespace. `resource` may be of the form pods/log."""
        return self._allowed("SelfSubjectAccessReview", f"{ACCESS}/selfsubjectaccessreviews", {}, group, resource, verb)

    def account_may(self, account: str, group: str, resource: str, verb: str) -> bool:
        """The same of a service account of the namespace. Raises Refused where one may not ask for others."""
        everyone = "system:serviceaccounts"
        who = {
            "user": f"system:serviceaccount:{self.namespace}:{account}",
            "groups": [everyone, f"{everyone}:{self.namespace}", "system:authenticated"],
        }
        path = f"{ACCESS}/namespaces/{self.namespace}/localsubjectaccessreviews"
        return self._allowed("LocalSubjectAccessReview", path, who, group, resource, verb)

    def _allowed(self, kind: str, path: str, who: Json, group: str, resource: str, verb: str) -> bool:
        name, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "group": group, "resource": name, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {"namespace": self.namespace},
            "spec": {**who, "resourceAttributes": asked | ({"subresource": part} if part else {})},
        }  # fmt: skip
        if kind.startswith("Self"):
            del body["metadata"]
        return bool(self._send("POST", path, body)["status"].get("allowed"))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        text = self._text(method, path, body)
        try:
            document: Json = json.loads(text)
        except ValueError:
            raise Refused(0, f"{method} {path}: no JSON, but {text[:80]!r}") from None
        return document

    def _text(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self.kube.api.call_api(
                path, method, header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body, auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                _request_timeout=self.timeout_s,
            )  # fmt: skip
            return str(answer.data.decode("utf-8", "replace"))
        except ApiException as error:
            raise Refused(error.status or 0, _message(error)) from None
        except (HTTPError, OSError) as error:
            raise Refused(0, f"{self.server} does not answer: {first_line(error)}") from None


def _message(error: Any) -> str:
    """What the API says was wrong, from the Status document that it answers with; of a missing right in short."""
    try:
        text = " ".join(str(json.loads(error.body)["message"]).split())
        if denied := _DENIED.search(text):
            return f"you may not {denied[1]} {denied[2]} in {denied[3] or 'the cluster'}"
        return text
    except (TypeError, ValueError, KeyError):
        return str(error.reason or f"HTTP {error.status}")


def labels_of(document: Mapping[str, Any]) -> dict[str, str]:
    return dict((document.get("metadata") or {}).get("labels") or {})


def annotations_of(document: Mapping[str, Any]) -> dict[str, str]:
    return dict((document.get("metadata") or {}).get("annotations") or {})
