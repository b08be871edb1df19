"""The launcher against recorded sequences of a RayJob's status: how it ends, whose it is, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kube_api import Act, Fault, KubeApi, deleted, pause, status, submitter
from kube_http import NAMESPACE, PODS, RAYJOBS, Json
from launching import (
    DONE,
    NEW,
    RUN,
    STARTED,
    Work,
    config_of,
    job_failed,
    job_made,
    launch,
    place,
    run_for_real,
    s3_server,
    served,
    tensors,
)

from imagemill.components.resize.resize import find
from imagemill.components.store.errors import EXIT_OURS, EXIT_TRANSIENT, EXIT_USER
from imagemill.components.store.manifest import ready
from imagemill.components.store.step import Context
from imagemill.components.store.workspace import Workspace
from imagemill.pipelines import launcher
from imagemill.pipelines.cluster import RUN_LABEL, from_values
from imagemill.pipelines.rayjob import job_name

ODD_RUN = """run '"$(touch x)`touch x`;touch x&"""
APP = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with served(tmp_path) as made:
        yield made


@pytest.fixture
def work(made: Work) -> Work:
    return made.copy()


@pytest.fixture(scope="module")
def made(s3: None) -> Work:
    """A workspace with tensors, for stand-ins to place."""
    return tensors()


@pytest.mark.proof
def test_the_command_line_makes_the_tensors(api: KubeApi, tmp_path: Path) -> None:
    """From the step's values to tensors, through two shells and Ray; an odd name of a run does no harm."""
    work = Work.make("real")
    api.acts = [(*STARTED, run_for_real(tmp_path), *DONE)]
    found = launch(work, run=ODD_RUN)
    assert found.code == 0, found.stderr
    assert found.record["state"] == "ran" and found.record["metrics"]["rows"] == 16
    dataset = ready(found.record["uri"])
    assert dataset and dataset.manifest.totals.rows == 16 and dataset.manifest.image["shape"] == [16, 16, 3]
    assert found.stderr.count("[resize] Ray with") == 1 and found.stderr.count("16 images of 16 x 16") == 1
    assert not list(tmp_path.rglob("x"))
    cached = launch(work, run="run-2")
    assert cached.code == 0 and cached.record["state"] == "cached"


def test_the_command_line_is_the_steps(
    api: KubeApi, work: Work, made: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the head runs makes the tensors that were looked for: read by a shell and by the step's own parser."""
    monkeypatch.chdir(tmp_path)
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work, run=ODD_RUN)
    assert (found.code, found.record["state"]) == (0, "ran"), found.stderr
    config = config_of(api.made[0])
    assert (config.run, config.ray_address, config.workspace) == (ODD_RUN, "auto", work.workspace)
    assert (config.clean, config.image_size, config.device) == (work.clean, 16, "cpu")
    context = Context("resize", Workspace.open(work.workspace), ODD_RUN, False)
    assert find(config, context, 0).uri == found.record["uri"]
    assert not list(tmp_path.rglob("x"))


def test_the_job_is_the_pods_and_goes_with_it(api: KubeApi, work: Work, made: Work) -> None:
    api.acts = [(*STARTED, job_made(made), *DONE)]
    found = launch(work, run=ODD_RUN)
    [job] = api.made
    assert job["metadata"]["name"] == job_name(ODD_RUN, found.record["fingerprint"])
    assert job["metadata"]["namespace"] == NAMESPACE
    uid = api.objects[PODS]["resize-pod"]["metadata"]["uid"]
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": uid}]
    assert "hunter2" not in json.dumps(job) + found.stderr
    [deletion] = api.deletions
    assert deletion["propagationPolicy"] == "Foreground"
    assert deletion["preconditions"] == {"uid": job["metadata"]["uid"]}


