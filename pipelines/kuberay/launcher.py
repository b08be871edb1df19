"""The launcher of a step's RayJob: creates or adopts it, watches it, and deletes it.

It runs in the step's pod in place of the step and needs no Ray. Its service account has `kube_client.RIGHTS`.
The RayJob is owned by the run's Workflow, labeled with the run, and has deadlines of its own. A pod that is deleted
(a drained node) leaves its job to the step's next attempt, which finds it by its name; a run that is stopped deletes
its job. A RayJob that this process can't delete any more is deleted with the Workflow or by the run's exit step
(pods.py), or ends at its deadlines.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Protocol

from ...components.dataset.manifest import Dataset, find_intact_dataset
from ...components.dataset.records import StepRecord
from ...components.step.config import StepConfig
from ...components.step.progress import format_duration
from ...components.step.step import RAN, Context, Outcome
from ...components.storage.errors import (
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    TransientError,
    UserError,
    error_for_exit_code,
)
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import (
    Json,
    KubeClient,
    StreamInterrupted,
    build_owner_reference,
    get_own_pod,
    is_being_deleted,
    read_own_namespace,
)
from .failures import explain_failure, find_memory_error, list_problems, list_terminated, waits_in_vain
from .manifest import FAILED, RUNNING, SUCCEEDED, SUCCESS, WAITING, build_job_name, build_rayjob, classify_status
from .pods import JobLog, RayPods

WATCH_TIMEOUT_S = 30
"""Seconds after which a watch is opened again: events can be lost without an error, and deadlines must be checked."""
OPERATOR_TIMEOUT_S = 300.0
"""Seconds for which a RayJob may have no status: after that no operator watches the namespace."""
DELETION_TIMEOUT_S = 180.0
"""Seconds that the deletion of an earlier RayJob of the same name may take."""
DEADLINE_GRACE_S = 300.0
"""Seconds that KubeRay has after a deadline for ending the job, before the launcher does."""
POLL_S = 1.0
LOG_TIMEOUT_S = 10.0
"""Seconds to wait for the rest of the log after the job has ended."""
DELETE_RETRY_S = 20.0
"""Seconds for which deleting is tried at the end: a terminated pod has half a minute."""
READ_RETRY_S = 4.0
"""Seconds for which reading the job or the pod is tried before that."""
WATCHER_ANNOTATION = "imagemill.io/watcher"
"""Annotation of a RayJob: the uid of the pod that watches it, which is that of the step's latest attempt."""


