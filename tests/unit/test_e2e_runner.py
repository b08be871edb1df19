"""The end-to-end runner against a stand-in of the Kubernetes API that plays Argo, KubeRay and the steps."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e import __main__ as command
from e2e.access import controller as controllers
from e2e.access.kube import Kube, KubeError
from e2e.access.mirror import Mirror
from e2e.options import E2E_LABEL, Options
from e2e.runs import ARGO
from e2e.scenario import Deadline, Failed, Late, Registry
from e2e.scenarios import kills, leftovers, measured, retries, whole_runs
from e2e_api import Api, Cluster
from e2e_play import Play
from network import Peer
from test_k8s_network import policies_of

IMAGES = {target: f"registry/{target}@sha256:{'0' * 64}" for target in ("cpu", "ray", "gpu")}
WORK = ("download", "clean", "resize", "rayjob", "train", "evaluate", "promote")
NAMESPACE = "/api/v1/namespaces/imagemill"
CONTROLLER = "/api/v1/namespaces/argo/configmaps/workflow-controller-configmap"
DEFAULTS = {"spec": {"templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}}}}


@dataclass
class World:
    """A cluster with everything installed, in a namespace that is marked for tests."""

    folder: Path
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        self.play = Play(self.cluster, self.folder / "store")
        self.play.begin()
        documents = self.cluster.documents
        documents[CONTROLLER] = {"data": {"workflowDefaults": yaml.safe_dump(DEFAULTS)}}
        documents["/version"] = {"gitVersion": "v1.33.1"}
        documents[NAMESPACE] = {"metadata": {"name": "imagemill", "labels": {E2E_LABEL: "allowed"}}}
        documents["/api/v1/nodes"] = {"items": [{"status": {"allocatable": {"cpu": "4"}}}]}
        images = ["quay.io/argoproj/workflow-controller:v3.7.2", "quay.io/kuberay/operator:v1.6.0"]
        names = ["workflow-controller", "kuberay-operator"]
        documents["/apis/apps/v1/deployments"] = {"items": [
            {"metadata": {"name": name, "namespace": "argo"},
             "spec": {"template": {"spec": {"containers": [{"name": name, "image": image}]}}}}
            for name, image in zip(names, images, strict=True)
        ]}  # fmt: skip
        for name in ("imagemill", "imagemill-executor", "imagemill-launcher"):
            self.cluster.create("serviceaccounts", {"metadata": {"name": name}})
        keys = {"accesskey": "a", "secretkey": "b"}
        self.cluster.create("secrets", {"metadata": {"name": "mlpipeline-minio-artifact"}, "data": keys})
        token = {"metadata": {"name": "imagemill-executor.service-account-token"}}
        self.cluster.create("secrets", token)
        # Somebody else's, which must still be there at the end, untouched.
        self.cluster.objects["workflows"]["theirs"] = {
            "metadata": {"name": "theirs", "uid": "1", "resourceVersion": "1"}
        }
        self.file = self.folder / "cluster.yaml"
        self.file.write_text(json.dumps({"images": IMAGES}))

    def run(self, *only: str, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
        """(exit code, the table's rows by name)."""
        arguments = Options(cluster=str(self.file), only=only, out=self.folder / "out", suffix="abc123")
        code = command.run(replace(arguments, **options))
        tables = sorted((self.folder / "out").glob("*/table.json"))
        rows = json.loads(tables[-1].read_text())["scenarios"] if tables else []
        return code, {row["name"]: row for row in rows}

    def rayjobs(self) -> None:
        """Have each run resize as a RayJob."""
        self.file.write_text(json.dumps({"images": IMAGES, "ray": {"mode": "rayjob"}}))

    def tries(self, word: str) -> list[str]:
        """The Workflows with that word in their names."""
        names = {document["metadata"]["name"] for _, kind, _, document in self.cluster.history if kind == "workflows"}
        return sorted(name for name in names if word in name)

    def left(self) -> list[str]:
        """List objects that the session has left, without events and earlier objects."""
        kinds = ("workflows", "workflowtemplates", "cronworkflows", "rayjobs", "pods", "networkpolicies")
        return [name for kind in kinds for name in self.cluster.objects[kind] if name != "theirs"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    created = World(tmp_path)
    api = Api(created.cluster)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, targets in kills.TARGETS.items():
        monkeypatch.setitem(kills.TARGETS, name, tuple(replace(target, after=0.0) for target in targets))
    monkeypatch.setattr(whole_runs, "NOTHING_LEFT_S", 1.0)
    monkeypatch.setattr(leftovers, "FORGOTTEN_S", 1.0)
    monkeypatch.setattr(retries, "NEXT_POD_S", 20.0)
    yield created
    api.close()


def outcomes(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["outcome"] for name, row in rows.items()}


def check_all_passes(world: World, *only: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Assert that all scenarios pass but those for GPUs, nothing is left, and objects of others are untouched."""
    code, rows = world.run(*only, **options)
    assert [name for name, row in rows.items() if row["outcome"] == "failed"] == [], rows
    skipped = {name for name, row in rows.items() if row["outcome"] == "skipped"}
    assert skipped <= {
        "gpus",
        "argo-gpu",
        "kfp-gpu",
        "argo-policies",
        "kfp-policies",
        "argo-other-policy",
        "kfp-other-policy",
        "kfp-pages",
    }
    assert code == 0 and rows["argo"]["note"] == "Argo Workflows v3.7.2"
    assert world.left() == [] and not [file for file in (world.folder / "store").rglob("*") if file.is_file()]
    assert "theirs" in world.cluster.objects["workflows"]
    assert not [path for method, path in world.cluster.requests if method != "GET" and "theirs" in path]
    return rows


def test_a_good_cluster_passes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.play.seconds = {"kill-steps": dict.fromkeys(WORK, 60.0), "kill-ray": {"rayjob": 60.0},
                          "lost-pod": {"download": 60.0}}  # fmt: skip
    kinds = (
        "nothing-left",
        "clean-on-ray",
        "cpu-only",
        "cron",
        "two-at-once",
        "wrong-input",
        "gpu-absent",
        "kill-steps",
        "kill-rayjob",
        "lost-pod",
        "transient",
        "out-of-memory",
        "left-after-deletion",
        "demo",
        "unchanged",
    )
    rows = check_all_passes(world, *(f"argo-{kind}" for kind in kinds), at_once=4)
    assert "Insufficient imagemill.io/no-such-gpu" in rows["argo-gpu-absent"]["note"]
    assert "1 pod(s)" in rows["argo-wrong-input"]["note"] and "3 pod(s)" in rows["argo-transient"]["note"]
    assert "train killed, went on in 1 more pod; evaluate" in rows["argo-kill-steps"]["note"]
    assert len(world.tries("kill-steps")) == 1  # pods of one name are told apart by their uids
    assert "its 1 artifacts went with it" in rows["argo-left-after-deletion"]["note"]
    assert "of 110 that it may take" in rows["argo-demo"]["note"]
    printed = capsys.readouterr()
    assert "0 failed" in printed.out and "namespace  imagemill" in printed.err


@pytest.mark.proof
def test_every_scenario_of_argo_passes(world: World) -> None:
    world.play.seconds = {word: dict.fromkeys(WORK, 5.0) for word in ("kill", "deleted", "lost-pod")}
    check_all_passes(world, "argo-*", "resizing", "kuberay", "secret", at_once=4)


@pytest.mark.proof
def test_every_scenario_of_kubeflow_pipelines_passes(world: World) -> None:
    """The real `imagemill submit` and `schedule` and the SDK talk to a test server of KFP's API."""
    from e2e_kfp import KfpOnCluster
    from kfp_server import serving

    world.play.seconds = {word: dict.fromkeys(WORK, 5.0) for word in ("kill", "deleted", "lost-pod")}
    names = [name for name in command.REGISTRY.scenarios if name.startswith("kfp-") and name != "kfp-pages"]
    with serving(KfpOnCluster(play=world.play)) as service:
        rows = check_all_passes(world, *names, "argo", submit=(f"--host={service.url}",), at_once=4)
    assert rows["kfp-submit"]["outcome"] == "passed" and "deleted" in rows["cleaning"]["note"]
    assert not (service.runs or service.recurring or service.experiments or service.pipelines or service.versions)


@pytest.mark.parametrize(
    ("version", "ends"),
    [
        ("2.17", "Step exceeded its deadline"),
        pytest.param("2.16", "terminating the run", marks=pytest.mark.proof),
    ],
)
def test_kfps_own_deadline_is_tried_where_it_has_one(world: World, version: str, ends: str) -> None:
    from e2e_kfp import KfpOnCluster
    from kfp_server import serving

    world.file.write_text(json.dumps({"images": IMAGES, "kfp": {"version": version}}))
    with serving(KfpOnCluster(play=world.play)) as service:
        rows = check_all_passes(world, "kfp-gpu-absent", "argo", submit=(f"--host={service.url}",))
        asked = service.asked("POST", ":terminate$")
    assert ends in rows["kfp-gpu-absent"]["note"] and asked == (version == "2.16")


def test_steps_request_gpus_where_the_cluster_has_them(world: World) -> None:
    """The run without GPUs does not request them."""
    world.cluster.documents["/api/v1/nodes"] = {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "2"}}}] * 3}
    rows = check_all_passes(world, "argo-gpu", "argo-cpu-only")
    assert rows["gpus"]["note"] == "6 of nvidia.com/gpu"
    assert rows["argo-gpu"]["note"].startswith("train and evaluate on CUDA")
    pods = [document for _, kind, _, document in world.cluster.history if kind == "pods"]
    specs = {pod["metadata"]["name"]: json.dumps(pod["spec"]) for pod in pods if "-train-" in pod["metadata"]["name"]}
    asks_for_gpu = {
        name.split("-train-")[0].rpartition("-")[0]: "nvidia.com/gpu" in spec for name, spec in specs.items()
    }
    assert asks_for_gpu == {
        "e2e-abc123-argo-submit": True,
        "e2e-abc123-argo-gpu": True,
        "e2e-abc123-argo-cpu-only": False,
    }
    runs = [json.dumps(document) for _, kind, _, document in world.cluster.history if kind == "workflows"]
    assert any("argo-gpu" in run and "cuda" in run for run in runs)