def test_what_is_there_needs_no_cluster(work: Work, made: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    place(made, work.workspace)
    found = launch(work)
    assert (found.code, found.record["state"]) == (0, "cached") and "RayJob" not in found.stderr
    other = launch(work, rerun="resize")
    assert other.code == EXIT_USER and "KUBECONFIG: expected a cluster's configuration" in other.stderr


def test_a_folder_is_not_seen_by_a_cluster(tmp_path: Path) -> None:
    found = launch(Work(str(tmp_path), f"{tmp_path}/clean/0123456789abcdef"))
    assert found.code == EXIT_USER and "workspace: expected s3://bucket/prefix" in found.stderr


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
        EXIT_OURS, "ValueError: oh",
    ),
    "deleted with its record": ((*STARTED, job_failed(2, "color: expected x"), deleted), EXIT_USER, "color: expected"),
    "without record": (
        (*STARTED, status("Failed", "FAILED", reason="AppFailed", message=APP.format(1, "Traceback\nKeyError: 3"))),
        EXIT_OURS, "KeyError: 3",
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
def test_how_a_job_ends_without_tensors(name: str, api: KubeApi, work: Work) -> None:
    acts, code, said = ENDINGS[name]
    api.acts = [acts]
    found = launch(work)
    assert found.code == code and said in found.record["error"], found.stderr
    assert found.record["exit_code"] == code and said in found.stderr.splitlines()[-1]
    if code == EXIT_USER:  # a retry of KFP's fails at once, with the same message
        again = launch(work)
        assert again.code == code and said in again.record["error"] and len(api.made) == 1


SUCCESSES: dict[str, Sequence[Act]] = {
    "retrying": (
        *STARTED, status("Running", "FAILED"), status("Retrying", "FAILED"), status(""), *STARTED,
    ),
    "suspended": (*STARTED, status("Suspending", "RUNNING"), status("Suspended"), status(""), *STARTED),
    "unknown": (*STARTED, status("Pondering", "RUNNING")),
}  # fmt: skip


@pytest.mark.parametrize("name", SUCCESSES)
def test_a_job_that_succeeds_in_the_end(name: str, api: KubeApi, work: Work, made: Work) -> None:
    api.acts = [(*SUCCESSES[name], job_made(made), *DONE)]
    found = launch(work)
    assert (found.code, found.record["state"]) == (0, "ran"), found.stderr


def test_tensors_that_are_there_count_for_more_than_a_status(api: KubeApi, work: Work, made: Work) -> None:
    api.acts = [(*STARTED, job_made(made), status("Failed", "SUCCEEDED", reason="DeadlineExceeded"))]
    assert launch(work).code == 0


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


def test_sigterm_takes_the_job_with_it(api: KubeApi, work: Work) -> None:
    """At once: not after the log, which goes on; and a second signal does not keep it from that."""

    def again() -> None:
        while not api.asked("DELETE", RAYJOBS):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    api.acts = [(*STARTED, submitter("[resize] 1 image"), pause(0.2), terminate, pause(5))]
    api.faults = [Fault("DELETE", RAYJOBS, 0, wait_s=0.3)]
    threading.Thread(target=again, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)  # other tests of this process may have called the command
    began = time.monotonic()
    found = launch(work)
    assert found.code == EXIT_TRANSIENT and "stopped by a signal, and the RayJob" in found.record["error"]
    assert time.monotonic() - began < launcher.LAST_WORDS_S / 2
    assert signal.getsignal(signal.SIGTERM) is before


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


@pytest.mark.parametrize(
    ("acts", "cluster", "code", "said"),
    [
        ((), {}, EXIT_TRANSIENT, "is taken by nobody"),
        ((status("Initializing"),), {"ray": {"pending_seconds": 1}}, EXIT_USER, "ImagePullBackOff"),
        (STARTED, {"ray": {"deadline_seconds": 1}}, EXIT_TRANSIENT, "ray.deadline_seconds"),
    ],
)
def test_deadlines_that_kuberay_does_not_keep(
    acts: Sequence[Act], cluster: Json, code: int, said: str, api: KubeApi, work: Work,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(launcher, "UNTAKEN_S", 0.5)
    monkeypatch.setattr(launcher, "LATE_S", -0.5)
    monkeypatch.setattr(launcher, "WATCH_S", 1)
    waits = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    labels = {RUN_LABEL: RUN, "app.kubernetes.io/component": "resize"}
    of_ray = {"ray.io/node-type": "head", "ray.io/cluster": "c"}
    about = {"phase": "Pending", "containerStatuses": [{"name": "ray-head", "state": waits}]}
    api.put(PODS, {"metadata": {"name": "head", "labels": labels | of_ray}, "status": about})
    killed = {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    lost = {"metadata": {"name": "lost", "labels": labels}, "status": {"containerStatuses": [killed]}}
    api.put(PODS, lost)  # a launcher
    api.acts = [acts]
    found = launch(work, cluster)
    assert found.code == code and said in found.record["error"], found.stderr
    assert "OOMKilled" not in found.record["error"]


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


@pytest.mark.parametrize(("gpu", "device"), [(1, "cuda"), (0, "cpu")])
def test_the_device_is_decided_by_rays_workers(gpu: int, device: str, api: KubeApi, work: Work) -> None:
    """And said to the job, so that what it makes has the name that was looked for."""
    api.acts = [(*STARTED, *DONE)]
    cluster = {"ray": {"workers": {"pod": {"gpu": gpu}}}}
    launch(work, cluster, config={"resize": {"device": "auto", "gpu_pixels": 1}})
    [job] = api.made
    assert config_of(job).device == device
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == gpu


def test_without_a_secret_rays_pods_are_who_the_step_is(api: KubeApi, work: Work) -> None:
    api.acts = [(*STARTED, *DONE)]
    launch(work, {"storage": {"secret": ""}})
    launch(work, run="run-2")
    identities = [json.dumps(job).count('"serviceAccountName": "default-editor"') for job in api.made]
    assert identities == [2, 0]


def test_a_cluster_that_runs_is_used_by_its_address(work: Work) -> None:
    cluster = {"ray": {"mode": "address", "address": "http://127.0.0.1:1"}}
    found = launch(work, cluster)
    assert found.code == EXIT_TRANSIENT and "ray_address: expected a Ray cluster at http://127.0.0.1:1" in found.stderr


def test_an_address_of_the_runs_own_is_refused(work: Work) -> None:
    """The launcher's image has no Ray."""
    found = launch(work, config={"resize": {"ray_address": "http://me:hunter2@ray:8265"}})
    assert found.code == found.record["exit_code"] == EXIT_USER and "hunter2" not in found.stderr
    assert "ray_address: expected none, since by the cluster's file" in found.record["error"]


@pytest.mark.parametrize(("told", "said"), [('{"nosuch": 1}', "cluster (nosuch): expected one of"), ("{", "as JSON")])
def test_what_another_imagemill_compiled_is_refused_with_a_record(work: Work, told: str, said: str) -> None:
    found = launch(work, told=told)
    assert found.code == found.record["exit_code"] == EXIT_USER and said in found.record["error"]
    assert ("by another imagemill" in found.record["error"]) == (told != "{")


def test_help_stays_quick() -> None:
    """None of this imports Kubernetes' client before it is needed."""
    import subprocess
    import sys

    code = "import sys, imagemill.pipelines.launcher; sys.exit('kubernetes' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
