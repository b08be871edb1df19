"""Whose a RayJob is: one of an earlier try, one that another has taken over, and that nothing of a run is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import launching
import pytest
from kube_api import Act, Fault, KubeApi, deleted, pause, status, submitter
from kube_http import PODS, RAYJOBS, Json
from launching import (
    DONE,
    RUN,
    STARTED,
    Work,
    job_failed,
    job_made,
    launch,
)

from imagemill.components.store.errors import EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines import launcher
from imagemill.pipelines.cluster import RUN_LABEL, from_values

s3, api, made, work = launching.s3, launching.api, launching.made, launching.work


def test_a_job_of_an_earlier_try_is_adopted(api: KubeApi, work: Work, made: Work) -> None:
    """The pod that made it was lost: the next one finds it by its name, and it does not go with the lost pod."""
    api.acts = [(*STARTED, pause(0.3), deleted)]
    assert launch(work).code == EXIT_TRANSIENT
    [job] = api.made
    job = json.loads(json.dumps(job))
    job["metadata"]["ownerReferences"][0] |= {"name": "lost", "uid": "uid-lost"}
    job.pop("status", None)
    api.acts = [
        (*STARTED, submitter("[resize] 1 image"), pause(0.1), job_made(made), submitter(phase="Succeeded"), *DONE)
    ]
    api.play(api.put(RAYJOBS, job))
    found = launch(work)
    assert found.code == 0 and "is there already" in found.stderr and "[resize] 1 image" in found.stderr
    assert len(api.asked("POST", RAYJOBS)) == 1
    [patched] = [one for one in api.events if one[1:3] == (RAYJOBS, "MODIFIED")
                 and len(one[3]["metadata"]["ownerReferences"]) == 2][:1]  # fmt: skip
    assert [one["name"] for one in patched[3]["metadata"]["ownerReferences"]] == ["lost", "resize-pod"]


@pytest.mark.parametrize(
    ("ended", "again"),
    [(status("Failed", "FAILED", reason="AppFailed"), True), (status("Complete", "STOPPED"), True),
     (job_failed(2, "color: expected rgb"), False)],
)  # fmt: skip
def test_a_job_that_ended_in_an_earlier_try(api: KubeApi, work: Work, made: Work, ended: Act, again: bool) -> None:
    """It is deleted, waited for and made anew; unless it found the input wrong."""
    api.acts = [(*STARTED, deleted)]
    launch(work)
    job = json.loads(json.dumps(api.made[0]))
    api.put(RAYJOBS, job)
    for act in (ended, status("Failed", "FAILED", reason="AppFailed")):
        act(api, job)
    api.finalizer_s = 0.2
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work)
    time.sleep(0.25)
    assert len(api.made) == (2 if again else 1)
    assert found.code == (0 if again else EXIT_USER), found.stderr
    assert ("is being deleted" if again else "color: expected rgb") in found.stderr


def terminate(api: KubeApi, job: Json) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_takes_the_job_with_it(api: KubeApi, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: not after the log, which goes on; and a second signal does not keep it from that."""

    def again() -> None:
        while not api.asked("DELETE", RAYJOBS):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    def too_late(number: int, frame: object) -> None:
        """Where the machine is so busy that the second signal comes after the end: it must not end the tests."""

    monkeypatch.setattr(launcher, "LAST_WORDS_S", 60.0)
    api.acts = [(*STARTED, submitter("[resize] 1 image"), pause(0.2), terminate, pause(60))]
    api.faults = [Fault("DELETE", RAYJOBS, 0, wait_s=0.3)]
    before = signal.signal(signal.SIGTERM, too_late)
    second = threading.Thread(target=again, daemon=True)
    second.start()
    began = time.monotonic()
    try:
        found = launch(work)
        second.join(60)
        assert signal.getsignal(signal.SIGTERM) is too_late
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found.code == EXIT_TRANSIENT and "stopped by a signal, and the RayJob" in found.record["error"]
    assert time.monotonic() - began < launcher.LAST_WORDS_S / 2


def own(api: KubeApi, job: Json, *pods: str) -> None:
    """Pods own the job."""
    owners = [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": api.objects[PODS][name]["metadata"]["uid"]}
              for name in pods]  # fmt: skip
    api.update(RAYJOBS, job["metadata"]["name"], {"metadata": {"ownerReferences": owners}})