class Target(Protocol):
    """The dataset that a step makes of a parent and a config (`Target` of components/clean and components/resize)."""

    @property
    def uri(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def config(self) -> StepConfig: ...
    @property
    def device(self) -> str: ...
    def estimate_core_seconds(self, context: Context) -> float: ...
    def make_job_config(self, context: Context) -> StepConfig: ...
    def report(self, dataset: Dataset, state: str, context: Context) -> Outcome: ...


def run_rayjob(cluster: Cluster, target: Target, context: Context) -> Outcome:
    """Create or adopt the RayJob that makes the dataset of a target; return the step's outcome."""
    job_config = target.make_job_config(context)
    kube = KubeClient.connect(read_own_namespace(cluster.namespace))
    name = build_job_name(context.run, target.fingerprint)
    launcher = Launcher(replace(cluster, namespace=kube.namespace), kube, name, job_config, target.uri, context)
    dataset, record = launcher.run(), launcher.read_record()
    if record and record.uri == dataset.uri:  # the job has reported it, in the log that was followed
        return Outcome(dataset.uri, dataset.fingerprint, RAN, record.metrics)
    return target.report(dataset, RAN, context)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the pod is being deleted, or its container stopped."""


@dataclass
class Launcher:
    """The launcher of one RayJob, from its creation to its deletion."""

    cluster: Cluster
    kube: KubeClient
    name: str
    config: StepConfig
    uri: str
    context: Context
    pod: Json | None = None
    """The pod that this process runs in; None outside of one."""
    uid: str = ""
    """The uid of the RayJob once this process has to delete it; empty before, and after its deletion."""
    kept_reason: str = ""
    """The reason why the RayJob was not deleted; empty if it was."""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._pods = RayPods(self.kube, self.name, self.context.run, self.context.step)

    def run(self) -> Dataset:
        """Return the dataset that the job makes, or raise its error. The RayJob is deleted afterwards, except one that
        the step's next attempt adopts."""
        with _raise_on_sigterm():
            try:
                try:
                    dataset = self._make_dataset()
                except Terminated:
                    raise
                except BaseException:
                    self._delete()
                    raise
                self._delete()
                return dataset
            except Terminated:
                self._stop()
                job = self.kept_reason or f"the RayJob {self.name} is deleted"
                raise TransientError(f"stopped by a signal; {job}") from None

    def _make_dataset(self) -> Dataset:
        self._adopt_or_create()
        log = JobLog(self.kube, self.name, self.context.step)
        log.start()
        log_timeout_s = LOG_TIMEOUT_S
        try:
            status = self._wait_until_done()
            if status and classify_status(status) == RUNNING:
                log_timeout_s = POLL_S  # the dataset is there: free the cores of Ray's pods
        except Terminated:
            log_timeout_s = 0.0  # the job goes on printing, and this pod has no time
            raise
        finally:
            log.finish(log_timeout_s)
        return self._get_dataset(status, log.tail())

    def _adopt_or_create(self) -> None:
        from ...components.engine.ray_job import build_command, write_pending_record

        self.pod = get_own_pod(self.kube)
        storage, pod = self.cluster.storage, self.pod
        identity = "" if storage.secret or not pod else str(pod["spec"].get("serviceAccountName") or "")
        owner = build_owner_reference(pod) if pod else None
        step, run = self.context.step, self.context.run
        body = build_rayjob(self.cluster, step, self.name, build_command(step, self.config), run, owner, identity)
        body["metadata"]["annotations"] = {WATCHER_ANNOTATION: self._own_uid}
        while True:
            job = self.kube.get_rayjob(self.name)
            if job is None:
                write_pending_record(self.name, self.context)
                if (job := self.kube.create_rayjob(body)) is None:
                    continue  # another pod has created it
                self.context.say(f"RayJob {self.name} created in the namespace {self.kube.namespace}")
            elif job["metadata"].get("deletionTimestamp"):
                self._wait_until_deleted()
                continue
            elif classify_status(job.get("status") or {}) in (FAILED, SUCCEEDED):
                if find_intact_dataset(self.uri) is None:
                    self.uid = str(job["metadata"]["uid"])
                    self._raise_user_error_of_job()
                    self.context.say(f"RayJob {self.name} of an earlier attempt has ended: another one is created")
                    self.kube.delete_rayjob(self.name, self.uid)
                    continue
            else:
                self.context.say(f"RayJob {self.name} is there already: {_describe_status(job)}")
                self._take_over(job, owner)
            self.uid = str(job["metadata"]["uid"])
            return

    def _raise_user_error_of_job(self) -> None:
        """Raise the UserError that the job of an earlier attempt has recorded, if its launcher was lost before."""
        if (record := self.read_record()) and record.exit_code == EXIT_USER:
            raise UserError(record.error)

    @property
    def _own_uid(self) -> str:
        return str(self.pod["metadata"]["uid"]) if self.pod else ""

    def _take_over(self, job: Json, owner: Json | None) -> None:
        """Make this pod the job's watcher, and an owner: the job must not be deleted with the earlier attempt's pod."""
        changes: Json = {"annotations": {WATCHER_ANNOTATION: self._own_uid}}
        owners = list(job["metadata"].get("ownerReferences") or [])
        if owner and owner["uid"] not in [reference["uid"] for reference in owners]:
            changes["ownerReferences"] = [*owners, owner]
        self.kube.patch_rayjob_metadata(self.name, changes)

    def _wait_until_deleted(self) -> None:
        self.context.say(f"RayJob {self.name} of an earlier attempt is being deleted")
        since = time.monotonic()
        while job := self.kube.get_rayjob(self.name):
            if not job["metadata"].get("deletionTimestamp"):
                return
            if time.monotonic() - since > DELETION_TIMEOUT_S:
                raise TransientError(
                    f"the RayJob {self.name} of an earlier attempt is not deleted after "
                    f"{format_duration(DELETION_TIMEOUT_S)}: does KubeRay's operator run?"
                )
            time.sleep(POLL_S)

    def _wait_until_done(self) -> Json | None:
        """Follow the job until it has ended or its dataset exists, and return its status; None if it is deleted.

        TransientError when it takes too long.
        """
        last_text, last_state, state_since = "", WAITING, time.monotonic()
        for job in self._watch():
            if job is None or job["metadata"]["uid"] != self.uid:
                return None
            status: Json = job.get("status") or {}
            now, state = time.monotonic(), classify_status(status)
            if state != last_state:
                last_state, state_since = state, now
            if (text := _describe_status(job)) != last_text:
                self.context.say(f"RayJob {self.name}: {text}")
                last_text = text
            if state in (SUCCEEDED, FAILED) or (status.get("jobStatus") == SUCCESS and find_intact_dataset(self.uri)):
                return status
            if job["metadata"].get("deletionTimestamp"):
                return None
            for problem in self._pods.find_new_problems(status):
                self.context.say(f"RayJob {self.name}: {problem}")
            if error := find_memory_error(self.name, list_terminated(self._pods.pods, self._pods.events)):
                raise error  # KubeRay would make the pod again and again
            waiting_s = now - state_since if state == WAITING else 0.0
            self._check_deadlines(status, waiting_s, now - self.started)
        raise AssertionError("unreachable: a job is watched until it has ended")

    def _watch(self) -> Iterator[Json | None]:
        """Yield the job as it is, then each time that it changes, opening a new watch when one ends; None: deleted."""
        while True:
            job = self.kube.get_rayjob(self.name)
            yield job
            if job is None:
                continue
            started = time.monotonic()
            with suppress(StreamInterrupted):
                yield from self.kube.watch_rayjob(self.name, str(job["metadata"]["resourceVersion"]), WATCH_TIMEOUT_S)
            time.sleep(max(0.0, POLL_S - (time.monotonic() - started)))

    def _check_deadlines(self, status: Json, waiting_s: float, elapsed_s: float) -> None:
        """Raise for a deadline that KubeRay does not know (before 1.6), or does not keep because it does not run."""
        ray = self.cluster.ray
        if not status.get("jobDeploymentStatus") and waiting_s > OPERATOR_TIMEOUT_S:
            raise TransientError(
                f"the RayJob {self.name} has no status after {format_duration(waiting_s)}: does KubeRay's operator "
                f"run, and does it watch the namespace {self.kube.namespace}?"
            )
        if ray.pending_seconds and waiting_s > ray.pending_seconds + DEADLINE_GRACE_S:
            self._pods.refresh(status)
            reasons = "; ".join(list_problems(self._pods.pods, self._pods.events)) or _describe_status(
                {"status": status}
            )
            kind = UserError if waits_in_vain(self._pods.pods) else TransientError
            raise kind(
                f"the RayJob {self.name} has waited for {format_duration(waiting_s)} (ray.pending_seconds): {reasons}"
            )
        if ray.deadline_seconds and elapsed_s > ray.deadline_seconds + DEADLINE_GRACE_S:
            raise TransientError(f"the RayJob {self.name} was not done after {format_duration(elapsed_s)} "
                                 "(ray.deadline_seconds)")  # fmt: skip

    def _get_dataset(self, status: Json | None, log: str) -> Dataset:
        """Return the dataset if it exists, whatever the status says; otherwise raise the error."""
        if dataset := find_intact_dataset(self.uri):
            return dataset
        record = self.read_record()
        self._pods.refresh(status or {})
        if record and record.exit_code:
            raise error_for_exit_code(record.exit_code, self._describe_error(record.error, record.exit_code))
        if status is None:
            raise TransientError(f"the RayJob {self.name} was deleted while it ran")
        if classify_status(status) == SUCCEEDED:
            recorded = f", only {record.uri}" if record else ""
            raise UserError(
                f"cluster (images.ray, storage): the RayJob {self.name} succeeded, but there is no dataset {self.uri}"
                f"{recorded}: expected Ray's pods with the imagemill and the object store of this step"
            )
        raise explain_failure(self.name, status, self._pods.pods, log, self._pods.events)

    def _describe_error(self, error: str, exit_code: int) -> str:
        """Return the job's own error; if it is a transient one, with the containers of Ray's pods that were lost."""
        containers = list_terminated(self._pods.pods, self._pods.events) if exit_code == EXIT_TRANSIENT else []
        return "; ".join([error, *map(str, containers)])

    def read_record(self) -> StepRecord | None:
        """Return the record that the job itself has written, or None."""
        from ...components.engine.ray_job import read_own_record

        return read_own_record(self.config, self.context)

    def _stop(self) -> None:
        """Delete the job after SIGTERM, unless this pod is deleted while the run goes on."""
        try:
            if self.uid and self._will_be_retried():
                self.kept_reason = (
                    f"this pod is being deleted: the RayJob {self.name} goes on, and the next attempt adopts it"
                )
                self.context.say(self.kept_reason)
                return
        except MillError as error:
            self.context.say(f"this pod can't be read: {error}")
        self._delete()

    def _will_be_retried(self) -> bool:
        """Return whether this pod is deleted, or gone, and the job belongs to the Workflow, which makes another pod.

        A run that is stopped keeps its pods: Argo ends the containers in them.
        """
        if self.pod is None or build_owner_reference(self.pod)["kind"] != "Workflow":
            return False
        current = self.kube.get_pod(str(self.pod["metadata"]["name"]), READ_RETRY_S)
        return current is None or current["metadata"]["uid"] != self._own_uid or is_being_deleted(current)

    def _delete(self) -> None:
        """Delete the job, unless it has another uid, or another attempt adopted it while this pod's node was away."""
        if not self.uid:
            return
        try:
            job = self.kube.get_rayjob(self.name, READ_RETRY_S)
            watcher = ((job or {}).get("metadata", {}).get("annotations") or {}).get(WATCHER_ANNOTATION, self._own_uid)
            if watcher != self._own_uid:
                self.kept_reason = f"the RayJob {self.name} is left to the pod that has taken it over"
                self.context.say(self.kept_reason)
            else:
                self.kube.delete_rayjob(self.name, self.uid, DELETE_RETRY_S)
            self.uid = ""
        except MillError as error:
            self.kept_reason = f"the RayJob {self.name} could not be deleted ({error}); it is deleted when the run ends"
            self.context.say(self.kept_reason)


def _describe_status(job: Json) -> str:
    """Return a job's status in a few words."""
    status = job.get("status") or {}
    deployment, inner = str(status.get("jobDeploymentStatus") or "new"), str(status.get("jobStatus") or "")
    return f"{deployment}, {inner.lower()}" if inner and deployment == "Running" else deployment


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    """Raise Terminated, which no retry takes for a network error, at the first SIGTERM; ignore SIGTERM after that, so
    that it does not interrupt the clean-up."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    is_main_thread = threading.current_thread() is threading.main_thread()
    previous_handler = signal.signal(signal.SIGTERM, handle) if is_main_thread else None
    try:
        yield
    finally:
        if is_main_thread:
            signal.signal(signal.SIGTERM, previous_handler)
