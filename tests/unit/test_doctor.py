"""`imagemill doctor` on clusters as the overlays of k8s/ make them, each with one thing wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster_api
import pytest
import yaml
from cluster_api import ALWAYS, K8S, ClusterApi, deployment, installed, named, node, pod, secret, serving
from kfp_server import KfpService
from kfp_server import serving as serving_kfp

from imagemill.pipelines import cli, kfp_client
from imagemill.pipelines.doctor import access
from imagemill.pipelines.kube import RIGHTS

Json = dict[str, Any]
IMAGES = ("imagemill-cpu:dev", "imagemill-ray:dev", "imagemill-gpu:dev")
NAMED = dict(zip(("cpu", "ray", "gpu"), IMAGES, strict=True)) | {"tags_allowed": True}
NAMESPACES = {"kind": "imagemill", "kubeflow": "kubeflow", "kubeflow-profile": "kubeflow-user-example-com"}


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def found(self) -> dict[str, list[Json]]:
        """Findings by check."""
        found: dict[str, list[Json]] = {}
        for finding in json.loads(self.out)["findings"]:
            found.setdefault(finding["check"], []).append(finding)
        return found

    def states(self, state: str) -> set[str]:
        return {check for check, findings in self.found.items() for one in findings if one["state"] == state}


@dataclass
class Doctor:
    """A cluster of an overlay, and the command that looks at it."""

    overlay: str
    api: ClusterApi
    kfp: KfpService
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def namespace(self) -> str:
        return NAMESPACES[self.overlay]

    def __call__(self, *words: str, file: Json | None = None) -> Ran:
        """Run it with the overlay's cluster file, of which `file` changes parts."""
        name = (
            K8S / "base" / "cluster.yaml"
            if self.overlay == "kind"
            else K8S / "overlays" / self.overlay / "cluster.yaml"
        )
        values = yaml.safe_load(name.read_text())
        values["images"] = NAMED
        values = merged(values, {"steps": {"train": {"gpu": 0}, "evaluate": {"gpu": 0}}})
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(merged(values, file or {})))
        with serving(self.api, self.folder) as kubeconfig, serving_kfp(self.kfp) as kfp:
            os.environ["KUBECONFIG"] = str(kubeconfig)
            words = ("--cluster", str(self.folder / "cluster.yaml"), *words)
            host = () if self.overlay == "kind" or "--host" in words else ("--host", kfp.url)
            code = cli.main(["doctor", "--json", *words, *host])
        printed = self.capsys.readouterr()
        return Ran(code, printed.out, printed.err)


def merged(base: Json, changes: Json) -> Json:
    both = {key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
            for key, value in changes.items()}  # fmt: skip
    return {**base, **both}


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Doctor]:
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES", "AWS_", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", "")  # so that it is put back
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(kfp_client, "RETRY_S", 0.5)

    def doctor(overlay: str) -> Doctor:
        kfp = KfpService(multi_user=overlay == "kubeflow-profile")
        return Doctor(overlay, installed(overlay, IMAGES), kfp, tmp_path, capsys)

    return doctor


@pytest.fixture
def kind(make: Callable[[str], Doctor]) -> Iterator[Doctor]:
    yield make("kind")


@pytest.fixture
def kubeflow(make: Callable[[str], Doctor]) -> Iterator[Doctor]:
    yield make("kubeflow")


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


# --- one thing wrong --------------------------------------------------------------------------------------------------

RAYJOB = {"ray": {"mode": "rayjob", "head": {"cpu": "1"}, "workers": {"minimum": 2}}}
Change = Callable[[ClusterApi], object]


def big_pod(api: ClusterApi) -> None:
    api.add(pod("big", "one", "6"))


def other_run(api: ClusterApi) -> None:
    api.add(pod("run", "one", "6", owner="Workflow"))


def taken_by_init(api: ClusterApi) -> None:
    """An init container counts, beside the sidecars before it, where that is more than what runs later."""
    made = api.add(pod("init", "one", "100m"))
    sidecar, init = ({"resources": {"requests": {"cpu": cores}}} for cores in ("1", "3"))
    made["spec"]["initContainers"] = [{"name": "sidecar", "restartPolicy": "Always", **sidecar}, {"name": "a", **init}]
    made["spec"]["overhead"] = {"cpu": "2.1"}


def no_events(api: ClusterApi) -> None:
    role = api.get("Role", "imagemill-launcher", "imagemill")
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] != ["events"]]


def wait_long(api: ClusterApi) -> None:
    api.add(deployment("workflow-controller", "argo", "quay.io/argoproj/workflow-controller:v4.1.2"))


def kuberay(version: str) -> Change:
    return lambda api: api.add(deployment("kuberay-operator", "kuberay-operator", f"kuberay/operator:v{version}"))


