"""The launcher and everything that an API server does: errors, refusals, watches and logs that break off."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launching
import pytest
from kube_api import Fault, KubeApi, pause, status, submitter, suffered, until
from kube_http import NAMESPACE, PODS, RAYJOBS, Json
from launching import DONE, NEW, STARTED, Work, launch, write_tensors

from imagemill.components.storage.errors import EXIT_TRANSIENT, EXIT_USER, TransientError
from imagemill.pipelines.cluster import kube_client as kube
from imagemill.pipelines.kuberay import pods as joblog

s3, api, finished_work, work = launching.s3, launching.api, launching.finished_work, launching.work


BROKEN: dict[str, list[Fault]] = {
    "watches that break off": [Fault("GET", "watch=True", 0, times=3, after=200)],
    "watches that are refused": [Fault("GET", "watch=True", 503, times=2)],
    "half an answer": [Fault("GET", f"{RAYJOBS}/", 0, times=2, after=30)],
    "errors of its own": [Fault("GET", f"{RAYJOBS}/", 500, times=2), Fault("POST", RAYJOBS, 500, times=2)],
    "an answer that is lost": [Fault("POST", RAYJOBS, ignored=True)],
    "too many requests": [Fault("GET", RAYJOBS, 429, "slow down")],
    "a login that is not known for a moment": [
        Fault("GET", f"{RAYJOBS}/", 401, "Unauthorized", times=2), Fault("DELETE", RAYJOBS, 401, "Unauthorized"),
    ],
    "no pods": [Fault("GET", "labelSelector=job-name", 500, times=2)],
    "quota": [Fault("POST", RAYJOBS, 403, 'rayjobs.ray.io "x" is forbidden: exceeded quota: jobs')],
    "nothing deleted at first": [Fault("DELETE", RAYJOBS, 502)],
    "somebody else's page": [
        Fault(*request, 200, "<html>")
        for request in (
            ("GET", f"{RAYJOBS}/"), ("GET", f"{PODS}/"), ("GET", "labelSelector=job-name"), ("DELETE", RAYJOBS),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_temporary_failures_of_the_api_server_are_retried(
    name: str, api: KubeApi, work: Work, finished_work: Work
) -> None:
    api.acts = [(*STARTED, until(suffered), write_tensors(finished_work), *DONE)]
    api.faults = [Fault(**vars(fault)) for fault in BROKEN[name]]
    result = launch(work)
    assert result.code == 0, result.stderr
    assert len(api.created) == 1 and not any(fault.times for fault in api.faults)


def test_expired_watch_is_restarted(api: KubeApi, work: Work, finished_work: Work) -> None:
    """410 Gone: the job is got again, and watched from there."""

    def watches(api: KubeApi) -> int:
        return len(api.asked("GET", "watch=True"))

    def compacted(api: KubeApi, job: Json) -> None:
        api.faults = [Fault("GET", "watch=True", 0, after=1)]  # the watch that runs is cut off by the next change
        api.oldest = 0
        api.forget()
        status("Running", "RUNNING", message="x")(api, job)

    api.oldest = 10**6
    api.acts = [
        (
            *NEW,
            until(lambda api: watches(api) > 2),
            compacted,
            until(suffered),
            *STARTED,
            write_tensors(finished_work),
            *DONE,
        )
    ]
    result = launch(work)
    assert result.code == 0, result.stderr
    assert not any(fault.times for fault in api.faults) and watches(api) > 3


def test_permanent_failure_of_the_api_server_is_transient(
    api: KubeApi, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "RETRY_S", 0.4)
    api.faults = [Fault("GET", RAYJOBS, 500, times=10**6)]
    result = launch(work)
    assert result.code == EXIT_TRANSIENT and "the Kubernetes API is out of order" in result.record.error


def test_pods_that_cannot_be_listed_cost_the_job_no_try(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods are listed in a thread of their own, with retries of their own."""
    monkeypatch.setattr(kube, "RETRY_S", 0.3)
    client = kube.KubeClient.connect(NAMESPACE)
    api.faults = [Fault("GET", PODS, 500, times=10**6)]
    with pytest.raises(TransientError):
        client.list_pods("job-name=x")
    monkeypatch.setattr(kube, "RETRY_S", 5.0)
    api.faults = [Fault("GET", RAYJOBS, 500)]
    assert client.get_rayjob("absent") is None and not api.faults[0].times


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
def test_refused_requests_are_reported_with_a_remedy(name: str, api: KubeApi, work: Work) -> None:
    fault, message = REFUSED[name]
    api.acts, api.faults = [STARTED], [Fault(**vars(fault))]
    result = launch(work)
    assert result.code == EXIT_USER and message in result.record.error, result.stderr
    assert "right" not in message or "namespace mill" in result.record.error
    assert "b'" not in result.record.error and '"kind"' not in result.record.error


