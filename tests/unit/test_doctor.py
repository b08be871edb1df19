"""`imagemill doctor` on clusters that are ready, with one thing wrong, and where it may not look."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import cluster_api
import doctors
import pytest
from cluster_api import ClusterApi, deployment, installed, named, node, pod, secret, serving
from doctors import NAMESPACES, CommandResult, Doctor

from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.kube_client import RIGHTS
from imagemill.pipelines.doctor import checks

make, kind, kubeflow = doctors.make, doctors.kind, doctors.kubeflow
Json = dict[str, Any]
Change = Callable[[ClusterApi], object]


@pytest.mark.parametrize("overlay", NAMESPACES)
def test_installed_overlay_is_ready(overlay: str, make: Callable[[str], Doctor]) -> None:
    result = make(overlay)()
    assert result.code == 0 and not result.states("error"), result.out
    assert result.states("warning") == {"store"}  # which is in the cluster: a pod alone could reach it
    assert "is not reached from here; --probe" in result.findings["store"][0]["seen"]
    expected = {"api", "namespace", "argo", "kuberay", "accounts", "secrets", "images", "pods", "room", "store"}
    assert result.findings.keys() == expected | ({"kfp"} if overlay != "kind" else set())


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
    assert "there is no secret imagemill-store in imagemill" in lines[number]
    assert lines[number + 1].strip() == "-> make it, or correct its name in the cluster file"


def test_without_profiles_the_namespace_of_kfp_is_checked(kubeflow: Doctor) -> None:
    """The file's namespace counts for nothing there: accounts and secrets are looked for where pods are."""
    kubeflow.api.add(named("Namespace", "mine"))
    result = kubeflow("--target", "kfp", file={"namespace": "mine"})
    assert result.code == 0 and result.findings["namespace"][0]["mend"] == "namespace: kubeflow in the cluster file"
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
    kubeflow.api.add(deployment("ml-pipeline-api-server", "kubeflow", "ghcr.io/kubeflow/kfp-api-server:2.5.0"))
    (finding,) = kubeflow().findings["kfp"]
    assert finding["state"] == "error" and finding["mend"].startswith('kfp: {version: "2.5"}')
    assert kubeflow(file={"kfp": {"version": "2.5"}}).findings["kfp"][0]["state"] == "ok"


def test_unreachable_kfp_is_an_error(kubeflow: Doctor) -> None:
    result = kubeflow("--host", "http://127.0.0.1:1")
    assert result.code == 2 and "can't be reached" in result.findings["kfp"][0]["seen"]


def test_checked_rights_equal_those_of_the_roles() -> None:
    kind, kubeflow = installed("kind", ()), installed("kubeflow", ())
    granted = {(role["metadata"]["name"], rule["apiGroups"][0], resource): tuple(rule["verbs"])
               for api in (kind, kubeflow) for role in api.of_kind("Role") for rule in role["rules"]
               for resource in rule["resources"]}  # fmt: skip
    for name, rights in (
        ("executor", checks.EXECUTOR_RIGHTS), ("launcher", checks.LAUNCHER_RIGHTS), ("rayjobs", RIGHTS),
    ):  # fmt: skip
        role_rights = {key[1:]: set(verbs) for key, verbs in granted.items() if key[0] == f"imagemill-{name}"}
        assert role_rights == {key: set(verbs) for key, verbs in rights.items()}


RAYJOB = {"ray": {"mode": "rayjob", "head": {"cpu": "1"}, "workers": {"minimum": 2}}}


def no_events(api: ClusterApi) -> None:
    role = api.get("Role", "imagemill-launcher", "imagemill")
    role["rules"] = [rule for rule in role["rules"] if "events" not in rule["resources"]]


def pulling(api: ClusterApi) -> None:
    """A pod that can't pull an image of a registry."""
    waiting = {"reason": "ImagePullBackOff", "message": "no such thing"}
    status = {"phase": "Pending", "containerStatuses": [{"image": "ghcr.io/you/cpu:1", "state": {"waiting": waiting}}]}
    api.add(named("Pod", "waits", "imagemill", spec={"containers": []}, status=status))


