"""The package for Kubeflow Pipelines: its pods field by field and as its API server makes them, and the round trip."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import manifests
import pytest
from packages import IMAGES, Json, build_kfp_pod, container, documents, kubernetes

from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cluster.cluster_file import Cluster, Kfp, Pod, parse_cluster, parse_cluster_json
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE, shm_size
from imagemill.pipelines.compile import compile_kfp
from imagemill.pipelines.kfp.pods import to_kfp_cpu, to_kfp_memory
from imagemill.pipelines.parameters import resolve_parameters

STEPS = ("download", "clean", "resize", "train", "evaluate", "promote")
GPU_POD = {
    "cpu": "6", "cpu_limit": "8", "memory": "24Gi", "memory_limit": "32Gi", "ephemeral_storage": "80Gi", "gpu": 2,
    "gpu_type": "amd.com/gpu", "shm": "6Gi", "node_selector": {"pool": "gpu"}, "deadline_seconds": 7200,
    "tolerations": [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": True, "effect": "NoExecute", "tolerationSeconds": 30},
    ],
}  # fmt: skip
CASES: dict[str, Json] = {
    "default": {},
    "everything": {
        "namespace": "vision",
        "images": {"pull_policy": "Always", "pull_secrets": ["registry-login"]},
        "storage": {"endpoint": "https://s3.example", "region": "eu-central-1", "secret": "store", "access_key": "id",
                    "secret_key": "key", "workspace": "s3://bucket/mill"},
        "steps": {"train": GPU_POD, "clean": {"memory": "1.5Gi", "cpu": "500m"}},
        "limits": {"lost_pod_retries": 5, "run_deadline_seconds": 3600, "keep_succeeded_seconds": 60,
                   "keep_failed_seconds": 120},
        "labels": {"team": "vision"},
    },
    "workload_identity": {"storage": {"secret": "", "endpoint": "", "region": "eu-west-1"}},
    "pod": {"ray": {"mode": "pod"}},
    "rayjob": {"ray": {"mode": "rayjob"}},
    "clean-rayjob": {"ray": {"mode": "pod", "clean": "rayjob"}},
    "address": {"ray": {"mode": "address", "address": "http://ray-head:8265"}},
}  # fmt: skip


def cluster(case: str) -> Cluster:
    values = json.loads(json.dumps(CASES[case]))
    values["images"] = IMAGES | values.get("images", {})
    values["ray"] = {"version": "2.60.0"} | values.get("ray", {})
    return parse_cluster(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.fixture(scope="module")
def package(folder: Path) -> Any:
    @cache
    def compiled(case: str) -> Path:
        path = folder / f"{case}.yaml"
        compile_kfp(resolve_parameters({}), path, cluster(case))
        return path

    return compiled


GROUPS = ("exit-handler-1", "condition-2")
"""All steps, before the exit step; those after download, which are left out where nothing has changed."""


def tasks(spec: Json) -> Json:
    """The tasks that have pods of ours, whatever group they are in."""
    dags = [component["dag"] for component in spec["components"].values() if "dag" in component]
    all_tasks = {name: task for dag in (*dags, spec["root"]["dag"]) for name, task in dag["tasks"].items()}
    return {name: task for name, task in all_tasks.items() if name not in GROUPS}


def summarize(path: Path) -> Json:
    """All that a cluster file decides; the parameters have a golden file of their own, source text has none."""
    spec, platform = documents(path)
    task_summaries = {}
    for name, task in tasks(spec).items():
        constants = {
            key: value["runtimeValue"]["constant"]
            for key, value in task["inputs"]["parameters"].items()
            if "runtimeValue" in value
        }
        body = {key: value for key, value in container(spec, name).items() if key not in ("command", "args")}
        cluster_variable = {"name": CLUSTER_VARIABLE, "value": "the cluster file"}
        body["env"] = [
            cluster_variable if variable["name"] == CLUSTER_VARIABLE else variable for variable in body["env"]
        ]
        task_summaries[name] = {
            "container": body, "constants": constants, "retries": task.get("retryPolicy"),
            "display name": task["taskInfo"]["name"], "caching": task["cachingOptions"],
        }  # fmt: skip
    defaults = {
        name: value["defaultValue"]
        for name, value in spec["root"]["inputDefinitions"]["parameters"].items()
        if name == "workspace"
    }
    return {"defaults": defaults, "tasks": task_summaries, "platform": platform}


def test_the_package_is_the_golden_one(package: Any) -> None:
    base, text = (manifests.dumped(summarize(package(name)), width=120) for name in ("default", "everything"))
    manifests.check_golden("training_default.yaml", base)
    manifests.check_golden("training_everything.diff", text, base)


@pytest.mark.parametrize("case", CASES)
def test_every_pod_runs_as_our_user_with_one_folder_to_write(case: str, package: Any) -> None:
    spec, platform = documents(package(case))
    for step in (*STEPS, "finish"):
        executor = kubernetes(platform, step)
        assert executor["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}, step
        assert [m["mountPath"] for m in executor["emptyDirMounts"] if "medium" not in m] == ["/scratch"], step
        labels = executor["podMetadata"]["labels"]
        assert labels["imagemill.io/run"] == "{{workflow.uid}}" and labels["sidecar.istio.io/inject"] == "false"
        assert "@sha256:" in container(spec, step)["image"] and not tasks(spec)[step]["cachingOptions"]


def test_resources_placement_and_deadlines_are_those_of_the_cluster_file(package: Any) -> None:
    spec, platform = documents(package("everything"))
    resources, executor = container(spec, "train")["resources"], kubernetes(platform, "train")
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("6", "8")
    assert (resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]) == ("24Gi", "32Gi")
    assert (
        resources["accelerator"]["resourceType"] == "amd.com/gpu" and resources["accelerator"]["resourceCount"] == "2"
    )
    assert executor["nodeSelector"]["labels"] == {"pool": "gpu"} and executor["activeDeadlineSeconds"] == "7200"
    assert executor["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoExecute", "tolerationSeconds": "30"},
    ]
    assert {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "6Gi"} in executor[
        "emptyDirMounts"
    ]
    assert executor["imagePullPolicy"] == "Always"
    assert [secret["secretName"] for secret in executor["imagePullSecret"]] == ["registry-login"]
    assert executor["podMetadata"]["labels"]["team"] == "vision"
    assert container(spec, "clean")["resources"]["resourceMemoryLimit"] == str(3 * 2**29)  # KFP takes no 1.5Gi
    assert platform["platforms"]["kubernetes"]["pipelineConfig"] == {
        "activeDeadlineSeconds": 3600, "resourceTtlOnSuccess": 60, "resourceTtlOnFailure": 120
    }  # fmt: skip
    for task in tasks(spec).values():
        assert task["retryPolicy"]["maxRetryCount"] == 5


def test_credentials_come_from_the_secret_or_from_nowhere(package: Any) -> None:
    spec, platform = documents(package("everything"))
    for step in (*STEPS, "finish"):
        secret = kubernetes(platform, step)["secretAsEnv"]
        keys = {entry["secretKey"]: entry["envVar"] for entry in secret[0]["keyToEnv"]}
        assert len(secret) == 1 and secret[0]["secretName"] == "store"
        assert keys == {"id": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"}
        env = {variable["name"]: variable["value"] for variable in container(spec, step)["env"]}
        assert (env.pop(CLUSTER_VARIABLE, None) is not None) == (step in ("clean", "resize", "finish"))
        assert env.pop("IMAGEMILL_KFP_VERSION") == "2.17" and env.pop("IMAGEMILL_WORKSPACES") == "s3"
        region = dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "eu-central-1")
        assert env == {"AWS_ENDPOINT_URL": "https://s3.example", **region}
    spec, platform = documents(package("workload_identity"))
    for step in (*STEPS, "finish"):
        assert "secretAsEnv" not in kubernetes(platform, step)
        names = {variable["name"] for variable in container(spec, step)["env"] if variable["name"].startswith("AWS_")}
        assert names == {"AWS_REGION", "AWS_DEFAULT_REGION"}


def test_older_servers_get_no_pipeline_config(tmp_path: Path) -> None:
    """Older servers ignore all pod settings with it; each step gets the run's deadline instead."""
    older = replace(cluster("everything"), kfp=Kfp(version="2.16.1"))
    compile_kfp(resolve_parameters({}), tmp_path / "p.yaml", older)
    _, platform = documents(tmp_path / "p.yaml")
    assert "pipelineConfig" not in platform["platforms"]["kubernetes"]
    deadlines = {step: int(kubernetes(platform, step)["activeDeadlineSeconds"]) for step in STEPS}
    assert deadlines == dict.fromkeys(STEPS, 3600) | {"train": 7200} | dict.fromkeys(
        ("clean", "resize"), 6 * 3600 + 900 + 900
    )
    with pytest.raises(UserError, match=r"kfp\.version\): expected a release"):
        parse_cluster({"kfp": {"version": "latest"}})


