"""Why a RayJob failed or waits, as errors with our exit codes: what its own record does not say.

| what KubeRay says | exit code | why |
|---|---|---|
| ValidationFailed | 2 | the manifest comes from the cluster's file |
| the command ended with 2, 75 | the same | it said so itself |
| no imagemill in the image (127, No module) | 2 | `images.ray` |
| a container's image or secret is not there | 2 | the cluster's file names it |
| the head, the autoscaler or the submitter took too much memory | 2 | its size is in the cluster's file |
| the command was killed, its supervisor or head lost | 75 | preemption, or memory |
| DeadlineExceeded, PreRunningDeadlineExceeded | 75 | nodes that did not come, or a store that was slow |
| SubmissionFailed, JobStatusCheckTimeoutExceeded, … | 75 | the head did not answer |
| STOPPED, deleted | 75 | somebody did it |
| the command ended with another code | 1 | ours |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..components.store.errors import MillError, TransientError, UserError, error_for_exit_code

_CODE = re.compile(r"failed with exit code (-?\d+)")
_SAID = re.compile(r"^\[resize\] error: (.+)$", re.MULTILINE)
_ABSENT = re.compile(r"No module named '?imagemill|python: (command )?not found")
_LOST = ("SubmissionFailed", "JobStatusCheckTimeoutExceeded", "JobDeploymentStatusTransitionGracePeriodExceeded")
_DEADLINES = {
    "DeadlineExceeded": "ray.deadline_seconds",
    "PreRunningDeadlineExceeded": "ray.pending_seconds",
}
_WRONG = ("ErrImageNeverPull", "InvalidImageName", "ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError")
"""Reasons of a container that waits for what the cluster's file names wrongly."""


_MEMORY = {
    "ray-head": "ray.head.memory", "ray-worker": "ray.workers.pod.memory", "autoscaler": "ray.autoscaler.memory",
    "ray-job-submitter": "ray.submitter.memory",
}  # fmt: skip
"""Container → the field of the cluster's file that says its memory."""
_DELETED = re.compile(
    r"Deleted (head|worker) Pod [^;]+; Pod status: (\w*);.*terminated status: "
    r"(?:&ContainerStateTerminated\{ExitCode:(-?\d+),Signal:-?\d+,Reason:([^,]*),Message:(.*?),StartedAt)?", re.DOTALL
)  # fmt: skip
"""KubeRay's events DeletedHeadPod and DeletedWorkerPod (controllers/ray/raycluster_controller.go)."""


@dataclass(frozen=True)
class Ended:
    """A container of Ray's pods that ended by itself, and not because its pod was deleted."""

    node: str
    """`head`, `worker` or `submitter`."""
    container: str
    reason: str
    exit_code: int
    message: str = ""

    @property
    def memory(self) -> str:
        """The field of the cluster's file that says too little memory, or an empty string."""
        return _MEMORY.get(self.container, "") if self.reason == "OOMKilled" else ""

    def __str__(self) -> str:
        text = f"{self.node}: {self.container}: {self.reason or 'ended'}"
        text += f" (exit code {self.exit_code})" if self.exit_code else ""
        text += f": {_line(self.message)}" if self.message else ""
        return f"{text}: it took more than {self.memory}" if self.memory else text


def failure(
    job: str, status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]] = (), log: str = "",
    events: Sequence[Mapping[str, Any]] = (),
) -> MillError:  # fmt: skip
    """The error of a RayJob that failed, by its status, its pods, the end of its log and Kubernetes' events of it."""
    reason, message = str(status.get("reason") or ""), _line(str(status.get("message") or ""))
    trouble = troubles(pods, events, waits=not status.get("jobStatus"))
    why = "; ".join(part for part in (message, *trouble) if part) or reason or "it does not say why"
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return UserError(f"cluster: expected a RayJob that KubeRay takes, found: {why}")
    if status.get("jobStatus") == "STOPPED":
        return TransientError(f"the RayJob {job} was stopped")
    if too_little := memory_error(job, ended(pods, events)):
        return too_little
    if reason in _DEADLINES:
        kind = UserError if wrongly_named(pods) else TransientError
        return kind(f"the RayJob {job} was not done in time ({_DEADLINES[reason]}): {why}")
    found = _CODE.search(str(status.get("message") or ""))
    code = int(found.group(1)) if found else None
    text = f"{status.get('message') or ''}\n{log}"
    if code == 127 or (code in (1, None) and _ABSENT.search(text)):
        return UserError(f"cluster (images.ray): expected an image with imagemill in it, found one without: {why}")
    if reason in _LOST or code is None or code < 0 or code > 128:
        return TransientError(f"the RayJob {job} was lost: {why}")
    said = _SAID.findall(text)
    return error_for_exit_code(code, said[-1] if said else f"the RayJob {job} ended with exit code {code}: {why}")


