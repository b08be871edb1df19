"""The resize step as a RayJob of its own: made or adopted, followed, mapped to our exit codes, and deleted.

It runs in the step's pod in place of the step and needs no Ray. The rights of its service account are `kube.RIGHTS`.
What it makes is owned by the run's Workflow, labelled with the run, and has deadlines of its own. A pod that is deleted
(a drained node) leaves its job to the step's next try, which finds it by its name; a run that is stopped takes its job
with it. What this process can't delete any more goes with the Workflow, by the run's exit step (ray_cleanup.py), or
ends by itself.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..components.resize.config import ResizeConfig
from ..components.store.errors import (
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    TransientError,
    UserError,
    error_for_exit_code,
)
from ..components.store.manifest import Dataset, find_intact_dataset
from ..components.store.progress import format_duration
from ..components.store.step import RAN, Context, Outcome
from .cluster import Cluster
from .joblog import JobLog
from .kube import Dropped, Json, Kube, is_being_deleted, namespace_here, own_pod, owner_reference
from .ray_failures import ended, failure, memory_error, troubles, wrongly_named
from .ray_pods import RayPods
from .rayjob import FAILED, RUNNING, SUCCEEDED, SUCCESS, WAITING, job_name, manifest, verdict

if TYPE_CHECKING:
    from ..components.resize.resize import Target

WATCH_S = 30
"""A watch is begun anew after so long: events can be lost without a word, and deadlines have to be looked at."""
UNTAKEN_S = 300.0
"""How long a RayJob may have no status at all: no operator is there that takes it."""
DELETING_S = 180.0
"""How long a RayJob of the same name may take to go."""
LATE_S = 300.0
"""How long after its deadline KubeRay has for ending the job, before this gives it up."""
AGAIN_S = 1.0
LAST_WORDS_S = 10.0
"""How long what the job said last may take to come."""
DELETE_S = 20.0
"""How long deleting is tried at the end: a pod that is told to go has half a minute."""
LOOK_S = 4.0
"""How long it is tried before that to see whose the job is now."""
WATCHER = "imagemill.io/watcher"
"""The annotation of a RayJob that holds the uid of the pod that watches it: the step's latest try."""


def launched(cluster: Cluster, target: Target, context: Context) -> Outcome:
    """Have the tensors of a target made by a RayJob."""
    from ..components.resize.resize import outcome

    inner = target.for_job(context)
    kube = Kube.connect(namespace_here(cluster.namespace))
    name = job_name(context.run, target.fingerprint)
    launch = Launch(replace(cluster, namespace=kube.namespace), kube, name, inner, target.uri, context)
    return outcome(target, launch.run(), RAN, context)


class Terminated(KeyboardInterrupt):
    """SIGTERM: the pod has to go."""