def test_no_secret_gets_into_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "do-not-tell")
    path = folder / "secrets.yaml"
    compile_kfp(resolve_parameters({}), path, cluster("everything"))
    assert "do-not-tell" not in path.read_text()


def test_clean_and_resize_are_placed_by_their_modes(package: Any) -> None:
    """A launcher is small; what may resize in its own pod has the step's resources, and Ray; so has an address."""

    def resize(case: str, step: str = "resize") -> tuple[str, str, str, Json]:
        spec, platform = documents(package(case))
        image = container(spec, step)["image"].partition("@")[0].rpartition("/")[2]
        cluster_json = {variable["name"]: variable["value"] for variable in container(spec, step)["env"]}.get(
            CLUSTER_VARIABLE, ""
        )
        memory = container(spec, step)["resources"]["resourceMemoryLimit"]
        return image, memory, cluster_json, kubernetes(platform, step)

    for case, step, expected in (
        ("default", "resize", ("ray", "8Gi")), ("rayjob", "resize", ("cpu", "1Gi")),
        ("default", "clean", ("cpu", "8Gi")), ("clean-rayjob", "clean", ("cpu", "1Gi")),
    ):  # fmt: skip
        image, memory, cluster_json, executor = resize(case, step)
        assert (image, memory) == expected
        assert parse_cluster_json(cluster_json).ray == cluster(case).ray
        assert int(executor["activeDeadlineSeconds"]) > 6 * 3600 + 900  # a launcher sees the end of its job
    for case, step, expected in (("pod", "resize", ("ray", "8Gi")), ("address", "clean", ("cpu", "8Gi"))):
        image, memory, cluster_json, executor = resize(case, step)
        assert (image, memory, cluster_json) == (*expected, "") and "activeDeadlineSeconds" not in executor
    image, memory, cluster_json, _ = resize("address")
    assert (image, memory) == ("ray", "1Gi") and parse_cluster_json(cluster_json).ray.address == "http://ray-head:8265"


