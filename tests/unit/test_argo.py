"""The WorkflowTemplate and the CronWorkflow: by schema, by Pod Security, by reference, and run as Argo would."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from argo_dag import FAILED, OMITTED, REFERENCE, SKIPPED, SUCCEEDED, Ended, Workflow, retried
from controllers import pods
from manifests import check_custom, check_golden, check_restricted

from imagemill.components.store.config import STEPS, StepConfig
from imagemill.components.store.errors import UserError
from imagemill.components.store.step import Step
from imagemill.components.store.workspace import Workspace
from imagemill.pipelines import argo_exit, planning
from imagemill.pipelines.argo import compile_argo, workflow_template
from imagemill.pipelines.argo_templates import RETRY
from imagemill.pipelines.cluster import Cluster, from_json, from_values
from imagemill.pipelines.parameters import ALL_STEPS, choose
from imagemill.pipelines.rayjob import FAILURE_CONDITION, SUCCESS_CONDITION

DIGITS = {"cpu": "a", "ray": "b", "gpu": "c"}
IMAGES = {name: f"registry.example/imagemill-{name}@sha256:{digit * 64}" for name, digit in DIGITS.items()}
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
EVERYTHING: dict[str, Any] = {
    "namespace": "vision",
    "images": {"pull_policy": "Always", "pull_secrets": ["registry-login"]},
    "storage": {"endpoint": "", "region": "eu-central-1", "secret": "s3", "access_key": "id", "secret_key": "key",
                "workspace": "s3://vision/mill"},
    "labels": {"team": "vision"},
    "steps": {
        "clean": {"cpu": 8, "cpu_limit": 12, "memory": "16Gi", "memory_limit": "24Gi", "ephemeral_storage": ""},
        "train": {"gpu": 2, "gpu_type": "nvidia.com/mig-3g.40gb", "shm": "4Gi", "node_selector": {"gpu": "h100"},
                  "tolerations": [TAINT], "deadline_seconds": 7200},
    },
    "ray": {"version": "2.49.0", "workers": {"minimum": 1, "maximum": 8}},
    "limits": {"lost_pod_retries": 4, "run_deadline_seconds": 43200},
    "argo": {"artifacts": False, "mutex": "vision-gpu", "service_account": "mill", "executor_service_account": "",
             "launcher_service_account": "mill-ray"},
    "schedule": {"cron": "@weekly", "timezone": "Europe/Berlin", "suspended": True, "keep_failed": 1},
}  # fmt: skip
CLUSTERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "argo": ({"ray": {"version": "2.49.0"}}, {}),
    "argo-everything": (EVERYTHING, {"epochs": "3", "dataset": "pets", "weight_decay": "0.1", "batch_size": "256"}),
    "argo-pod": ({"ray": {"mode": "pod"}}, {}),
    "argo-address": ({"ray": {"mode": "address", "address": "http://head:8265"}}, {}),
    "argo-identity": ({"storage": {"secret": ""}, "ray": {"version": "2.49.0"}}, {}),
}
Json = dict[str, Any]


def cluster_of(name: str) -> Cluster:
    values = CLUSTERS[name][0]
    return from_values({**values, "images": {**IMAGES, **values.get("images", {})}})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The file of each cluster."""
    folder = tmp_path_factory.mktemp("argo")
    for name, (_, flags) in CLUSTERS.items():
        compile_argo(choose(flags), folder / f"{name}.yaml", cluster_of(name))
    return {name: (folder / f"{name}.yaml").read_text() for name in CLUSTERS}


@pytest.fixture(params=list(CLUSTERS))
def documents(request: pytest.FixtureRequest, compiled: dict[str, str]) -> list[Json]:
    return list(parsed(compiled[request.param]))


@functools.cache
def parsed(text: str) -> tuple[Json, Json]:
    """WorkflowTemplate and CronWorkflow; no test changes them."""
    found, cron = yaml.safe_load_all(text)
    return found, cron


def template(document: Json, name: str) -> Json:
    return next(one for one in document["spec"]["templates"] if one["name"] == name)


def first(compiled: dict[str, str], name: str) -> Json:
    return parsed(compiled[name])[0]


@pytest.mark.parametrize("name", ["argo", "argo-everything", "argo-pod", "argo-identity"])
def test_the_file_is_the_golden_one(name: str, compiled: dict[str, str]) -> None:
    check_golden(f"{name}.yaml", compiled[name])


