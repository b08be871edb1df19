"""The launcher against recorded sequences of a RayJob's status: how the step ends."""

from __future__ import annotations

import time
from collections.abc import Sequence

import launching
import pytest
from kube_api import Act, Fault, KubeApi, deleted, kube_event, pause, ray_pod, status, submitter, until
from kube_http import EVENTS, PODS, Json
from launching import (
    DONE,
    NEW,
    RUN,
    STARTED,
    Work,
    job_failed,
    launch,
    write_tensors,
)

from imagemill.components.storage.errors import EXIT_INTERNAL, EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines.cluster.cluster_file import RUN_LABEL
from imagemill.pipelines.kuberay import launcher

APP = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"
s3, api, finished_work, work = launching.s3, launching.api, launching.finished_work, launching.work


ENDINGS: dict[str, tuple[Sequence[Act], int, str]] = {
    "validation": (
        (status("ValidationFailed", reason="ValidationFailed", message="worker group has negative minReplicas -1"),),
        EXIT_USER, "negative minReplicas",
    ),
    "deadline": (
        (*STARTED, status("Failed", "RUNNING", reason="DeadlineExceeded", message="passed activeDeadlineSeconds")),
        EXIT_TRANSIENT, "ray.deadline_seconds",
    ),
    "no nodes": (
        (*NEW, status("Failed", reason="PreRunningDeadlineExceeded", message="passed preRunningDeadlineSeconds")),
        EXIT_TRANSIENT, "ray.pending_seconds",
    ),
    "deleted": ((*STARTED, deleted), EXIT_TRANSIENT, "was deleted while it ran"),
    "stopped": ((*STARTED, status("Complete", "STOPPED")), EXIT_TRANSIENT, "was stopped"),
    "wrong input": (
        (*STARTED, job_failed(2, "encoding: expected raw"), status("Failed", "FAILED", reason="AppFailed")),
        EXIT_USER, "encoding: expected raw",
    ),
    "no store": (
        (*STARTED, job_failed(75, "the store is gone"), status("Failed", "FAILED", reason="AppFailed")),
        EXIT_TRANSIENT, "the store is gone",
    ),
    "our error": (
        (*STARTED, job_failed(1, "ValueError: oh"), status("Failed", "FAILED", reason="AppFailed")),
        EXIT_INTERNAL, "ValueError: oh",
    ),
    "deleted with its record": ((*STARTED, job_failed(2, "color: expected x"), deleted), EXIT_USER, "color: expected"),
    "without record": (
        (*STARTED, status("Failed", "FAILED", reason="AppFailed", message=APP.format(1, "Traceback\nKeyError: 3"))),
        EXIT_INTERNAL, "KeyError: 3",
    ),
    "said in its log": (
        (*STARTED, status("Failed", "FAILED", reason="AppFailed",
                          message=APP.format(2, "[resize] error: clean: expected a dataset"))),
        EXIT_USER, "clean: expected a dataset",
    ),
    "killed": (
        (*STARTED, status("Failed", "FAILED", reason="AppFailed", message=APP.format(-9, "…"))),
        EXIT_TRANSIENT, "was lost",
    ),
    "head lost": (
        (*STARTED, status("Failed", "FAILED", reason="AppFailed", message="Unexpected error occurred: The actor died")),
        EXIT_TRANSIENT, "The actor died",
    ),
    "no answer": (
        (*STARTED, status("Failed", "RUNNING", reason="JobStatusCheckTimeoutExceeded", message="since 10:00")),
        EXIT_TRANSIENT, "since 10:00",
    ),
    "another image": (
        (*STARTED, submitter("python: No module named imagemill", phase="Failed"),
         status("Failed", "RUNNING", reason="SubmissionFailed", message="Job submission has failed.")),
        EXIT_USER, "images.ray",
    ),
    "another store": ((*STARTED, *DONE), EXIT_USER, "there is no dataset"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_error_of_a_job_without_tensors(name: str, api: KubeApi, work: Work) -> None:
    acts, code, message = ENDINGS[name]
    api.acts = [acts]
    result = launch(work)
    assert result.code == code and message in result.record.error, result.stderr
    assert result.record.exit_code == code and message in result.stderr.splitlines()[-1]
    if code == EXIT_USER:  # a retry of KFP's fails at once, with the same message
        retry = launch(work)
        assert retry.code == code and message in retry.record.error and len(api.created) == 1


LOST = status("Failed", "RUNNING", reason="SubmissionFailed", message="Job has reached the specified backoff limit")
HEAD_DELETED = (
    "Deleted head Pod mill/x; Pod status: Failed; Pod restart policy: Never; Ray container terminated status: "
    "&ContainerStateTerminated{{ExitCode:{},Signal:0,Reason:{},Message:,StartedAt:x,FinishedAt:x,ContainerID:x,}}"
)


@pytest.mark.parametrize(
    ("exit_code", "reason", "code", "message"),
    [
        (139, "Error", EXIT_TRANSIENT, "head: ray-head: Error (exit code 139)"),
        (137, "OOMKilled", EXIT_USER, "cluster (ray.head.memory): expected enough memory"),
    ],
)
def test_error_has_the_cause_of_a_deleted_head_pod(
    exit_code: int, reason: str, code: int, message: str, api: KubeApi, work: Work
) -> None:
    """KubeRay deletes the pod at once; its event stays. Too little memory is no reason to try again."""
    api.acts = [(*STARTED, kube_event("DeletedHeadPod", HEAD_DELETED.format(exit_code, reason)), LOST)]
    result = launch(work)
    assert result.code == code and message in result.record.error


def test_a_head_that_is_killed_for_memory_again_and_again_ends_the_step(api: KubeApi, work: Work) -> None:
    """KubeRay makes it anew for as long as the job may wait."""
    api.acts = [(*NEW, kube_event("DeletedHeadPod", HEAD_DELETED.format(1, "OOMKilled")), pause(60))]
    began = time.monotonic()
    result = launch(work)
    assert result.code == EXIT_USER and "cluster (ray.head.memory): expected enough memory" in result.record.error
    assert time.monotonic() - began < 20 and len(api.deletions) == 1


def test_events_of_an_earlier_job_are_ignored(api: KubeApi, work: Work, finished_work: Work) -> None:
    """A try makes another job of the same name, and Kubernetes keeps its events for an hour."""
    early = kube_event("DeletedHeadPod", HEAD_DELETED.format(137, "OOMKilled"), cluster="a1b2c")
    looked = until(lambda api: len(api.asked("GET", "component")) > 3)
    api.acts = [
        (early, status("", rayClusterName=""), pause(0.3), *NEW, looked, *STARTED, write_tensors(finished_work), *DONE)
    ]
    result = launch(work)
    assert result.code == 0 and "head" not in result.stderr, result.stderr


def test_error_has_the_cause_of_lost_workers(api: KubeApi, work: Work) -> None:
    """The job knows only that they are gone."""
    worker = HEAD_DELETED.format(137, "OOMKilled").replace("head", "worker", 1)
    failed = status("Failed", "FAILED", reason="AppFailed")
    api.acts = [(*STARTED, kube_event("DeletedWorkerPod", worker), job_failed(75, "lost its worker 20 times"), failed)]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT
    assert "20 times; worker: ray-worker: OOMKilled (exit code 137): it took more than ray.workers" in str(
        result.record
    )


def test_without_the_right_to_list_events_the_error_is_the_jobs(api: KubeApi, work: Work) -> None:
    api.acts, api.faults = [(*STARTED, LOST)], [Fault("GET", EVENTS, 403, "events is forbidden", 9)]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "backoff limit" in result.record.error


def test_reason_of_pending_pods_is_logged_once(api: KubeApi, work: Work, finished_work: Work) -> None:
    waits = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient cpu."}]
    looked = until(lambda api: len(api.asked("GET", "component")) > 3)
    api.acts = [(*NEW, ray_pod("worker", conditions=waits), looked, *STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work)
    assert result.code == 0 and result.stderr.count("worker: not scheduled: 0/1 nodes are available") == 1


SUCCESSES: dict[str, Sequence[Act]] = {
    "retrying": (
        *STARTED, status("Running", "FAILED"), status("Retrying", "FAILED"), status(""), *STARTED,
    ),
    "suspended": (*STARTED, status("Suspending", "RUNNING"), status("Suspended"), status(""), *STARTED),
    "unknown": (*STARTED, status("Pondering", "RUNNING")),
}  # fmt: skip


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_job_that_succeeds_in_the_end(name: str, api: KubeApi, work: Work, finished_work: Work) -> None:
    api.acts = [(*SUCCESSES[name], write_tensors(finished_work), *DONE)]
    result = launch(work)
    assert (result.code, result.record.state) == (0, "ran"), result.stderr


def test_ray_pods_are_deleted_as_soon_as_the_tensors_exist(api: KubeApi, work: Work, finished_work: Work) -> None:
    """Waiting for the submitter and KubeRay would delay train, which needs their cores."""
    api.acts = [
        (
            *STARTED,
            submitter("[resize] 1 image"),
            write_tensors(finished_work),
            status("Running", "SUCCEEDED"),
            pause(60),
        )
    ]
    began = time.monotonic()
    result = launch(work)
    assert result.code == 0 and time.monotonic() - began < 20 and len(api.deletions) == 1, result.stderr


def test_existing_tensors_take_precedence_over_the_status(api: KubeApi, work: Work, finished_work: Work) -> None:
    api.acts = [(*STARTED, write_tensors(finished_work), status("Failed", "SUCCEEDED", reason="DeadlineExceeded"))]
    assert launch(work).code == 0


WAITS = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
UNPULLED = {"name": "ray-head", "state": {"waiting": WAITS}}


@pytest.mark.parametrize(
    ("acts", "cluster", "code", "message"),
    [
        ((), {}, EXIT_TRANSIENT, "has no status after"),
        (
            (status("Initializing"), ray_pod("head", phase="Pending", containerStatuses=[UNPULLED])),
            {"ray": {"pending_seconds": 1}},
            EXIT_USER,
            "ImagePullBackOff",
        ),
        (STARTED, {"ray": {"deadline_seconds": 1}}, EXIT_TRANSIENT, "ray.deadline_seconds"),
    ],
)
def test_deadlines_that_kuberay_does_not_keep(
    acts: Sequence[Act], cluster: Json, code: int, message: str, api: KubeApi, work: Work,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher, "OPERATOR_TIMEOUT_S", 0.5)
    monkeypatch.setattr(launcher, "DEADLINE_GRACE_S", -0.5)
    monkeypatch.setattr(launcher, "WATCH_TIMEOUT_S", 1)
    labels = {RUN_LABEL: RUN, "app.kubernetes.io/component": "resize"}
    killed = {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    lost = {"metadata": {"name": "lost", "labels": labels}, "status": {"containerStatuses": [killed]}}
    api.put(PODS, lost)  # a launcher
    api.acts = [acts]
    result = launch(work, cluster)
    assert result.code == code and message in result.record.error, result.stderr
    assert "OOMKilled" not in result.record.error
