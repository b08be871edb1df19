"""Explain why a RayJob failed or waits, where its own record does not, as errors with our exit codes.

| status, or cause | exit code | reason for the code |
|---|---|---|
| ValidationFailed | 2 | the manifest comes from the cluster file |
| the command ended with 2, 75 | the same | the step's own exit code |
| no imagemill in the image (127, No module) | 2 | `images.ray` |
| a container's image or secret is not there | 2 | the cluster file names it |
| the head, the autoscaler or the submitter took too much memory | 2 | its size is in the cluster file |
| the command was killed, its supervisor or head lost | 75 | preemption, or memory |
| DeadlineExceeded, PreRunningDeadlineExceeded | 75 | nodes that did not come, or a store that was slow |
| SubmissionFailed, JobStatusCheckTimeoutExceeded, … | 75 | the head did not answer |
| STOPPED, deleted | 75 | somebody did it |
| the command ended with another code | 1 | an internal error |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...components.storage.errors import MillError, TransientError, UserError, error_for_exit_code

_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
_STEP_ERROR = re.compile(r"^\[(?:clean|resize)\] error: (.+)$", re.MULTILINE)
_NO_IMAGEMILL = re.compile(r"No module named '?imagemill|python: (command )?not found")
_LOST_REASONS = (
    "SubmissionFailed",
    "JobStatusCheckTimeoutExceeded",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
)
_DEADLINE_FIELDS = {
    "DeadlineExceeded": "ray.deadline_seconds",
    "PreRunningDeadlineExceeded": "ray.pending_seconds",
}
_CONFIGURATION_REASONS = (
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImagePullBackOff",
    "ErrImagePull",
    "CreateContainerConfigError",
)
"""Reasons of a waiting container for which a name in the cluster file is wrong."""
_MEMORY_FIELDS = {
    "ray-head": "ray.head.memory", "ray-worker": "ray.workers.pod.memory", "autoscaler": "ray.autoscaler.memory",
    "ray-job-submitter": "ray.submitter.memory",
}  # fmt: skip
"""Container → the field of the cluster file with its memory."""
_POD_DELETED_EVENT = re.compile(
    r"Deleted (head|worker) Pod [^;]+; Pod status: (\w*);.*terminated status: "
    r"(?:&ContainerStateTerminated\{ExitCode:(-?\d+),Signal:-?\d+,Reason:([^,]*),Message:(.*?),StartedAt)?", re.DOTALL
)  # fmt: skip
"""The message of KubeRay's events DeletedHeadPod and DeletedWorkerPod (controllers/ray/raycluster_controller.go)."""
_IGNORED_REASONS = ("Unhealthy", "BackOff")
"""Reasons of events that occur while a pod starts."""


@dataclass(frozen=True)
class TerminatedContainer:
    """A container of Ray's pods that ended by itself, and not because its pod was deleted."""

    node: str
    """`head`, `worker` or `submitter`."""
    container: str
    reason: str
    exit_code: int
    message: str = ""

    @property
    def memory(self) -> str:
        """The field of the cluster file that gives too little memory; empty if memory was not the reason."""
        return _MEMORY_FIELDS.get(self.container, "") if self.reason == "OOMKilled" else ""

    def __str__(self) -> str:
        text = f"{self.node}: {self.container}: {self.reason or 'ended'}"
        text += f" (exit code {self.exit_code})" if self.exit_code else ""
        text += f": {_shorten(self.message)}" if self.message else ""
        return f"{text}: it took more than {self.memory}" if self.memory else text


def explain_failure(
    job: str, status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]] = (), log: str = "",
    events: Sequence[Mapping[str, Any]] = (),
) -> MillError:  # fmt: skip
    """Return the error of a RayJob that failed, from its status, its pods, the end of its log and its events."""
    reason, message = str(status.get("reason") or ""), _shorten(str(status.get("message") or ""))
    problems = list_problems(pods, events, is_waiting=not status.get("jobStatus"))
    reasons = "; ".join(part for part in (message, *problems) if part) or reason or "it does not say why"
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return UserError(f"cluster: expected a RayJob that KubeRay takes, found: {reasons}")
    if status.get("jobStatus") == "STOPPED":
        return TransientError(f"the RayJob {job} was stopped")
    if too_little := find_memory_error(job, list_terminated(pods, events)):
        return too_little
    if reason in _DEADLINE_FIELDS:
        kind = UserError if waits_in_vain(pods) else TransientError
        return kind(f"the RayJob {job} was not done in time ({_DEADLINE_FIELDS[reason]}): {reasons}")
    match = _EXIT_CODE.search(str(status.get("message") or ""))
    code = int(match.group(1)) if match else None
    text = f"{status.get('message') or ''}\n{log}"
    if code == 127 or (code in (1, None) and _NO_IMAGEMILL.search(text)):
        return UserError(f"cluster (images.ray): expected an image with imagemill in it, found one without: {reasons}")
    if reason in _LOST_REASONS or code is None or code < 0 or code > 128:
        return TransientError(f"the RayJob {job} was lost: {reasons}")
    step_errors = _STEP_ERROR.findall(text)
    return error_for_exit_code(
        code, step_errors[-1] if step_errors else f"the RayJob {job} ended with exit code {code}: {reasons}"
    )


