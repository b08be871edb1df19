"""Whose a RayJob is: one of an earlier try, one that another has taken over, and that nothing of a run is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import launching
import pytest
from kube_api import Act, Fault, KubeApi, deleted, kube_event, pause, status, submitter, until
from kube_http import PODS, RAYJOBS, Json
from launching import (
    DONE,
    RUN,
    STARTED,
    WORKFLOW,
    Work,
    job_failed,
    launch,
    write_tensors,
)

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.engine.ray_job import write_pending_record
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines.cluster.cluster_file import COMPONENT_LABEL, RUN_LABEL, parse_cluster
from imagemill.pipelines.kuberay import launcher
from imagemill.pipelines.kuberay.launcher import WATCHER_ANNOTATION
from imagemill.pipelines.kuberay.pods import delete_rayjobs

s3, api, finished_work, work = launching.s3, launching.api, launching.finished_work, launching.work


def earlier(api: KubeApi, work: Work, **metadata: Any) -> Json:
    """A job as an earlier try has made it, whose pod is lost: ready to be put there again."""
    api.acts = [(*STARTED, deleted)]
    assert launch(work).code == EXIT_TRANSIENT
    [job] = api.created
    copy: Json = json.loads(json.dumps(job))
    copy["metadata"] |= {"annotations": {WATCHER_ANNOTATION: "uid-lost"}} | metadata
    copy.pop("status", None)
    return copy


@pytest.mark.parametrize("kind", ["Workflow", "Pod"])
def test_a_job_of_an_earlier_try_is_adopted(kind: str, api: KubeApi, work: Work, finished_work: Work) -> None:
    """The pod that made it was lost: the next one finds it by its name, and it does not go with the lost pod."""
    lost = {"apiVersion": "v1", "kind": "Pod", "name": "lost", "uid": "uid-lost"}
    job = earlier(api, work, ownerReferences=[WORKFLOW if kind == "Workflow" else lost])
    metadata: list[Json] = []

    def look(api: KubeApi, job: Json) -> None:
        metadata.append(json.loads(json.dumps(api.objects[RAYJOBS][job["metadata"]["name"]]["metadata"])))

    api.acts = [
        (*STARTED, submitter("[resize] 1 image"), until(lambda api: bool(api.asked("PATCH", RAYJOBS))), look,
         write_tensors(finished_work), submitter(phase="Succeeded"), *DONE)
    ]  # fmt: skip
    api.play(api.put(RAYJOBS, job))
    result = launch(work)
    assert result.code == 0 and "is there already" in result.stderr and "[resize] 1 image" in result.stderr
    assert len(api.asked("POST", RAYJOBS)) == 1
    [job_metadata] = metadata
    assert job_metadata["annotations"][WATCHER_ANNOTATION] == api.objects[PODS]["resize-pod"]["metadata"]["uid"]
    assert job_metadata["ownerReferences"] == ([WORKFLOW] if kind == "Workflow" else [lost, WORKFLOW])


@pytest.mark.parametrize(
    ("ended", "is_recreated"),
    [(status("Failed", "FAILED", reason="AppFailed"), True), (status("Complete", "STOPPED"), True),
     (job_failed(2, "color: expected rgb"), False)],
)  # fmt: skip
def test_job_that_failed_in_an_earlier_try_is_recreated_unless_the_input_was_wrong(
    api: KubeApi, work: Work, finished_work: Work, ended: Act, is_recreated: bool
) -> None:
    """The job is deleted and created again, unless the input was wrong."""
    api.acts = [(*STARTED, deleted)]
    launch(work)
    job = json.loads(json.dumps(api.created[0]))
    api.put(RAYJOBS, job)
    for act in (ended, status("Failed", "FAILED", reason="AppFailed")):
        act(api, job)
    api.finalizer_s = 0.2
    api.acts = [(*STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work)
    time.sleep(0.25)
    assert len(api.created) == (2 if is_recreated else 1)
    assert result.code == (0 if is_recreated else EXIT_USER), result.stderr
    assert ("is being deleted" if is_recreated else "color: expected rgb") in result.stderr


def terminate(api: KubeApi, job: Json) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_deletes_the_job(api: KubeApi, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is deleted before the end of the log, also after a second signal."""

    def send_second_signal() -> None:
        while not api.asked("DELETE", RAYJOBS):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def too_late(number: int, frame: object) -> None:
        """Ignore a second signal that comes late on a busy machine."""

    monkeypatch.setattr(launcher, "LOG_TIMEOUT_S", 60.0)
    api.acts = [(*STARTED, submitter("[resize] 1 image"), pause(0.2), terminate, pause(60))]
    api.faults = [Fault("DELETE", RAYJOBS, 0, wait_s=0.3)]
    handler = signal.signal(signal.SIGTERM, too_late)
    second = threading.Thread(target=send_second_signal, daemon=True)
    second.start()
    began = time.monotonic()
    try:
        result = launch(work)
        second.join(60)
        assert signal.getsignal(signal.SIGTERM) is too_late
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert result.code == EXIT_TRANSIENT and "stopped by a signal; the RayJob" in result.record.error
    assert time.monotonic() - began < launcher.LOG_TIMEOUT_S / 2