def test_the_schemas_know_every_field(documents: list[Json]) -> None:
    for document in documents:
        check_custom(document)


def test_every_pod_is_let_in_by_restricted_and_writes_only_scratch(documents: list[Json]) -> None:
    seen = 0
    for pod in pods(documents[0]):
        check_restricted(pod.where, pod.spec, pod.annotations)
        main = next(one for one in pod.spec["containers"] if one["name"] == "main")
        assert main["securityContext"]["readOnlyRootFilesystem"] is True, pod.where
        volumes = {one["name"]: one for one in pod.spec["volumes"]}
        for mount in main.get("volumeMounts", ()):
            assert set(volumes[mount["name"]]) == {"name", "emptyDir"} and mount["mountPath"] in (
                "/scratch",
                "/dev/shm",
            )
        assert pod.labels["imagemill.io/run"] == "{{workflow.name}}"
        assert pod.labels["sidecar.istio.io/inject"] == "false"
        seen += 1
    assert seen >= 7


def test_images_are_named_by_digest_and_credentials_by_secret(documents: list[Json]) -> None:
    for one in documents[0]["spec"]["templates"]:
        if "container" in one:
            assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", one["container"]["image"])
            for variable in one["container"]["env"]:
                assert ("valueFrom" in variable) == (variable["name"] in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def test_a_token_is_only_where_one_is_needed(compiled: dict[str, str]) -> None:
    for pod in pods(first(compiled, "argo")):
        watches = pod.where.endswith(("rayjob", "finish"))
        assert pod.spec["automountServiceAccountToken"] is watches, pod.where
        assert pod.spec["serviceAccountName"] == ("imagemill-launcher" if watches else "imagemill")
    for one in first(compiled, "argo")["spec"]["templates"]:
        if one.get("automountServiceAccountToken") is False:
            assert one["executor"] == {"serviceAccountName": "imagemill-executor"}  # which Argo asks for then
    everything = first(compiled, "argo-everything")
    assert all(pod.spec["automountServiceAccountToken"] is True for pod in pods(everything))
    assert "executor" not in json.dumps(everything).replace("executor_service_account", "")


def test_every_reference_is_to_something_that_is_there(documents: list[Json]) -> None:
    spec = documents[0]["spec"]
    templates = {one["name"]: one for one in spec["templates"]}
    known = {f"workflow.parameters.{one['name']}" for one in spec["arguments"]["parameters"]} | {"workflow.name"}
    tasks = {one["name"]: one for one in templates["training"]["dag"]["tasks"]}
    used = 0
    for name, one in templates.items():
        if "dag" in one:
            continue
        inputs = {f"inputs.parameters.{p['name']}" for p in one.get("inputs", {}).get("parameters", ())}
        ours = known | inputs | ({"workflow.status"} if name == spec["onExit"] else set())
        found = set(REFERENCE.findall(json.dumps(one)))
        assert found <= ours, (name, found - ours)
        assert inputs <= found, (name, inputs - found)
        used += len(found)
    assert used > 40
    for task in tasks.values():
        above = _ancestors(task["name"], tasks)
        for reference in REFERENCE.findall(json.dumps(task)):
            kind, giver, outputs, parameters, output = reference.split(".")
            assert (kind, outputs, parameters) == ("tasks", "outputs", "parameters")
            given = templates[tasks[giver]["template"]]["outputs"]["parameters"]
            assert giver in above and output in {p["name"] for p in given}, reference
        wanted = {p["name"] for p in templates[task["template"]].get("inputs", {}).get("parameters", ())}
        assert {p["name"] for p in task.get("arguments", {}).get("parameters", ())} == wanted


def _ancestors(name: str, tasks: dict[str, Json]) -> set[str]:
    parents = set(
        re.findall(r"[a-z]+", tasks[name].get("depends", "").replace(".Succeeded", "").replace(".Skipped", ""))
    )
    return parents.union(*(_ancestors(parent, tasks) for parent in parents))


def test_parameters_are_those_of_the_kfp_pipeline(compiled: dict[str, str]) -> None:
    from imagemill.pipelines.training import build

    root = build(cluster_of("argo-pod"), choose({})).pipeline_spec.root
    inputs = root.input_definitions.parameters
    ours = {one["name"]: one for one in first(compiled, "argo-pod")["spec"]["arguments"]["parameters"]}
    assert set(ours) == set(inputs) and len(ours) > 20
    for name, one in ours.items():
        theirs = inputs[name].default_value
        assert one["description"] and isinstance(one["value"], str)
        if name == "workspace":  # its default comes from the cluster's file, when it is compiled
            assert one["value"] == "s3://mlpipeline/imagemill"
        elif theirs.WhichOneof("kind") == "number_value":
            assert float(one["value"]) == theirs.number_value, name
        else:
            assert one["value"] == theirs.string_value, name
        assert one["value"] in one.get("enum", [one["value"]])


def test_steps_are_given_what_the_kfp_tasks_are_given(compiled: dict[str, str]) -> None:
    from imagemill.pipelines.training import training_pipeline

    tasks = training_pipeline.pipeline_spec.root.dag.tasks
    for name in ("argo", "argo-pod"):
        document = first(compiled, name)
        for step in STEPS:
            task = "plan" if step == "resize" and name == "argo" else step
            flags = {
                word.partition("=")[0][2:].replace("-", "_") for word in template(document, task)["container"]["args"]
            }
            extra = {"outputs", "cluster"} if task == "plan" else {"outputs"}
            assert flags == {*tasks[step].inputs.parameters} - {"cluster"} | extra, task


def test_chosen_values_become_defaults(compiled: dict[str, str]) -> None:
    found = {one["name"]: one["value"] for one in first(compiled, "argo-everything")["spec"]["arguments"]["parameters"]}
    assert (found["epochs"], found["dataset"], found["batch_size"]) == ("3", "pets", "256")
    assert found["workspace"] == "s3://vision/mill"
    assert json.loads(found["config"]) == {"train": {"weight_decay": 0.1}}


def test_pods_are_as_the_clusters_file_says(compiled: dict[str, str]) -> None:
    document = first(compiled, "argo-everything")
    spec, train = document["spec"], template(document, "train")
    resources = train["container"]["resources"]
    assert resources["limits"] == {"memory": "16Gi", "ephemeral-storage": "40Gi", "nvidia.com/mig-3g.40gb": "2"}
    assert resources["requests"] == {"cpu": "4", **resources["limits"]}
    assert train["nodeSelector"] == {"gpu": "h100"} and train["tolerations"] == [TAINT]
    assert train["activeDeadlineSeconds"] == 7200
    shm = next(one for one in train["volumes"] if one["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert template(document, "clean")["container"]["resources"] == {
        "requests": {"cpu": "8", "memory": "16Gi"}, "limits": {"cpu": "12", "memory": "24Gi"}
    }  # fmt: skip
    assert all("shm" not in str(one.get("volumes")) for one in spec["templates"] if one["name"] != "train")
    assert spec["synchronization"] == {"mutexes": [{"name": "vision-gpu"}]}
    assert spec["imagePullSecrets"] == [{"name": "registry-login"}] and spec["archiveLogs"] is False
    assert spec["activeDeadlineSeconds"] == 43200 and spec["podMetadata"]["labels"]["team"] == "vision"
    assert all("artifacts" not in one.get("outputs", {}) for one in spec["templates"])


def test_a_second_try_finds_the_rayjob_of_the_first(compiled: dict[str, str]) -> None:
    """Its name is that of run and tensors: `create` would be refused where it is there, `apply` leaves it as it is."""
    found = template(first(compiled, "argo"), "rayjob")
    assert found["resource"] == {
        "action": "apply", "setOwnerReference": True, "manifest": "{{inputs.parameters.rayjob}}",
        "successCondition": SUCCESS_CONDITION, "failureCondition": FAILURE_CONDITION,
    }  # fmt: skip
    assert found["activeDeadlineSeconds"] > 6 * 3600 + 900  # the RayJob's own deadlines come first


def test_the_exit_handler_and_the_plan_know_the_cluster(compiled: dict[str, str]) -> None:
    document = first(compiled, "argo-everything")
    for name in ("plan", "finish"):
        text = next(w for w in template(document, name)["container"]["args"] if w.startswith("--cluster="))
        told = from_json(text.partition("=")[2])
        assert (told.namespace, told.ray.version, told.ray.workers.maximum) == ("vision", "2.49.0", 8)


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({}, {"secondsAfterSuccess": 86400, "secondsAfterFailure": 604800}),
        ({"keep_succeeded_seconds": 0}, {"secondsAfterFailure": 604800}),
        ({"keep_failed_seconds": 0}, {"secondsAfterSuccess": 86400}),
        ({"keep_succeeded_seconds": 0, "keep_failed_seconds": 0}, None),
    ],
)
def test_what_is_kept_for_ever_is_never_deleted(limits: Json, found: Json | None) -> None:
    """To Argo 0 seconds are at once."""
    cluster = from_values({"images": IMAGES, "ray": {"version": "2.49.0"}, "limits": limits})
    assert workflow_template(cluster, choose({}))["spec"].get("ttlStrategy") == found


