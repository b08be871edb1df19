"""A stand-in of the Kubernetes API on loopback: RayJobs, their submitters' pods and logs, watches, and its faults.

It speaks the API's own documents (lists, watch events, `Status` objects for errors), so that Kubernetes' real client
talks to it. What KubeRay's operator would do to a RayJob is played from a list of acts, from its making on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kube_http
from kube_http import EVENTS, KINDS, NAMESPACE, PODS, RAYJOBS, Json

Act = Callable[["KubeApi", Json], None]
"""What happens to a RayJob; given the stand-in and the job as it was made."""


def status(deployment: str, job: str = "", **more: Any) -> Act:
    """KubeRay writes the job's status."""

    def act(api: KubeApi, job_made: Json) -> None:
        name = job_made["metadata"]["name"]
        job_status = {"jobDeploymentStatus": deployment, "jobId": f"{name}-x7k2p", "rayClusterName": f"{name}-b9w4d"}
        api.update(RAYJOBS, name, {"status": job_status | ({"jobStatus": job} if job else {}) | more})

    return act


def submitter(*lines: str, phase: str = "Running", number: int = 1) -> Act:
    """The submitter's pod is there and has said these lines; again with another number for another pod."""

    def act(api: KubeApi, job: Json) -> None:
        name = job["metadata"]["name"]
        pod = f"{name}-pod{number}"
        labels = {**job["spec"]["submitterPodTemplate"]["metadata"]["labels"], "job-name": name}
        with api.changed:
            if pod not in api.objects[PODS]:
                api.put(PODS, {"metadata": {"name": pod, "labels": labels}, "status": {"phase": phase}})
            else:
                api.update(PODS, pod, {"status": {"phase": phase}})
            for line in lines:
                api.logs.setdefault(pod, []).append(f"{now()} {line}\n".encode())
            api.changed.notify_all()

    return act


def ray_pod(node: str, **pod_status: Any) -> Act:
    """A pod of the job's RayCluster, `head` or `worker`, with this status."""

    def act(api: KubeApi, job: Json) -> None:
        cluster = f"{job['metadata']['name']}-b9w4d"
        labels = {**job["metadata"]["labels"], "ray.io/cluster": cluster, "ray.io/node-type": node}
        api.put(PODS, {"metadata": {"name": f"{cluster}-{node}-x2f7p", "labels": labels}, "status": pod_status})

    return act


def pause(seconds: float) -> Act:
    return lambda api, job: time.sleep(seconds)


def until(condition: Callable[[KubeApi], bool], seconds: float = 20.0) -> Act:
    """The job works on until something has happened, and says so again and again."""

    def act(api: KubeApi, job: Json) -> None:
        for number in range(int(seconds / 0.05)):
            if condition(api):
                return
            api.update(RAYJOBS, job["metadata"]["name"], {"metadata": {"annotations": {"beat": str(number)}}})
            time.sleep(0.05)
        raise AssertionError("what was waited for did not happen")

    return act


def suffered(api: KubeApi) -> bool:
    """All that was to go wrong has, but for what comes with deleting."""
    return not any(fault.times for fault in api.faults if fault.method != "DELETE")


def kube_event(reason: str, message: str, kind: str = "RayCluster", cluster: str = "b9w4d", **fields: Any) -> Act:
    """KubeRay tells something of a RayCluster of the job, and Kubernetes keeps it."""

    def act(api: KubeApi, job: Json) -> None:
        name = f"{job['metadata']['name']}-{cluster}"
        event = {"reason": reason, "message": message, "involvedObject": {"kind": kind, "name": name}} | fields
        api.put(EVENTS, {"metadata": {"name": f"{name}.{api.version}"}} | event)

    return act


def deleted(api: KubeApi, job: Json) -> None:
    """Somebody deletes the job."""
    api.remove(RAYJOBS, job["metadata"]["name"])


@dataclass
class Fault:
    """A fault of the next `times` requests of this method whose path and query have `part` in them.

    `status`: an error of the API with this `body`; 0: the connection breaks off after `after` bytes of the answer.
    `wait_s`: before anything. `ignored`: it was done all the same, only the answer is lost.
    """

    method: str
    part: str
    status: int = 500
    body: str | Json = "the server is out of order"
    times: int = 1
    after: int = 0
    wait_s: float = 0.0
    ignored: bool = False


