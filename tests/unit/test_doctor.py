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
def test_what_an_overlay_makes_is_ready(overlay: str, make: Callable[[str], Doctor]) -> None:
    ran = make(overlay)()
    assert ran.code == 0 and not ran.states("error"), ran.out
    assert ran.states("warning") == {"store"}  # which is in the cluster: a pod alone could reach it
    assert "service seaweedfs" in ran.found["store"][0]["seen"] and "--probe" in ran.found["store"][0]["mend"]
    assert ran.found.keys() >= {
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
    assert ("kfp" in ran.found) == (overlay != "kind")


def test_nothing_is_made_and_no_secret_is_shown(kind: Doctor) -> None:
    ran = kind()
    assert not [one for one in kind.api.requests if not one.startswith("GET") and "accessreviews" not in one and
                not one.endswith("/pods")]  # fmt: skip
    assert len(kind.api.of_kind("Pod")) == 0
    assert "t0ken" not in ran.out and '"secret"' not in ran.out


def test_the_table_says_what_mends_it(kind: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
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
    ("defaults", "state", "seen"),
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
def test_what_kfps_retries_lack_is_said(defaults: str | None, state: str, seen: str, kubeflow: Doctor) -> None:
    data = {"workflowDefaults": defaults} if defaults else {}
    kubeflow.api.get("ConfigMap", "workflow-controller-configmap", "kubeflow")["data"] = data
    (finding,) = kubeflow().found["retries"]
    assert finding["state"] == state and seen in finding["seen"]
    assert state == "ok" or "no mapping" in seen or "retryPolicy: OnError" in finding["mend"]


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
def test_pods_without_an_init_container_are_those_of_the_file(
    data: dict[str, str], initless: bool, refused: bool, kind: Doctor
) -> None:
    """Seen on a cluster: with the other setting the API server refuses each pod, for containers without an image."""
    controller = next(one for one in kind.api.of_kind("Deployment") if one["metadata"]["name"] == "workflow-controller")
    config_map = named("ConfigMap", "workflow-controller-configmap", controller["metadata"]["namespace"])
    kind.api.add({**config_map, "data": data})
    ran = kind(file={"argo": {"initless": initless}})
    findings = [one for one in ran.found["argo settings"] if "initlessPod" in one["seen"]]
    assert [one["state"] for one in findings] == (["error"] if refused else [])
    assert all(f"argo: {{initless: {str(not initless).lower()}}}" in one["mend"] for one in findings)


def test_kfps_own_namespace_is_where_it_runs_without_profiles(make: Callable[[str], Doctor]) -> None:
    """The file's namespace counts for nothing there: accounts and secrets are looked for where pods are."""
    doctor = make("kubeflow")
    doctor.api.add(named("Namespace", "mine"))
    ran = doctor("--target", "kfp", file={"namespace": "mine"})
    assert ran.code == 0 and "are in kubeflow" in ran.found["namespace"][0]["seen"]
    assert ran.found["namespace"][0]["mend"] == "namespace: kubeflow in the cluster file"
    assert "pipeline-runner" in ran.found["accounts"][0]["seen"]


@pytest.mark.parametrize("overlay", ["kubeflow", "kubeflow-profile"])
def test_kfps_account_without_the_overlay_may_not_make_rayjobs(overlay: str, make: Callable[[str], Doctor]) -> None:
    doctor = make(overlay)
    doctor.api.remove("RoleBinding", "imagemill-rayjobs", doctor.namespace)
    (finding,) = doctor().found["accounts"]
    account = "pipeline-runner" if overlay == "kubeflow" else "default-editor"
    assert f"{account} may not create rayjobs.ray.io" in finding["seen"]
    assert finding["mend"] == f"kubectl apply -k k8s/overlays/{overlay}"


def test_an_older_kfp_than_the_file_says(kubeflow: Doctor) -> None:
    image = "ghcr.io/kubeflow/kfp-api-server:2.5.0"
    kubeflow.api.add(deployment("ml-pipeline-api-server", "kubeflow", image))
    (finding,) = kubeflow().found["kfp"]
    assert finding["state"] == "error" and finding["mend"].startswith('kfp: {version: "2.5"}')
    assert kubeflow(file={"kfp": {"version": "2.5"}}).found["kfp"][0]["state"] == "ok"


def test_kfp_that_does_not_answer(kubeflow: Doctor) -> None:
    ran = kubeflow("--host", "http://127.0.0.1:1")
    assert ran.code == 2 and "can't be reached" in ran.found["kfp"][0]["seen"]


# --- what doctor knows of roles is what k8s/ grants -------------------------------------------------------------------


def test_the_rights_are_those_of_the_roles() -> None:
    kind, kubeflow = installed("kind", ()), installed("kubeflow", ())
    granted = {(one["metadata"]["name"], rule["apiGroups"][0], resource): tuple(rule["verbs"])
               for api in (kind, kubeflow) for one in api.of_kind("Role") for rule in one["rules"]
               for resource in rule["resources"]}  # fmt: skip
    for name, rights in (
        ("executor", access.EXECUTOR_RIGHTS),
        ("launcher", access.LAUNCHER_RIGHTS),
        ("rayjobs", RIGHTS),
    ):
        known = {key[1:]: verbs for key, verbs in granted.items() if key[0] == f"imagemill-{name}"}
        assert {key: set(verbs) for key, verbs in known.items()} == {key: set(verbs) for key, verbs in rights.items()}