def test_the_exit_handler_has_the_deadline_of_small_pods() -> None:
    for said, found in ((0, 900), (60, 60)):
        cluster = from_values({"images": IMAGES, "ray": {"version": "2.49.0"}, "small": {"deadline_seconds": said}})
        templates = workflow_template(cluster, choose({}))["spec"]["templates"]
        assert [one["activeDeadlineSeconds"] for one in templates if one["name"] == "finish"] == [found]


def test_a_controller_without_init_containers_is_patched_otherwise() -> None:
    cluster = from_values({"images": IMAGES, "argo": {"initless": True}, "ray": {"version": "2.49.0"}})
    templates = workflow_template(cluster, choose({}))["spec"]["templates"]
    found = {one["name"]: json.loads(one["podSpecPatch"]) for one in templates if "podSpecPatch" in one}
    assert [one["name"] for one in found["train"]["containers"]] == ["supervisor"]
    assert "initContainers" not in found["train"] and "initContainers" not in found["rayjob"]


def test_the_schedule_starts_the_template_one_at_a_time(compiled: dict[str, str]) -> None:
    document = parsed(compiled["argo-everything"])[1]
    assert document["spec"] == {
        "schedules": ["0 0 * * 0"], "timezone": "Europe/Berlin", "concurrencyPolicy": "Forbid", "suspend": True,
        "startingDeadlineSeconds": 3600, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
        "workflowSpec": {"workflowTemplateRef": {"name": "imagemill-training"}},
    }  # fmt: skip


