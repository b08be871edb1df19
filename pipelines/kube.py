"""What a launcher asks of the Kubernetes API, by Kubernetes' own client, with patience and errors of ours.

The rights that it needs in its namespace, all of them and no more, are in `RIGHTS`: the roles in k8s/ are these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..components.store.errors import MillError, TransientError, UserError, first_line
from ..components.store.retry import with_retry
from .rayjob import GROUP, PLURAL, VERSION

T = TypeVar("T")
Json = dict[str, Any]
RIGHTS = {
    ("ray.io", "rayjobs"): ("create", "delete", "get", "list", "patch", "watch"),
    ("", "pods"): ("get", "list"),
    ("", "pods/log"): ("get",),
    ("", "events"): ("list",),
}
"""(API group, resource) → verbs, of the launcher; of these the exit step needs to list and delete RayJobs, and to list
events; Argo's clean step, which plans the RayJob, needs none."""
ROLE = "k8s/base/kubeflow/rayjobs.yaml"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SILENT_S = 180.0
"""How long the API server may not answer, or answer with errors of its own, before it is given up."""
ANSWER_S = (10, 30)
"""Seconds to connect and to be answered."""
_KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator"
_POD_NAMES = ("POD_NAME", "KFP_POD_NAME", "ARGO_POD_NAME", "HOSTNAME")
"""Where a pod's name is found: a host's name is cut off at 63 characters, so it comes last."""


class Dropped(TransientError):
    """A watch or a log that broke off: look again, and go on from there."""


def namespace_here(otherwise: str) -> str:
    """The namespace of this pod, which owner references can't leave; outside of a cluster the one that is given."""
    try:
        return (ACCOUNT / "namespace").read_text().strip() or otherwise
    except OSError:
        return otherwise


