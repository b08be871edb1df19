"""The findings of doctor's checks, and what they look at: a read-mostly client of the Kubernetes API."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from ...components.storage.errors import first_line
from ..cluster.kube_client import Json, KubeClient

_DENIED = re.compile(r'cannot (\w+) resource "([^"]+)" in API group "[^"]*"(?: in the namespace "([^"]+)")?')
PAGE_SIZE = 500
ACCESS_API = "/apis/authorization.k8s.io/v1"


class ApiError(Exception):
    """An error of the API; `status` is that of HTTP, 0 where there was no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class ClusterView:
    """The API of a cluster for one namespace. `timeout_s`: seconds to connect, and to wait for an answer.

    All methods raise ApiError.
    """

    kube: KubeClient
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
        """Return a document of the API, None for 404; it is read once and kept."""
        if path not in self._read:
            try:
                self._read[path] = self._send("GET", path)
            except ApiError as error:
                if error.status != 404:
                    raise
                self._read[path] = None
        return self._read[path]

    def get(self, kind: str, name: str, namespace: str = "", group: str = "api/v1") -> Json | None:
        """Return a namespaced object, or None. `kind` is its resource, such as secrets."""
        return self.read(f"/{group}/namespaces/{namespace or self.namespace}/{kind}/{name}")

    def poll(self, kind: str, name: str) -> Json | None:
        """Return an object of the namespace as it is now, or None."""
        path = f"/api/v1/namespaces/{self.namespace}/{kind}/{name}"
        self._read.pop(path, None)
        return self.read(path)

    def list_items(self, path: str, **query: str) -> list[Json]:
        """Return all objects of a list, read page by page; none where the kind is unknown."""
        documents: list[Json] = []
        token = ""
        while True:
            page = self.read(
                f"{path}?{urlencode({'limit': PAGE_SIZE, **query, **({'continue': token} if token else {})})}"
            )
            documents += (page or {}).get("items") or []
            token = ((page or {}).get("metadata") or {}).get("continue") or ""
            if not token:
                return documents

    def create(self, kind: str, body: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        """Create an object in the namespace; with `dry_run` the API only checks it."""
        path = f"/api/v1/namespaces/{self.namespace}/{kind}"
        return self._send("POST", f"{path}?dryRun=All" if dry_run else path, body)

    def delete(self, kind: str, name: str) -> None:
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        self._send("DELETE", f"/api/v1/namespaces/{self.namespace}/{kind}/{name}", body)

    def read_log(self, pod: str, lines: int = 50) -> str:
        """Return the last lines of the log of a pod with one container."""
        return self._text("GET", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log?tailLines={lines}")

    def is_allowed(self, group: str, resource: str, verb: str) -> bool:
        """Return whether the current user may do that in the namespace. `resource` may be of the form pods/log."""
        return self._review_access(
            "SelfSubjectAccessReview", f"{ACCESS_API}/selfsubjectaccessreviews", {}, group, resource, verb
        )

    def is_account_allowed(self, account: str, group: str, resource: str, verb: str) -> bool:
        """Return whether a service account of the namespace may do that. ApiError without the right to ask for it."""
        everyone = "system:serviceaccounts"
        subject = {
            "user": f"system:serviceaccount:{self.namespace}:{account}",
            "groups": [everyone, f"{everyone}:{self.namespace}", "system:authenticated"],
        }
        path = f"{ACCESS_API}/namespaces/{self.namespace}/localsubjectaccessreviews"
        return self._review_access("LocalSubjectAccessReview", path, subject, group, resource, verb)

    def _review_access(self, kind: str, path: str, subject: Json, group: str, resource: str, verb: str) -> bool:
        resource_name, _, subresource = resource.partition("/")
        attributes = {"namespace": self.namespace, "group": group, "resource": resource_name, "verb": verb}
        if subresource:
            attributes["subresource"] = subresource
        body = {
            "apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {"namespace": self.namespace},
            "spec": {**subject, "resourceAttributes": attributes},
        }  # fmt: skip
        if kind.startswith("Self"):
            del body["metadata"]
        return bool(self._send("POST", path, body)["status"].get("allowed"))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        text = self._text(method, path, body)
        try:
            document: Json = json.loads(text)
        except ValueError:
            raise ApiError(0, f"{method} {path}: no JSON, but {text[:80]!r}") from None
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
            raise ApiError(error.status or 0, _get_error_message(error)) from None
        except (HTTPError, OSError) as error:
            raise ApiError(0, f"{self.server} does not answer: {first_line(error)}") from None


def _get_error_message(error: Any) -> str:
    """Return the message of the API's Status document; a short one for a missing right."""
    try:
        text = " ".join(str(json.loads(error.body)["message"]).split())
        if match := _DENIED.search(text):
            return f"you may not {match[1]} {match[2]} in {match[3] or 'the cluster'}"
        return text
    except (TypeError, ValueError, KeyError):
        return str(error.reason or f"HTTP {error.status}")


def get_labels(document: Mapping[str, Any]) -> dict[str, str]:
    return dict((document.get("metadata") or {}).get("labels") or {})


OK, WARNING, ERROR = "ok", "warning", "error"
STATES = (OK, WARNING, ERROR)
"""The states, from good to bad. Warning: a run may fail or be slow, or the check could not look. Error: a run fails, or
waits in vain."""
_WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """The result of a check: what was `seen`, and in `mend` the remedy; empty where nothing is to be done.

    The fields are the keys of the command's JSON.
    """

    check: str
    state: str
    seen: str
    mend: str = ""
    is_unseen: bool = False
    """The check could not look."""


def make_unseen(check: str, reason: str, mend: str = "") -> Finding:
    """Return the warning of a check that could not look."""
    return Finding(check, WARNING, f"can't be seen: {reason}", mend, is_unseen=True)


def find_worst_state(findings: Iterable[Finding]) -> str:
    """Return the worst state of the findings; ok where there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default=OK)


def format_table(findings: Sequence[Finding]) -> str:
    """Format the findings as a table: state, check, what was seen, and below it the remedy."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        head = f"{finding.state:<8} {finding.check:<{width}}  "
        lines += _wrap(finding.seen, head) or [head]
        if finding.mend:
            lines += _wrap(finding.mend, " " * (len(head) - 3) + "-> ")
    return "\n".join(lines)


def _wrap(text: str, head: str) -> list[str]:
    """Wrap a text, with `head` before the first line and an equal indent before the others, without breaking words."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