@dataclass
class KubeApi:
    """The server; a context manager. `acts`: what KubeRay does to each job that is made, the last list again."""

    acts: list[Sequence[Act]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    finalizer_s: float = 0.0
    """How long a job that is deleted stays, with a deletionTimestamp."""
    objects: dict[str, dict[str, Json]] = field(default_factory=lambda: {RAYJOBS: {}, PODS: {}, EVENTS: {}})
    logs: dict[str, list[bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    created: list[Json] = field(default_factory=list)
    deletions: list[Json] = field(default_factory=list)
    """The bodies of what was asked to be deleted."""
    events: list[tuple[int, str, str, Json]] = field(default_factory=list)
    oldest: int = 0
    """Watches from before this resource version are too old."""
    version: int = 100
    errors: list[BaseException] = field(default_factory=list)
    """Of the acts."""
    closed: bool = False
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    def __enter__(self) -> KubeApi:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kube_http.Handler,), {"kube": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def kubeconfig(self, folder: Path) -> Path:
        """A file for KUBECONFIG."""
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "the-token"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    # The store

    def put(self, kind: str, document: Json) -> Json:
        """Make an object, as the API server does."""
        with self.changed:
            self.version += 1
            name, metadata = KINDS[kind][0], document["metadata"]
            metadata |= {"uid": f"uid-{self.version}", "resourceVersion": str(self.version), "namespace": NAMESPACE}
            metadata |= {"creationTimestamp": now()[:19] + "Z"}
            document |= {"kind": name, "apiVersion": KINDS[kind][1]}
            self.objects[kind][metadata["name"]] = document
            self._tell(kind, "ADDED", document)
            return document

    def update(self, kind: str, name: str, changes: Json) -> Json | None:
        """Merge changes into an object, if it is there."""
        with self.changed:
            if name not in self.objects[kind]:
                return None
            self.version += 1
            document = _merged(self.objects[kind][name], changes)
            document["metadata"]["resourceVersion"] = str(self.version)
            self.objects[kind][name] = document
            self._tell(kind, "MODIFIED", document)
            return document

    def remove(self, kind: str, name: str) -> None:
        with self.changed:
            self.version += 1
            if document := self.objects[kind].pop(name, None):
                document["metadata"]["resourceVersion"] = str(self.version)
                self._tell(kind, "DELETED", document)
            for pod in [
                pod_name for pod_name in self.objects[PODS] if kind == RAYJOBS and pod_name.startswith(f"{name}-pod")
            ]:
                self.remove(PODS, pod)

    def forget(self) -> None:
        """Compaction: every version that anyone has is too old to watch from, until a fresh one is got."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            for document in self.objects[RAYJOBS].values():
                document["metadata"]["resourceVersion"] = str(self.version)
            self.changed.notify_all()

    def _tell(self, kind: str, change: str, document: Json) -> None:
        self.events.append((self.version, kind, change, json.loads(json.dumps(document))))
        self.changed.notify_all()

    def play(self, job: Json) -> None:
        """KubeRay takes a job that was made."""
        acts = self.acts[0] if len(self.acts) == 1 else self.acts.pop(0)
        uid = job["metadata"]["uid"]

        def run() -> None:
            for act in acts:
                current = self.objects[RAYJOBS].get(job["metadata"]["name"])
                if self.closed or current is None or current["metadata"]["uid"] != uid:
                    return
                try:
                    act(self, job)
                except BaseException as error:
                    self.errors.append(error)
                    return self.remove(RAYJOBS, job["metadata"]["name"])
                time.sleep(0.01)

        threading.Thread(target=run, daemon=True).start()

    def delete(self, name: str) -> Json | None:
        job = self.objects[RAYJOBS].get(name)
        if job is None:
            return None
        if not self.finalizer_s:
            self.remove(RAYJOBS, name)
        elif not job["metadata"].get("deletionTimestamp"):
            self.update(RAYJOBS, name, {"metadata": {"deletionTimestamp": now()[:19] + "Z"}})
            threading.Timer(self.finalizer_s, self.remove, (RAYJOBS, name)).start()
        return job

    def asked(self, method: str, part: str) -> list[str]:
        """The requests of a method with this in their path or query."""
        return [request for request in self.requests if request.startswith(method + " ") and part in request]


def _merged(base: Json, changes: Json) -> Json:
    """JSON merge patch (RFC 7386), for objects."""
    merged = dict(base)
    for key, value in changes.items():
        is_nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "status"
        merged[key] = _merged(merged[key], value) if is_nested else value
    return merged


def now() -> str:
    """RFC 3339 with nanoseconds, as kubelets write it."""
    seconds, fraction = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}".rstrip("0") + "Z"
