"""The Kubernetes API as plain documents; the official client reads KUBECONFIG, signs and sends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Doc = dict[str, Any]
_GROUPS = {
    "pods": "/api/v1",
    "events": "/api/v1",
    "serviceaccounts": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "configmaps": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "jobs": "/apis/batch/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "workflows": "/apis/argoproj.io/v1alpha1",
    "workflowtemplates": "/apis/argoproj.io/v1alpha1",
    "cronworkflows": "/apis/argoproj.io/v1alpha1",
    "workflowtaskresults": "/apis/argoproj.io/v1alpha1",
    "workflowartifactgctasks": "/apis/argoproj.io/v1alpha1",
    "rayjobs": "/apis/ray.io/v1",
    "rayclusters": "/apis/ray.io/v1",
}
_AGAIN = {429, 500, 502, 503, 504}
_TRIES = 5
_TIMEOUT = (10, 60)
"""Seconds to connect, and between two bytes of an answer."""


class KubeError(Exception):
    """Error of the Kubernetes API: its answer, or the reason for none (`status` is 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Kube:
    """One namespace of one cluster."""

    def __init__(self, namespace: str, context: str = "") -> None:
        """Read KUBECONFIG; KubeError when it can't be used."""
        from kubernetes import config

        try:
            files = os.environ["KUBECONFIG"]  # the client itself looks only once, when it is imported
            contexts, active = config.list_kube_config_contexts(files)
            self.context = context or str(active["name"])
            if self.context not in [entry["name"] for entry in contexts]:
                raise KubeError(0, f"KUBECONFIG: there is no context {context}")
            self._client: ApiClient = config.new_client_from_config(files, context or None)
        except config.ConfigException as error:
            raise KubeError(0, f"KUBECONFIG: {error}") from None
        self.namespace = namespace
        self.server = str(self._client.configuration.host)

    def path(self, kind: str, name: str = "", **query: Any) -> str:
        parts = [_GROUPS[kind], "namespaces", self.namespace, kind, *([name] if name else [])]
        parameters = {key: value for key, value in query.items() if value not in ("", None)}
        return "/".join(parts) + (f"?{urlencode(parameters)}" if parameters else "")

    def get(self, kind: str, name: str) -> Doc | None:
        """None when there is no such object (or no such kind)."""
        return self.read(self.path(kind, name))

    def items(self, kind: str, selector: str = "") -> list[Doc]:
        """Return the objects that the label selector matches; none where the kind is unknown."""
        response = self.read(self.path(kind, labelSelector=selector))
        return list(response["items"]) if response else []

    def create(self, kind: str, body: Mapping[str, Any], dry_run: bool = False) -> Doc:
        path = self.path(kind, dryRun="All" if dry_run else "")
        return dict(json.loads(self._send("POST", path, body).data))

    def post(self, path: str, body: Mapping[str, Any]) -> Doc:
        """Ask one of the API's questions, such as a SelfSubjectAccessReview."""
        return dict(json.loads(self._send("POST", path, body).data))

    def merge(self, path: str, body: Mapping[str, Any]) -> Doc:
        """Change the object at a path by a JSON merge patch."""
        return dict(json.loads(self._send("PATCH", path, body).data))

    def delete(self, kind: str, name: str, grace: int | None = None) -> bool:
        """Whether there was anything to delete. Dependants go with it, in the background."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace  # type: ignore[assignment]
        try:
            self._send("DELETE", self.path(kind, name), body)
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return True

    def read(self, path: str) -> Doc | None:
        """Any document of the API; None for 404."""
        try:
            return dict(json.loads(self._send("GET", path).data))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def log(self, pod: str, container: str, lines: int = 400) -> str:
        """The last lines that a container wrote; KubeError when there are none to be had."""
        path = self.path("pods", f"{pod}/log", container=container, tailLines=lines)
        return str(self._send("GET", path).data.decode("utf-8", "replace"))

    def watch(self, kind: str, version: str, seconds: int) -> Iterator[tuple[str, Doc]]:
        """The changes since `version`, as (ADDED | MODIFIED | DELETED | ERROR, object); ends by itself.

        KubeError when the connection breaks: the caller lists again and goes on from there.
        """
        from urllib3.exceptions import HTTPError

        path = self.path(kind, watch="true", resourceVersion=version, timeoutSeconds=seconds)
        answer = self._send("GET", path, stream=True, timeout=(10, seconds + 10))
        rest = b""
        try:
            for chunk in answer.stream(65536, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    yield event["type"], event["object"]
        except (HTTPError, ValueError) as error:  # ValueError: half a line
            raise KubeError(0, f"the watch of {kind} broke off: {error}") from None
        finally:
            answer.close()

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, stream: bool = False,
        timeout: tuple[int, int] = _TIMEOUT,
    ) -> Any:  # fmt: skip
        """Send a request, a few times where that is safe; the answer as urllib3 has it."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        tries = _TRIES if method != "POST" and not stream else 1
        form = "application/merge-patch+json" if method == "PATCH" else "application/json"
        for number in range(1, tries + 1):
            try:
                answer = self._client.call_api(
                    path, method, header_params={"Accept": "application/json", "Content-Type": form},
                    body=body, auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                    _request_timeout=timeout,
                )  # fmt: skip
                if not stream:
                    answer.read(cache_content=True)
                return answer
            except ApiException as error:
                failure = KubeError(error.status, f"{method} {path}: {error.status} {_message(error)}")
            except HTTPError as error:
                failure = KubeError(0, f"{method} {path}: {error}")
            if number == tries or (failure.status and failure.status not in _AGAIN):
                raise failure
            time.sleep(0.2 * 2**number)
        raise AssertionError


def _message(error: Any) -> str:
    """Return the message of the Status document with which the API answers."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def name_of(document: Mapping[str, Any]) -> str:
    return str(document["metadata"]["name"])


def labels_of(document: Mapping[str, Any]) -> dict[str, str]:
    return dict(document["metadata"].get("labels") or {})


def annotations_of(document: Mapping[str, Any]) -> dict[str, str]:
    return dict(document["metadata"].get("annotations") or {})