def test_lines_of_an_interrupted_log_are_read_once(api: KubeApi, work: Work, finished_work: Work) -> None:
    """Lines come once and in their order, from two pods one after the other; what is not the step's stays away."""
    lines = [f"[resize] {n} of 40 images é" for n in range(40)]
    api.acts = [
        (
            *STARTED, submitter("Job 'x' submitted", *lines[:10], number=1), pause(0.1), submitter(*lines[10:20]),
            pause(0.1), submitter(*lines[20:25], phase="Failed"), submitter(*lines[25:], number=2),
            until(suffered), write_tensors(finished_work),
            submitter("[resize] done (1 s): s3://mill", phase="Succeeded", number=2), *DONE,
        )
    ]  # fmt: skip
    api.faults = [Fault("GET", "-pod1/log", 0, after=after) for after in (30, 333, 700)]
    api.faults += [Fault("GET", "-pod2/log", 500), Fault("GET", "-pod2/log", 400, "container is waiting to start")]
    not_found = {"kind": "Status", "reason": "NotFound", "message": "pod not found", "details": {"kind": "pods"}}
    api.faults += [Fault("GET", "-pod2/log", 404, not_found)]
    result = launch(work)
    assert [line for line in result.stderr.splitlines() if "of 40" in line] == lines
    assert "submitted" not in result.stderr and result.stderr.count("done (") == 1


def test_half_a_line_is_one_only_if_no_more_can_come() -> None:
    pieces = [b"one\ntw", b"o\nthr"]
    assert list(joblog._split_lines(pieces, with_rest=False)) == [b"one", b"two"]
    assert list(joblog._split_lines(pieces, with_rest=True)) == [b"one", b"two", b"thr"]


def test_lines_of_a_node_in_another_zone_are_heard_once_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """Kubelets write times as the container runtime does: in the node's own zone, which may leave its summer time."""
    log = joblog.JobLog(kube.KubeClient(NAMESPACE, None), "job", "resize")
    lines = [
        b"2026-10-25T02:59:59.9+02:00 [resize] 1 of 3", b"2026-10-25T02:00:00.000000001+01:00 [resize] 2 of 3",
        b"2026-10-25T01:00:00.5Z [resize] 3 of 3",
    ]  # fmt: skip
    for line in (*lines[:2], *lines):
        log._print_line("uid", line)
    assert capsys.readouterr().err.splitlines() == ["[resize] 1 of 3", "[resize] 2 of 3", "[resize] 3 of 3"]
    assert log.tail().splitlines()[-1] == "[resize] 3 of 3"


def test_renewed_token_of_the_pod_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubelets renew it within an hour; a job may take a day."""
    from kubernetes.config import incluster_config

    (tmp_path / "token").write_text("old")
    (tmp_path / "ca.crt").write_text("certificates")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    loader = incluster_config.InClusterConfigLoader
    later = datetime.timedelta(seconds=-1)
    monkeypatch.setattr(loader, "_read_token_file", _expiring(loader._read_token_file, later))
    configuration = kube.KubeClient.connect(NAMESPACE).api.configuration
    assert configuration.get_api_key_with_prefix("authorization") == "bearer old"
    (tmp_path / "token").write_text("new")
    assert configuration.get_api_key_with_prefix("authorization") == "bearer new"


def _expiring(read: Callable[[Any], None], after: datetime.timedelta) -> Callable[[Any], None]:
    def reading(loader: Any) -> None:
        read(loader)
        loader.token_expires_at = datetime.datetime.now() + after

    return reading


def test_missing_objects_are_none(api: KubeApi) -> None:
    client = kube.KubeClient.connect(NAMESPACE)
    assert client.get_pod("absent") is None and client.get_rayjob("absent") is None
    with pytest.raises(kube.StreamInterrupted, match="not found"):
        list(client.stream_pod_log("absent"))
    client.delete_rayjob("absent", "uid")