GOING: dict[str, Act] = {
    "deleted": lambda api, job: api.update(
        PODS, "resize-pod", {"metadata": {"deletionTimestamp": "2026-11-21T00:00:00Z"}}
    ),
    "evicted": lambda api, job: api.update(
        PODS, "resize-pod", {"status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}}
    ),
    "gone": lambda api, job: api.remove(PODS, "resize-pod"),
    "made again": lambda api, job: api.put(PODS, {"metadata": {"name": "resize-pod"}}),
}


@pytest.mark.parametrize("cause", GOING)
def test_a_pod_that_is_deleted_leaves_its_job_to_the_next_try(
    cause: str, api: KubeApi, work: Work, finished_work: Work
) -> None:
    """The work of Ray's cluster goes on while Argo makes another pod, which finds the job by its name."""
    api.acts = [
        (
            *STARTED,
            GOING[cause],
            terminate,
            until(lambda api: bool(api.asked("PATCH", RAYJOBS))),
            write_tensors(finished_work),
            *DONE,
        )
    ]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "goes on, and the next attempt adopts it" in result.record.error
    assert len(api.objects[RAYJOBS]) == 1 and not api.deletions
    api.put(PODS, {"metadata": {"name": "resize-pod", "ownerReferences": [WORKFLOW]}, "spec": {}})
    retry = launch(work)
    assert retry.code == 0 and "is there already" in retry.stderr and len(api.created) == 1, retry.stderr


def test_deleted_pod_without_a_workflow_deletes_its_job(api: KubeApi, work: Work) -> None:
    api.put(PODS, {"metadata": {"name": "resize-pod"}, "spec": {}})
    api.acts = [(*STARTED, GOING["deleted"], terminate, pause(60))]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "is deleted" in result.record.error


def test_job_adopted_by_another_try_is_not_deleted(api: KubeApi, work: Work) -> None:
    """The node of this pod was unreachable, and the run's next pod has adopted the job."""

    def take_over(api: KubeApi, job: Json) -> None:
        api.update(RAYJOBS, job["metadata"]["name"], {"metadata": {"annotations": {WATCHER_ANNOTATION: "uid-next"}}})

    api.acts = [(*STARTED, take_over, terminate, pause(1))]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "is left to the pod that has taken it over" in result.record.error
    assert len(api.objects[RAYJOBS]) == 1
    api.objects[RAYJOBS].clear()


def test_concurrent_runs_of_the_same_tensors_use_separate_jobs(api: KubeApi, work: Work, finished_work: Work) -> None:
    """Each has a job of its own; whichever is done first, both find the tensors, and each deletes its own job."""
    other_results: list[launching.Launched] = []

    def another_run(api: KubeApi, job: Json) -> None:
        other_results.append(launch(work, run="run-2"))
        assert [rayjob["metadata"]["uid"] for rayjob in api.objects[RAYJOBS].values()] == [job["metadata"]["uid"]]

    api.acts = [(*STARTED, another_run, *DONE), (*STARTED, write_tensors(finished_work), *DONE)]
    result = launch(work)
    assert [result.code, other_results[0].code] == [0, 0], result.stderr
    assert result.record.uri == other_results[0].record.uri and result.record.state == "ran"
    assert len({rayjob["metadata"]["name"] for rayjob in api.created}) == len(api.created) == 2
    assert {item["preconditions"]["uid"] for item in api.deletions} == {item["metadata"]["uid"] for item in api.created}


def test_job_recreated_by_others_is_not_deleted(api: KubeApi, work: Work) -> None:
    def recreate(api: KubeApi, job: Json) -> None:
        copy = json.loads(json.dumps(job))
        deleted(api, job)
        api.put(RAYJOBS, copy)

    api.acts = [(*STARTED, recreate)]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "was deleted while it ran" in result.record.error
    assert len(api.deletions) == 1 and len(api.objects[RAYJOBS]) == 1
    api.objects[RAYJOBS].clear()


def test_a_job_that_could_not_be_adopted_is_not_deleted(api: KubeApi, work: Work) -> None:
    job = api.put(RAYJOBS, earlier(api, work))
    status("Running", "RUNNING")(api, job)
    api.faults = [Fault("PATCH", RAYJOBS, 403, "rayjobs is forbidden", 9)]
    result = launch(work)
    assert result.code == EXIT_USER and "the right to patch rayjobs" in result.record.error
    assert list(api.objects[RAYJOBS]) == [job["metadata"]["name"]]
    api.objects[RAYJOBS].clear()


def test_clean_up_deletes_objects_of_the_run(api: KubeApi) -> None:
    cluster = parse_cluster({})
    for name, run in (("a", RUN), ("b", RUN), ("c", "run-2")):
        api.put(RAYJOBS, {"metadata": {"name": name, "labels": {RUN_LABEL: run, COMPONENT_LABEL: "resize"}}})
    assert delete_rayjobs(cluster, RUN) == ["a", "b"]
    assert list(api.objects[RAYJOBS]) == ["c"] and delete_rayjobs(cluster, RUN) == []
    api.faults = [Fault("GET", RAYJOBS, 404, "404 page not found\n", 1)]
    assert delete_rayjobs(cluster, "run-2") == []
    assert delete_rayjobs(cluster, "run-2") == ["c"]
    assert delete_rayjobs(parse_cluster({"ray": {"mode": "pod"}}), RUN) == []


def test_clean_up_reports_the_error_of_an_unwatched_job(api: KubeApi, work: Work) -> None:
    """With Argo the step's record only says that the job's end is unknown."""
    workspace = Workspace.open(work.workspace)
    write_pending_record("job", Context("resize", workspace, RUN, False))
    job = api.put(RAYJOBS, {"metadata": {"name": "job", "labels": {RUN_LABEL: RUN, COMPONENT_LABEL: "resize"}}})
    status("Failed", "RUNNING", reason="SubmissionFailed", message="backoff limit")(api, job)
    head = (
        "Deleted head Pod mill/x; Pod status: Failed; Pod restart policy: Never; Ray container terminated status: nil"
    )
    kube_event("DeletedHeadPod", head)(api, job)
    assert delete_rayjobs(parse_cluster({}), RUN, work.workspace) == ["job"]
    record = work.record()
    assert record.exit_code == EXIT_TRANSIENT and "head: ray-head: its pod failed" in record.error


def test_clean_up_keeps_an_existing_record(api: KubeApi, work: Work) -> None:
    api.acts = [(*STARTED, job_failed(2, "color: expected rgb"), status("Failed", "FAILED", reason="AppFailed"))]
    launch(work)
    before = work.record()
    job = api.put(RAYJOBS, {"metadata": {"name": "job", "labels": {RUN_LABEL: RUN, COMPONENT_LABEL: "resize"}}})
    status("Failed", "FAILED")(api, job)
    assert delete_rayjobs(parse_cluster({}), RUN, work.workspace) == ["job"]
    assert work.record() == before
