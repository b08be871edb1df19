"""The exit step: how a run ended, in one page, whatever happened; run by KFP itself, and what its artifacts say."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chain
import mill
import pytest

from imagemill.components.clean import STEP as CLEAN
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import STEPS, Workspace
from imagemill.components.download import STEP as DOWNLOAD
from imagemill.components.step.progress import format_scores
from imagemill.components.step.step import RUN_ENV
from imagemill.pipelines.cluster.cluster_file import Cluster, Limits, Ray, Storage
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.finish import (
    SUMMARY,
    RunSummary,
    finish,
    make_failed_result,
    read_record_facts,
    read_run_records,
    render_summary,
)
from imagemill.pipelines.kfp.artifacts import RECORDS, dataset_metadata
from imagemill.pipelines.kuberay.ray_step import add_ray_address
from imagemill.pipelines.local.run import _format_summary

SMALL = {"image_size": "32", "epochs": "1", "backbone": "shufflenet_v2_x0_5", "promote": "always"}
FIRST = ("first", "no_better_than_chance")
"""What the gate may say of a first model that was trained for one epoch."""
CONFIG = {"device": "cpu", "train": {"batch_size": 8}}


def run_by_kfp(folder: Path, run: str, pod: str = "a-pod", **arguments: Any) -> tuple[bool, Path]:
    """Run the cluster's pipeline in KFP's SubprocessRunner; return success and the folder of its artifacts. `pod`: the
    name that the settings of the pods, which that runner has not, would tell."""
    from kfp import local

    from imagemill.pipelines import training
    from imagemill.pipelines.kfp import pods as kfp_pods

    cluster = Cluster(ray=Ray(mode="pod"), limits=Limits(lost_pod_retries=0), storage=Storage(endpoint="", secret=""))
    root = folder / "kfp"
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv(RUN_ENV, run)
        # Here all steps share the machine's folders.
        patch.setattr(kfp_pods, "build_plain_storage_variables", lambda cluster: {})
        # KFP's local runners know a Python component by its command, and take a condition on a named output for false.
        patch.setattr(training, "replace_executor", lambda spec: None)
        patch.setattr(kfp_pods.ClusterPlacement, "build_changed_group", lambda self, download: contextlib.nullcontext())
        if pod:
            patch.setenv("POD_NAME", pod)
        pipeline = training.build_pipeline(cluster)
        try:
            pipeline(**arguments)
        except RuntimeError:
            return False, next(root.iterdir())
    return True, next(root.iterdir())


@pytest.fixture(scope="module")
def succeeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(workspace, folder of the artifacts) of a run by KFP; what takes long, Ray and torch, is there beforehand."""
    folder = tmp_path_factory.mktemp("succeeded")
    workspace = Workspace.open(str(folder / "work"))
    photos = str(mill.make_photos(folder / "photos", classes=("blue", "red"), each=40))
    source = {"workspace": workspace.uri, "dataset": "folder", "source": photos, "name": "photos"}
    raw = DOWNLOAD.component("", "", **source).uri
    clean = read_dataset(CLEAN.component("", "", raw=raw, **source).uri, "clean")
    with chain.one_core():
        tensors = chain.resized(workspace, clean, image_size=32)
        chain.evaluated(workspace, chain.trained(workspace, tensors), clean)
    is_successful, artifacts = run_by_kfp(folder, "good", **source, **SMALL, config=json.dumps(CONFIG))
    assert is_successful
    yield folder / "work", artifacts


def test_summary_of_a_successful_run(succeeded: tuple[Path, Path]) -> None:
    workspace, artifacts = succeeded
    text = (artifacts / "finish" / "summary").read_text()
    assert text == (workspace / "runs" / "good" / SUMMARY).read_text()
    assert text.startswith("# photos: done\n\nRun `good` in ")
    for step in ("download", "clean", "resize", "train", "evaluate"):
        assert f"| {step} | cached | " in text
    assert "80 rows in, " in text and "| top1 | " in text and "report.html" in text
    assert re.search(r"promoted( since promote is always)?: macro-F1 ", text) and "- champion: none" not in text
    assert text == (artifacts / "promote" / "summary").read_text()  # the artifact that every runner has


