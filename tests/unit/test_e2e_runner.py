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
from e2e import __main__ as command
from e2e import kills, scenarios
from e2e.kube import Kube, KubeError
from e2e.mirror import Mirror
from e2e.options import E2E_LABEL, Options
from e2e.scenario import Deadline, Failed, Late
from e2e_api import Api, Cluster
from e2e_play import Play

IMAGES = {target: f"registry/{target}@sha256:{'0' * 64}" for target in ("cpu", "ray", "gpu")}
WORK = ("download", "clean", "rayjob", "train", "evaluate", "promote")
NAMESPACE = "/api/v1/namespaces/imagemill"


@dataclass
class World:
    """A cluster with everything installed, in a namespace that is marked for tests."""

    folder: Path
    cluster: Cluster = field(default_factory=Cluster)

    def __post_init__(self) -> None:
        self.play = Play(self.cluster, self.folder / "store")
        self.play.begin()
        documents = self.cluster.documents
        documents["/version"] = {"gitVersion": "v1.33.1"}
        documents[NAMESPACE] = {"metadata": {"name": "imagemill", "labels": {E2E_LABEL: "allowed"}}}
        documents["/api/v1/nodes"] = {"items": [{"status": {"allocatable": {"cpu": "4"}}}]}
        images = ["quay.io/argoproj/workflow-controller:v3.7.2", "quay.io/kuberay/operator:v1.6.0"]
        names = ["workflow-controller", "kuberay-operator"]
        documents["/apis/apps/v1/deployments"] = {"items": [
            {"spec": {"template": {"spec": {"containers": [{"name": name, "image": image}]}}}}
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
        made = Options(cluster=str(self.file), only=only, out=self.folder / "out", suffix="abc123")
        code = command.run(replace(made, **options))
        tables = sorted((self.folder / "out").glob("*/table.json"))
        rows = json.loads(tables[-1].read_text())["scenarios"] if tables else []
        return code, {row["name"]: row for row in rows}

    def left(self) -> list[str]:
        """What the session has left: all but events and what was there before."""
        kinds = ("workflows", "workflowtemplates", "cronworkflows", "rayjobs", "pods")
        return [name for kind in kinds for name in self.cluster.objects[kind] if name != "theirs"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    api = Api(made.cluster)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    quick = {name: replace(target, after=0.0) for name, target in kills.TARGETS.items()}
    monkeypatch.setattr(kills, "TARGETS", quick)
    monkeypatch.setattr(scenarios, "NOTHING_LEFT_S", 1.0)
    yield made
    api.close()


def outcomes(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["outcome"] for name, row in rows.items()}


def check_all_passes(world: World, *only: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Everything passes but what needs GPUs, nothing stays, and what is somebody else's is not touched."""
    code, rows = world.run(*only, **options)
    assert [name for name, row in rows.items() if row["outcome"] == "failed"] == [], rows
    assert {name for name, row in rows.items() if row["outcome"] == "skipped"} <= {"gpus", "argo-gpu", "kfp-gpu"}
    assert code == 0 and rows["argo"]["note"] == "Argo Workflows v3.7.2"
    assert world.left() == [] and not list((world.folder / "store").rglob("*.json"))
    assert "theirs" in world.cluster.objects["workflows"]
    assert not [path for method, path in world.cluster.requests if method != "GET" and "theirs" in path]
    return rows


def test_a_good_cluster_passes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.play.seconds = {"kill-train": {"train": 60.0}, "kill-ray": {"rayjob": 60.0}, "deleted": {"rayjob": 60.0}}
    kinds = ("nothing-left", "cached", "cpu-only", "cron", "two-at-once", "wrong-input", "gpu-absent", "deleted",
             "kill-train", "kill-ray-worker")  # fmt: skip
    world.play.seconds |= {"download": 0.03, "clean": 0.03, "evaluate": 0.03, "promote": 0.03}
    rows = check_all_passes(world, *(f"argo-{kind}" for kind in kinds))
    assert "Insufficient imagemill.io/no-such-gpu" in rows["argo-gpu-absent"]["note"]
    assert "1 pod(s)" in rows["argo-wrong-input"]["note"]
    assert "went on in 1 more pod" in rows["argo-kill-train"]["note"]
    changes = [
        (change, one["metadata"]["name"]) for _, kind, change, one in world.cluster.history if kind == "workflows"
    ]
    order = [what for what in changes if "wrong-input" in what[1] or ("gpu-absent" in what[1] and what[0] == "ADDED")]
    assert order[-2][0] == "DELETED"  # each scenario cleans up before the next begins
    printed = capsys.readouterr()
    assert "0 failed" in printed.out and "namespace  imagemill" in printed.err


@pytest.mark.proof
def test_every_scenario_of_argo_passes(world: World) -> None:
    world.play.seconds = {f"kill-{task}": {task: 5.0} for task in WORK}
    world.play.seconds |= {word: {"rayjob": 5.0} for word in ("kill-resize", "kill-ray", "deleted")}
    check_all_passes(world, "argo-*", "resizing", "kuberay", "secret")


@pytest.mark.proof
def test_every_scenario_of_kubeflow_pipelines_passes(world: World) -> None:
    """With the real `imagemill submit` and `schedule`, which ask a server that speaks KFP's API."""
    from e2e_kfp import KfpOnCluster
    from kfp_server import serving

    world.play.seconds = {f"kill-{task}": {task: 5.0} for task in WORK}
    world.play.seconds |= {word: {"rayjob": 5.0} for word in ("kill-resize", "kill-ray", "deleted")}
    with serving(KfpOnCluster(play=world.play)) as service:
        rows = check_all_passes(world, "kfp-*", "argo", submit=(f"--host={service.url}",))
    assert rows["kfp-submit"]["outcome"] == "passed" and "deleted" in rows["cleaning"]["note"]
    assert not (service.runs or service.recurring or service.experiments or service.pipelines or service.versions)


@pytest.mark.parametrize(
    ("version", "ends"),
    [
        ("2.17", "ended by the deadline: Step exceeded"),
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


def test_with_gpus_the_steps_ask_for_them(world: World) -> None:
    """And not in the run that must do without."""
    world.cluster.documents["/api/v1/nodes"] = {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "2"}}}] * 3}
    rows = check_all_passes(world, "argo-gpu", "argo-cpu-only")
    assert rows["gpus"]["note"] == "6 of nvidia.com/gpu"
    assert rows["argo-gpu"]["note"].startswith("train and evaluate on CUDA")
    made = {one["metadata"]["name"]: json.dumps(one["spec"]) for _, kind, _, one in world.cluster.history
            if kind == "pods" and "-train-" in one["metadata"]["name"]}  # fmt: skip
    asks = {name.split("-train-")[0].rpartition("-")[0]: "nvidia.com/gpu" in spec for name, spec in made.items()}
    assert asks == {"e2e-abc123-argo-submit": True, "e2e-abc123-argo-gpu": True, "e2e-abc123-argo-cpu-only": False}
    runs = [json.dumps(one) for _, kind, _, one in world.cluster.history if kind == "workflows"]
    assert any("argo-gpu" in run and "cuda" in run for run in runs)


def test_a_step_that_fails_is_a_failed_row_with_its_logs(world: World) -> None:
    world.play.faults.fails = "clean"
    code, rows = world.run("argo-cached")
    row = rows["argo-submit"]
    assert code == 1 and row["outcome"] == "failed" and "clean: exit code 1" in row["note"]
    assert rows["argo-cached"]["outcome"] == "skipped" and "needs argo-submit" in rows["argo-cached"]["note"]
    saved = Path(row["saved"])
    log = next(saved.glob("*-clean-0.main.log"))
    assert log.read_text() == "[clean] works\n"
    assert "Started container main" in (saved / "events.txt").read_text()
    assert "exit code 1" in (saved / "pods.txt").read_text()
    assert json.loads((saved / "workflows.json").read_text())[0]["status"]["phase"] == "Failed"
    assert world.left() == []


def kill_clean(world: World) -> dict[str, Any]:
    world.play.seconds = {"kill": {"clean": 60.0}}
    return world.run("argo-kill-clean")[1]["argo-kill-clean"]


def test_a_run_that_does_not_survive_a_killed_pod_fails(world: World) -> None:
    world.play.faults.forgets_retry = True
    row = kill_clean(world)
    assert row["outcome"] == "failed" and "clean: exit code -1" in row["note"]


def test_other_tensors_after_a_killed_pod_are_found(world: World) -> None:
    world.play.faults.other_tensors_after = "clean"
    row = kill_clean(world)
    assert row["outcome"] == "failed" and "tensors differs from that of the undisturbed run" in row["note"]


def test_a_pod_that_was_deleted_too_late_is_no_proof(world: World) -> None:
    world.play.faults.outlives_its_pod = True
    row = kill_clean(world)
    assert row["outcome"] == "failed" and "clean ended 3 times before its pod could be killed" in row["note"]


def test_a_step_that_ends_too_fast_is_tried_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try waits for longer than the step works, the second does not."""
    body = kills._killer(replace(kills.TARGETS["clean"], after=1.0))
    scenario = replace(command.REGISTRY.scenarios["argo-kill-clean"], body=lambda session: body(session, "argo"))
    monkeypatch.setitem(command.REGISTRY.scenarios, "argo-kill-clean", scenario)
    world.play.seconds = {"kill": {"clean": 0.5}}
    code, rows = world.run("argo-kill-clean")
    assert code == 0 and "went on in 1 more pod" in rows["argo-kill-clean"]["note"]
    tries = {one["metadata"]["name"] for _, kind, _, one in world.cluster.history if kind == "workflows"}
    assert len([name for name in tries if "kill" in name]) == 2


def test_what_a_run_leaves_behind_is_found(world: World) -> None:
    world.play.faults.leaves_rayjob = True
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
    seen = threading.Event()

    def interrupt() -> None:
        while not seen.wait(0.02):
            if any("-train-0" in name for name in world.cluster.objects["pods"]):
                os.kill(os.getpid(), signal.SIGINT)
                return

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        code, rows = world.run("argo-cached")
    finally:
        seen.set()
    assert code == 1
    assert rows["argo-submit"]["note"] == "stopped by Ctrl-C" and rows["argo-cached"]["note"] == "not reached"
    assert rows["cleaning"]["outcome"] == "passed" and world.left() == []


def test_an_image_that_cannot_be_pulled_is_told_at_once(world: World) -> None:
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


def test_a_mirror_remembers_what_is_gone(world: World) -> None:
    mirror = Mirror(Kube("imagemill"), ["pods"])
    mirror.start()
    try:
        made = {"metadata": {"name": "short", "labels": {"workflows.argoproj.io/workflow": "w"}}, "spec": {}}
        world.cluster.create("pods", made)
        mirror.wait(lambda: bool(mirror.now("pods")), "the pod", Deadline(60))
        world.cluster.delete("pods", "short")
        mirror.wait(lambda: not mirror.now("pods"), "its end", Deadline(60))
        assert [one["metadata"]["name"] for one in mirror.seen("pods")] == ["short"]
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