def test_a_step_that_fails_is_a_failed_row_with_its_logs(world: World) -> None:
    world.play.faults.fails = "clean"
    code, rows = world.run("argo-cpu-only")
    row = rows["argo-submit"]
    assert code == 1 and row["outcome"] == "failed" and "clean: exit code 1" in row["note"]
    assert rows["argo-cpu-only"]["outcome"] == "skipped" and "needs argo-submit" in rows["argo-cpu-only"]["note"]
    saved = Path(row["saved"])
    log = next(saved.glob("*-clean-0.main.log"))
    assert log.read_text() == "[clean] works\n"
    assert "Started container main" in (saved / "events.txt").read_text()
    assert "exit code 1" in (saved / "pods.txt").read_text()
    assert json.loads((saved / "workflows.json").read_text())[0]["status"]["phase"] == "Failed"
    assert world.left() == []


def kill_steps(world: World) -> dict[str, Any]:
    world.play.seconds = {"kill": dict.fromkeys(WORK, 60.0)}
    return world.run("argo-kill-steps")[1]["argo-kill-steps"]


def test_a_run_that_does_not_survive_a_killed_pod_fails(world: World) -> None:
    world.play.faults.forgets_retry = True
    row = kill_steps(world)
    assert row["outcome"] == "failed" and "download: exit code -1" in row["note"]


