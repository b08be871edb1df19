"""A client of the Kubernetes API for RayJobs, pods and events, with retries and with our errors and exit codes.

`RIGHTS` lists exactly the rights that the launcher needs in its namespace: the roles in k8s/ grant these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...components.storage.errors import MillError, TransientError, UserError, first_line, with_retry

T = TypeVar("T")
Json = dict[str, Any]
GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
RIGHTS = {
    ("ray.io", "rayjobs"): ("create", "delete", "get", "list", "patch", "watch"),
    ("", "pods"): ("get", "list"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
}
"""(API group, resource) → verbs that the launcher needs. Of these the exit step needs to list and delete RayJobs, and
to list events."""
_ROLE_FILE = "k8s/base/kubeflow/rayjobs.yaml"
SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RETRY_S = 180.0
"""Seconds for which a call is tried again while the API server gives no answer, or one of its own errors."""
REQUEST_TIMEOUT_S = (10, 30)
"""Seconds to connect, and to wait for an answer."""
_INSTALL_KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator"
_POD_NAME_VARIABLES = ("POD_NAME", "KFP_POD_NAME", "ARGO_POD_NAME", "HOSTNAME")
"""Environment variables that hold this pod's name. A host's name is cut off at 63 characters, so it comes last."""


class StreamInterrupted(TransientError):
    """The connection of a watch or a log broke: the caller reads again, and goes on from there."""


def read_own_namespace(default: str) -> str:
    """Return the namespace of this pod, which owner references can't leave; outside of a cluster `default`."""
    try:
        return (SERVICE_ACCOUNT_DIR / "namespace").read_text().strip() or default
    except OSError:
        return default


