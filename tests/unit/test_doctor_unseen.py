"""`imagemill doctor` where it may not look, and the pods that it makes where it is asked to."""

from __future__ import annotations

import os
from typing import Any

import cluster_api
import doctors
import pytest
from cluster_api import secret, serving
from doctors import CommandResult, Doctor
from kfp_server import serving as serving_kfp

from imagemill.pipelines.cli import main as cli

make, kind, kubeflow = doctors.make, doctors.kind, doctors.kubeflow


@pytest.mark.parametrize(
    ("pattern", "checks"),
    [
        ("/nodes$", {"room", "images", "store"}),
        ("/secrets/", {"secrets", "store"}),
        ("accessreviews", {"accounts", "pods", "store"}),
        ("/deployments", {"argo", "argo settings", "kuberay", "store"}),
        ("/networkpolicies", {"network", "store"}),
        ("GET /api/v1/namespaces/imagemill$", {"namespace", "store"}),
        ("/(resourcequotas|limitranges)", {"quota", "store"}),
        ("/services/", {"store"}),
    ],
)
def test_checks_without_permission_are_warnings(pattern: str, checks: set[str], kind: Doctor) -> None:
    kind.api.forbidden.append(pattern)
    result = kind()
    assert result.code == 0, result.out
    assert result.states("warning") == checks
    assert "is forbidden" not in result.out
    assert all(
        "can't be seen" in finding["seen"]
        for check in checks
        for finding in result.findings[check]
        if finding["state"] != "ok"
    )


def test_without_the_pods_of_others_their_share_is_not_counted(kind: Doctor) -> None:
    kind.api.forbidden.append("GET /api/v1/pods$")
    assert "what pods of others take can't be seen" in kind().findings["room"][0]["seen"]


def test_doctor_runs_without_any_permission(kind: Doctor) -> None:
    kind.api.forbidden.append("^(GET|POST) /(api|apis)")
    result = kind()
    assert result.code == 0 and result.states("ok") == {"api"}, result.out


def test_without_a_kubeconfig(
    kubeflow: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow()
    monkeypatch.setenv("KUBECONFIG", str(kubeflow.folder / "none"))
    with serving_kfp(kubeflow.kfp) as kfp:
        arguments = ["--cluster", str(kubeflow.folder / "cluster.yaml"), "--json", "--host", kfp.url]
        code = cli.main(["doctor", *arguments])
    result = CommandResult(code, capsys.readouterr().out, "")
    assert result.code == 0 and result.states("ok") == {"kfp"} and result.states("warning") == {"api", "store"}


def test_an_api_that_does_not_answer(
    kind: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind()
    with serving(kind.api, kind.folder) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert cli.main(["doctor", "--cluster", str(kind.folder / "cluster.yaml"), "--json"]) == 2
    assert CommandResult(2, capsys.readouterr().out, "").states("error") == {"api"}


# --- pods of its own --------------------------------------------------------------------------------------------------


def test_probe_checks_images_and_store_and_removes_its_pods(
    kind: Doctor, rgw: Any, s3_workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_workspace.removeprefix("s3://").partition("/")[0]
    kind.api.kubelet = cluster_api.kubelet
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey=rgw.secret_key))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("imagemill.pipelines.doctor.probe.POLL_S", 0.05)
    file = {"storage": {"endpoint": rgw.endpoint, "workspace": s3_workspace}}
    result = kind("--probe", file=file)
    assert result.code == 0 and not result.states("warning"), result.out
    assert "cpu, ray, gpu start, with imagemill" in result.findings["images"][0]["seen"]
    assert result.findings["store"][0]["seen"] == f"a pod writes, reads and lists {s3_workspace}"
    assert (
        len([request for request in kind.api.requests if request.startswith("POST") and request.endswith("/pods")]) == 5
    )
    assert not kind.api.of_kind("Pod")
    # Here, and not from a pod, the same store is asked without a trace.
    assert kind(file=file).findings["store"][0]["state"] == "ok"
    missing_bucket = {"storage": {**file["storage"], "workspace": f"s3://{bucket}-gone/work"}}
    assert f"no bucket {bucket}-gone" in kind(file=missing_bucket).findings["store"][0]["seen"]
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey="wrong"))
    (refused,) = kind(file=file).findings["store"]
    assert (
        refused["state"] == "error" and "refuses the credentials" in refused["seen"] and "wrong" not in refused["seen"]
    )
    result = kind("--probe", file={**file, "images": {"gpu": "imagemill-gpu:none"}})
    assert result.code == 2 and "from a pod: " in result.findings["store"][0]["seen"]
    assert "images.gpu: imagemill-gpu:none: ErrImagePull" in result.findings["images"][0]["seen"]
    assert not kind.api.of_kind("Pod")
