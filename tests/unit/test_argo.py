"""The WorkflowTemplate and the CronWorkflow: by schema, by Pod Security and by reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argo_files
import pytest
from argo_files import CLUSTERS, IMAGES, TAINT, Json, first, parsed, template
from controllers import pods
from manifests import check_custom, check_golden, check_restricted

from imagemill.components.dataset.workspace import STEPS
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.argo.workflow import build_workflow_template, compile_argo
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster, parse_cluster_json
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.parameters import resolve_parameters

REFERENCE = re.compile(r"\{\{([^{}]*)\}\}")
"""A name, or after `=` an expression of expr-lang with names in it."""
_NAME = re.compile(r"\b(?:workflow|inputs|tasks)(?:\.\w+)+")

compiled = argo_files.compiled


def names_in(reference: str) -> set[str]:
    """Return the variable names between the braces of a reference."""
    return set(_NAME.findall(reference)) if reference.startswith("=") else {reference}


@pytest.fixture(params=list(CLUSTERS))
def documents(request: pytest.FixtureRequest, compiled: dict[str, str]) -> list[Json]:
    return list(parsed(compiled[request.param]))


def test_the_file_is_the_golden_one(compiled: dict[str, str]) -> None:
    """That of plain values is k8s/base/pipeline.yaml, in test_k8s.py."""
    check_golden("argo-everything.diff", compiled["argo-everything"], compiled["argo"])


def test_the_schemas_know_every_field(documents: list[Json]) -> None:
    for document in documents:
        check_custom(document)


def test_every_pod_passes_the_restricted_standard_and_writes_only_scratch(documents: list[Json]) -> None:
    num_pods = 0
    for pod in pods(documents[0]):
        check_restricted(pod.owner, pod.spec, pod.annotations)
        main = next(container for container in pod.spec["containers"] if container["name"] == "main")
        assert main["securityContext"]["readOnlyRootFilesystem"] is True, pod.owner
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        for mount in main.get("volumeMounts", ()):
            assert set(volumes[mount["name"]]) == {"name", "emptyDir"} and mount["mountPath"] in (
                "/scratch",
                "/dev/shm",
            )
        assert pod.labels["imagemill.io/run"] == "{{workflow.name}}"
        assert pod.labels["sidecar.istio.io/inject"] == "false"
        num_pods += 1
    assert num_pods >= 7


def test_images_are_named_by_digest_and_credentials_by_secret(documents: list[Json]) -> None:
    for task_template in documents[0]["spec"]["templates"]:
        if "container" in task_template:
            assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", task_template["container"]["image"])
            for variable in task_template["container"]["env"]:
                assert ("valueFrom" in variable) == (variable["name"] in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def test_tokens_are_mounted_only_where_needed(compiled: dict[str, str]) -> None:
    for pod in pods(first(compiled, "argo")):
        watches = pod.owner.endswith(("clean", "resize", "finish"))
        assert pod.spec["automountServiceAccountToken"] is watches, pod.owner
        assert pod.spec["serviceAccountName"] == ("imagemill-launcher" if watches else "imagemill")
    for task_template in first(compiled, "argo")["spec"]["templates"]:
        if task_template.get("automountServiceAccountToken") is False:
            assert task_template["executor"] == {"serviceAccountName": "imagemill-executor"}  # which Argo asks for then
    with_tokens = first(compiled, "argo-everything")
    assert all(pod.spec["automountServiceAccountToken"] is True for pod in pods(with_tokens))
    assert not any("executor" in template for template in with_tokens["spec"]["templates"])


def test_every_reference_resolves(documents: list[Json]) -> None:
    spec = documents[0]["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    workflow_variables = {
        f"workflow.parameters.{parameter['name']}" for parameter in spec["arguments"]["parameters"]
    } | {"workflow.name"}
    tasks = {task["name"]: task for task in templates["training"]["dag"]["tasks"]}
    num_references = 0
    for name, task_template in templates.items():
        if "dag" in task_template:
            continue
        inputs = {f"inputs.parameters.{p['name']}" for p in task_template.get("inputs", {}).get("parameters", ())}
        defined = workflow_variables | inputs | ({"workflow.status"} if name == spec["onExit"] else set())
        references = {
            name for reference in REFERENCE.findall(json.dumps(task_template)) for name in names_in(reference)
        }
        assert references <= defined, (name, references - defined)
        assert inputs <= references, (name, inputs - references)
        num_references += len(references)
    assert num_references > 40
    for task in tasks.values():
        ancestors = _ancestors(task["name"], tasks)
        for reference in REFERENCE.findall(json.dumps(task)):
            kind, giver, outputs, parameters, output = reference.split(".")
            assert (kind, outputs, parameters) == ("tasks", "outputs", "parameters")
            giver_outputs = templates[tasks[giver]["template"]]["outputs"]["parameters"]
            assert giver in ancestors and output in {p["name"] for p in giver_outputs}, reference
        expected = {p["name"] for p in templates[task["template"]].get("inputs", {}).get("parameters", ())}
        assert {p["name"] for p in task.get("arguments", {}).get("parameters", ())} == expected


def _ancestors(name: str, tasks: dict[str, Json]) -> set[str]:
    parents = set(
        re.findall(r"[a-z-]+", tasks[name].get("depends", "").replace(".Succeeded", "").replace(".Skipped", ""))
    )
    return parents.union(*(_ancestors(parent, tasks) for parent in parents))


def test_steps_get_the_inputs_of_the_kfp_tasks(compiled: dict[str, str]) -> None:
    from imagemill.pipelines.training import build_pipeline

    spec = build_pipeline(Cluster()).pipeline_spec
    groups = (spec.root, *spec.components.values())
    tasks = {name: task for group in groups for name, task in group.dag.tasks.items()}
    document = first(compiled, "argo")
    for step in STEPS:
        args = template(document, step)["container"]["args"]
        assert args[0] == step
        flags = {word.partition("=")[0][2:].replace("-", "_") for word in args[1:]}
        assert flags == {*tasks[step].inputs.parameters, "outputs"}, step


def test_pods_have_the_settings_of_the_cluster_file(compiled: dict[str, str]) -> None:
    document = first(compiled, "argo-everything")
    spec, train = document["spec"], template(document, "train")
    resources = train["container"]["resources"]
    assert resources["limits"] == {"memory": "16Gi", "ephemeral-storage": "40Gi", "nvidia.com/mig-3g.40gb": "2"}
    assert resources["requests"] == {"cpu": "4", **resources["limits"]}
    assert train["nodeSelector"] == {"gpu": "h100"} and train["tolerations"] == [TAINT]
    assert train["activeDeadlineSeconds"] == 7200
    shm = next(volume for volume in train["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "4Gi"}
    assert template(document, "clean")["container"]["resources"] == {
        "requests": {"cpu": "8", "memory": "16Gi"}, "limits": {"cpu": "12", "memory": "24Gi"}
    }  # fmt: skip
    assert all(
        "shm" not in str(template.get("volumes")) for template in spec["templates"] if template["name"] != "train"
    )
    assert spec["synchronization"] == {"mutexes": [{"name": "vision-gpu"}]}
    assert spec["imagePullSecrets"] == [{"name": "registry-login"}] and spec["archiveLogs"] is False
    assert spec["activeDeadlineSeconds"] == 43200 and spec["podMetadata"]["labels"]["team"] == "vision"
    assert all("artifacts" not in template.get("outputs", {}) for template in spec["templates"])


def test_pod_that_may_wait_for_a_rayjob_outlives_its_deadlines(compiled: dict[str, str]) -> None:
    for name in ("clean", "resize"):
        assert template(first(compiled, "argo"), name)["activeDeadlineSeconds"] > 6 * 3600 + 900
        assert "activeDeadlineSeconds" not in template(first(compiled, "argo-pod"), name)


def test_pods_that_make_or_delete_rayjobs_get_the_cluster_file(compiled: dict[str, str]) -> None:
    document = first(compiled, "argo-everything")
    for name in ("clean", "resize", "finish"):
        environment = {
            variable["name"]: variable.get("value", "") for variable in template(document, name)["container"]["env"]
        }
        cluster = parse_cluster_json(environment[CLUSTER_VARIABLE])
        assert (cluster.namespace, cluster.ray.version, cluster.ray.workers.maximum) == ("vision", "2.49.0", 8)


@pytest.mark.parametrize(
    ("limits", "ttl_strategy"),
    [
        ({}, {"secondsAfterSuccess": 86400, "secondsAfterFailure": 604800}),
        ({"keep_succeeded_seconds": 0}, {"secondsAfterFailure": 604800}),
        ({"keep_failed_seconds": 0}, {"secondsAfterSuccess": 86400}),
        ({"keep_succeeded_seconds": 0, "keep_failed_seconds": 0}, None),
    ],
)
def test_zero_keep_seconds_leave_out_the_ttl(limits: Json, ttl_strategy: Json | None) -> None:
    """Argo would delete workflows at once with 0 seconds."""
    cluster = parse_cluster({"images": IMAGES, "ray": {"version": "2.49.0"}, "limits": limits})
    assert build_workflow_template(cluster, resolve_parameters({}))["spec"].get("ttlStrategy") == ttl_strategy


def test_the_exit_handler_has_the_deadline_of_small_pods() -> None:
    for seconds, expected in ((0, 900), (60, 60)):
        cluster = parse_cluster(
            {"images": IMAGES, "ray": {"version": "2.49.0"}, "small": {"deadline_seconds": seconds}}
        )
        templates = build_workflow_template(cluster, resolve_parameters({}))["spec"]["templates"]
        assert [template["activeDeadlineSeconds"] for template in templates if template["name"] == "finish"] == [
            expected
        ]


def test_controller_without_init_containers_gets_a_supervisor_patch() -> None:
    cluster = parse_cluster({"images": IMAGES, "argo": {"initless": True}, "ray": {"version": "2.49.0"}})
    templates = build_workflow_template(cluster, resolve_parameters({}))["spec"]["templates"]
    patches = {
        template["name"]: json.loads(template["podSpecPatch"]) for template in templates if "podSpecPatch" in template
    }
    assert [container["name"] for container in patches["train"]["containers"]] == ["supervisor"]
    assert "initContainers" not in patches["train"]


def test_the_schedule_starts_the_template_one_at_a_time(compiled: dict[str, str]) -> None:
    document = parsed(compiled["argo-everything"])[1]
    assert document["spec"] == {
        "schedules": ["@weekly"], "timezone": "Europe/Berlin", "concurrencyPolicy": "Forbid", "suspend": True,
        "startingDeadlineSeconds": 3600, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
        "workflowSpec": {"workflowTemplateRef": {"name": "imagemill-training"}},
    }  # fmt: skip


def test_fields_removed_in_argo_4_are_not_used(compiled: dict[str, str]) -> None:
    removed = {"schedule", "mutex", "semaphore", "podPriority"}

    def names(value: Any) -> Iterator[str]:
        for key, inner in value.items() if isinstance(value, dict) else ():
            yield key
            yield from names(inner)
        for inner in value if isinstance(value, list) else ():
            yield from names(inner)

    for text in compiled.values():
        for document in parsed(text):
            assert not removed & set(names(document))


WRONG: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {"workspace": "./here"}, "workspace: expected s3://"),
    ({"images": {"gpu": ""}}, {}, r"images.gpu"),
    ({"schedule": {"cron": "0 3 * *"}}, {}, r"cluster \(schedule.cron\): expected five fields"),
    ({"schedule": {"cron": "0 25 * * 1"}}, {}, r"cluster \(schedule.cron\) \(hour\): expected numbers from 0 to 23"),
    ({"schedule": {"timezone": "Europe/Berlim"}}, {}, r"cluster \(schedule.timezone\): expected a time zone"),
    ({}, {"dataset": "folder", "source": "https://me:secret@photos.example/x.zip"}, "source: expected a URL without"),
]


@pytest.mark.parametrize(("values", "flags", "message"), WRONG)
def test_values_that_argo_rejects_are_rejected_at_compile_time(
    values: dict[str, Any], flags: dict[str, str], message: str, tmp_path: Path
) -> None:
    cluster = parse_cluster({**values, "images": {**IMAGES, **values.get("images", {})}})
    with pytest.raises(UserError, match=message) as error:
        compile_argo(resolve_parameters(flags), tmp_path / "argo.yaml", cluster)
    assert "secret@" not in str(error.value)
    assert not (tmp_path / "argo.yaml").exists()