@dataclass(frozen=True)
class KubeClient:
    """A client of the API of one namespace. Each call is tried again, for RETRY_S, while the server is out of order."""

    namespace: str
    api: Any

    @classmethod
    def connect(cls, namespace: str) -> KubeClient:
        """Connect by KUBECONFIG or, in a pod, by its service account; UserError where there is neither."""
        from kubernetes import client, config

        configuration = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"KUBECONFIG: expected a cluster's configuration, found none: {first_line(error)}"
            ) from None
        configuration.retries = False
        return cls(namespace, client.ApiClient(configuration))

    def get_rayjob(self, name: str, retry_s: float | None = None) -> Json | None:
        """Return a RayJob, or None if there is none of that name."""
        job: Json | None = self._call_or_none(lambda: self._request_rayjobs("get", name), "get", retry_s=retry_s)
        return job

    def list_rayjobs(self, selector: str) -> list[Json]:
        """Return the RayJobs with these labels; none where KubeRay is not installed."""
        listing: Json | None = self._call_or_none(
            lambda: self._request_rayjobs("list", label_selector=selector), "list", allow_no_kuberay=True
        )
        return list(listing["items"]) if listing else []

    def create_rayjob(self, manifest: Mapping[str, Any]) -> Json | None:
        """Create a RayJob; return None if one of that name exists."""

        def create() -> Json | None:
            job: Json | None = None
            with _ignore_conflict():
                job = self._request_rayjobs("create", dict(manifest))
            return job

        return self._call(create, "create", PLURAL)

    def delete_rayjob(self, name: str, uid: str, retry_s: float | None = None) -> None:
        """Delete a RayJob, and before it what belongs to it; do nothing if it is gone, or has another uid.

        All options are in the body: where there is one the API server reads no query.
        """
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        body = {**options, "preconditions": {"uid": uid}}

        def delete() -> Any:
            response = None
            with _ignore_conflict():
                response = self._request_rayjobs("delete", name, body=body)
            return response  # _call checks that it is JSON

        self._call_or_none(delete, "delete", retry_s=retry_s, allow_no_kuberay=True)

    def patch_rayjob_metadata(self, name: str, changes: Json) -> None:
        """Merge changes into the metadata of a RayJob."""
        self._call_or_none(lambda: self._request_rayjobs("patch", name, {"metadata": changes}), "patch")

    def watch_rayjob(self, name: str, version: str, seconds: int) -> Iterator[Json | None]:
        """Yield a RayJob each time that it changes after `version`, for some seconds; None when it is deleted.

        StreamInterrupted when the watch breaks off or the server no longer knows that version.
        """
        from kubernetes import client
        from kubernetes.watch import Watch

        options: Json = {"field_selector": f"metadata.name={name}", "resource_version": version}
        options |= {
            "timeout_seconds": seconds,
            "_request_timeout": (REQUEST_TIMEOUT_S[0], seconds + REQUEST_TIMEOUT_S[1]),
        }
        try:
            with _translate_errors("watch", PLURAL, self.namespace):
                list_rayjobs = client.CustomObjectsApi(self.api).list_namespaced_custom_object
                for event in Watch().stream(list_rayjobs, GROUP, VERSION, self.namespace, PLURAL, **options):
                    if event["type"] != "BOOKMARK":
                        yield None if event["type"] == "DELETED" else event["raw_object"]
        except (TransientError, ValueError, KeyError) as error:  # half a line of JSON, or something else
            raise StreamInterrupted(first_line(error)) from None

    def get_pod(self, name: str, retry_s: float | None = None) -> Json | None:
        """Return a pod, or None if there is none of that name."""
        pod: Json | None = self._call_or_none(
            lambda: self._request_json(self._core().read_namespaced_pod, name), "get", "pods", retry_s=retry_s
        )
        return pod

    def list_pods(self, selector: str) -> list[Json]:
        """Return the pods with these labels."""
        list_all = self._core().list_namespaced_pod
        listing = self._call(lambda: self._request_json(list_all, label_selector=selector), "list", "pods")
        return list(listing["items"])

    def list_events(self, kind: str, prefix: str) -> list[Json]:
        """Return the events of the objects of a kind whose names begin with `prefix`, also of deleted ones."""
        list_all, selector = self._core().list_namespaced_event, f"involvedObject.kind={kind}"
        listing = self._call(lambda: self._request_json(list_all, field_selector=selector), "list", "events")
        return [event for event in listing["items"] if str(event["involvedObject"].get("name")).startswith(prefix)]

    def stream_pod_log(self, pod: str) -> Iterator[bytes]:
        """Yield a pod's log from its beginning, with timestamps, in pieces as they come.

        StreamInterrupted when it breaks off, and when the pod is gone or has not started yet.
        """
        options = {"follow": True, "timestamps": True, "_preload_content": False, "_request_timeout": (10, 60)}
        try:
            with _translate_errors("get", "pods/log", self.namespace):
                response = self._core().read_namespaced_pod_log(pod, self.namespace, **options)
                try:
                    yield from response.stream(amt=None, decode_content=False)
                finally:
                    response.close()
        except TransientError as error:
            raise StreamInterrupted(first_line(error)) from None

    def _request_rayjobs(self, verb: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of CustomObjectsApi for RayJobs, such as get_namespaced_custom_object for `get`."""
        from kubernetes import client

        function = getattr(client.CustomObjectsApi(self.api), f"{verb}_namespaced_custom_object")
        return function(GROUP, VERSION, self.namespace, PLURAL, *arguments, **options, **_REQUEST_OPTIONS)

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self.api)

    def _request_json(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return a response as parsed JSON: fields of a newer API server must not fail in the client's models."""
        response = function(*arguments, self.namespace, _preload_content=False, **options, **_REQUEST_OPTIONS)
        return json.loads(response.data)

    def _call(
        self, function: Callable[[], T], verb: str, resource: str, *, retry_s: float | None = None,
        allow_no_kuberay: bool = False,
    ) -> T:  # fmt: skip
        def attempt() -> T:
            with _translate_errors(verb, resource, self.namespace, allow_no_kuberay):
                result = function()
                if isinstance(result, str):  # the client returns a body that is no JSON as text
                    raise ValueError(f"no JSON, but {result[:100]!r}")
                return result

        # Retries are counted by resource: requests for pods, which are made for their logs, leave the job's alone.
        return with_retry(attempt, f"{verb} {resource}", retry_s or RETRY_S, service=f"kubernetes {resource}")

    def _call_or_none(
        self, function: Callable[[], Any], verb: str, resource: str = PLURAL, *, retry_s: float | None = None,
        allow_no_kuberay: bool = False,
    ) -> Any:  # fmt: skip
        """Return None for an object that does not exist; with `allow_no_kuberay` also where its kind does not."""
        try:
            return self._call(function, verb, resource, retry_s=retry_s, allow_no_kuberay=allow_no_kuberay)
        except _NotFound:
            return None


_REQUEST_OPTIONS = {"_request_timeout": REQUEST_TIMEOUT_S}


class _NotFound(MillError):
    """The API has no such object."""


@contextmanager
def _ignore_conflict() -> Iterator[None]:
    """Ignore that an object of that name exists already, or has another uid than the one that was named."""
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        if error.status != 409:
            raise


@contextmanager
def _translate_errors(verb: str, resource: str, namespace: str, allow_no_kuberay: bool = False) -> Iterator[None]:
    """Raise the client's and the network's errors as a MillError with our exit code."""
    import urllib3
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        body = error.body or error.reason or ""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)  # bytes where it was streamed
        raise _explain_status(error.status or 0, text, verb, resource, namespace, allow_no_kuberay) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"the Kubernetes API does not answer ({verb} {resource}): {first_line(error)}") from None
    except ValueError as error:
        raise TransientError(f"the Kubernetes API is out of order ({verb} {resource}): {first_line(error)}") from None