def test_other_tensors_after_a_killed_pod_are_found(world: World) -> None:
    world.play.faults.other_tensors_after = "clean"
    row = kill_steps(world)
    assert row["outcome"] == "failed" and "tensors differs from that of the undisturbed run" in row["note"]


def test_a_pod_that_was_deleted_too_late_is_no_proof(world: World) -> None:
    world.play.faults.outlives_its_pod = True
    row = kill_steps(world)
    assert row["outcome"] == "failed" and "ended 3 times before the pod could be killed" in row["note"]
    assert len(world.tries("kill-steps")) == 3


def test_step_that_ends_before_the_kill_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run waits for longer than the step works, the second does not; the first run's kills count."""
    targets = (kills.Target("download", ("download",), 0.0), kills.Target("clean", ("clean",), 1.0))
    monkeypatch.setitem(kills.TARGETS, "steps", targets)
    world.play.seconds = {"kill": {"download": 1.5, "clean": 0.5}}
    code, rows = world.run("argo-kill-steps")
    note = rows["argo-kill-steps"]["note"]
    assert code == 0 and "download killed, went on in 1 more pod; clean killed, went on in 1 more pod" in note
    assert len(world.tries("kill-steps")) == 2


def test_a_template_that_the_controller_does_not_know_yet_is_awaited(world: World) -> None:
    world.play.faults.unknown_templates = 2
    code, rows = world.run("argo-submit")
    assert code == 0 and rows["argo-submit"]["outcome"] == "passed"
    assert len(world.tries("argo-submit")) == 3