def find_memory_error(job: str, containers: Iterable[TerminatedContainer]) -> UserError | None:
    """Return the error of a job whose head, autoscaler or submitter was killed for memory: another attempt has no more.

    None if none was. A worker that is killed is created again, and Ray runs its tasks elsewhere.
    """
    for container in containers:
        if container.memory and container.node != "worker":
            return UserError(f"cluster ({container.memory}): expected enough memory for the RayJob {job}, found too "
                             f"little: its container {container.container} was killed (OOMKilled)")  # fmt: skip
    return None


def list_problems(
    pods: Iterable[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = (), is_waiting: bool = True
) -> list[str]:
    """Return the reasons that keep pods from running, or ended them; none for those that are well.

    `events`: Kubernetes' events of the RayCluster and its pods, also of deleted pods; `is_waiting`: the job has not
    begun, so that the warnings of its pods still count.
    """
    pods = list(pods)
    problems = [text for pod in pods for text in _iterate_problems(pod)]
    containers = list_terminated(pods, events)
    head_terminated = any(container.node == "head" for container in containers)
    for container in containers:
        if container.memory or container.node != "worker" or not head_terminated:  # workers end with the head
            problems.append(str(container))
    if _count_events(events, "CreatedHeadPod") > 1 and not head_terminated:
        problems.append("head: its pod was lost (deleted, evicted, or with its node) and made anew")
    if is_waiting:
        problems += [text for event in events for text in _describe_warning(event)]
    return list(dict.fromkeys(problems))


def list_terminated(
    pods: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]] = ()
) -> list[TerminatedContainer]:
    """Return the containers of Ray's pods that ended by themselves, also of pods that KubeRay has deleted since."""
    containers = [container for pod in pods for container in _iterate_terminated(pod)]
    for event in events:
        if match := _POD_DELETED_EVENT.match(str(event.get("message") or "")):
            node, phase, code, reason, message = match.groups()
            if code is not None or phase == "Failed":
                containers.append(
                    TerminatedContainer(node, f"ray-{node}", reason or "its pod failed", int(code or 0), message or "")
                )
    return list(dict.fromkeys(containers))


def _iterate_terminated(pod: Mapping[str, Any]) -> Iterator[TerminatedContainer]:
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        for state in ("lastState", "state"):
            terminated = (status.get(state) or {}).get("terminated") or {}
            container = TerminatedContainer(
                _get_node_type(pod), str(status.get("name")), str(terminated.get("reason") or ""),
                int(terminated.get("exitCode") or 0), str(terminated.get("message") or ""),
            )  # fmt: skip
            # A pod that is deleted ends its containers, and the submitter ends as its job does.
            is_expected = pod["metadata"].get("deletionTimestamp") or container.container == "ray-job-submitter"
            if container.exit_code and (container.memory or not is_expected):
                yield container


def _count_events(events: Iterable[Mapping[str, Any]], reason: str) -> int:
    """Return how often an event with this reason occurred: newer Kubernetes counts repeated events in one."""
    return sum(
        int((event.get("series") or {}).get("count") or event.get("count") or 1)
        for event in events
        if event.get("reason") == reason
    )


def _describe_warning(event: Mapping[str, Any]) -> Iterator[str]:
    """Yield the text of a pod's warning, unless its reason is one of _IGNORED_REASONS."""
    regarding = event.get("involvedObject") or {}
    if (
        regarding.get("kind") == "Pod"
        and event.get("type") == "Warning"
        and event.get("reason") not in _IGNORED_REASONS
    ):
        name = str(regarding.get("name"))
        node = next((node for node in ("head", "worker") if re.search(rf"-{node}(-\w+)?$", name)), "submitter")
        reason = "not scheduled" if event.get("reason") == "FailedScheduling" else event.get("reason")
        yield f"{node}: {reason}: {_shorten(str(event.get('message') or ''))}"


def waits_in_vain(pods: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a container waits for an image or a secret that does not exist: it would wait for ever."""
    return any(reason in _CONFIGURATION_REASONS for pod in pods for _, reason, _ in _iterate_waiting(pod))


def _iterate_problems(pod: Mapping[str, Any]) -> Iterator[str]:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            message = condition.get("message") or condition.get("reason") or ""
            yield f"{_get_node_type(pod)}: not scheduled: {_shorten(message)}"
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            yield f"{_get_node_type(pod)}: {condition.get('reason')}: {_shorten(condition.get('message') or '')}"
    for container, reason, message in _iterate_waiting(pod):
        if reason not in ("ContainerCreating", "PodInitializing"):
            yield f"{_get_node_type(pod)}: {container}: {reason}: {message}"
    if status.get("phase") == "Failed" and status.get("reason"):
        yield f"{_get_node_type(pod)}: {status['reason']}: {_shorten(status.get('message') or '')}"


def _iterate_waiting(pod: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if waiting := (container.get("state") or {}).get("waiting"):
            yield str(container.get("name")), str(waiting.get("reason") or ""), _shorten(waiting.get("message") or "")


def _get_node_type(pod: Mapping[str, Any]) -> str:
    """Return `head`, `worker` or `submitter`."""
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("ray.io/node-type") or "submitter")


def _shorten(text: str) -> str:
    """Return a text in one line. Of a long one the end is kept: a job's message ends with its log."""
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:120]} … {line[-270:]}"
