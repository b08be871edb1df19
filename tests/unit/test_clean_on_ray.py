"""Clean as a RayJob: the KFP component's choice, the job's command line, and what Argo's pods plan for it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launching
import pytest
from cleaned import raw_dataset
from kube_api import Act, KubeApi
from launching import BUCKET, DONE, RUN, STARTED, Launched, s3_server, words_of
from manifests import check_custom
from test_clean_rules import toy_rows

from imagemill.components.clean import STEP, reuse
from imagemill.components.clean.clean import find_target
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.reuse import estimate_core_seconds
from imagemill.components.dataset.manifest import Dataset, find_intact_dataset
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import EXIT_USER
from imagemill.pipelines.argo import download as argo_download
from imagemill.pipelines.argo import planning
from imagemill.pipelines.argo.planning import parse_pod_arguments
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.kuberay.ray_step import choose_mode, run_step

Json = dict[str, Any]
WORKSPACES = itertools.count()
api = launching.api


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def raw() -> Dataset:
    return raw_dataset(f"s3://{BUCKET}/raw{next(WORKSPACES)}", toy_rows(30))


def workspace_of(raw: Dataset) -> Workspace:
    return Workspace.open(raw.uri.rpartition("/raw/")[0])


def launch(raw: Dataset, cluster: Json | None = None, **options: Any) -> Launched:
    """The step as the KFP component calls it; clean is a RayJob unless `cluster` says another."""
    workspace = workspace_of(raw)
    cluster_json = parse_cluster({"ray": {"clean": "rayjob"}} | (cluster or {})).to_json()
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.MonkeyPatch.context() as patch:
        patch.setenv(CLUSTER_VARIABLE, cluster_json)
        try:
            config = json.dumps({"clean": options})
            record, code = run_step(STEP, config, "", workspace=workspace.uri, raw=raw.uri, run=RUN), 0
        except SystemExit as error:
            record, code = workspace.step_record(RUN, "clean") or StepRecord(), int(str(error.code))
    return Launched(code, record, stderr.getvalue())


def job_cleans(monkeypatch: pytest.MonkeyPatch) -> Act:
    """The job's command line, read and run by the step itself, on threads of this process in place of Ray."""

    def act(api: KubeApi, job: Json) -> None:
        words = words_of(job)
        assert words[:3] == ["python", "-m", "imagemill.components.clean"] and "--ray-address=auto" in words
        monkeypatch.setattr(reuse, "_choose_executor", lambda *_: "threads")
        STEP.main(words[3:])

    return act