def read_executor_output(artifacts: Path, step: str) -> dict[str, Any]:
    artifacts_by_name: dict[str, Any] = json.loads((artifacts / step / "executor_output.json").read_text())["artifacts"]
    return {name: artifact["artifacts"][0]["metadata"] for name, artifact in artifacts_by_name.items()}


def test_artifacts_have_metadata_of_their_datasets(succeeded: tuple[Path, Path]) -> None:
    workspace, artifacts = succeeded
    for step, kind in {"download": "raw", "clean": "clean", "resize": "tensors", "train": "model"}.items():
        metadata = read_executor_output(artifacts, step)["manifest"]
        dataset = read_dataset(metadata["uri"], kind)
        assert metadata["uri"].startswith(str(workspace)) and metadata["fingerprint"] == dataset.fingerprint
        assert json.loads((artifacts / step / "manifest").read_text())["fingerprint"] == dataset.fingerprint
        assert (metadata["kind"], metadata["classes"], metadata["dataset"]) == (kind, 2, "photos")
        if kind == "model":
            assert (metadata["framework"], metadata["backbone"], metadata["epochs"]) == (
                "PyTorch",
                "shufflenet_v2_x0_5",
                1,
            )
            assert 0 <= metadata["macro_f1"] <= 1
        else:
            totals = dataset.manifest.totals
            assert (metadata["rows"], metadata["rejected"]) == (totals.rows, totals.rejected)
            assert metadata["by_split"] == totals.by_split
    evaluated = read_executor_output(artifacts, "evaluate")
    assert {"top1", "macro_f1"} <= set(evaluated["metrics"])
    rows = [row["row"] for row in evaluated["confusion"]["confusionMatrix"]["rows"]]
    assert sum(map(sum, rows)) == read_dataset(tensors_uri(artifacts), "tensors").manifest.totals.by_split["test"]
    assert {"falsePositiveRate", "recall", "confidenceThreshold"} <= set(evaluated["confusion"]["confidenceMetrics"][0])
    assert (artifacts / "promote" / "report").read_text().lstrip().lower().startswith("<!doctype html")


def test_each_steps_record_is_in_its_metadata(succeeded: tuple[Path, Path]) -> None:
    """`imagemill runs` reads them where the user has no keys of the store."""
    workspace, artifacts = succeeded
    recorded = Workspace(str(workspace)).step_records("good")
    records_by_step = {
        step: metadata[RECORDS]
        for step in STEPS
        for metadata in read_executor_output(artifacts, step).values()
        if RECORDS in metadata
    }
    assert list(records_by_step) == list(STEPS)
    for step in STEPS[:-1]:
        [(name, record)] = json.loads(records_by_step[step]).items()
        metrics = record.pop("metrics")
        assert name == step and record == {key: getattr(recorded[step], key) for key in record} and "seconds" in record
        assert metrics == {key: recorded[step].metrics[key] for key in metrics} and metrics
    for summary in (
        read_executor_output(artifacts, "finish")["summary"],
        read_executor_output(artifacts, "promote")["summary"],
    ):
        records = json.loads(summary[RECORDS])
        assert list(records) == list(STEPS) and records["evaluate"]["metrics"]["macro_f1"] > 0
        assert records["promote"]["metrics"]["verdict"] in FIRST and records["clean"]["state"] == "cached"


def tensors_uri(artifacts: Path) -> str:
    return str(read_executor_output(artifacts, "resize")["manifest"]["uri"])


def test_metadata_has_types_that_kubeflow_can_store(succeeded: tuple[Path, Path]) -> None:
    """A protobuf Struct: no null, no NaN, no other types."""
    from google.protobuf import json_format, struct_pb2

    _, artifacts = succeeded
    for step in ("download", "clean", "resize", "train", "evaluate", "promote"):
        for metadata in read_executor_output(artifacts, step).values():
            text = json.dumps(metadata, allow_nan=False)
            assert "null" not in text
            json_format.Parse(text, struct_pb2.Struct())


