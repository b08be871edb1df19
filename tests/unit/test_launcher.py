"""The launcher against recorded sequences of a RayJob's status, and against everything that an API server does."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import forget_s3_clients
from kube_api import Act, Fault, KubeApi, deleted, pause, status, submitter
from kube_http import NAMESPACE, PODS, RAYJOBS, Json
from launching import BUCKET, RUN, Launched, Work, config_of, job_failed, job_made, launch, place, run_for_real

from imagemill.components.store.errors import EXIT_OURS, EXIT_TRANSIENT, EXIT_USER
from imagemill.components.store.manifest import ready
from imagemill.pipelines import joblog, kube, launcher
from imagemill.pipelines.cluster import RUN_LABEL, from_values
from imagemill.pipelines.rayjob import job_name

NEW: tuple[Act, ...] = (status(""), status("Initializing"))
STARTED = (*NEW, status("Running"), status("Running", "PENDING"), status("Running", "RUNNING"))
DONE = (status("Running", "SUCCEEDED"), status("Complete", "SUCCEEDED"))
ODD_RUN = """run '"$(touch x)`touch x`;touch x&"""
APP = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\n{}"


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    """moto's server: what is in question here is not the store."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("werkzeug"), "disabled", True)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_REGION", "us-east-1"), ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            ("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
        ):  # fmt: skip
            patch.setenv(name, value)
        forget_s3_clients()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
        forget_s3_clients()
        server.stop()


@contextmanager
def served(folder: Path) -> Iterator[KubeApi]:
    """The stand-in, as a pod of the namespace `mill` sees it; all waits are short."""
    with pytest.MonkeyPatch.context() as patch, KubeApi() as made:
        for module, name, seconds in (
            (launcher, "AGAIN_S", 0.02), (joblog, "AGAIN_S", 0.02), (launcher, "WATCH_S", 2), (kube, "SILENT_S", 5.0),
            (launcher, "LAST_WORDS_S", 5), (launcher, "DELETE_S", 2.0),
        ):  # fmt: skip
            patch.setattr(module, name, seconds)
        for name in ("KFP_POD_NAME", "ARGO_POD_NAME", "POD_NAME"):
            patch.delenv(name, raising=False)
        (folder / "namespace").write_text(NAMESPACE)
        patch.setattr(kube, "ACCOUNT", folder)
        made.put(PODS, {"metadata": {"name": "resize-pod"}, "spec": {"serviceAccountName": "default-editor"}})
        patch.setenv("KUBECONFIG", str(made.kubeconfig(folder)))
        patch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        patch.setenv("HOSTNAME", "resize-pod")
        yield made
        assert not made.errors
        assert not made.objects[RAYJOBS], "a RayJob was left behind"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with served(tmp_path) as made:
        yield made


_NUMBERS = iter(range(10**6))


@pytest.fixture
def work() -> Work:
    return Work.make(f"w{next(_NUMBERS)}")


@dataclass(frozen=True)
class Real:
    """A launch whose job ran its command, the next one, and what the API server has seen of both."""

    work: Work
    found: Launched
    cached: Launched
    api: KubeApi
    folder: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, s3: None) -> Real:
    folder, work = tmp_path_factory.mktemp("real"), Work.make("real")
    with served(folder) as api:
        api.acts = [(*STARTED, run_for_real(folder), *DONE)]
        return Real(work, launch(work, run=ODD_RUN), launch(work, run="run-2"), api, folder)


@pytest.fixture
def made(real: Real) -> Work:
    """A workspace with tensors, for stand-ins to place."""
    return real.work


def test_the_command_line_makes_the_tensors(real: Real) -> None:
    """From the step's values to tensors, through two shells; an odd name of a run does no harm."""
    found = real.found
    assert found.code == 0, found.stderr
    assert found.record["state"] == "ran" and found.record["metrics"]["rows"] == 16
    dataset = ready(found.record["uri"])
    assert dataset and dataset.manifest.totals.rows == 16 and dataset.manifest.image["shape"] == [16, 16, 3]
    assert found.stderr.count("[resize] Ray with") == 1 and found.stderr.count("16 images of 16 x 16") == 1
    assert not list(real.folder.rglob("x"))
    assert real.cached.code == 0 and real.cached.record["state"] == "cached"