def test_artifacts_that_outlive_their_workflow_are_found(world: World) -> None:
    world.play.faults.keeps_artifacts = True
    code, rows = world.run("argo-left-after-deletion")
    assert code == 1 and "1 artifacts of a deleted workflow stay" in rows["argo-left-after-deletion"]["note"]
    assert not [file for file in (world.folder / "store").rglob("*") if file.is_file()]  # the runner deletes its own


def test_leftovers_of_a_run_are_reported(world: World) -> None:
    world.play.faults.leaves_rayjob = True
    world.rayjobs()
    code, rows = world.run("argo-nothing-left", "argo-deleted")
    assert code == 1 and rows["argo-submit"]["outcome"] == "passed"
    assert "rayjob job-e2e-abc123-argo-submit" in rows["argo-nothing-left"]["note"]
    assert "has no owner" in rows["argo-deleted"]["note"]
    assert world.left() == []  # the runner deletes what the product did not


def test_two_that_run_at_once_are_found(world: World) -> None:
    world.play.faults.ignores_mutex = True
    world.play.seconds = {"two": {"download": 5.0}}
    row = world.run("argo-two-at-once")[1]["argo-two-at-once"]
    assert row["outcome"] == "failed" and "at the same time" in row["note"]


def test_two_that_never_met_prove_nothing(world: World) -> None:
    world.play.faults.takes_turns = True
    row = world.run("argo-two-at-once")[1]["argo-two-at-once"]
    assert row["outcome"] == "failed" and "neither of two retrainings" in row["note"]


def test_wrong_input_that_is_tried_again_is_found(world: World) -> None:
    world.play.faults.retries_wrong_input = True
    row = world.run("argo-wrong-input")[1]["argo-wrong-input"]
    assert row["outcome"] == "failed" and "download had 3 pods, expected one" in row["note"]


def test_ctrl_c_cleans_up(world: World) -> None:
    world.play.faults.hangs = "train"
    stopped = threading.Event()

    def interrupt() -> None:
        while not stopped.wait(0.02):
            if any("-train-0" in name for name in world.cluster.objects["pods"]):
                os.kill(os.getpid(), signal.SIGINT)
                return

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        code, rows = world.run("argo-cpu-only")
    finally:
        stopped.set()
    assert code == 1
    assert rows["argo-submit"]["note"] == "stopped by Ctrl-C" and rows["argo-cpu-only"]["note"] == "not reached"
    assert rows["cleaning"]["outcome"] == "passed" and world.left() == []


def test_image_that_cannot_be_pulled_is_reported_at_once(world: World) -> None:
    world.play.faults.image_is_missing = "registry/ray"
    code, rows = world.run("images")
    assert code == 1 and "ImagePullBackOff: can't pull registry/ray@" in rows["images"]["note"]
    assert world.left() == []