def test_summary_of_a_failed_run_has_its_error(tmp_path: Path) -> None:
    is_successful, artifacts = run_by_kfp(
        tmp_path, "bad", workspace=str(tmp_path / "work"), dataset="folder", source=str(tmp_path / "no|where")
    )
    text = (artifacts / "finish" / "summary").read_text()
    assert not is_successful and text.startswith("# Training: failed at download (exit code 2)\n")
    row = next(line for line in text.splitlines() if line.startswith("| download |"))
    assert "**failed**, exit code 2" in row and r"no\|where" in row and "wrong input" in row
    assert "| clean | not reached |  |  |" in text and "## Verdict" not in text
    assert (tmp_path / "work" / "runs" / "bad" / SUMMARY).read_text() == text
    record = json.loads(read_executor_output(artifacts, "finish")["summary"][RECORDS])["download"]
    assert record["exit_code"] == 2 and "no|where" in record["error"] and record["state"] == "failed"


def test_server_that_ignores_pod_settings_is_an_error_of_the_first_step(tmp_path: Path) -> None:
    source = str(mill.make_photos(tmp_path / "photos", each=1))
    is_successful, artifacts = run_by_kfp(
        tmp_path, "old", "", workspace=str(tmp_path / "work"), dataset="folder", source=source
    )
    text = (artifacts / "finish" / "summary").read_text()
    assert not is_successful and "failed at download" in text and "the server is older" in text
    assert not (tmp_path / "work" / "raw").exists()


@pytest.mark.parametrize("workspace", ["./work", "/scratch/work", "~/work"])
def test_local_workspace_is_rejected_on_a_cluster(
    workspace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster's form accepts any text: the error comes before the download into one pod."""
    monkeypatch.setenv("IMAGEMILL_WORKSPACES", "s3")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert DOWNLOAD.main([f"--workspace={workspace}", "--run=r"]) == 2
    message = f"workspace: expected s3://bucket/prefix, for the steps' machines share no folder, found '{workspace}'"
    assert message in capsys.readouterr().err
    finish(workspace, "r", "FAILED", str(tmp_path / "page.md"))
    [page] = tmp_path.iterdir()
    assert "share no folder" in page.read_text()


def record(**over: Any) -> StepRecord:
    return replace(StepRecord("s3://b/m/raw/0123456789abcdef", "0" * 16, "ran", seconds=61.0), **over)


def test_a_step_without_a_record_was_lost_with_its_pod() -> None:
    run = RunSummary("r", "s3://b/m", {"download": record(), "clean": record()}, ended="FAILED")
    text = render_summary(run)
    assert run.failed_at == "resize" and text.startswith("# Training: failed at resize (no record)")
    assert "| resize | **lost** |" in text and "| train | not reached |" in text and "2 min 2 s of work" in text


@pytest.mark.parametrize("end", ["COMPLETE", "RUNNING", "FAILED"])
def test_records_take_precedence_over_the_state_of_kfp(end: str) -> None:
    failing = RunSummary("r", "w", {"download": record(), "clean": record(exit_code=75, error="gone")}, ended=end)
    assert failing.failed_at == "clean" and "run it again" in render_summary(failing)
    finished = dict.fromkeys(("download", "clean", "resize", "train", "evaluate"), record())
    assert RunSummary("r", "w", finished | {"promote": record()}, ended=end).failed_at == ""
    assert RunSummary("r", "w", finished, ended=end).failed_at == "promote"


def test_drift_is_in_the_summary() -> None:
    lines = ["all 90 images: classes: <b>dog 12.0% to 31.0% (distance 0.19)"]
    text = render_summary(RunSummary("r", "w", {"clean": record(metrics={"drift": lines})}))
    assert "## Drift since the champion's data\n\n- all 90 images: classes: " in text and "<b>" not in text
    assert "Drift" not in render_summary(RunSummary("r", "w", {"clean": record(metrics={"drift": []})}))
    features = record(metrics={"feature_drift": ["the 20 new images: features of resnet18, distance 2.10 ± 0.60"]})
    assert "\n- the 20 new images: features of resnet18" in render_summary(RunSummary("r", "w", {"evaluate": features}))


def test_steps_of_a_running_run_are_not_reported_as_lost() -> None:
    assert RunSummary("r", "w", {"download": record()}).failed_at == ""


def test_a_message_forges_no_rows() -> None:
    error = "a | b\n| promote | ran | <img src=x> `code` **bold**"
    text = render_summary(RunSummary("r", "w", {"download": record(exit_code=1, error=error)}, ended="FAILED"))
    assert sum(line.startswith("| promote |") for line in text.splitlines()) == 1
    assert "<img" not in text and r"\*\*bold\*\*" in text


def test_unreadable_workspace_is_reported_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "out" / "summary"
    finish(str(tmp_path / "file" / "work"), "r", "FAILED", str(path))
    assert path.read_text().startswith("# Training: failed")
    (tmp_path / "work" / "runs" / "r").mkdir(parents=True)
    (tmp_path / "work" / "runs" / "r" / "clean.json").write_text("{")
    summary = read_run_records(str(tmp_path / "work"), "r", "FAILED")
    assert (
        "expected JSON" in summary.unread
        and "records can't be read" in render_summary(summary)
        and "lost" not in render_summary(summary)
    )


def test_unreachable_cluster_is_reported_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CLUSTER_VARIABLE, Cluster().to_json())
    finish(str(tmp_path / "work"), "r", "FAILED", str(tmp_path / "summary"))
    text = (tmp_path / "summary").read_text()
    assert "## Cleaned up\n\nWhat the run may have left could not be looked for: " in text and "Error:" not in text