def quota(**hard: str) -> Change:
    return lambda api: api.add(
        named("ResourceQuota", "small", "imagemill", status={"hard": hard, "used": {"cpu": "1"}})
    )


def only_policy(selector: Json) -> Change:
    def change(api: ClusterApi) -> None:
        for one in api.of_kind("NetworkPolicy"):
            api.remove("NetworkPolicy", one["metadata"]["name"], "imagemill")
        if selector is not None:
            api.add(named("NetworkPolicy", "theirs", "imagemill", spec={"podSelector": selector}))

    return change


def silent_node(api: ClusterApi) -> None:
    """A node that tells of its images seldom."""
    api.get("Node", "one")["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:00:00Z"


def started(api: ClusterApi) -> None:
    """A pod that has run an image which its node has not told of."""
    status = {"phase": "Succeeded", "containerStatuses": [{"image": "imagemill-cpu:new", "imageID": "sha256:0"}]}
    api.add(named("Pod", "ran", "imagemill", spec={"nodeName": "one", "containers": []}, status=status))


def pulling(api: ClusterApi) -> None:
    """A pod that can't pull an image of a registry."""
    waiting = {"reason": "ImagePullBackOff", "message": "no such thing"}
    status = {"phase": "Pending", "containerStatuses": [{"image": "ghcr.io/you/cpu:1", "state": {"waiting": waiting}}]}
    api.add(named("Pod", "waits", "imagemill", spec={"containers": []}, status=status))


MISTAKES: dict[str, tuple[Json, Change | None, str, str, str]] = {
    # file, change of the cluster, check, state, what is seen
    "wrong secret": ({"storage": {"secret": "stores"}}, None, "secrets", "error", "there is no secret stores"),
    "wrong key": ({"storage": {"access_key": "user"}}, None, "secrets", "error",
                  "secret imagemill-store has no key user; it has accesskey, secretkey"),
    "no token": ({}, lambda api: api.add(secret("imagemill-executor.service-account-token", "imagemill")), "secrets",
                 "error", "has no key token"),
    "no pull secret": ({"images": {"pull_secrets": ["login"]}}, None, "secrets", "error", "no secret login"),
    "no Ray token": ({"ray": {"mode": "address", "address": "ray://head:10001", "token_secret": "rays"}}, None,
                     "secrets", "error", "no secret rays"),
    "image of nowhere": ({"images": {"cpu": "imagemill-cpu:new"}}, None, "images", "error",
                         "images.cpu: imagemill-cpu:new is on 0 of 1 nodes, and it names no registry"),
    "node that seldom tells": ({"images": {"cpu": "imagemill-cpu:new"}}, silent_node, "images", "warning",
                               "imagemill-cpu:new is on 0 of 1 nodes"),
    "image that has run": ({"images": {"cpu": "imagemill-cpu:new"}}, started, "images", "ok", "cpu:new is on 1 of 1"),
    "image never pulled": ({"images": {"cpu": "ghcr.io/you/cpu:1", "pull_policy": "Never"}}, None, "images", "error",
                           "pull_policy is Never"),
    "image always pulled": ({"images": {"pull_policy": "Always"}}, None, "images", "error", "names no registry"),
    "image to be pulled": ({"images": {"cpu": "ghcr.io/you/cpu:1"}}, None, "images", "warning", "no node is known to"),
    "image that is not there": ({"images": {"cpu": "ghcr.io/you/cpu:1"}}, pulling, "images", "error",
                                "pod waits: ImagePullBackOff: no such thing"),
    "image on one node": ({}, lambda api: api.add(node("two")), "images", "warning", "is on 1 of 2 nodes"),
    "pod too large": ({"steps": {"clean": {"cpu": 9}}}, None, "room", "error",
                      "clean asks for 9.01 cores on one node, at most 8 are free"),
    "too little memory": ({"steps": {"train": {"memory": "40Gi"}}}, None, "room", "error",
                          "train asks for 40.07 GiB of memory on one node, at most 32 are free"),
    "no GPU": ({"steps": {"train": {"gpu": 1}}}, None, "room", "error",
               "train asks for 1 nvidia.com/gpu on one node, at most none are free"),
    "taint": ({}, lambda api: api.get("Node", "one")["spec"].update(taints=[{"key": "a", "effect": "NoSchedule"}]),
              "room", "error", "no node takes download: of 1, 1 have the taint a"),
    "selector": ({"steps": {"clean": {"node_selector": {"a": "b"}}}}, None, "room", "error", "1 have not the"),
    "other pods stay": (RAYJOB, big_pod, "room", "error", "resize needs 3.06 cores at once, 2 are free (resize 0.01, "
                        "Ray's head 1, submitter 0.05, 2 of Ray's worker 1)"),
    "no room for much data": ({"ray": {"workers": {"pod": {"cpu": 8}}}}, None, "room", "warning",
                              "resize by a RayJob needs 8.36 cores at once, 8 are free"),
    "no room for much data on a node": ({"ray": {"head": {"memory": "33Gi"}}}, None, "room", "warning",
                                        "resize by a RayJob: Ray's head asks for 33.25 GiB of memory on one node"),
    "other pods end": ({}, other_run, "room", "warning", "it waits until other runs and jobs end"),
    "init containers": (RAYJOB, taken_by_init, "room", "error", "3.06 cores at once, 1.9 are free"),
    "node not ready": ({}, lambda api: api.get("Node", "one")["status"].update(conditions=[
        {"type": "Ready", "status": "False"}]), "room", "error", "no node takes download: none is ready"),
    "quota": ({}, quota(cpu="3"), "quota", "warning", "train needs 2.01 cores at once, quota small leaves 2"),
    "small quota": ({}, quota(cpu="2"), "quota", "error", "quota small leaves 1"),
    "quota of limits": ({}, quota(**{"limits.cpu": "90"}), "quota", "error", "whose containers have no limit of cores"),
    "no account": ({"argo": {"service_account": "nobody"}}, None, "accounts", "error", "no service account nobody"),
    "no rights": ({}, lambda api: api.remove("RoleBinding", "imagemill-launcher", "imagemill"), "accounts", "error",
                  "imagemill-launcher may not create rayjobs.ray.io, delete rayjobs.ray.io"),
    "no events": ({}, no_events, "accounts", "warning",
                  "imagemill-launcher may not list events"),
    "no rights of yours": ({}, lambda api: api.denied.add("create workflows"), "accounts", "warning",
                           "you yourself may not, in imagemill: create workflows.argoproj.io"),
    "no Argo": ({}, lambda api: api.discovery.pop("/apis/argoproj.io/v1alpha1"), "argo", "error", "no workflows"),
    "old Argo": ({}, lambda api: api.add(deployment("workflow-controller", "argo", "a/b:v3.4.1")), "argo", "error",
                 "Argo Workflows v3.4.1"),
    "slow Argo": ({}, wait_long, "argo settings", "warning", "waits up to 10 s after each step"),
    "no KubeRay": (RAYJOB, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "error", "has no rayjobs"),
    "no KubeRay for much data": ({}, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "warning",
                                 "ray.mode is auto, and the cluster has no rayjobs"),
    "old KubeRay": ({}, kuberay("1.3.2"), "kuberay", "error", "older than 1.4"),
    "KubeRay without deadline": ({}, kuberay("1.5.0"), "kuberay", "warning", "ray.pending_seconds"),
    "no store": ({"storage": {"endpoint": "http://minio.imagemill:9000"}}, None, "store", "error", "no service minio"),
    "wrong port": ({"storage": {"endpoint": "http://seaweedfs.imagemill:9000"}}, None, "store", "error",
                   "service seaweedfs in imagemill has no port 9000; it has 8333"),
    "store not ready": ({}, lambda api: api.add(named(
        "EndpointSlice", "seaweedfs-x", "imagemill", metadata={"labels": {"kubernetes.io/service-name": "seaweedfs"}},
        endpoints=[{"conditions": {"ready": False}}])), "store", "error", "no pod is ready behind service seaweedfs"),
    "no policies": ({}, only_policy({"matchLabels": {"a": "b"}}), "network", "warning", "no network policy for our"),
    "closed": ({}, only_policy({}), "network", "error", "theirs binds every pod"),
    "no namespace": ({"namespace": "mill"}, None, "namespace", "error", "there is no namespace mill"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_and_said_how_to_mend(name: str, kind: Doctor) -> None:
    file, change, check, state, seen = MISTAKES[name]
    if change:
        change(kind.api)
    ran = kind(file=file)
    bad = [one for one in ran.found[check] if one["state"] == state and seen in one["seen"]]
    assert bad, json.dumps(ran.found.get(check), indent=1)
    assert bad[0]["mend"] or state in ("warning", "ok")
    assert ran.code == (2 if state == "error" else 0), ran.out


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


def test_kfps_own_namespace_is_where_it_runs_without_profiles(make: Callable[[str], Doctor]) -> None:
    """The file's namespace counts for nothing there: accounts and secrets are looked for where pods are."""
    doctor = make("kubeflow")
    doctor.api.add(named("Namespace", "mine"))
    ran = doctor("--target", "kfp", file={"namespace": "mine"})
    assert ran.code == 0 and "are in kubeflow" in ran.found["namespace"][0]["seen"]
    assert ran.found["namespace"][0]["mend"] == "namespace: kubeflow in the cluster's file"
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


# --- what can't be seen -----------------------------------------------------------------------------------------------


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
def test_what_one_may_not_look_at_is_said(pattern: str, checks: set[str], kind: Doctor) -> None:
    kind.api.forbidden.append(pattern)
    ran = kind()
    assert ran.code == 0, ran.out
    assert ran.states("warning") == checks
    assert "is forbidden" not in ran.out
    assert all("can't be seen" in one["seen"] for check in checks for one in ran.found[check] if one["state"] != "ok")


def test_without_the_pods_of_others_their_share_is_not_counted(kind: Doctor) -> None:
    kind.api.forbidden.append("GET /api/v1/pods$")
    assert "what pods of others take can't be seen" in kind().found["room"][0]["seen"]


def test_everything_forbidden_is_no_crash(kind: Doctor) -> None:
    kind.api.forbidden.append("^(GET|POST) /(api|apis)")
    ran = kind()
    assert ran.code == 0 and ran.states("ok") == {"api"}, ran.out


def test_without_a_kubeconfig(
    kubeflow: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeflow()
    monkeypatch.setenv("KUBECONFIG", str(kubeflow.folder / "none"))
    with serving_kfp(kubeflow.kfp) as kfp:
        words = ["--cluster", str(kubeflow.folder / "cluster.yaml"), "--json", "--host", kfp.url]
        code = cli.main(["doctor", *words])
    ran = Ran(code, capsys.readouterr().out, "")
    assert ran.code == 0 and ran.states("ok") == {"kfp"} and ran.states("warning") == {"api", "store"}


def test_an_api_that_does_not_answer(
    kind: Doctor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind()
    with serving(kind.api, kind.folder) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert cli.main(["doctor", "--cluster", str(kind.folder / "cluster.yaml"), "--json"]) == 2
    assert Ran(2, capsys.readouterr().out, "").states("error") == {"api"}


# --- what doctor knows of roles is what k8s/ grants -------------------------------------------------------------------


def test_the_rights_are_those_of_the_roles() -> None:
    kind, kubeflow = installed("kind", ()), installed("kubeflow", ())
    granted = {(one["metadata"]["name"], rule["apiGroups"][0], resource): tuple(rule["verbs"])
               for api in (kind, kubeflow) for one in api.of_kind("Role") for rule in one["rules"]
               for resource in rule["resources"]}  # fmt: skip
    for name, rights in (("executor", access.EXECUTOR), ("launcher", access.LAUNCHER), ("rayjobs", RIGHTS)):
        known = {key[1:]: verbs for key, verbs in granted.items() if key[0] == f"imagemill-{name}"}
        assert {key: set(verbs) for key, verbs in known.items()} == {key: set(verbs) for key, verbs in rights.items()}


# --- pods of its own --------------------------------------------------------------------------------------------------


def test_a_probe_tells_of_images_and_store_and_leaves_nothing(
    kind: Doctor, rgw: Any, s3_workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_workspace.removeprefix("s3://").partition("/")[0]
    kind.api.kubelet = cluster_api.kubelet
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey=rgw.secret_key))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("imagemill.pipelines.doctor.probe.LOOK_S", 0.05)
    file = {"storage": {"endpoint": rgw.endpoint, "workspace": s3_workspace}}
    ran = kind("--probe", file=file)
    assert ran.code == 0 and not ran.states("warning"), ran.out
    assert "cpu, ray, gpu start, with imagemill" in ran.found["images"][0]["seen"]
    assert ran.found["store"][0]["seen"] == f"a pod writes, reads and lists {s3_workspace}"
    assert len([one for one in kind.api.requests if one.startswith("POST") and one.endswith("/pods")]) == 5
    assert not kind.api.of_kind("Pod")
    # Here, and not from a pod, the same store is asked without a trace.
    assert kind(file=file).found["store"][0]["state"] == "ok"
    gone = {"storage": {**file["storage"], "workspace": f"s3://{bucket}-gone/work"}}
    assert f"no bucket {bucket}-gone" in kind(file=gone).found["store"][0]["seen"]
    kind.api.add(secret("imagemill-store", "imagemill", accesskey=rgw.access_key, secretkey="wrong"))
    (refused,) = kind(file=file).found["store"]
    assert (
        refused["state"] == "error" and "refuses the credentials" in refused["seen"] and "wrong" not in refused["seen"]
    )
    ran = kind("--probe", file={**file, "images": {"gpu": "imagemill-gpu:none"}})
    assert ran.code == 2 and "from a pod: " in ran.found["store"][0]["seen"]
    assert "images.gpu: imagemill-gpu:none: ErrImagePull" in ran.found["images"][0]["seen"]
    assert not kind.api.of_kind("Pod")