def test_what_argo_4_has_no_longer_is_not_there(compiled: dict[str, str]) -> None:
    gone = {"schedule", "mutex", "semaphore", "podPriority"}

    def names(value: Any) -> Iterator[str]:
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield key
            yield from names(inner)
        for inner in value if isinstance(value, list) else ():
            yield from names(inner)

    for text in compiled.values():
        for document in parsed(text):
            assert not gone & set(names(document))


def test_the_file_is_the_same_after_hera_has_read_it(compiled: dict[str, str]) -> None:
    from hera.workflows import CronWorkflow, WorkflowTemplate

    for text in compiled.values():
        template, cron = parsed(text)
        assert WorkflowTemplate.from_dict(template).to_dict() == template
        assert CronWorkflow.from_dict(cron).to_dict() == cron


WRONG: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {"workspace": "./here"}, "workspace: expected s3://"),
    ({"images": {"gpu": ""}}, {}, r"images.gpu"),
    ({"schedule": {"cron": "0 3 * *"}}, {}, r"cluster \(schedule.cron\): expected five fields"),
    ({"schedule": {"cron": "0 25 * * 1"}}, {}, r"cluster \(schedule.cron\) \(hour\): expected numbers from 0 to 23"),
    ({"schedule": {"timezone": "Europe/Berlim"}}, {}, r"cluster \(schedule.timezone\): expected a time zone"),
    ({}, {"dataset": "folder", "source": "https://me:secret@photos.example/x.zip"}, "source: expected a URL without"),
]


@pytest.mark.parametrize(("values", "flags", "message"), WRONG)
def test_what_argo_would_refuse_is_refused_here(
    values: dict[str, Any], flags: dict[str, str], message: str, tmp_path: Path
) -> None:
    cluster = from_values({**values, "images": {**IMAGES, **values.get("images", {})}})
    with pytest.raises(UserError, match=message) as error:
        compile_argo(choose(flags), tmp_path / "argo.yaml", cluster)
    assert "secret@" not in str(error.value)
    assert not (tmp_path / "argo.yaml").exists()