def test_package_has_one_condition_and_one_exit_handler(package: Any) -> None:
    """If nothing has changed, only download and the exit step have pods."""
    spec, _ = documents(package("default"))
    for name, task in tasks(spec).items():
        assert "condition" not in task.get("triggerPolicy", {}), name
    steps = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert set(steps) == {"download", "condition-2"}
    assert steps["condition-2"]["triggerPolicy"]["condition"] == (
        "inputs.parameter_values['pipelinechannel--download-changed'] == 'true'"
    )
    assert set(spec["components"]["comp-condition-2"]["dag"]["tasks"]) == set(STEPS) - {"download"}
    finish = tasks(spec)["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert finish["dependentTasks"] == ["exit-handler-1"]
    assert finish["inputs"]["parameters"]["status"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


@pytest.mark.parametrize("case", CASES)
def test_the_pods_that_kfp_makes_are_valid_and_restricted(case: str, package: Any) -> None:
    spec, platform = documents(package(case))
    for step in (*STEPS, "finish"):
        pod = build_kfp_pod(spec, platform, step)
        labels = dict(kubernetes(platform, step)["podMetadata"]["labels"]) | {"imagemill.io/run": "an-id"}
        metadata = {"name": step, "labels": labels}
        manifests.check_core({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
        manifests.check_restricted(f"{case} {step}", pod)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "768Mi"),
        ({"batch_size": "512", "image_size": "224"}, "1536Mi"),
        ({"batch_size": "512", "image_size": "224", "color": "gray"}, "1024Mi"),
        ({"batch_size": "4096", "image_size": "512"}, "8192Mi"),  # half of the memory, at most
    ],
)
def test_shared_memory_is_sized_to_the_batch(values: dict[str, str], expected: str) -> None:
    assert shm_size("train", Pod(cpu="4", memory="16Gi"), resolve_parameters(values)) == expected


def test_configured_shared_memory_is_used_for_training_alone() -> None:
    assert shm_size("train", Pod(shm="2Gi", memory="4Gi"), resolve_parameters({})) == "2Gi"
    assert shm_size("clean", Pod(memory="4Gi"), resolve_parameters({})) == ""
    assert shm_size("evaluate", Pod(shm="1Gi", memory="4Gi"), resolve_parameters({})) == "1Gi"
    assert shm_size("train", Pod(memory="300Mi"), resolve_parameters({})) == "150Mi"


def test_the_package_is_sized_by_its_own_defaults(tmp_path: Path) -> None:
    compile_kfp(resolve_parameters({"batch_size": "512", "image_size": "224"}), tmp_path / "p.yaml", cluster("default"))
    mounts = kubernetes(documents(tmp_path / "p.yaml")[1], "train")["emptyDirMounts"]
    assert [m["sizeLimit"] for m in mounts if m["volumeName"] == "shm"] == ["1536Mi"]


def test_pods_of_unbaked_packages_suit_defaults_and_chosen_values(tmp_path: Path) -> None:
    """A version runs with both: with the values chosen for one run, and with the defaults of a schedule."""
    wide = parse_cluster({"images": IMAGES, "steps": {"train": {"cpu": "256", "memory": "256Gi"}}})
    sizes = []
    for image_size in ("32", "448"):
        compile_kfp(resolve_parameters({"image_size": image_size}), tmp_path / "p.yaml", wide, bake=False)
        mounts = kubernetes(documents(tmp_path / "p.yaml")[1], "train")["emptyDirMounts"]
        sizes += [m["sizeLimit"] for m in mounts if m["volumeName"] == "shm"]
    pod = wide.steps["train"]
    assert sizes == [
        shm_size("train", pod, resolve_parameters({})),
        shm_size("train", pod, resolve_parameters({"image_size": "448"})),
    ]
    assert shm_size("train", pod, resolve_parameters({"image_size": "32"})) != sizes[0] != sizes[1]


@pytest.mark.parametrize(
    ("quantity", "expected"), [("2Gi", "2Gi"), ("1.5Gi", str(3 * 2**29)), ("2k", "2000"), ("64", "64")]
)
def test_memory_is_converted_to_units_that_kfp_accepts(quantity: str, expected: str) -> None:
    assert to_kfp_memory(quantity) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("2", "2"), ("500m", "500m"), ("0.5", "0.5"), ("1k", "1000"), ("1Ki", "1024"), ("0.0015k", "1500m")],
)
def test_cpu_is_converted_to_cores_or_millicores(quantity: str, expected: str) -> None:
    assert to_kfp_cpu(quantity) == expected