def test_an_old_argo_is_skipped_unless_it_is_required(world: World) -> None:
    world.cluster.documents["/apis/argoproj.io/v1alpha1"] = {"resources": []}
    code, rows = world.run("argo-submit")
    assert outcomes(rows)["argo-submit"] == "skipped" and code == 0
    assert "no Argo Workflows here" in rows["argo"]["note"]
    code, rows = world.run("argo-submit", require=("argo*",), suffix="def456")
    assert outcomes(rows)["argo"] == outcomes(rows)["argo-submit"] == "failed" and code == 1


def test_rights_that_are_missing_are_listed(world: World) -> None:
    world.cluster.forbidden = {"workflows"}
    assert "create workflows.argoproj.io, delete workflows" in world.run("argo")[1]["api"]["note"]


def test_a_namespace_that_is_not_marked_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.cluster.documents[NAMESPACE] = {"metadata": {"name": "imagemill"}}
    assert world.run("api") == (2, {})
    assert "kubectl label namespace imagemill imagemill.io/e2e=allowed" in capsys.readouterr().err
    assert world.run("api", namespace_for_tests="other") == (2, {})
    assert all(method == "GET" for method, _ in world.cluster.requests)
    assert world.run("api", namespace_for_tests="imagemill")[0] == 0


def test_keep_and_sweep(world: World) -> None:
    code, rows = world.run("argo-submit", keep=True)
    assert code == 0 and "--sweep" in rows["cleaning"]["note"]
    assert any("argo-submit" in name for name in world.left())
    assert command.run(Options(cluster=str(world.file), sweep=True, suffix="def456")) == 0
    assert world.left() == [] and "theirs" in world.cluster.objects["workflows"]


def test_mirror_keeps_deleted_objects(world: World) -> None:
    mirror = Mirror(Kube("imagemill"), ["pods"])
    mirror.start()
    try:
        pod = {"metadata": {"name": "short", "labels": {"workflows.argoproj.io/workflow": "w"}}, "spec": {}}
        world.cluster.create("pods", pod)
        mirror.wait(lambda: bool(mirror.now("pods")), "the pod", Deadline(60))
        world.cluster.delete("pods", "short")
        mirror.wait(lambda: not mirror.now("pods"), "its end", Deadline(60))
        assert [document["metadata"]["name"] for document in mirror.seen("pods")] == ["short"]
        mirror._apply("pods", "MODIFIED", mirror.seen("pods")[0])  # late news of it
        assert mirror.now("pods") == []
        with pytest.raises(Late, match=r"not within 0 s: a pod · nothing there"):
            mirror.wait(lambda: bool(mirror.now("pods")), "a pod", Deadline(0.1), lambda: "nothing there")
    finally:
        mirror.stop()


def test_a_login_that_is_refused_ends_the_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((world.folder / "kubeconfig").read_text())
    config["users"][0]["user"]["token"] = "another"
    (world.folder / "wrong").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(world.folder / "wrong"))
    with pytest.raises(Failed, match="401 Unauthorized"):
        Mirror(Kube("imagemill"), ["pods"]).start()
    with pytest.raises(KubeError, match="there is no context elsewhere"):
        Kube("imagemill", "elsewhere")


def test_a_short_bar_fails_only_when_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measured.BARS, (ARGO, "demo"), -1)
    code, rows = world.run("argo-demo")
    assert code == 0 and "its bar is missed by" in rows["argo-demo"]["note"]
    code, rows = world.run("argo-demo", bars=True, suffix="def456")
    assert code == 1 and rows["argo-demo"]["outcome"] == "failed"


def test_the_controllers_policy_is_read_and_changed_for_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "_RELOAD_S", 0.0)
    world.play.seconds = {"lost-pod": {"download": 60.0}}
    before = json.dumps(world.cluster.documents[CONTROLLER])
    code, rows = world.run("argo-other-policy", change_controller=True)
    assert code == 0 and "retryPolicy OnError" in rows["controller"]["note"]
    assert rows["argo-other-policy"]["note"].startswith("OnFailure: argo-wrong-input-other: 1 pod(s)")
    assert json.dumps(world.cluster.documents[CONTROLLER]) == before
    changes = [path for method, path in world.cluster.requests if method == "PATCH"]
    assert changes == [CONTROLLER, CONTROLLER]
    code, rows = world.run("argo-other-policy", suffix="def456")
    row = rows["argo-other-policy"]
    assert row["outcome"] == "skipped" and "--change-controller" in row["note"]


