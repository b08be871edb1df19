"""Plan that Argo's pod of clean writes for resize: tensors that exist already, or made by a pod or by a RayJob."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from chain import clean_photos, resized
from manifests import check_custom

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize import STEP as RESIZE
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.config import StepConfig
from imagemill.components.step.step import Step
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.argo import clean_and_plan, planning
from imagemill.pipelines.argo.planning import parse_pod_arguments
from imagemill.pipelines.argo.workflow import build_workflow_template
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE, read_pod_cluster
from imagemill.pipelines.parameters import resolve_parameters

RUN = "imagemill-training-x7k2p"
CLUSTER = parse_cluster(
    {"namespace": "vision", "images": {"tags_allowed": True}, "ray": {"version": "2.49.0", "mode": "rayjob"}}
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A clean dataset in a workspace of its own."""
    return clean_photos(Workspace.open(str(tmp_path_factory.mktemp("work"))))


def open_workspace(clean: Dataset) -> Workspace:
    return Workspace(clean.uri.rpartition("/clean/")[0])


def write_plan(clean: Dataset, outputs: Path, *flags: str, cluster: Cluster = CLUSTER) -> dict[str, str]:
    """Write the plan for a clean dataset by the flags of Argo's template; return its output values."""
    words = [f"--workspace={open_workspace(clean).uri}", "--raw=/nowhere", f"--run={RUN}", f"--outputs={outputs}"]
    arguments = parse_pod_arguments("tests", "", ("raw",), [*words, *flags])
    plan = planning.write_plan(arguments, open_workspace(clean), "resize", cluster, clean=clean.uri)
    return {"tensors": plan.uri} | {path.name: path.read_text() for path in outputs.glob("*")}


def test_missing_tensors_are_made_by_a_rayjob(clean: Dataset, tmp_path: Path) -> None:
    section = '{"resize": {"jpeg_quality": 80, "encoding": "jpeg"}, "train": {"weight_decay": 0.1}}'
    outputs = write_plan(clean, tmp_path / "out", "--image-size=24", f"--config={section}")
    assert outputs["executor"] == "rayjob" and outputs["tensors"].startswith(f"{open_workspace(clean).uri}/tensors/")
    job = json.loads(outputs["rayjob"])
    assert job["metadata"]["namespace"] == "vision" and job["metadata"]["labels"]["imagemill.io/run"] == RUN
    assert job["metadata"]["name"].endswith(outputs["tensors"].rpartition("/")[2])
    assert "ownerReferences" not in job["metadata"]  # Argo adds its workflow
    record = open_workspace(clean).step_record(RUN, "resize")
    assert record and record.exit_code == 75 and job["metadata"]["name"] in record.error
    second = write_plan(clean, tmp_path / "again", "--image-size=24", f"--config={section}")
    assert second["rayjob"] == outputs["rayjob"]  # a second try of the step finds the job of the first
    check_custom(job)  # last, for it skips where there are no schemas


@pytest.mark.parametrize(
    ("ray", "executor"),
    [
        ({}, "pod"),  # auto, and a few photographs
        ({"auto_seconds": 0}, "rayjob"),
        ({"mode": "pod"}, "pod"),
        ({"mode": "address", "address": "http://ray:8265"}, "pod"),
    ],
)
def test_executor_by_cluster_file_and_size(ray: dict[str, Any], executor: str, clean: Dataset, tmp_path: Path) -> None:
    cluster = parse_cluster({"images": {"tags_allowed": True}, "ray": {"version": "2.49.0", **ray}})
    outputs = write_plan(clean, tmp_path / "out", "--image-size=36", cluster=cluster)
    assert (outputs["executor"], bool(outputs["rayjob"])) == (executor, executor == "rayjob")
    assert bool(outputs["tensors"]) == (ray.get("mode") != "address")


def test_training_takes_the_tensors_uri_from_a_gpu_pod(clean: Dataset, tmp_path: Path) -> None:
    """Tensors of a GPU lie elsewhere: only the pod that has it knows whether torch can use it."""
    images, ray = {"tags_allowed": True}, {"version": "2.49.0", "mode": "pod"}
    cluster = parse_cluster({"images": images, "ray": ray, "steps": {"resize": {"gpu": 1}}})
    assert write_plan(clean, tmp_path / "out", cluster=cluster) == {"tensors": "", "executor": "pod", "rayjob": ""}
    templates = build_workflow_template(cluster, resolve_parameters({}))["spec"]["templates"]
    train = next(task for task in templates[0]["dag"]["tasks"] if task["name"] == "train")
    arguments = {parameter["name"]: parameter["value"] for parameter in train["arguments"]["parameters"]}
    assert arguments["tensors"] == "{{tasks.resize.outputs.parameters.tensors}}"