@pytest.mark.parametrize(
    ("ended", "again"),
    [
        (Ended(75), True),
        (Ended(None, "Error", "pod deleted"), True),
        (Ended(None, "Failed", "The node was low on resource: memory."), True),
        (Ended(137, "Failed", "main: Error (exit code 137)"), True),
        (Ended(143, "Failed", "main: Error (exit code 143)"), True),
        (Ended(0, "Error", "wait: Error (exit code 1)"), True),
        (Ended(1), False),
        (Ended(2), False),
        (Ended(64, "Failed", "main: Error (exit code 64): failure condition evaluated true"), False),
        (Ended(2, "Error", "wait: Error (exit code 1)"), False),
        (Ended(1, "Error", "wait: Error (exit code 1)"), False),
        (Ended(64, "Error", "main: Error (exit code 64)"), False),
        (Ended(139), False),
        (Ended(137, "Failed", "main: OOMKilled (exit code 137)"), False),
        (Ended(143, "Failed", "Pod was active on the node longer than the specified deadline"), False),
        (Ended(None, "Failed", "Step exceeded its deadline"), False),
        (Ended(None, "Error", "retry exceeded workflow deadline 2026-11-22"), False),
        (
            Ended(64, "Failed", "main: Error (exit code 64): The resource has been deleted while its status was still"),
            True,
        ),
        (Ended(64, "Failed", "main: Error (exit code 64): context canceled"), True),
        (Ended(64, "Failed", "Pod was terminated in response to imminent node shutdown."), True),
        (
            Ended(64, "Failed", "main: Error (exit code 64): failure condition 'status.jobStatus == STOPPED' eval"),
            False,
        ),
        (Ended(0, "Error", "Error (exit code 64): failed to put file: context deadline exceeded"), True),
    ],
)
def test_only_what_may_go_well_is_tried_again(ended: Ended, again: bool) -> None:
    assert retried(RETRY, ended) is again


class Dry:
    """The steps' own parsers and `--outputs`, without the work: what each step was told, by its task."""

    def __init__(self, patch: pytest.MonkeyPatch, scratch: Path) -> None:
        self.told: dict[str, Any] = {}
        self.metrics: dict[str, Json] = {
            "download": {"name": "photos"},
            "plan": {"needed": "true", "rayjob": '{"kind": "RayJob"}'},
            "evaluate": {"champion_evaluation": "", "top1": 0.5},
        }
        self.codes: dict[str, list[int]] = {}
        self.jobs: list[Json] = []
        self.finished: list[str] = []
        self._scratch, self._task = scratch, ""
        patch.setattr(Step, "execute", lambda step, config, result="": self._step(config, result))
        patch.setattr(argo_exit, "finish", self._finish)

    def __call__(self, task: str, made: Json) -> Ended:
        self._task = task
        if "resource" in made:
            self.jobs.append(yaml.safe_load(made["resource"]["manifest"]))
            return Ended(self._code())
        python, option, module = made["container"]["command"]
        assert (python, option) == ("python", "-m")
        words = [word.replace("/scratch", str(self._scratch)) for word in made["container"]["args"]]
        if module == "imagemill.pipelines.argo_exit":
            return Ended(argo_exit.main(words))
        step = planning.STEP if module == "imagemill.pipelines.planning" else ALL_STEPS[module.rpartition(".")[2]]
        return Ended(step.main(words))

    def _code(self) -> int:
        return self.codes[self._task].pop(0) if self.codes.get(self._task) else 0

    def _step(self, config: StepConfig, result: str) -> int:
        self.told[self._task] = config
        metrics = self.metrics.get(self._task, {})
        record = {"uri": f"s3://w/{self._task}", "state": "ran", "fingerprint": "", "metrics": metrics}
        Path(result).write_text(json.dumps(record))
        return self._code()

    def _finish(self, *arguments: str) -> None:
        *self.finished, path = arguments
        Path(path).write_text("a page")


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dry:
    return Dry(monkeypatch, tmp_path)


def phases(workflow: Workflow) -> dict[str, str]:
    return {name: node.phase for name, node in workflow.nodes.items()}