@dataclass
class Launch:
    """One RayJob, from its making to its deletion."""

    cluster: Cluster
    kube: Kube
    name: str
    config: ResizeConfig
    uri: str
    context: Context
    pod: Json | None = None
    """This pod, if this is one."""
    uid: str = ""
    """Of the job, once it is this one's to delete."""
    left: str = ""
    """Why it was not deleted."""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._pods = RayPods(self.kube, self.name, self.context.run)

    def run(self) -> Dataset:
        """The tensors that the job makes; its error as if it had come up here. Nothing of it is left afterwards, but
        what a next try takes over."""
        with _terminated():
            try:
                try:
                    dataset = self._made()
                except Terminated:
                    raise
                except BaseException:
                    self._delete()
                    raise
                self._delete()
                return dataset
            except Terminated:
                self._stop()
                ours = f"; {self.left}" if self.left else f", and the RayJob {self.name} with it"
                raise TransientError(f"stopped by a signal{ours}") from None

    def _made(self) -> Dataset:
        self._adopt_or_make()
        log = JobLog(self.kube, self.name)
        log.start()
        patience_s = LAST_WORDS_S
        try:
            status = self._follow()
            if status and verdict(status) == RUNNING:
                patience_s = AGAIN_S  # the tensors are there: others wait for the cores of Ray's pods
        except Terminated:
            patience_s = 0.0  # its pods go on talking, and this one has no time
            raise
        finally:
            log.finish(patience_s)
        return self._ending(status, log.last())

    def _adopt_or_make(self) -> None:
        from ..components.resize.ray_job import command, write_waiting_record

        self.pod = own_pod(self.kube)
        storage, pod = self.cluster.storage, self.pod
        identity = "" if storage.secret or not pod else str(pod["spec"].get("serviceAccountName") or "")
        owner = owner_reference(pod) if pod else None
        body = manifest(self.cluster, self.name, command(self.config), self.context.run, owner, identity)
        body["metadata"]["annotations"] = {WATCHER: self._own_uid}
        while True:
            job = self.kube.job(self.name)
            if job is None:
                write_waiting_record(self.name, self.context)
                if (job := self.kube.create(body)) is None:
                    continue  # somebody else was first
                self.context.say(f"RayJob {self.name} made in the namespace {self.kube.namespace}")
            elif job["metadata"].get("deletionTimestamp"):
                self._wait_until_gone()
                continue
            elif verdict(job.get("status") or {}) in (FAILED, SUCCEEDED):
                if find_intact_dataset(self.uri) is None:
                    self.uid = str(job["metadata"]["uid"])
                    self._refuse_what_was_refused()
                    self.context.say(f"RayJob {self.name} of an earlier try has ended: another one is made")
                    self.kube.delete(self.name, self.uid)
                    continue
            else:
                self.context.say(f"RayJob {self.name} is there already: {_said(job)}")
                self._take_over(job, owner)
            self.uid = str(job["metadata"]["uid"])
            return

    def _refuse_what_was_refused(self) -> None:
        """An earlier try's job found the input wrong, and its launcher did not live to say so."""
        if (record := self._record()) and record["exit_code"] == EXIT_USER:
            raise UserError(str(record["error"]))

    @property
    def _own_uid(self) -> str:
        return str(self.pod["metadata"]["uid"]) if self.pod else ""

    def _take_over(self, job: Json, owner: Json | None) -> None:
        """From now on this pod watches the job, which must not go with the pod of the try that made it."""
        changes: Json = {"annotations": {WATCHER: self._own_uid}}
        owners = list(job["metadata"].get("ownerReferences") or [])
        if owner and owner["uid"] not in [one["uid"] for one in owners]:
            changes["ownerReferences"] = [*owners, owner]
        self.kube.patch_metadata(self.name, changes)

    def _wait_until_gone(self) -> None:
        self.context.say(f"RayJob {self.name} of an earlier try is being deleted")
        since = time.monotonic()
        while job := self.kube.job(self.name):
            if not job["metadata"].get("deletionTimestamp"):
                return
            if time.monotonic() - since > DELETING_S:
                raise TransientError(f"the RayJob {self.name} of an earlier try does not go (does KubeRay run?)")
            time.sleep(AGAIN_S)

    def _follow(self) -> Json | None:
        """The status that the job ends with, or with which its tensors are there; None if it is deleted. TransientError
        when it takes too long."""
        said, since = "", {WAITING: time.monotonic()}
        for job in self._states():
            if job is None or job["metadata"]["uid"] != self.uid:
                return None
            status: Json = job.get("status") or {}
            now, found = time.monotonic(), verdict(status)
            if found not in since:
                since = {found: now}
            if (text := _said(job)) != said:
                self.context.say(f"RayJob {self.name}: {text}")
                said = text
            if found in (SUCCEEDED, FAILED) or (status.get("jobStatus") == SUCCESS and find_intact_dataset(self.uri)):
                return status
            if job["metadata"].get("deletionTimestamp"):
                return None
            for trouble in self._pods.news(status):
                self.context.say(f"RayJob {self.name}: {trouble}")
            if error := memory_error(self.name, ended(self._pods.pods, self._pods.events)):
                raise error  # KubeRay would make the pod again and again
            self._look_at_the_clock(status, now - since[WAITING] if WAITING in since else 0.0, now - self.started)
        raise AssertionError("a job is followed until it ends")

    def _states(self) -> Iterator[Json | None]:
        """The job as it is, then each time that it changes, and again and again: whatever becomes of the watches."""
        while True:
            job = self.kube.job(self.name)
            yield job
            if job is None:
                continue
            began = time.monotonic()
            with suppress(Dropped):
                yield from self.kube.changes(self.name, str(job["metadata"]["resourceVersion"]), WATCH_S)
            time.sleep(max(0.0, AGAIN_S - (time.monotonic() - began)))

    def _look_at_the_clock(self, status: Json, waits_s: float, takes_s: float) -> None:
        """Deadlines that KubeRay does not know (before 1.6), or does not keep because it is not there."""
        ray = self.cluster.ray
        if not status.get("jobDeploymentStatus") and waits_s > UNTAKEN_S:
            raise TransientError(
                f"the RayJob {self.name} is taken by nobody after {format_duration(waits_s)}: does KubeRay's operator "
                f"run, and does it watch the namespace {self.kube.namespace}?"
            )
        if ray.pending_seconds and waits_s > ray.pending_seconds + LATE_S:
            self._pods.look(status)
            why = "; ".join(troubles(self._pods.pods, self._pods.events)) or _said({"status": status})
            kind = UserError if wrongly_named(self._pods.pods) else TransientError
            raise kind(f"the RayJob {self.name} has waited for {format_duration(waits_s)} (ray.pending_seconds): {why}")
        if ray.deadline_seconds and takes_s > ray.deadline_seconds + LATE_S:
            raise TransientError(f"the RayJob {self.name} was not done after {format_duration(takes_s)} "
                                 "(ray.deadline_seconds)")  # fmt: skip

    def _ending(self, status: Json | None, log: str) -> Dataset:
        """The tensors, if they are there, whatever else is said; otherwise the error."""
        if dataset := find_intact_dataset(self.uri):
            return dataset
        record = self._record()
        self._pods.look(status or {})
        if record and record["exit_code"]:
            raise error_for_exit_code(record["exit_code"], self._explained(str(record["error"]), record["exit_code"]))
        if status is None:
            raise TransientError(f"the RayJob {self.name} was deleted while it ran")
        if verdict(status) == SUCCEEDED:
            there = f", only {record['uri']}" if record else ""
            raise UserError(
                "cluster (images.ray, storage): expected the imagemill of this step, and the same object store, found "
                f"others: the RayJob {self.name} succeeded and there is no dataset {self.uri}{there}"
            )
        raise failure(self.name, status, self._pods.pods, log, self._pods.events)

    def _explained(self, error: str, exit_code: int) -> str:
        """The job's own error; if it is that its workers or its store were lost, with what Ray's pods ended by."""
        ends = ended(self._pods.pods, self._pods.events) if exit_code == EXIT_TRANSIENT else []
        return "; ".join([error, *map(str, ends)])

    def _record(self) -> dict[str, Any] | None:
        from ..components.resize.ray_job import own_record

        return own_record(self.config, self.context)

    def _stop(self) -> None:
        """On SIGTERM: delete the job, unless this pod is deleted while the run goes on."""
        try:
            if self.uid and self._run_goes_on():
                self.left = f"this pod is being deleted: the RayJob {self.name} goes on, and the next try finds it"
                self.context.say(self.left)
                return
        except MillError as error:
            self.context.say(f"this pod could not be looked at: {error}")
        self._delete()

    def _run_goes_on(self) -> bool:
        """Whether this pod is deleted, or gone, and the job belongs to the Workflow, which makes another pod. A run
        that is stopped keeps its pods: Argo ends the containers in them."""
        if self.pod is None or owner_reference(self.pod)["kind"] != "Workflow":
            return False
        now = self.kube.pod(str(self.pod["metadata"]["name"]), LOOK_S)
        return now is None or now["metadata"]["uid"] != self._own_uid or is_being_deleted(now)

    def _delete(self) -> None:
        """On every other way out: its log, record and reasons are told by now. Never a job that somebody else has made
        under this name, nor one that another try has taken over while this pod's node was away."""
        if not self.uid:
            return
        try:
            job = self.kube.job(self.name, LOOK_S)
            watcher = ((job or {}).get("metadata", {}).get("annotations") or {}).get(WATCHER, self._own_uid)
            if watcher != self._own_uid:
                self.left = f"the RayJob {self.name} is left to the pod that has taken it over"
                self.context.say(self.left)
            else:
                self.kube.delete(self.name, self.uid, DELETE_S)
            self.uid = ""
        except MillError as error:
            self.left = f"the RayJob {self.name} could not be deleted ({error}): it goes with the run"
            self.context.say(self.left)


def _said(job: Json) -> str:
    """A job's status in few words."""
    status = job.get("status") or {}
    deployment, inner = str(status.get("jobDeploymentStatus") or "new"), str(status.get("jobStatus") or "")
    return f"{deployment}, {inner.lower()}" if inner and deployment == "Running" else deployment


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM as an exception, which no retry takes for an error of the network; once, for what follows is to clean
    up."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
