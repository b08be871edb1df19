"""`imagemill doctor` on clusters that are ready, and what it knows of Kubeflow Pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable

import doctors
import pytest
from cluster_api import ALWAYS, deployment, installed, named, serving
from doctors import NAMESPACES, Doctor

from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.kube_client import RIGHTS
from imagemill.pipelines.doctor import access

make, kind, kubeflow = doctors.make, doctors.kind, doctors.kubeflow


@pytest.mark.parametrize("overlay", NAMESPACES)
def test_installed_overlay_is_ready(overlay: str, make: Callable[[str], Doctor]) -> None:
    result = make(overlay)()
    assert result.code == 0 and not result.states("error"), result.out
    assert result.states("warning") == {"store"}  # which is in the cluster: a pod alone could reach it
    assert (
        "service seaweedfs" in result.findings["store"][0]["seen"] and "--probe" in result.findings["store"][0]["mend"]
    )
    assert result.findings.keys() >= {
        "api",
        "namespace",
        "argo",
        "kuberay",
        "room",
        "accounts",
        "secrets",
        "network",
        "images",
    }
    assert ("kfp" in result.findings) == (overlay != "kind")


def test_doctor_creates_nothing_and_shows_no_secret(kind: Doctor) -> None:
    result = kind()
    changing = [request for request in kind.api.requests if not request.startswith("GET")]
    assert all("accessreviews" in request or request.endswith("/pods") for request in changing)
    assert len(kind.api.of_kind("Pod")) == 0
    assert "t0ken" not in result.out and '"secret"' not in result.out


def test_table_shows_remedies(kind: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    kind.api.remove("Secret", "imagemill-store", "imagemill")
    kind()
    with serving(kind.api, kind.folder) as kubeconfig:
        os.environ["KUBECONFIG"] = str(kubeconfig)
        assert cli.main(["doctor", "--cluster", str(kind.folder / "cluster.yaml")]) == 2
    lines = capsys.readouterr().out.splitlines()
    (number,) = (n for n, line in enumerate(lines) if line.startswith("error"))
    assert lines[number].split()[:2] == ["error", "secrets"]
    assert "there is no secret imagemill-store in imagemill (storage.secret)" in lines[number]
    assert lines[number + 1].strip() == "-> make it, or correct storage.secret in the file"


@pytest.mark.parametrize(
    ("defaults", "state", "message"),
    [
        (
            None,
            "warning",
            "retryPolicy is OnFailure, its own, for none is set: a step that fails is tried again, one whose",
        ),
        (
            "spec: {templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}}",
            "ok",
            "OnError, of its template",
        ),
        ("config: ", "warning", "OnFailure"),
        (ALWAYS, "ok", "steps that fail and steps whose pod is lost are tried again"),
        ("- no mapping", "warning", "no mapping"),
    ],
)
def test_missing_retry_policies_of_kfp_are_reported(
    defaults: str | None, state: str, message: str, kubeflow: Doctor
) -> None:
    data = {"workflowDefaults": defaults} if defaults else {}
    kubeflow.api.get("ConfigMap", "workflow-controller-configmap", "kubeflow")["data"] = data
    (finding,) = kubeflow().findings["retries"]
    assert finding["state"] == state and message in finding["seen"]
    assert state == "ok" or "no mapping" in message or "retryPolicy: OnError" in finding["mend"]


@pytest.mark.parametrize(
    ("data", "initless", "refused"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"initlessPod": "enabled: true"}, True, False),
        ({"initlessPod": "enabled: true"}, False, True),
        ({"config": "initlessPod: {enabled: true}"}, False, True),
        ({"initlessPod": "enabled: false"}, False, False),
    ],
)
def test_initless_pods_must_match_the_cluster_file(
    data: dict[str, str], initless: bool, refused: bool, kind: Doctor
) -> None:
    """Seen on a cluster: with the other setting the API server refuses each pod, for containers without an image."""
    controller = next(
        deployment
        for deployment in kind.api.of_kind("Deployment")
        if deployment["metadata"]["name"] == "workflow-controller"
    )
    config_map = named("ConfigMap", "workflow-controller-configmap", controller["metadata"]["namespace"])
    kind.api.add({**config_map, "data": data})
    result = kind(file={"argo": {"initless": initless}})
    findings = [finding for finding in result.findings["argo settings"] if "initlessPod" in finding["seen"]]
    assert [finding["state"] for finding in findings] == (["error"] if refused else [])
    assert all(f"argo: {{initless: {str(not initless).lower()}}}" in finding["mend"] for finding in findings)


def test_without_profiles_the_namespace_of_kfp_is_checked(make: Callable[[str], Doctor]) -> None:
    """The file's namespace counts for nothing there: accounts and secrets are looked for where pods are."""
    doctor = make("kubeflow")
    doctor.api.add(named("Namespace", "mine"))
    result = doctor("--target", "kfp", file={"namespace": "mine"})
    assert result.code == 0 and "are in kubeflow" in result.findings["namespace"][0]["seen"]
    assert result.findings["namespace"][0]["mend"] == "namespace: kubeflow in the cluster file"
    assert "pipeline-runner" in result.findings["accounts"][0]["seen"]


@pytest.mark.parametrize("overlay", ["kubeflow", "kubeflow-profile"])
def test_kfps_account_without_the_overlay_may_not_make_rayjobs(overlay: str, make: Callable[[str], Doctor]) -> None:
    doctor = make(overlay)
    doctor.api.remove("RoleBinding", "imagemill-rayjobs", doctor.namespace)
    (finding,) = doctor().findings["accounts"]
    account = "pipeline-runner" if overlay == "kubeflow" else "default-editor"
    assert f"{account} may not create rayjobs.ray.io" in finding["seen"]
    assert finding["mend"] == f"kubectl apply -k k8s/overlays/{overlay}"


def test_kfp_older_than_the_cluster_file_is_reported(kubeflow: Doctor) -> None:
    image = "ghcr.io/kubeflow/kfp-api-server:2.5.0"
    kubeflow.api.add(deployment("ml-pipeline-api-server", "kubeflow", image))
    (finding,) = kubeflow().findings["kfp"]
    assert finding["state"] == "error" and finding["mend"].startswith('kfp: {version: "2.5"}')
    assert kubeflow(file={"kfp": {"version": "2.5"}}).findings["kfp"][0]["state"] == "ok"


def test_unreachable_kfp_is_an_error(kubeflow: Doctor) -> None:
    result = kubeflow("--host", "http://127.0.0.1:1")
    assert result.code == 2 and "can't be reached" in result.findings["kfp"][0]["seen"]


# --- what doctor knows of roles is what k8s/ grants -------------------------------------------------------------------


def test_checked_rights_equal_those_of_the_roles() -> None:
    kind, kubeflow = installed("kind", ()), installed("kubeflow", ())
    granted = {(role["metadata"]["name"], rule["apiGroups"][0], resource): tuple(rule["verbs"])
               for api in (kind, kubeflow) for role in api.of_kind("Role") for rule in role["rules"]
               for resource in rule["resources"]}  # fmt: skip
    for name, rights in (
        ("executor", access.EXECUTOR_RIGHTS),
        ("launcher", access.LAUNCHER_RIGHTS),
        ("rayjobs", RIGHTS),
    ):
        role_rights = {key[1:]: verbs for key, verbs in granted.items() if key[0] == f"imagemill-{name}"}
        assert {key: set(verbs) for key, verbs in role_rights.items()} == {
            key: set(verbs) for key, verbs in rights.items()
        }