def memory_error(job: str, ends: Iterable[Ended]) -> UserError | None:
    """The error of a job whose head, or what is beside it, was killed for memory: any other try has no more. A worker
    that is killed is made again, and Ray gives its tasks to others."""
    for one in ends:
        if one.memory and one.node != "worker":
            return UserError(f"cluster ({one.memory}): expected enough memory for the RayJob {job}, found too little: "
                             f"its container {one.container} was killed (OOMKilled)")  # fmt: skip
    return None


def troubles(
    pods: Iterable[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = (), waits: bool = True
) -> list[str]:
    """Return the reasons that keep pods from running, or ended them; none for those that are well.

    `events`: Kubernetes' events of the RayCluster and its pods, which tell of pods that are gone; `waits`: the job has
    not begun, so that the warnings of its pods still count.
    """
    pods = list(pods)
    found = [text for pod in pods for text in _troubles(pod)]
    ends = ended(pods, events)
    lost_head = any(one.node == "head" for one in ends)
    found += [str(one) for one in ends if one.memory or one.node != "worker" or not lost_head]  # they end with it
    if _times(events, "CreatedHeadPod") > 1 and not lost_head:
        found.append("head: its pod was lost (deleted, evicted, or with its node) and made anew")
    if waits:
        found += [text for event in events for text in _warning(event)]
    return list(dict.fromkeys(found))


def ended(pods: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]] = ()) -> list[Ended]:
    """The containers of Ray's pods that ended by themselves, of pods that are there and of those that KubeRay has
    deleted since."""
    found = [one for pod in pods for one in _ended(pod)]
    for event in events:
        if told := _DELETED.match(str(event.get("message") or "")):
            node, phase, code, reason, message = told.groups()
            if code is not None or phase == "Failed":
                found.append(Ended(node, f"ray-{node}", reason or "its pod failed", int(code or 0), message or ""))
    return list(dict.fromkeys(found))


def _ended(pod: Mapping[str, Any]) -> Iterator[Ended]:
    for one in (pod.get("status") or {}).get("containerStatuses") or []:
        for state in ("lastState", "state"):
            about = (one.get(state) or {}).get("terminated") or {}
            found = Ended(_kind(pod), str(one.get("name")), str(about.get("reason") or ""),
                          int(about.get("exitCode") or 0), str(about.get("message") or ""))  # fmt: skip
            # A pod that is deleted ends its containers, and the submitter ends as its job does.
            told = pod["metadata"].get("deletionTimestamp") or found.container == "ray-job-submitter"
            if found.exit_code and (found.memory or not told):
                yield found


def _times(events: Iterable[Mapping[str, Any]], reason: str) -> int:
    """How often something happened: newer Kubernetes counts what happens again in one event."""
    return sum(
        int((event.get("series") or {}).get("count") or event.get("count") or 1)
        for event in events
        if event.get("reason") == reason
    )


def _warning(event: Mapping[str, Any]) -> Iterator[str]:
    """A pod's own warning, but for those of probes that are made while it starts."""
    about = event.get("involvedObject") or {}
    if about.get("kind") == "Pod" and event.get("type") == "Warning" and event.get("reason") not in _NOISE:
        name = str(about.get("name"))
        node = next((node for node in ("head", "worker") if re.search(rf"-{node}(-\w+)?$", name)), "submitter")
        reason = "not scheduled" if event.get("reason") == "FailedScheduling" else event.get("reason")
        yield f"{node}: {reason}: {_line(str(event.get('message') or ''))}"


_NOISE = ("Unhealthy", "BackOff")


def wrongly_named(pods: Iterable[Mapping[str, Any]]) -> bool:
    """A container waits for an image or a secret that is not there: it would wait for ever."""
    return any(reason in _WRONG for pod in pods for _, reason, _ in _waiting(pod))


def _troubles(pod: Mapping[str, Any]) -> Iterator[str]:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"{_kind(pod)}: not scheduled: {_line(condition.get('message') or condition.get('reason') or '')}"
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            yield f"{_kind(pod)}: {condition.get('reason')}: {_line(condition.get('message') or '')}"
    for container, reason, message in _waiting(pod):
        if reason not in ("ContainerCreating", "PodInitializing"):
            yield f"{_kind(pod)}: {container}: {reason}: {message}"
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"{_kind(pod)}: {status['reason']}: {_line(status.get('message') or '')}"


def _waiting(pod: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    status = pod.get("status") or {}
    for one in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if waits := (one.get("state") or {}).get("waiting"):
            yield str(one.get("name")), str(waits.get("reason") or ""), _line(waits.get("message") or "")


def _kind(pod: Mapping[str, Any]) -> str:
    """`head`, `worker` or `submitter`."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("ray.io/node-type") or "submitter")


def _line(text: str) -> str:
    """A text in one line, its end if it is long: a job's message ends with its log."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:120]} … {line[-270:]}"