def test_a_rayjob_makes_the_dataset_of_the_steps_pod(
    api: KubeApi, raw: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pod = launch(raw_dataset(f"s3://{BUCKET}/other", toy_rows(30)), {"ray": {"clean": "pod"}})
    assert (in_pod.code, in_pod.record.state) == (0, "ran"), in_pod.stderr
    api.acts = [(*STARTED, job_cleans(monkeypatch), *DONE)]
    result = launch(raw)
    assert (result.code, result.record.state) == (0, "ran"), result.stderr
    assert result.record.fingerprint == in_pod.record.fingerprint
    assert result.record.metrics == in_pod.record.metrics
    first, second = (find_intact_dataset(record.uri) for record in (in_pod.record, result.record))
    assert first and second and first.manifest.files == second.manifest.files
    [job] = api.created
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "clean"
    assert launch(raw).record.state == "cached" and len(api.created) == 1


def test_error_of_the_job_is_raised_by_the_step(api: KubeApi, raw: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test image remains, which only the decision on all images detects."""
    api.acts = [(*STARTED, job_cleans(monkeypatch), *launching_failed())]
    result = launch(raw, test_fraction=0.0)
    assert result.code == result.record.exit_code == EXIT_USER
    assert "split: expected at least one test image" in result.record.error


def launching_failed() -> tuple[Act, ...]:
    from kube_api import status

    return (status("Running", "FAILED"), status("Failed", "FAILED"))


def test_small_data_is_cleaned_in_the_pod(raw: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    result = launch(raw, {"ray": {}})
    assert (result.code, result.record.state) == (0, "ran"), result.stderr
    assert "done in this pod, without a RayJob (ray.auto_seconds)" in result.stderr


def test_ray_address_is_rejected_with_mode_rayjob(raw: Dataset) -> None:
    result = launch(raw, ray_address="ray://head:10001")
    assert result.code == EXIT_USER and "ray_address: expected none" in result.record.error


def test_slices_cleaned_before_need_no_core_seconds(raw: Dataset) -> None:
    """The estimate decides between a pod and a RayJob."""
    workspace = workspace_of(raw)
    context = Context("clean", workspace, RUN, False)
    config = CleanConfig(raw=raw.uri, workspace=workspace.uri)
    assert find_target(config, context).estimate_core_seconds(context) >= estimate_core_seconds(38, 0)
    assert launch(raw, {"ray": {"clean": "pod"}}).code == 0
    other = CleanConfig(raw=raw.uri, workspace=workspace.uri, near_duplicates="off")  # of the decision alone
    assert find_target(other, context).estimate_core_seconds(context) == 0
    rerun = Context("clean", workspace, RUN, True)
    assert find_target(config, rerun).estimate_core_seconds(rerun) > 0


@pytest.mark.parametrize(
    ("ray", "little", "much"),
    [
        ({}, "pod", "rayjob"),
        ({"mode": "rayjob"}, "pod", "rayjob"),
        ({"mode": "pod"}, "pod", "pod"),
        ({"mode": "address", "address": "http://head:8265"}, "pod", "pod"),
        ({"mode": "pod", "clean": "rayjob"}, "rayjob", "rayjob"),
        ({"clean": "pod"}, "pod", "pod"),
    ],
)
def test_the_cluster_file_and_the_size_decide_where_clean_runs(ray: Json, little: str, much: str) -> None:
    cluster = parse_cluster({"ray": ray})
    assert [choose_mode(cluster, "clean", seconds) for seconds in (1.0, 10_000.0)] == [little, much]
    makes_rayjobs = "rayjob" in (much, ray.get("mode")) or ray.get("mode", "auto") == "auto"
    assert cluster.ray.makes_rayjobs == makes_rayjobs


def planned(raw: Dataset, outputs: Path, cluster: Json, *flags: str) -> planning.Plan:
    workspace = workspace_of(raw)
    argument_list = [f"--workspace={workspace.uri}", f"--run={RUN}", f"--outputs={outputs}", *flags]
    arguments = parse_pod_arguments("tests", "", (), argument_list)
    cluster_file = parse_cluster({"images": {"tags_allowed": True}, **cluster})
    return planning.write_plan(arguments, workspace, "clean", cluster_file, raw=raw.uri, name="toy")


def test_downloads_pod_plans_the_rayjob_whose_dataset_cleans_pod_finds(
    raw: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = {"workers": {"pod": {"gpu": 1, "node_selector": {"gpu": "yes"}}}}
    plan = planned(raw, tmp_path / "out", {"ray": {"clean": "rayjob", "version": "2.49.0", **gpus}})
    assert (tmp_path / "out" / "executor").read_text() == "rayjob"
    job = json.loads((tmp_path / "out" / "rayjob").read_text())
    assert "nvidia.com/gpu" not in json.dumps(job), "clean uses none"
    workspace = workspace_of(raw)
    assert (workspace.step_record(RUN, "clean") or StepRecord()).exit_code == 75
    monkeypatch.setattr(reuse, "_choose_executor", lambda *_: "threads")
    assert STEP.main(shlex.split(job["spec"]["entrypoint"])[3:]) == 0
    record = workspace.step_record(RUN, "clean") or StepRecord()
    assert (record.uri, record.state) == (plan.uri, "ran")
    assert planned(raw, tmp_path / "again", {"ray": {"clean": "rayjob"}}).executor == "none"
    assert workspace.step_record(RUN, "clean") == record
    check_custom(job)  # last, for it skips where there are no schemas


@pytest.mark.parametrize("name", ["class_list", "map_labels"])
def test_wrong_option_of_clean_is_in_its_record(name: str, raw: Dataset, tmp_path: Path) -> None:
    config = f'{{"clean": {{"{name}": "s3://mill/nosuch.txt"}}}}'
    with pytest.raises(Exception, match=f"{name}: expected a file that is there"):
        planned(raw, tmp_path / "out", {"ray": {"clean": "rayjob"}}, f"--config={config}")
    record = workspace_of(raw).step_record(RUN, "clean") or StepRecord()
    assert record.exit_code == EXIT_USER and name in record.error


def test_downloads_pod_plans_nothing_where_clean_has_no_rayjob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTER_VARIABLE, parse_cluster({"ray": {"mode": "pod"}}).to_json())
    outputs = tmp_path / "out"
    words = [f"--workspace=s3://{BUCKET}/demo", f"--run={RUN}", f"--outputs={outputs}", "--dataset=folder"]
    folder = tmp_path / "photos"
    for row in toy_rows(4)[:4]:
        path = folder / row["label"] / row["image_id"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    assert argo_download.main([*words, f"--source={folder}"]) == 0
    assert (outputs / "changed").read_text() == "true" and not (outputs / "executor").exists()
    monkeypatch.setenv(CLUSTER_VARIABLE, parse_cluster({"ray": {"clean": "rayjob", "version": "2.49.0"}}).to_json())
    assert argo_download.main([*words, f"--source={folder}"]) == 0
    assert (outputs / "executor").read_text() == "rayjob"