def taken_by_init(api: ClusterApi) -> None:
    """An init container counts where it asks for more than what runs later."""
    pod_document = api.add(pod("init", "one", "100m"))
    pod_document["spec"]["initContainers"] = [{"name": "a", "resources": {"requests": {"cpu": "6"}}}]


MISTAKES: dict[str, tuple[Json, Change | None, str, str, str]] = {
    # file, change of the cluster, check, state, what is seen
    "wrong key": ({"storage": {"access_key": "user"}}, None, "secrets", "error",
                  "secret imagemill-store has no key user; it has accesskey, secretkey"),
    "no pull secret": ({"images": {"pull_secrets": ["login"]}}, None, "secrets", "error", "no secret login"),
    "no Ray token": ({"ray": {"mode": "address", "address": "ray://head:10001", "token_secret": "rays"}}, None,
                     "secrets", "error", "no secret rays"),
    "image of nowhere": ({"images": {"cpu": "imagemill-cpu:new"}}, None, "images", "error",
                         "images.cpu: imagemill-cpu:new is known on 0 of 1 nodes, and it names no registry"),
    "image never pulled": ({"images": {"cpu": "ghcr.io/you/cpu:1", "pull_policy": "Never"}}, None, "images", "error",
                           "pull_policy is Never"),
    "image always pulled": ({"images": {"pull_policy": "Always"}}, None, "images", "error", "names no registry"),
    "image that is not there": ({"images": {"cpu": "ghcr.io/you/cpu:1"}}, pulling, "images", "error",
                                "images.cpu: ImagePullBackOff: no such thing"),
    "image on one node": ({}, lambda api: api.add(node("two")), "images", "warning", "is known on 1 of 2 nodes"),
    "pod too large": ({"steps": {"clean": {"cpu": 9}}}, None, "room", "error", "clean needs 9 cores"),
    "no GPU": ({"steps": {"train": {"gpu": 1}}}, None, "room", "error", "1 nvidia.com/gpu at once in 1 pod;"),
    "taint": ({}, lambda api: api.get("Node", "one")["spec"].update(taints=[{"key": "a", "effect": "NoSchedule"}]),
              "room", "error", "download needs"),
    "other pods stay": (RAYJOB, lambda api: api.add(pod("big", "one", "6")), "room", "error",
                        "free on the 1 ready nodes: 2 cores"),
    "other pods end": (RAYJOB, lambda api: api.add(pod("run", "one", "6", owner="Workflow")), "room", "warning",
                       "resize by a RayJob needs"),
    "init containers": (RAYJOB, taken_by_init, "room", "error", "nodes: 2 cores"),
    "no room for much data": ({"ray": {"workers": {"pod": {"cpu": 8}}}}, None, "room", "warning", "resize by a RayJob"),
    "node not ready": ({}, lambda api: api.get("Node", "one")["status"].update(conditions=[
        {"type": "Ready", "status": "False"}]), "room", "error", "free on the 0 ready nodes: none"),
    "no account": ({"argo": {"service_account": "nobody"}}, None, "accounts", "error", "no service account nobody"),
    "no rights": ({}, lambda api: api.remove("RoleBinding", "imagemill-launcher", "imagemill"), "accounts", "error",
                  "imagemill-launcher may not create rayjobs.ray.io, delete rayjobs.ray.io"),
    "no events": ({}, no_events, "accounts", "warning", "imagemill-launcher may not list events"),
    "no rights of yours": ({}, lambda api: api.denied.add("create workflows"), "accounts", "warning",
                           "you yourself may not, in imagemill: create workflows.argoproj.io"),
    "no Argo": ({}, lambda api: api.discovery.pop("/apis/argoproj.io/v1alpha1"), "argo", "error", "no workflows"),
    "old Argo": ({}, lambda api: api.add(deployment("workflow-controller", "argo", "a/b:v3.4.1")), "argo", "error",
                 "Argo Workflows v3.4.1"),
    "no KubeRay": (RAYJOB, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "error", "has no rayjobs"),
    "no KubeRay for much data": ({}, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "warning",
                                 "ray.mode is auto"),
    "old KubeRay": ({}, lambda api: api.add(deployment("kuberay-operator", "kuberay-operator", "a/operator:v1.5.0")),
                    "kuberay", "warning", "ray.pending_seconds"),
    "quota": ({}, lambda api: setattr(api, "refuses_pods", "exceeded quota: small"), "pods", "error",
                              "exceeded quota: small"),
    "no namespace": ({"namespace": "mill"}, None, "namespace", "error", "there is no namespace mill"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported_with_a_remedy(name: str, kind: Doctor) -> None:
    file, change, check, state, message = MISTAKES[name]
    if change:
        change(kind.api)
    result = kind(file=file)
    findings = [
        finding for finding in result.findings[check] if finding["state"] == state and message in finding["seen"]
    ]
    assert findings and findings[0]["mend"], json.dumps(result.findings.get(check), indent=1)
    assert result.code == (2 if state == "error" else 0), result.out


@pytest.mark.parametrize(
    ("pattern", "unseen"),
    [
        ("/nodes$", {"room", "images"}),
        ("/secrets/", {"secrets"}),
        ("accessreviews", {"accounts", "pods"}),
        ("/deployments", {"argo", "kuberay"}),
        ("^(GET|POST) /(api|apis)", {"namespace", "argo", "kuberay", "accounts", "secrets", "images", "pods", "room"}),
    ],
)
def test_checks_without_permission_are_warnings(pattern: str, unseen: set[str], kind: Doctor) -> None:
    kind.api.forbidden.append(pattern)
    result = kind()
    assert result.code == 0 and result.states("warning") == unseen | {"store"}, result.out
    assert all("can't be seen" in result.findings[check][0]["seen"] for check in unseen)


def test_a_cluster_that_does_not_answer(
    kind: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind()
    with serving(kind.api, kind.folder) as kubeconfig:
        gone = str(kubeconfig)
    for place in (gone, str(kind.folder / "none")):
        monkeypatch.setenv("KUBECONFIG", place)
        assert cli.main(["doctor", "--cluster", str(kind.folder / "cluster.yaml"), "--json"]) == 2
        assert CommandResult(2, capsys.readouterr().out, "").states("error") == {"api"}


def test_store_and_images_are_tried_here_and_by_pods(
    kind: Doctor, rgw: Any, s3_workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is a real one, which refuses the second writer of an object; pods run here as processes."""
    kind.api.kubelet = cluster_api.kubelet
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey=rgw.secret_key))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("imagemill.pipelines.doctor.pods.POLL_S", 0.05)
    storage = {"endpoint": rgw.endpoint, "workspace": s3_workspace}
    assert "refuses a second one" in kind(file={"storage": storage}).findings["store"][0]["seen"]
    gone = s3_workspace.replace("s3://", "s3://gone-")
    (finding,) = kind(file={"storage": storage | {"workspace": gone}}).findings["store"]
    assert finding["state"] == "error" and "bucket" in finding["seen"]
    result = kind("--probe", file={"storage": storage})
    assert result.code == 0 and not result.states("warning") and len(result.findings["probe"]) == 3, result.out
    result = kind("--probe", file={"storage": storage, "images": {"gpu": "imagemill-gpu:none"}})
    assert result.code == 2 and "images.gpu: ErrImagePull: imagemill-gpu:none" in result.findings["probe"][2]["seen"]
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey="wrong"))
    (refused,) = kind(file={"storage": storage}).findings["store"]
    assert refused["state"] == "error" and "wrong" not in refused["seen"], refused
    assert not kind.api.of_kind("Pod")
