"""Why a RayJob failed or waits, as errors with our exit codes: what its own record does not say.

| what KubeRay says | exit code | why |
|---|---|---|
| ValidationFailed | 2 | the manifest comes from the cluster's file |
| the command ended with 2, 75 | the same | it said so itself |
| no imagemill in the image (127, No module) | 2 | `images.ray` |
| a container's image or secret is not there | 2 | the cluster's file names it |
| the command was killed, its supervisor or head lost | 75 | preemption, or memory |
| DeadlineExceeded, PreRunningDeadlineExceeded | 75 | nodes that did not come, or a store that was slow |
| SubmissionFailed, JobStatusCheckTimeoutExceeded, … | 75 | the head did not answer |
| STOPPED, deleted | 75 | somebody did it |
| the command ended with another code | 1 | ours |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def failure(job: str, status: Mapping[str, Any], pods: Sequence[Mapping[str, Any]] = (), log: str = "") -> MillError:
    """The error of a RayJob that failed, by its status, its pods and the end of its log."""
    reason, message = str(status.get("reason") or ""), _line(str(status.get("message") or ""))
    trouble = troubles(pods)
    why = "; ".join(part for part in (message, *trouble) if part) or reason or "it does not say why"
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return UserError(f"cluster: expected a RayJob that KubeRay takes, found: {why}")
    if status.get("jobStatus") == "STOPPED":
        return TransientError(f"the RayJob {job} was stopped")
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


def troubles(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """What keeps pods from running, or ended them, in words; nothing for those that are well."""
    return list(dict.fromkeys(text for pod in pods for text in _troubles(pod)))


def wrongly_named(pods: Iterable[Mapping[str, Any]]) -> bool:
    """A container waits for an image or a secret that is not there: it would wait for ever."""
    return any(reason in _WRONG for pod in pods for _, reason, _ in _waiting(pod))


def _troubles(pod: Mapping[str, Any]) -> Iterator[str]:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"{_kind(pod)}: not scheduled: {_line(condition.get('message') or condition.get('reason') or '')}"
    for container, reason, message in _waiting(pod):
        if reason not in ("ContainerCreating", "PodInitializing"):
            yield f"{_kind(pod)}: {container}: {reason}: {message}"
    for one in status.get("containerStatuses") or []:
        ended = (one.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode") and one.get("name") != "ray-job-submitter":
            yield f"{_kind(pod)}: {one.get('name')}: {ended.get('reason') or 'ended'} (exit code {ended['exitCode']})"
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
