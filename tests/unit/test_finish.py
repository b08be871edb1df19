"""The exit step: how a run ended, in one page, whatever happened; run by KFP itself, and what its artifacts say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download import STEP as DOWNLOAD
from imagemill.components.resize import STEP as RESIZE
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.progress import format_scores
from imagemill.components.step.step import RAN, Context, Outcome, Step
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE, build_cluster_variable
from imagemill.pipelines.finish import (
    RunSummary,
    finish,
    make_failed_result,
    read_record_facts,
    read_run_records,
    render_summary,
)
from imagemill.pipelines.kfp.results import describe_dataset
from imagemill.pipelines.kuberay.ray_step import place_step
from imagemill.pipelines.local import format_summary


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


def test_the_address_of_the_cluster_is_the_default_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def run(step: Step, config: Any, context: Context) -> Outcome:
        used.append(config.ray_address)
        return Outcome("", "", RAN)

    monkeypatch.setattr(Step, "run", run)
    cluster = parse_cluster({"ray": {"mode": "address", "address": "http://ray-head:8265", "version": "2.60.0"}})
    for name, value in build_cluster_variable(cluster).items():
        monkeypatch.setenv(name, value)
    context = Context("resize", Workspace("/nowhere"), "r", False)
    for address in ("", "ray://other:10001"):
        place_step(RESIZE).run(ResizeConfig(ray_address=address), context)
    assert used == ["http://ray-head:8265", "ray://other:10001"]


def test_pods_command_imports_nothing_heavy() -> None:
    """The launcher's image has no Ray, and no image has KFP's SDK."""
    code = (
        "import sys\n"
        "from imagemill.pipelines import pod\n"
        "from imagemill.pipelines.kfp import results\n"
        "print([m for m in ('kfp', 'kubernetes', 'torch', 'ray', 'boto3', 'hera', 'yaml') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_unset_metrics_are_left_out_of_the_metadata() -> None:
    manifest = {"kind": "raw", "created": "now", "code_version": "1", "classes": [], "task": "single", "parts": []}
    totals = {"rows": 0, "rejected": 0, "bytes": 0, "by_split": {}, "by_reason": {}}
    unset = record(metrics={"name": "", "skipped": 0, "top1": None})
    metadata = describe_dataset("download", unset, manifest | {"totals": totals, "config": {}})
    assert metadata["rows"] == 0 and metadata["skipped"] == 0
    assert not {"name", "top1", "by_split", "by_reason", "dataset"} & set(metadata)


def test_the_last_lines_name_the_scores_of_the_log_and_begin_with_a_warning() -> None:
    metrics = {"top1": 0.8105, "macro_f1": 0.7465, "test_images": 1_200, "warning": "below its baseline"}
    result = make_failed_result() | {"name": "cats", "champion": ""}
    verdict = StepRecord(metrics={"verdict": "first"})
    result |= read_record_facts({"evaluate": StepRecord(metrics=metrics), "promote": verdict})
    lines = format_summary(result, 61).splitlines()
    assert lines[1] == "warning: below its baseline"
    assert lines[2] == f"cats: {format_scores(metrics)} on 1,200 test images · first · 1 min 1 s"
    intervals = {"top1": [0.7878, 0.832]}
    assert format_scores(metrics, intervals) == "top-1 0.810 (0.788 to 0.832) · macro-F1 0.747"
