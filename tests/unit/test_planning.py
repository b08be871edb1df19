"""Argo's plan step on a small clean dataset: what is there needs no RayJob, what is not there gets one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from chain import clean_photos, resized
from manifests import check_custom

from imagemill.components.resize import STEP as RESIZE
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.store.config import StepConfig
from imagemill.components.store.manifest import Dataset, read_dataset
from imagemill.components.store.step import Step
from imagemill.components.store.workspace import Workspace
from imagemill.pipelines import planning
from imagemill.pipelines.argo import workflow_template
from imagemill.pipelines.cluster import from_values
from imagemill.pipelines.parameters import choose

RUN = "imagemill-training-x7k2p"
CLUSTER = from_values({"namespace": "vision", "images": {"tags_allowed": True}, "ray": {"version": "2.49.0"}})


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A clean dataset in a workspace of its own."""
    return clean_photos(Workspace.open(str(tmp_path_factory.mktemp("work"))))


def workspace_of(clean: Dataset) -> Workspace:
    return Workspace(clean.uri.rpartition("/clean/")[0])


def planned(clean: Dataset, outputs: Path, *flags: str, code: int = 0) -> dict[str, str]:
    """The outputs of `python -m imagemill.pipelines.planning`, as Argo's template calls it."""
    words = [f"--workspace={workspace_of(clean).uri}", f"--clean={clean.uri}", f"--run={RUN}", f"--outputs={outputs}"]
    cluster = () if any(flag.startswith("--cluster") for flag in flags) else (f"--cluster={CLUSTER.to_json()}",)
    assert planning.STEP.main([*words, *cluster, *flags]) == code
    return {one.name: one.read_text() for one in outputs.glob("*")} if outputs.is_dir() else {}


def test_what_is_not_there_is_made_by_a_rayjob(clean: Dataset, tmp_path: Path) -> None:
    section = '{"resize": {"jpeg_quality": 80}, "train": {"weight_decay": 0.1}}'
    found = planned(
        clean, tmp_path / "out", "--image-size=24", "--encoding=jpeg", "--model-preset=", f"--config={section}"
    )
    assert found["needed"] == "true" and found["uri"].startswith(f"{workspace_of(clean).uri}/tensors/")
    job = json.loads(found["rayjob"])
    assert job["metadata"]["namespace"] == "vision" and job["metadata"]["labels"]["imagemill.io/run"] == RUN
    assert job["metadata"]["name"].endswith(found["uri"].rpartition("/")[2])
    assert "ownerReferences" not in job["metadata"]  # Argo adds its workflow
    record = workspace_of(clean).step_record(RUN, "resize")
    assert record and record["exit_code"] == 75 and job["metadata"]["name"] in record["error"]
    again = planned(clean, tmp_path / "again", "--image-size=24", "--encoding=jpeg", f"--config={section}")
    assert again["rayjob"] == found["rayjob"]  # a second try of the step finds the job of the first
    check_custom(job)  # last, for it skips where there are no schemas


def test_the_rayjob_makes_the_tensors_that_the_plan_names(
    clean: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line, read by the resize step's own parser, gives the URI that training is told."""
    found = planned(clean, tmp_path / "out", "--image-size=20", "--rerun=resize")
    words = shlex.split(json.loads(found["rayjob"])["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "imagemill.components.resize"]
    told: list[StepConfig] = []

    def execute(step: Step, config: StepConfig, result: str = "") -> int:
        told.append(config)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(Step, "execute", execute)
        assert RESIZE.main(words[3:]) == 0
    config = told[0]
    assert isinstance(config, ResizeConfig) and config.ray_address == "auto" and config.run == RUN
    from imagemill.components.resize.resize import find
    from imagemill.components.store.step import Context

    context = Context("resize", workspace_of(clean), RUN, "resize" in config.rerun)
    assert find(config, context, 0).uri == found["uri"]


def test_the_template_tells_the_plan_all_that_the_rayjob_is_made_of(clean: Dataset, tmp_path: Path) -> None:
    """Workload identity by an account of one's own, and KubeRay's retries, for Argo tries no failed resource again."""
    cluster = from_values(
        {
            "images": {"tags_allowed": True}, "ray": {"version": "2.60.0"}, "storage": {"secret": ""},
            "argo": {"service_account": "my-irsa"}, "limits": {"lost_pod_retries": 3},
        }
    )  # fmt: skip
    template = next(one for one in workflow_template(cluster, choose({}))["spec"]["templates"] if one["name"] == "plan")
    [told] = [word for word in template["container"]["args"] if word.startswith("--cluster=")]
    job = json.loads(planned(clean, tmp_path / "out", "--image-size=28", told)["rayjob"])
    assert job["spec"]["backoffLimit"] == 3
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert (head["serviceAccountName"], head["automountServiceAccountToken"]) == ("my-irsa", True)


def test_what_is_there_needs_none(clean: Dataset, tmp_path: Path) -> None:
    workspace = workspace_of(clean)
    tensors = resized(workspace, clean, image_size=16)
    found = planned(clean, tmp_path / "out", "--image-size=16", "--name=photos")
    assert (found["needed"], found["rayjob"], found["uri"]) == ("false", "", tensors.uri)
    assert json.loads(found["manifest.json"])["kind"] == "tensors"
    record = workspace.step_record(RUN, "resize")
    assert record and (record["state"], record["exit_code"]) == ("cached", 0)
    assert record["metrics"]["rows"] == read_dataset(tensors.uri, "tensors").manifest.totals.rows
    assert workspace.latest("photos", "tensors") == tensors.uri


def test_a_rerun_is_needed_whatever_is_there(clean: Dataset, tmp_path: Path) -> None:
    tensors = resized(workspace_of(clean), clean, image_size=12)
    found = planned(clean, tmp_path / "out", "--image-size=12", "--rerun=clean, resize")
    assert found["needed"] == "true" and found["uri"] != tensors.uri


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster="], "cluster: expected the cluster's file"),
        (["--clean=/nowhere"], "clean: expected a clean dataset"),
        (['--config={"resize": {"ray_address": "http://ray:8265"}}'], "ray_address: expected none"),
        (['--cluster={"nosuch": 1}'], "cluster (nosuch): expected one of"),
        (["--image-size=many"], "--image-size: expected a whole number"),
        (['--config={"resize": {"image_size": 3}}', "--image-size=4"], "config.resize: expected"),
        (['--config={"resize": {"nosuch": 3}}'], "nosuch"),
    ],
)
def test_wrong_input_ends_with_2(
    flags: list[str], message: str, clean: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(clean, tmp_path / "out", *flags, code=2)
    assert message in capsys.readouterr().err


def test_gpus_of_the_workers_decide_the_device(clean: Dataset, tmp_path: Path) -> None:
    """Whatever there is in the pod that plans."""
    values: dict[str, Any] = {"workers": {"pod": {"gpu": 1}}, "version": "2.49.0"}
    with_gpu = from_values({"images": {"tags_allowed": True}, "ray": values})
    flags = ["--image-size=24", '--config={"resize": {"device": "cuda"}}']
    there = planned(clean, tmp_path / "a", *flags, f"--cluster={with_gpu.to_json()}")
    nowhere = planned(clean, tmp_path / "b", *flags)
    assert there["uri"] != nowhere["uri"]
    assert "--device=cuda" in json.loads(there["rayjob"])["spec"]["entrypoint"]
    assert "--device=cpu" in json.loads(nowhere["rayjob"])["spec"]["entrypoint"]