def test_the_job_is_the_pods_and_goes_with_it(real: Real) -> None:
    [job] = real.api.made
    assert job["metadata"]["name"] == job_name(ODD_RUN, real.found.record["fingerprint"])
    assert job["metadata"]["namespace"] == NAMESPACE
    uid = real.api.objects[PODS]["resize-pod"]["metadata"]["uid"]
    assert job["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "resize-pod", "uid": uid}]
    assert "hunter2" not in json.dumps(job) + real.found.stderr
    assert real.api.asked("DELETE", "propagationPolicy=Foreground")


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


BROKEN: dict[str, list[Fault]] = {
    "watches that break off": [Fault("GET", "watch=True", 0, times=3, after=200)],
    "watches that are refused": [Fault("GET", "watch=True", 503, times=2)],
    "half an answer": [Fault("GET", f"{RAYJOBS}/", 0, times=2, after=30)],
    "errors of its own": [Fault("GET", f"{RAYJOBS}/", 500, times=2), Fault("POST", RAYJOBS, 500, times=2)],
    "an answer that is lost": [Fault("POST", RAYJOBS, ignored=True)],
    "too many requests": [Fault("GET", RAYJOBS, 429, "slow down")],
    "no pods": [Fault("GET", "labelSelector=job-name", 500, times=2)],
    "quota": [Fault("POST", RAYJOBS, 403, 'rayjobs.ray.io "x" is forbidden: exceeded quota: jobs')],
    "nothing deleted at first": [Fault("DELETE", RAYJOBS, 502)],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_api_server_that_is_out_of_order_for_a_while(name: str, api: KubeApi, work: Work, made: Work) -> None:
    api.acts = [(*STARTED, pause(0.3), job_made(made), *DONE)]
    api.faults = BROKEN[name] = [Fault(**vars(one)) for one in BROKEN[name]]
    found = launch(work)
    assert found.code == 0, found.stderr
    assert len(api.made) == 1 and not any(fault.times for fault in api.faults)


def test_a_watch_from_too_long_ago(api: KubeApi, work: Work, made: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """410 Gone: the job is got again, and watched from there."""

    def compacted(api: KubeApi, job: Json) -> None:
        api.faults = [Fault("GET", "watch=True", 0, after=1)]  # the watch that runs is cut off by the next change
        api.forget()

    api.acts = [(*STARTED, compacted, pause(0.1), status("Running", "RUNNING", message="x"), job_made(made), *DONE)]
    monkeypatch.setattr(launcher, "WATCH_S", 1)
    api.oldest = 10**6
    threading.Timer(0.5, lambda: setattr(api, "oldest", 0)).start()
    found = launch(work)
    assert found.code == 0, found.stderr
    assert len(api.asked("GET", "watch=True")) > 2


def test_an_api_server_that_stays_away(api: KubeApi, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "SILENT_S", 0.4)
    api.faults = [Fault("GET", RAYJOBS, 500, times=10**6)]
    found = launch(work)
    assert found.code == EXIT_TRANSIENT and "the Kubernetes API is out of order" in found.record["error"]


def _forbidden(verb: str, resource: str) -> str:
    return f'{resource} is forbidden: User "system:serviceaccount:mill:launcher" cannot {verb} resource "{resource}"'


REFUSED: dict[str, tuple[Fault, str]] = {
    "create": (Fault("POST", RAYJOBS, 403, _forbidden("create", "rayjobs"), 9), "the right to create rayjobs"),
    "get": (Fault("GET", f"{RAYJOBS}/", 403, _forbidden("get", "rayjobs"), 9), "the right to get rayjobs"),
    "watch": (Fault("GET", "watch=True", 403, _forbidden("watch", "rayjobs"), 9), "the right to watch rayjobs"),
    "pods": (Fault("GET", f"{PODS}/resize-pod", 403, _forbidden("get", "pods"), 9), "the right to get pods"),
    "no KubeRay": (Fault("POST", RAYJOBS, 404, "404 page not found\n", 9), "helm install kuberay-operator"),
    "invalid": (Fault("POST", RAYJOBS, 422, "RayJob is invalid: spec.x: Invalid value", 9), "spec.x: Invalid value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_api_server_refuses_names_the_remedy(name: str, api: KubeApi, work: Work) -> None:
    fault, said = REFUSED[name]
    api.acts, api.faults = [STARTED], [Fault(**vars(fault))]
    found = launch(work)
    assert found.code == EXIT_USER and said in found.record["error"], found.stderr
    assert "right" not in said or "namespace mill" in found.record["error"]


def test_a_log_that_breaks_off_is_heard_once(api: KubeApi, work: Work, made: Work) -> None:
    """Lines come once and in their order, from two pods one after the other; what is not the step's stays away."""
    lines = [f"[resize] {n} of 40 images é" for n in range(40)]
    api.acts = [
        (
            *STARTED, submitter("Job 'x' submitted", *lines[:10], number=1), pause(0.1), submitter(*lines[10:20]),
            pause(0.1), submitter(*lines[20:25], phase="Failed"), submitter(*lines[25:], number=2), job_made(made),
            submitter("[resize] done (1 s): s3://mill", phase="Succeeded", number=2), *DONE,
        )
    ]  # fmt: skip
    api.faults = [Fault("GET", "-pod1/log", 0, after=after) for after in (30, 333, 700)]
    api.faults += [Fault("GET", "-pod2/log", 500)]
    found = launch(work)
    assert [line for line in found.stderr.splitlines() if "of 40" in line] == lines
    assert "submitted" not in found.stderr and found.stderr.count("done (") == 1


def test_half_a_line_is_one_only_if_no_more_can_come() -> None:
    pieces = [b"one\ntw", b"o\nthr"]
    assert list(joblog._lines(pieces, with_rest=False)) == [b"one", b"two"]
    assert list(joblog._lines(pieces, with_rest=True)) == [b"one", b"two", b"thr"]


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


def test_sigterm_takes_the_job_with_it(api: KubeApi, work: Work) -> None:
    def terminate(api: KubeApi, job: Json) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    api.acts = [(*STARTED, terminate, pause(5))]
    found = launch(work)
    assert found.code == EXIT_TRANSIENT and "stopped by a signal" in found.record["error"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
    labels = {RUN_LABEL: RUN, "app.kubernetes.io/component": "resize", "ray.io/node-type": "head"}
    about = {"phase": "Pending", "containerStatuses": [{"name": "ray-head", "state": waits}]}
    api.put(PODS, {"metadata": {"name": "head", "labels": labels}, "status": about})
    api.acts = [acts]
    found = launch(work, cluster)
    assert found.code == code and said in found.record["error"], found.stderr


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


def test_help_stays_quick() -> None:
    """None of this imports Kubernetes' client before it is needed."""
    import subprocess
    import sys

    code = "import sys, imagemill.pipelines.launcher; sys.exit('kubernetes' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
