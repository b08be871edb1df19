"""The pods of a RayJob and the events of its RayCluster, listed again and again while the job runs, and its log.

KubeRay deletes a pod as soon as it has failed, and all pods when the job has ended. Events of the RayCluster, which
Kubernetes keeps for an hour, say how the deleted pods ended. Exit steps delete the RayJobs that a run has left behind,
and record why one failed.

KubeRay's submitter prints the job's output. Its log is read from the beginning each time that the connection breaks;
lines that were printed before are recognized by their timestamps.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from ...components.dataset.workspace import Workspace
from ...components.engine.ray_job import forward_log_line
from ...components.step.progress import say
from ...components.storage.errors import MillError, UserError
from ..cluster.cluster_file import COMPONENT_LABEL, RUN_LABEL, Cluster
from ..cluster.kube_client import Json, KubeClient, StreamInterrupted, read_own_namespace
from .failures import explain_failure, list_problems
from .manifest import FAILED, build_run_label, classify_status

REFRESH_S = 10.0
"""Seconds between two listings."""


class RayPods:
    """The pods of the head, the workers and the submitter of the RayJob `job` of a run's step, and their events.

    Where listing fails, the earlier listing is kept.
    """

    def __init__(self, kube: KubeClient, job: str, run: str, step: str) -> None:
        self._kube, self._job = kube, job
        self._selector = f"{RUN_LABEL}={build_run_label(run)},{COMPONENT_LABEL}={step}"
        self._reported: set[str] = set()
        self._refreshed_at = 0.0
        self.pods: list[Json] = []
        """The pods of the last listing that was not empty."""
        self.events: list[Json] = []

    def refresh(self, status: Mapping[str, Any], warnings: bool = True) -> None:
        """List the pods and events of the RayCluster that the job's status names; with `warnings` also pods' events."""
        self._refreshed_at = time.monotonic()
        cluster = str(status.get("rayClusterName") or "")
        pods = _list_or_keep(lambda: self._kube.list_pods(self._selector), [])
        self.pods = [pod for pod in pods if _belongs_to_job(pod, cluster, self._job)] or self.pods
        if not cluster:  # a job of the same name may have had one, an hour ago
            return
        kinds = ("RayCluster", "Pod") if warnings else ("RayCluster",)
        self.events = _list_or_keep(
            lambda: [event for kind in kinds for event in self._kube.list_events(kind, cluster)], self.events
        )

    def find_new_problems(self, status: Mapping[str, Any]) -> Iterator[str]:
        """Yield once each reason that keeps pods from running or has ended them; pods are listed every REFRESH_S."""
        if time.monotonic() - self._refreshed_at < REFRESH_S:
            return
        self.refresh(status, warnings=False)
        for text in list_problems(self.pods, self.events):
            if text not in self._reported:
                self._reported.add(text)
                yield text


def _list_or_keep(list_all: Callable[[], list[Json]], current: list[Json]) -> list[Json]:
    try:
        return list_all()
    except MillError:
        return current


def _belongs_to_job(pod: Json, cluster: str, job: str) -> bool:
    """Return whether a pod is of the job's RayCluster or submitter, not a launcher's nor an earlier RayCluster's."""
    labels = pod["metadata"].get("labels") or {}
    return (bool(cluster) and labels.get("ray.io/cluster") == cluster) or labels.get("job-name") == job


def delete_rayjobs(cluster: Cluster, run: str, workspace: str = "") -> list[str]:
    """Delete the RayJobs with the run's label, and return their names. UserError without the right.

    If one failed before its command could record why, the error is written to the step's record in `workspace`.
    """
    if not cluster.ray.makes_rayjobs:
        return []
    kube = KubeClient.connect(read_own_namespace(cluster.namespace))
    jobs = kube.list_rayjobs(f"{RUN_LABEL}={build_run_label(run)}")
    for job in jobs:
        if workspace and classify_status(job.get("status") or {}) == FAILED:
            with suppress(MillError):  # the record stays as it was
                _record_failure(kube, job, run, Workspace.from_uri(workspace))
        kube.delete_rayjob(str(job["metadata"]["name"]), str(job["metadata"]["uid"]))
    return [str(job["metadata"]["name"]) for job in jobs]