def test_every_quantity_of_cores_compiles(tmp_path: Path) -> None:
    cluster_file = parse_cluster({"images": IMAGES, "steps": {"clean": {"cpu": "0.002k", "cpu_limit": "1k"}}})
    compile_kfp(resolve_parameters({}), tmp_path / "p.yaml", cluster_file)
    resources = container(documents(tmp_path / "p.yaml")[0], "clean")["resources"]
    assert (resources["resourceCpuRequest"], resources["resourceCpuLimit"]) == ("2", "1000")


def test_images_must_be_named_by_digest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images\.cpu\): expected an image by its digest"):
        compile_kfp(resolve_parameters({}), tmp_path / "p.yaml", Cluster())
    with pytest.raises(UserError, match="by its digest"):
        parse_cluster({"images": {"cpu": "registry.example/mill/cpu:latest"}})
    compile_kfp(resolve_parameters({}), tmp_path / "p.yaml", parse_cluster({"images": {"tags_allowed": True}}))
    assert container(documents(tmp_path / "p.yaml")[0], "clean")["image"].startswith("imagemill-cpu:")


def test_pods_run_one_command_with_the_executor_input(package: Any) -> None:
    spec, _ = documents(package("default"))
    for step in (*STEPS, "finish"):
        body = container(spec, step)
        assert body["command"] == ["python3", "-m", "imagemill.pipelines.pod"]
        assert body["args"][:3] == [step, "--kfp", "{{$}}"]
        artifacts = spec["components"][f"comp-{step}"]["outputDefinitions"]["artifacts"]
        assert set(body["args"][4::3]) == set(artifacts) and set(body["args"][3::3]) == {"--artifact"}