def test_rayjob_makes_the_planned_tensors(clean: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line, read by the resize step's own parser, gives the URI that training is told."""
    outputs = write_plan(clean, tmp_path / "out", "--image-size=20", "--rerun=resize")
    words = shlex.split(json.loads(outputs["rayjob"])["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "imagemill.components.resize"]
    configs: list[StepConfig] = []

    def execute(step: Step, config: StepConfig, result: str = "") -> int:
        configs.append(config)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(Step, "execute", execute)
        assert RESIZE.main(words[3:]) == 0
    [config] = configs
    assert isinstance(config, ResizeConfig) and config.ray_address == "auto" and config.run == RUN
    from imagemill.components.resize.target import find_target
    from imagemill.components.step.step import Context

    context = Context("resize", open_workspace(clean), RUN, "resize" in config.rerun)
    assert find_target(config, context, 0).uri == outputs["tensors"]


def test_template_passes_rayjob_settings_to_pod(
    clean: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workload identity by an account of one's own, and KubeRay's retries, for Argo tries no failed resource again."""
    cluster = parse_cluster(
        {
            "images": {"tags_allowed": True}, "ray": {"version": "2.60.0", "mode": "rayjob"}, "storage": {"secret": ""},
            "argo": {"service_account": "my-irsa"}, "limits": {"lost_pod_retries": 3},
        }
    )  # fmt: skip
    template = next(
        entry
        for entry in build_workflow_template(cluster, resolve_parameters({}))["spec"]["templates"]
        if entry["name"] == "clean"
    )
    for variable in template["container"]["env"]:
        if variable["name"] == CLUSTER_VARIABLE:
            monkeypatch.setenv(CLUSTER_VARIABLE, variable["value"])
    pod_cluster = read_pod_cluster()
    assert pod_cluster is not None
    job = json.loads(write_plan(clean, tmp_path / "out", "--image-size=28", cluster=pod_cluster)["rayjob"])
    assert job["spec"]["backoffLimit"] == 3
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert (head["serviceAccountName"], head["automountServiceAccountToken"]) == ("my-irsa", True)


def test_existing_tensors_need_no_executor(clean: Dataset, tmp_path: Path) -> None:
    workspace = open_workspace(clean)
    tensors = resized(workspace, clean, image_size=16)
    outputs = write_plan(clean, tmp_path / "out", "--image-size=16", "--name=photos")
    assert (outputs["executor"], outputs["rayjob"], outputs["tensors"]) == ("none", "", tensors.uri)
    record = workspace.step_record(RUN, "resize")
    assert record and (record.state, record.exit_code) == ("cached", 0)
    assert record.metrics["rows"] == read_dataset(tensors.uri, "tensors").manifest.totals.rows
    assert workspace.latest_uri("photos", "tensors") == tensors.uri


def test_rerun_makes_existing_tensors_again(clean: Dataset, tmp_path: Path) -> None:
    tensors = resized(open_workspace(clean), clean, image_size=12)
    outputs = write_plan(clean, tmp_path / "out", "--image-size=12", "--rerun=clean, resize")
    assert outputs["executor"] == "rayjob" and outputs["tensors"] != tensors.uri


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (['--config={"resize": {"ray_address": "http://ray:8265"}}'], "ray_address: expected none"),
        (["--image-size=many"], "image_size: expected a whole number"),
        (['--config={"resize": {"nosuch": 3}}'], "nosuch"),
    ],
)
def test_user_error_is_recorded_for_resize(flags: list[str], message: str, clean: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_plan(clean, tmp_path / "out", *flags)
    record = open_workspace(clean).step_record(RUN, "resize")
    assert record and record.exit_code == 2 and message in record.error


def test_internal_error_is_recorded_for_resize(clean: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(planning, "make_plan", fail)
    with pytest.raises(ZeroDivisionError):
        write_plan(clean, tmp_path / "out")
    record = open_workspace(clean).step_record(RUN, "resize")
    assert record and record.exit_code == 1 and "ZeroDivisionError: by nothing" in record.error


@pytest.mark.parametrize(
    ("cluster", "flags", "message"),
    [
        ("", [], "IMAGEMILL_CLUSTER: expected the cluster file"),
        ('{"nosuch": 1}', [], "cluster (nosuch): expected one of"),
        (CLUSTER.to_json(), ["--raw=/nowhere"], "raw: expected a raw dataset"),
        (CLUSTER.to_json(), ["--imagesize=3"], "--imagesize: expected a known flag; is it --image-size?"),
    ],
)
def test_invalid_input_exits_with_2(
    cluster: str, flags: list[str], message: str, clean: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(CLUSTER_VARIABLE, cluster)
    words = [f"--workspace={open_workspace(clean).uri}", f"--run={RUN}", f"--outputs={tmp_path / 'out'}"]
    assert clean_and_plan.main([*words, "--raw=x", *flags]) == 2
    assert message in capsys.readouterr().err