def _record_failure(kube: KubeClient, job: Json, run: str, workspace: Workspace) -> None:
    """Write to the step's record why a RayJob failed, unless its command or its launcher has."""
    name, step = (str(text) for text in (job["metadata"]["name"], job["metadata"]["labels"][COMPONENT_LABEL]))
    record = workspace.step_record(run, step)
    if record is None or record.inputs:
        return
    pods = RayPods(kube, name, run, step)
    pods.refresh(job["status"])
    error = explain_failure(name, job["status"], pods.pods, "", pods.events)
    failed = replace(record, exit_code=error.exit_code, error=str(error))
    workspace.write_step_record(run, step, failed)


POLL_S = 1.0
MAX_LINES = 100
"""Lines at the end of the log that are kept to explain a failure without a record."""
_TIMESTAMPED_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL)
"""A line of a log with timestamps, which are of the node's clock, in the node's zone."""


class JobLog:
    """A thread that prints the logs of a job's submitter pods, one after the other."""

    def __init__(self, kube: KubeClient, job: str, step: str) -> None:
        self._kube, self._job, self._step = kube, job, step
        self._ended = threading.Event()
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._last_times: dict[str, tuple[float, str]] = {}
        self._complete: set[str] = set()
        self._thread = threading.Thread(target=self._follow, name="job-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Print the rest of the log after the job has ended, for some seconds at most."""
        self._ended.set()
        self._thread.join(seconds)

    def tail(self) -> str:
        """Return the last lines of the log, at most MAX_LINES."""
        return "\n".join(list(self._lines))

    def _follow(self) -> None:
        while True:
            is_last = self._ended.is_set()
            try:
                self._read_logs()
            except UserError as error:  # no reason to fail: the record says how the job ended
                say(self._step, f"the job's log can't be followed: {error}")
                return
            except MillError:
                pass
            if is_last:
                return
            self._ended.wait(POLL_S)

    def _read_logs(self) -> None:
        pods = self._kube.list_pods(f"job-name={self._job}")
        for pod in sorted(pods, key=lambda item: str(item["metadata"].get("creationTimestamp"))):
            if pod["metadata"]["uid"] not in self._complete and _get_phase(pod) not in ("", "Pending", "Unknown"):
                self._read_log(pod)

    def _read_log(self, pod: Json) -> None:
        """Print a pod's log to where it breaks off or ends. An incomplete last line counts once the pod has ended."""
        uid, has_ended = str(pod["metadata"]["uid"]), _get_phase(pod) in ("Succeeded", "Failed")
        try:
            for line in _split_lines(self._kube.stream_pod_log(str(pod["metadata"]["name"])), has_ended):
                self._print_line(uid, line)
        except StreamInterrupted:
            return
        if has_ended:
            self._complete.add(uid)

    def _print_line(self, uid: str, line: bytes) -> None:
        if not (match := _TIMESTAMPED_LINE.fullmatch(line)):
            return
        seconds = datetime.fromisoformat((match[1] + match[3]).decode()).timestamp()
        timestamp = seconds, (match[2] or b"").decode().ljust(9, "0")
        if timestamp <= self._last_times.get(uid, (0.0, "")):
            return
        self._last_times[uid] = timestamp
        text = match[4].decode(errors="replace").rstrip("\r")
        self._lines.append(text)
        forward_log_line(self._step, text)


def _get_phase(pod: Json) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _split_lines(chunks: Iterable[bytes], with_rest: bool) -> Iterator[bytes]:
    """Yield complete lines, without their ends, and with `with_rest` an incomplete last one."""
    incomplete = b""
    for chunk in chunks:
        *complete, incomplete = (incomplete + chunk).split(b"\n")
        yield from complete
    if with_rest and incomplete:
        yield incomplete