@pytest.mark.parametrize(
    ("other", "left"),
    [({"status": {"phase": "Running"}}, True), ({"status": {"phase": "Failed"}}, False),
     ({"metadata": {"deletionTimestamp": "2026-11-21T00:00:00Z"}}, False)],
)  # fmt: skip
def test_a_job_that_another_try_has_taken_over_is_left_to_it(api: KubeApi, work: Work, other: Json, left: bool) -> None:
    """This pod's node was away, and comes back to be told that its pods are gone."""

    def take_over(api: KubeApi, job: Json) -> None:
        api.put(PODS, {**other, "metadata": {"name": "next", **other.get("metadata", {})}})
        own(api, job, "resize-pod", "next")

    api.acts = [(*STARTED, take_over, terminate, pause(1))]
    found = launch(work)
    assert found.code == EXIT_TRANSIENT
    assert ("is left to the pod next" in found.record["error"]) == left == bool(api.objects[RAYJOBS])
    api.objects[RAYJOBS].clear()


def test_two_runs_at_once_that_make_the_same_tensors_do_not_know_each_other(
    api: KubeApi, work: Work, made: Work
) -> None:
    """Each has a job of its own; whichever is done first, both find the tensors, and each deletes its own job."""
    others: list[launching.Launched] = []

    def another_run(api: KubeApi, job: Json) -> None:
        others.append(launch(work, run="run-2"))
        assert [one["metadata"]["uid"] for one in api.objects[RAYJOBS].values()] == [job["metadata"]["uid"]]

    api.acts = [(*STARTED, another_run, *DONE), (*STARTED, job_made(made), *DONE)]
    found = launch(work)
    assert [found.code, others[0].code] == [0, 0], found.stderr
    assert found.record["uri"] == others[0].record["uri"] and found.record["state"] == "ran"
    assert len({one["metadata"]["name"] for one in api.made}) == len(api.made) == 2
    assert {one["preconditions"]["uid"] for one in api.deletions} == {one["metadata"]["uid"] for one in api.made}


def test_a_job_of_the_same_name_that_somebody_else_made_is_not_deleted(api: KubeApi, work: Work) -> None:
    def made_anew(api: KubeApi, job: Json) -> None:
        copy = json.loads(json.dumps(job))
        deleted(api, job)
        api.put(RAYJOBS, copy)

    api.acts = [(*STARTED, made_anew)]
    found = launch(work)
    assert found.code == EXIT_TRANSIENT and "was deleted while it ran" in found.record["error"]
    assert len(api.deletions) == 1 and len(api.objects[RAYJOBS]) == 1
    api.objects[RAYJOBS].clear()


def test_a_job_that_could_not_be_adopted_is_not_deleted(api: KubeApi, work: Work) -> None:
    api.acts = [(*STARTED, deleted)]
    launch(work)
    job = json.loads(json.dumps(api.made[0]))
    api.put(RAYJOBS, job)
    api.put(PODS, {"metadata": {"name": "first"}, "status": {"phase": "Running"}})
    own(api, job, "first")
    status("Running", "RUNNING")(api, job)
    api.faults = [Fault("PATCH", RAYJOBS, 403, "rayjobs is forbidden", 9)]
    found = launch(work)
    assert found.code == EXIT_USER and "the right to patch rayjobs" in found.record["error"]
    assert list(api.objects[RAYJOBS]) == [job["metadata"]["name"]]
    api.objects[RAYJOBS].clear()


def test_clean_up_deletes_what_is_the_runs(api: KubeApi) -> None:
    cluster = from_values({}).to_json()
    for name, run in (("a", RUN), ("b", RUN), ("c", "run-2")):
        api.put(RAYJOBS, {"metadata": {"name": name, "labels": {RUN_LABEL: run}}})
    assert launcher.clean_up(cluster, RUN) == ["a", "b"]
    assert list(api.objects[RAYJOBS]) == ["c"] and launcher.clean_up(cluster, RUN) == []
    api.faults = [Fault("GET", RAYJOBS, 404, "404 page not found\n", 1)]
    assert launcher.clean_up(cluster, "run-2") == []
    assert launcher.clean_up(cluster, "run-2") == ["c"]
    assert launcher.clean_up(from_values({"ray": {"mode": "pod"}}).to_json(), RUN) == []