def services() -> dict[tuple[str, int], tuple[Peer, int]]:
    """Return the hosts that the scenario of network policies connects to, without the internet."""
    kubeflow = {"ml-pipeline.kubeflow.svc": ("ml-pipeline", 8888, 8888), "mysql.kubeflow.svc": ("mysql", 3306, 3306),
                "ml-pipeline-ui.kubeflow.svc": ("ml-pipeline-ui", 80, 3000)}  # fmt: skip
    return {
        ("seaweedfs.imagemill", 8333): (Peer({"app.kubernetes.io/name": "seaweedfs"}, "imagemill"), 8333),
        ("kubernetes.default.svc", 443): (Peer(ip="10.0.0.1"), 6443),
        ("169.254.169.254", 80): (Peer(ip="169.254.169.254"), 80),
        **{(name, port): (Peer({"app": app}, "kubeflow"), target) for name, (app, port, target) in kubeflow.items()},
    }


@pytest.fixture
def policed(world: World) -> World:
    """A world with enforced network policies of k8s/overlays/kind."""
    world.play.hosts = services()
    world.file.write_text(json.dumps({"images": IMAGES, "storage": {"endpoint": "http://seaweedfs.imagemill:8333"}}))
    for document in policies_of("kind"):
        world.cluster.create("networkpolicies", document)
    return world


def test_network_policies_are_tried_from_pods_of_each_kind(policed: World) -> None:
    code, rows = policed.run("argo-policies")
    note = rows["argo-policies"]["note"]
    assert code == 0 and note.startswith("11 kinds of pods reach what they must, and not: ") and "KFP's MySQL" in note
    assert "without proof, for nobody reaches them: " in note and "the internet" in note.partition("without")[2]
    names = {policy["metadata"]["name"] for policy in policed.cluster.list("networkpolicies")}
    assert not any("e2e" in name for name in names) and "imagemill-default-deny" in names


def test_policies_that_nothing_enforces_are_no_proof(policed: World) -> None:
    policed.play.faults.policies_hold = False
    row = policed.run("argo-policies")[1]["argo-policies"]
    assert row["outcome"] == "skipped" and "nothing enforces network policies here" in row["note"]


@pytest.mark.parametrize(
    ("name", "spec", "problem"),
    [
        ("hole", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 3306}]}]},
         "clean → KFP's MySQL: answers, expected none"),
        ("imagemill-store", None, "clean → the store: no answer, expected an answer"),
    ],
)  # fmt: skip
def test_a_hole_and_a_wall_are_found(policed: World, name: str, spec: Any, problem: str) -> None:
    policed.cluster.delete("networkpolicies", name)
    if spec:
        policed.cluster.create("networkpolicies", {"metadata": {"name": name}, "spec": spec})
    row = policed.run("argo-policies")[1]["argo-policies"]
    assert row["outcome"] == "failed" and problem in row["note"]


def test_a_full_runs_results_are_written_and_a_partial_ones_are_not(world: World, tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    assert world.run("api", results=file)[0] == 0 and not file.exists()
    registry = Registry({name: command.REGISTRY.scenarios[name] for name in ("api", "controller", "argo")})
    before, command.REGISTRY = command.REGISTRY, registry
    try:
        assert world.run(results=file, suffix="def456", words=("--cluster", "/home/somebody/cluster.yaml"))[0] == 0
    finally:
        command.REGISTRY = before
    text = file.read_text()
    assert "| Argo Workflows | v3.7.2 |" in text and "| Kubernetes | v1.33.1 |" in text
    assert "`tests/e2e/run --cluster cluster.yaml`" in text and "retryPolicy OnError" in text
    assert "| `argo` | Argo Workflows is installed" in text and "**4 passed, 0 failed, 0 skipped" in text
