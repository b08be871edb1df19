"""Findings of doctor's checks, and the place that they look at: a namespace of a cluster, by the Kubernetes API."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from ...components.storage.errors import first_line
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import Json
from ..kfp.client import Connection

ARGO, KFP = "argo", "kfp"
KUBEFLOW = "kubeflow"
OK, WARNING, ERROR = "ok", "warning", "error"
STATES = (OK, WARNING, ERROR)
"""Warning: a run may fail or wait, or the check may not look. Error: a run fails, or waits in vain."""
REVIEWS = "/apis/authorization.k8s.io/v1"
TIMEOUT_S = (3, 15)
_PART_OF = "app.kubernetes.io/part-of"
_PROFILE = "kubeflow-profile"


class Unseen(Exception):
    """The API refuses to tell, or does not answer."""


@dataclass(frozen=True)
class Finding:
    """The result of a check: what was `seen`, and in `mend` the remedy; the fields are the keys of the JSON."""

    check: str
    state: str
    seen: str
    mend: str = ""
    is_unseen: bool = False
    """The check could not look."""


@dataclass
class Site:
    """The namespace of the pods of runs that `target` (kfp or argo) starts by a cluster file.

    `account`: with KFP the service account of all steps; `kubeflow`: the namespace of Kubeflow Pipelines, empty where
    the cluster has none. Methods raise Unseen.
    """

    api: Any
    cluster: Cluster
    connection: Connection
    target: str = ""
    namespace: str = ""
    account: str = ""
    kubeflow: str = ""
    _documents: dict[str, Json | None] = field(default_factory=dict)

    def locate(self) -> None:
        """Find the namespace and account of runs: KFP without profiles makes all pods in its own namespace."""
        self.namespace = self.connection.namespace
        try:
            labels = get_labels(self.read(f"/api/v1/namespaces/{self.namespace}") or {})
            is_profile = labels.get(_PART_OF) == _PROFILE
        except Unseen:  # a user without the right to read the namespace may be one of Kubeflow, with a profile
            is_profile = self.target == KFP
        self.kubeflow = next((name for name in (self.namespace, KUBEFLOW) if self._has_kfp(name)), "")
        self.target = self.target or (KFP if is_profile or self.kubeflow == self.namespace else ARGO)
        if self.target == KFP:
            self.account = "default-editor" if is_profile else "pipeline-runner"
            self.namespace = self.namespace if is_profile else self.kubeflow or self.namespace

    def _has_kfp(self, namespace: str) -> bool:
        try:
            return self.get("services", "ml-pipeline", namespace) is not None
        except Unseen:
            return False

    def read(self, path: str) -> Json | None:
        """Return a document of the API, None for 404; it is read once."""
        if path not in self._documents:
            self._documents[path] = self.request("GET", path)
        return self._documents[path]

    def get(self, kind: str, name: str, namespace: str = "") -> Json | None:
        """Return an object of the core API, or None."""
        return self.read(f"/api/v1/namespaces/{namespace or self.namespace}/{kind}/{name}")

    def list_items(self, path: str, **query: str) -> list[Json]:
        return list((self.read(f"{path}?{urlencode(query)}" if query else path) or {}).get("items") or ())

    def is_allowed(self, account: str, group: str, resource: str, verb: str) -> bool:
        """Return whether a service account of the namespace, or the current user (empty), may do that there."""
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": self.namespace, "group": group, "resource": name, "verb": verb}
        attributes |= {"subresource": subresource} if subresource else {}
        spec: Json = {"resourceAttributes": attributes}
        kind, path, metadata = "SelfSubjectAccessReview", f"{REVIEWS}/selfsubjectaccessreviews", {}
        if account:
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
            spec |= {"user": f"system:serviceaccount:{self.namespace}:{account}", "groups": groups}
            kind, metadata = "LocalSubjectAccessReview", {"namespace": self.namespace}
            path = f"{REVIEWS}/namespaces/{self.namespace}/localsubjectaccessreviews"
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
        return bool(((self.request("POST", path, body) or {}).get("status") or {}).get("allowed"))

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json | None:
        """Return the answer of the API as JSON, None for 404."""
        try:
            document: Json = json.loads(self.request_text(method, path, body) or "null")
        except ValueError:
            raise Unseen(f"{method} {path}: expected JSON") from None
        return document

    def request_text(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> str:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self.api.call_api(
                path, method, header_params={"Accept": "application/json", "Content-Type": "application/json"},
                body=body, auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                _request_timeout=TIMEOUT_S,
            )  # fmt: skip
            return str(answer.data.decode("utf-8", "replace"))
        except ApiException as error:
            if error.status == 404 and method == "GET":
                return ""
            raise Unseen(_get_message(error)) from None
        except (HTTPError, OSError) as error:
            raise Unseen(f"{self.api.configuration.host} does not answer: {first_line(error)}") from None


def _get_message(error: Any) -> str:
    """Return the message of the API's Status document."""
    try:
        return " ".join(str(json.loads(error.body)["message"]).split())
    except (TypeError, ValueError, KeyError):
        return str(error.reason or f"HTTP {error.status}")


def get_labels(document: Mapping[str, Any]) -> dict[str, str]:
    return dict((document.get("metadata") or {}).get("labels") or {})


def find_worst_state(findings: Sequence[Finding]) -> str:
    return max((finding.state for finding in findings), key=STATES.index, default=OK)


def format_table(findings: Sequence[Finding]) -> str:
    """Format the findings: state, check, what was seen, and below it the remedy."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        head = f"{finding.state:<8} {finding.check:<{width}}  "
        for first, text in ((head, finding.seen), (" " * (len(head) - 3) + "-> ", finding.mend)):
            lines += textwrap.wrap(
                text, 110, initial_indent=first, subsequent_indent=" " * len(head), break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)