def test_cluster_file_of_another_release_is_reported_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CLUSTER_VARIABLE, '{"nosuch": 1}')
    finish(str(tmp_path / "work"), "r", "SUCCEEDED", str(tmp_path / "summary"))
    text = (tmp_path / "summary").read_text()
    assert "could not be looked for: cluster (nosuch): expected one of" in text and "another imagemill" in text


def test_the_address_of_the_cluster_is_the_default_of_a_run() -> None:
    address = "http://ray-head:8265"
    assert json.loads(add_ray_address("", address)) == {"resize": {"ray_address": address}}
    named = '{"resize": {"ray_address": "ray://other:10001"}, "train": {"device": "cpu"}}'
    assert json.loads(add_ray_address(named, address)) == json.loads(named)
    added = json.loads(add_ray_address('{"resize": {"quality": "fast"}}', address))
    assert added == {"resize": {"quality": "fast", "ray_address": address}}
    with pytest.raises(SystemExit) as stopped:
        add_ray_address("{", address)
    assert stopped.value.code == 2


def test_modules_of_kfp_components_import_nothing_heavy() -> None:
    """The launcher's image has no Ray, and no image needs KFP's compiler."""
    code = (
        "import sys\n"
        "from imagemill.pipelines import finish\n"
        "from imagemill.pipelines.kfp import artifacts, pods\n"
        "from imagemill.pipelines.kuberay import ray_step\n"
        "print([m for m in ('kfp', 'kubernetes', 'torch', 'ray', 'boto3', 'hera', 'yaml') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_unset_metrics_are_left_out_of_the_metadata(tmp_path: Path) -> None:
    manifest = {"kind": "raw", "created": "now", "code_version": "1", "classes": [], "task": "single", "files": []}
    totals = {"rows": 0, "rejected": 0, "bytes": 0, "by_split": {}, "by_reason": {}}
    (tmp_path / "m.json").write_text(json.dumps(manifest | {"totals": totals}))
    metadata = dataset_metadata(record(metrics={"name": "", "skipped": 0, "top1": None}), str(tmp_path / "m.json"))
    assert metadata["rows"] == 0 and metadata["skipped"] == 0
    assert not {"name", "top1", "by_split", "by_reason", "dataset"} & set(metadata)


def test_the_last_lines_name_the_scores_of_the_log_and_begin_with_a_warning() -> None:
    metrics = {"top1": 0.8105, "macro_f1": 0.7465, "test_images": 1_200, "warning": "below its baseline"}
    result = make_failed_result() | {"name": "cats", "champion": ""}
    verdict = StepRecord(metrics={"verdict": "first"})
    result |= read_record_facts({"evaluate": StepRecord(metrics=metrics), "promote": verdict})
    lines = _format_summary(result, 61).splitlines()
    assert lines[1] == "warning: below its baseline"
    assert lines[2] == f"cats: {format_scores(metrics)} on 1,200 test images · first · 1 min 1 s"
    intervals = {"top1": [0.7878, 0.832]}
    assert format_scores(metrics, intervals) == "top-1 0.810 (0.788 to 0.832) · macro-F1 0.747"