@pytest.mark.parametrize("name", ["argo", "argo-pod", "argo-address"])
def test_every_command_line_is_read_by_its_own_step(
    name: str, compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    given = {"dataset": "folder", "source": "s3://photos/all of 'em", "epochs": "7", "learning_rate": "0.01"}
    given |= {"config": '{"train": {"weight_decay": 0.05}, "resize": {"jpeg_quality": 80}}'}
    workflow = Workflow(first(compiled, name), given, dry, tmp_path)
    assert workflow.run() == SUCCEEDED and set(phases(workflow).values()) == {SUCCEEDED}
    resize = "plan" if name == "argo" else "resize"
    assert set(dry.told) == {"download", "clean", resize, "train", "evaluate", "promote"}
    for task, config in dry.told.items():
        assert (config.run, config.workspace) == (workflow.name, "s3://mlpipeline/imagemill")
        assert config.name == ("" if task == "download" else "photos")
    told = dry.told
    assert told["download"].source == "s3://photos/all of 'em"
    assert told["clean"].raw == "s3://w/download" and told[resize].clean == "s3://w/clean"
    assert told[resize].jpeg_quality == 80
    assert told[resize].ray_address == ("http://head:8265" if name == "argo-address" else "")
    assert told["train"].tensors == f"s3://w/{resize}"
    assert (told["train"].epochs, told["train"].learning_rate, told["train"].weight_decay) == (7, 0.01, 0.05)
    assert (told["evaluate"].model, told["evaluate"].clean) == ("s3://w/train", "s3://w/clean")
    assert (told["promote"].evaluation, told["promote"].champion_evaluation) == ("s3://w/evaluate", "")
    assert workflow.nodes["evaluate"].outputs["top1"] == "0.5"
    assert dry.jobs == ([{"kind": "RayJob"}] if name == "argo" else [])
    assert dry.finished[:2] == ["s3://mlpipeline/imagemill", workflow.name] and dry.finished[3] == SUCCEEDED
    assert from_json(dry.finished[2]).ray.mode == {"argo": "rayjob", "argo-pod": "pod"}.get(name, "address")


def test_no_rayjob_where_none_is_needed(compiled: dict[str, str], dry: Dry, tmp_path: Path) -> None:
    dry.metrics["plan"] = {"needed": "false", "rayjob": ""}
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == SUCCEEDED
    assert workflow.nodes["rayjob"].phase == SKIPPED and not dry.jobs
    assert dry.told["train"].tensors == "s3://w/plan"


def test_a_transient_error_is_tried_again_and_wrong_input_is_not(
    compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    dry.codes = {"download": [75, 75, 0], "clean": [2]}
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == FAILED
    assert (workflow.nodes["download"].tries, workflow.nodes["clean"].tries) == (3, 1)
    assert {name for name, phase in phases(workflow).items() if phase == OMITTED} == {
        "plan", "rayjob", "train", "evaluate", "promote"
    }  # fmt: skip
    assert workflow.nodes["onExit"].phase == SUCCEEDED and dry.finished[3] == FAILED


def test_tries_end(compiled: dict[str, str], dry: Dry, tmp_path: Path) -> None:
    dry.codes = {"train": [75] * 9}
    workflow = Workflow(first(compiled, "argo-everything"), {}, dry, tmp_path)
    assert workflow.run() == FAILED and workflow.nodes["train"].tries == 5


def test_a_rayjob_that_failed_ends_the_run(compiled: dict[str, str], dry: Dry, tmp_path: Path) -> None:
    dry.codes = {"rayjob": [64]}
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == FAILED
    assert workflow.nodes["rayjob"].tries == 1 and workflow.nodes["train"].phase == OMITTED


def test_the_exit_handler_tells_how_the_run_ended(
    compiled: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the records of the steps, on a real workspace; its own exit code says whether it could."""
    workspace = Workspace.open(str(tmp_path / "work"))
    record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "seconds": 1.0, "inputs": ""}
    workspace.write_step_record("r1", "download", record | {"error": "source: expected a photo", "exit_code": 2})
    words = template(first(compiled, "argo-pod"), "finish")["container"]["args"]
    known = {"workflow.parameters.workspace": workspace.uri, "workflow.name": "r1", "workflow.status": "Failed"}
    words = [REFERENCE.sub(lambda found: known[found.group(1)], word) for word in words]
    words = [word.replace("/scratch", str(tmp_path)) for word in words]
    assert argo_exit.main(words) == 0
    page = capsys.readouterr().out
    assert "failed at download" in page and "source: expected a photo" in page
    assert workspace.store.read(workspace.run_file("r1", "summary.md")).decode().strip() == page.strip()
    assert argo_exit.main([*words, "--nosuch=1"]) == 2