@dataclass(frozen=True)
class Kube:
    """The API of one namespace. Each call is tried again while the server is out of order, for SILENT_S."""

    namespace: str
    api: Any

    @classmethod
    def connect(cls, namespace: str) -> Kube:
        """By KUBECONFIG or, in a pod, by its service account; UserError where there is neither."""
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

    def job(self, name: str, patience_s: float = 0) -> Json | None:
        """A RayJob, or None."""

        def got() -> Any:
            return self._jobs().get_namespaced_custom_object(*self._path, name, **_PATIENT)

        job: Json | None = self._found(got, "get", patience_s=patience_s)
        return job

    def jobs(self, selector: str) -> list[Json]:
        """The RayJobs with these labels; none where KubeRay is not installed."""

        def listed() -> Json:
            made: Json = self._jobs().list_namespaced_custom_object(*self._path, label_selector=selector, **_PATIENT)
            return made

        return list((self._found(listed, "list", no_kind=True) or {"items": []})["items"])

    def create(self, manifest: Mapping[str, Any]) -> Json | None:
        """Make a RayJob; None if one of that name is there."""
        from kubernetes.client import ApiException

        def made() -> Json | None:
            try:
                job: Json = self._jobs().create_namespaced_custom_object(*self._path, dict(manifest), **_PATIENT)
                return job
            except ApiException as error:
                if error.status == 409:
                    return None
                raise

        return self._asked(made, "create", "rayjobs")

    def delete(self, name: str, uid: str, patience_s: float = 0) -> None:
        """Delete a RayJob, and before it what belongs to it; nothing happens if it is gone, or another one is there.

        All is said in the body: where there is one the API server reads no query.
        """
        from kubernetes.client import ApiException

        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        body = {**options, "preconditions": {"uid": uid}}

        def deleted() -> Any:
            try:
                return self._jobs().delete_namespaced_custom_object(*self._path, name, body=body, **_PATIENT)
            except ApiException as error:
                if error.status == 409:
                    return None
                raise

        self._found(deleted, "delete", patience_s=patience_s, no_kind=True)

    def patch_metadata(self, name: str, changes: Json) -> None:
        """Merge changes into the metadata of a RayJob."""
        body = {"metadata": changes}
        self._found(lambda: self._jobs().patch_namespaced_custom_object(*self._path, name, body, **_PATIENT), "patch")

    def changes(self, name: str, version: str, seconds: int) -> Iterator[Json | None]:
        """A RayJob each time that it changes after `version`, for some seconds; None when it is deleted.

        Dropped when the watch breaks off or the server no longer knows that version.
        """
        from kubernetes.watch import Watch

        about: Json = {"field_selector": f"metadata.name={name}", "resource_version": version}
        about |= {"timeout_seconds": seconds, "_request_timeout": (ANSWER_S[0], seconds + ANSWER_S[1])}
        try:
            with _errors("watch", PLURAL, self.namespace):
                for event in Watch().stream(self._jobs().list_namespaced_custom_object, *self._path, **about):
                    if event["type"] != "BOOKMARK":
                        yield None if event["type"] == "DELETED" else event["raw_object"]
        except (TransientError, ValueError, KeyError) as error:  # half a line of JSON, or something else
            raise Dropped(first_line(error)) from None

    def pod(self, name: str, patience_s: float = 0) -> Json | None:
        """A pod, or None."""

        def got() -> Any:
            return self._plain(self._core().read_namespaced_pod, name)

        pod: Json | None = self._found(got, "get", "pods", patience_s=patience_s)
        return pod

    def pods(self, selector: str) -> list[Json]:
        def listed() -> Json:
            made: Json = self._plain(self._core().list_namespaced_pod, label_selector=selector)
            return made

        return list(self._asked(listed, "list", "pods")["items"])

    def events(self, kind: str, prefix: str) -> list[Json]:
        """The events of the objects of a kind whose names begin so, also of those that are gone."""

        def listed() -> Json:
            about = {"field_selector": f"involvedObject.kind={kind}"}
            made: Json = self._plain(self._core().list_namespaced_event, **about)
            return made

        found = self._asked(listed, "list", "events")["items"]
        return [one for one in found if str(one["involvedObject"].get("name")).startswith(prefix)]

    def log(self, pod: str) -> Iterator[bytes]:
        """What a pod has said and says, with times, in pieces as they come; Dropped when it breaks off, when the pod
        is gone, or has not begun yet."""
        options = {"follow": True, "timestamps": True, "_preload_content": False, "_request_timeout": (10, 60)}
        try:
            with _errors("get", "pods/log", self.namespace):
                answer = self._core().read_namespaced_pod_log(pod, self.namespace, **options)
                try:
                    yield from answer.stream(amt=None, decode_content=False)
                finally:
                    answer.close()
        except TransientError as error:
            raise Dropped(first_line(error)) from None

    @property
    def _path(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self.namespace, PLURAL

    def _jobs(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self.api)

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self.api)

    def _plain(self, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """An answer as JSON: what a newer API server says must not fail in the client's models."""
        return json.loads(call(*arguments, self.namespace, _preload_content=False, **more, **_PATIENT).data)

    def _asked(
        self, call: Callable[[], T], verb: str, resource: str, no_kind: bool = False, patience_s: float = 0
    ) -> T:
        def once() -> T:
            with _errors(verb, resource, self.namespace, no_kind):
                found = call()
                if isinstance(found, str):  # the client takes what is no JSON for text
                    raise ValueError(f"no JSON, but {found[:100]!r}")
                return found

        # What is given up of pods, which are looked at for their logs, costs the job no try.
        return with_retry(once, f"{verb} {resource}", patience_s or SILENT_S, service=f"kubernetes {resource}")

    def _found(
        self, call: Callable[[], Any], verb: str, resource: str = PLURAL, no_kind: bool = False,
        patience_s: float = 0,
    ) -> Any:  # fmt: skip
        """None for what is not there; with `no_kind` also where nothing of its kind can be."""
        try:
            return self._asked(call, verb, resource, no_kind, patience_s)
        except _Missing:
            return None


_PATIENT = {"_request_timeout": ANSWER_S}


class _Missing(MillError):
    """No such object."""


@contextmanager
def _errors(verb: str, resource: str, namespace: str, no_kind: bool = False) -> Iterator[None]:
    """Errors of the API and of the way to it as ours."""
    import urllib3
    from kubernetes.client import ApiException

    try:
        yield
    except ApiException as error:
        body = error.body or error.reason or ""
        said = body.decode(errors="replace") if isinstance(body, bytes) else str(body)  # by whether it was streamed
        raise _error(error.status or 0, said, verb, resource, namespace, no_kind) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError(f"the Kubernetes API does not answer ({verb} {resource}): {first_line(error)}") from None
    except ValueError as error:
        raise TransientError(f"the Kubernetes API is out of order ({verb} {resource}): {first_line(error)}") from None


def _error(status: int, body: str, verb: str, resource: str, namespace: str, no_kind: bool) -> MillError:
    """An answer of the API server that is none: what it means to us."""
    try:
        about = json.loads(body)
    except ValueError:
        about = {}
    about = about if isinstance(about, dict) else {}
    said = " ".join(str(about.get("message") or body).split())[:500] or f"HTTP {status}"
    if resource == "pods/log" and status in (400, 404):  # of a pod that waits to start, or is gone since it was listed
        return Dropped(said)
    if status == 404 and about.get("reason") == "NotFound" and (about.get("details") or {}).get("kind") != "namespaces":
        return _Missing(said)
    if status == 404 and not about and resource == PLURAL:
        if no_kind:
            return _Missing(said)
        return UserError(f"cluster: expected KubeRay (rayjobs.ray.io/{VERSION}), found none; install it: {_KUBERAY}")
    if status == 403 and any(part in said for part in ("exceeded quota", "being terminated")):
        return TransientError(f"the Kubernetes API refuses to {verb} {resource}: {said}")
    if status == 401:  # a token is renewed before it runs out, so it is the server that can't tell just now
        return TransientError(f"the Kubernetes API takes no login of this one's ({verb} {resource}): {said}")
    if status == 403:
        return UserError(
            f"cluster: expected the right to {verb} {resource} in the namespace {namespace} (a role as in {ROLE}), "
            f"found none: {said}"
        )
    if status in (400, 404, 413, 415, 422):
        return UserError(f"cluster: expected what the Kubernetes API takes ({verb} {resource}), found: {said}")
    return TransientError(f"the Kubernetes API is out of order ({verb} {resource}, HTTP {status}): {said}")


def own_pod(kube: Kube) -> Json | None:
    """The pod that this runs in; None outside of one."""
    names = [os.environ[name] for name in _POD_NAMES if os.environ.get(name)]
    return kube.pod(names[0]) if names and os.environ.get("KUBERNETES_SERVICE_HOST") else None


def owner_reference(pod: Json) -> Json:
    """A reference to what owns a pod's work: the Workflow that the pod is of, which a next try is of as well, or the
    pod. What has it is deleted after that."""
    about = pod["metadata"]
    for owner in about.get("ownerReferences") or []:
        if owner["kind"] == "Workflow":
            return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
    return {"apiVersion": "v1", "kind": "Pod", "name": about["name"], "uid": about["uid"]}


def is_being_deleted(pod: Json) -> bool:
    """Whether somebody deletes a pod, or its node does, rather than a controller that stops the containers in it."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    disrupted = any(one.get("type") == "DisruptionTarget" and one.get("status") == "True" for one in conditions)
    return disrupted or bool(pod["metadata"].get("deletionTimestamp"))