def _explain_status(
    code: int, body: str, verb: str, resource: str, namespace: str, allow_no_kuberay: bool
) -> MillError:
    """Return the error for a response of the API server with the HTTP status `code`."""
    try:
        status = json.loads(body)
    except ValueError:
        status = {}
    status = status if isinstance(status, dict) else {}
    message = " ".join(str(status.get("message") or body).split())[:500] or f"HTTP {code}"
    if resource == "pods/log" and code in (400, 404):  # of a pod that waits to start, or is gone since it was listed
        return StreamInterrupted(message)
    if code == 404 and status.get("reason") == "NotFound" and (status.get("details") or {}).get("kind") != "namespaces":
        return _NotFound(message)
    if code == 404 and not status and resource == PLURAL:
        if allow_no_kuberay:
            return _NotFound(message)
        return UserError(
            f"cluster: expected KubeRay (rayjobs.ray.io/{VERSION}), found none; install it: {_INSTALL_KUBERAY}"
        )
    if code == 403 and any(part in message for part in ("exceeded quota", "being terminated")):
        return TransientError(f"the Kubernetes API refuses to {verb} {resource}: {message}")
    if code == 401:  # a token is renewed before it runs out, so the server has a problem of its own
        return TransientError(f"the Kubernetes API takes no login of this one's ({verb} {resource}): {message}")
    if code == 403:
        return UserError(
            f"cluster: expected the right to {verb} {resource} in the namespace {namespace} (a role as in "
            f"{_ROLE_FILE}), found none: {message}"
        )
    if code in (400, 404, 413, 415, 422):
        return UserError(f"cluster: expected what the Kubernetes API takes ({verb} {resource}), found: {message}")
    return TransientError(f"the Kubernetes API is out of order ({verb} {resource}, HTTP {code}): {message}")


def get_own_pod(kube: KubeClient) -> Json | None:
    """Return the pod that this process runs in; None outside of one."""
    names = [os.environ[name] for name in _POD_NAME_VARIABLES if os.environ.get(name)]
    return kube.get_pod(names[0]) if names and os.environ.get("KUBERNETES_SERVICE_HOST") else None


def build_owner_reference(pod: Json) -> Json:
    """Return a reference to the owner of what a pod creates, which is deleted after its owner.

    It is the Workflow that the pod belongs to, which the step's next attempt belongs to as well; else the pod.
    """
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences") or []:
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}


def is_being_deleted(pod: Json) -> bool:
    """Return whether a pod is deleted, or evicted by its node, rather than its containers stopped by a controller."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    is_disrupted = any(
        condition.get("type") == "DisruptionTarget" and condition.get("status") == "True" for condition in conditions
    )
    return is_disrupted or bool(pod["metadata"].get("deletionTimestamp"))
