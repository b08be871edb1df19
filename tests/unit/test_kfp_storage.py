"""`imagemill runs` and `submit` for somebody who has KFP's address and no keys of the store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kfp_commands
import pytest
from kfp_commands import Commands, commands, compiled_once, record, script
from kfp_state import KfpService

from imagemill.components.dataset.workspace import STEPS
from imagemill.components.storage.errors import MillError
from imagemill.pipelines import training
from imagemill.pipelines.kfp import ui as kfp_metadata
from imagemill.pipelines.kfp.ui import resolve_ui_address
from imagemill.pipelines.kfp.uploads import PIPELINE_NAME

mill = kfp_commands.mill
GOLDEN = Path(__file__).parent / "golden" / "metadata_store.json"
"""Requests and answers of ML Metadata's own engine (1.17), in which two tasks were recorded as KFP's launcher does."""
WHOLE = {step: record(step) for step in STEPS} | {
    "evaluate": record("evaluate", metrics={"top1": 0.95, "macro_f1": 0.947, "champion_evaluation": ""}),
    "promote": record("promote", metrics={"verdict": "first", "promoted": True, "report": "s3://mill/work/r.html"}),
}


def last_run(mill: Commands) -> str:
    return str(mill.service.runs[-1]["run_id"])


def start(mill: Commands, *options: str, looks: Any = None) -> str:
    """Start a run that is not followed; its id."""
    mill.service.scripts = [looks or script()]
    assert mill("submit", "--no-wait", *options).code == 0
    return last_run(mill)


@pytest.fixture
def started(mill: Commands) -> str:
    return start(mill)


def when_looked_at(mill: Commands, keep: Any) -> None:
    """Call `keep` with the id of the next run that is looked at, before the answer."""

    def on_request(method: str, path: str) -> None:
        run = path.rpartition("/runs/")[2]
        if method == "GET" and "/runs/" in path and "/" not in run:
            mill.service.on_request = None
            keep(run)

    mill.service.on_request = on_request


def test_error_of_a_failed_step_is_read_from_the_exit_handler(mill: Commands) -> None:
    failed_record = record("clean", state="failed", uri="", exit_code=2, error="color: expected one of rgb, found 'x'")

    def keep(run: str) -> None:
        mill.service.storage.step(run, "download", record=record("download"))
        mill.service.storage.step(run, "clean", "FAILED")
        mill.service.storage.step(run, "finish", records={"download": record("download"), "clean": failed_record})

    mill.service.scripts = [script("download", "clean", last="FAILED")]
    when_looked_at(mill, keep)
    result = mill("submit", "--json")
    assert result.code == 2 and result.json["error"] == "clean: color: expected one of rgb, found 'x'", result.err
    assert result.json["records"]["download"]["uri"] == "s3://mill/work/download/00"
    assert "credentials" not in result.err and "can't be read" not in result.err
    details = mill("runs", last_run(mill))
    assert "failed, exit code 2" in details.out and "color: expected one of rgb" in details.out and details.code == 0
    assert "resize    not reached" in details.out and "resize" not in result.err
    assert "failed at clean" in mill("runs").out


def test_scores_and_verdicts_are_listed(mill: Commands, started: str) -> None:
    mill.service.storage.step(started, "promote", records=WHOLE)
    assert mill("runs", started, "--follow").code == 0
    row = mill("runs").out.splitlines()[1]
    assert "0.947" in row and "first" in row
    details = mill("runs", started).out
    assert "top-1 0.950 · macro-F1 0.947 · first" in details and "s3://mill/work/train/00" in details


def test_runs_of_a_package_that_the_sdk_started_are_listed(mill: Commands) -> None:
    """Such runs have no version: they include the package."""
    import kfp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = kfp.Client(host=mill.service.url)
        client.create_experiment("Default")
        client.create_run_from_pipeline_package(str(compiled_once()), arguments={"name": "by-sdk"}, run_name="by-sdk")
    run = last_run(mill)
    assert "pipeline_version_reference" not in mill.service.runs[-1]
    mill.service.storage.step(run, "promote", records=WHOLE)
    row = mill("runs").out.splitlines()[-1]  # the SDK has printed, too
    assert row.startswith("by-sdk") and "0.947" in row and "first" in row
    assert "by-sdk" not in mill("runs", "--pipeline-name", "another").out
    details = mill("runs", run)
    assert details.code == 0 and details.err == "", details.err


def test_a_pipeline_uploaded_under_another_name_is_asked_for_once(mill: Commands) -> None:
    runs = [start(mill, "--pipeline-name", "weekly") for _ in range(3)]
    before = mill.service.asked("GET", "/versions/")
    assert [json.loads(line)["run"] for line in mill("runs", "--json").out.splitlines()] == runs[::-1]
    assert mill.service.asked("GET", "/versions/") == before + 1
    assert len(mill("runs", "--json", "--pipeline-name", "weekly").out.splitlines()) == 3
    assert training.NAME == PIPELINE_NAME


def test_running_run_shows_the_datasets_of_finished_steps(mill: Commands) -> None:
    run = start(mill, looks=[("RUNNING", {"download": "SUCCEEDED", "clean": "RUNNING"})])
    mill.service.storage.step(run, "download", record=record("download", state="cached"))
    mill.service.storage.step(run, "clean", "RUNNING")
    details = mill("runs", run)
    assert "download  succeeded, cached" in details.out and "s3://mill/work/download/00" in details.out


def test_retried_step_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with commands(tmp_path, monkeypatch, capsys, KfpService(retries=True)) as mill:
        mill.service.scripts = [script()]
        result = mill("submit", "--json")
        assert result.err.count("[clean] running") == 1 and "(0)" not in result.err
        tasks = json.loads(mill("runs", last_run(mill), "--json").out)["tasks"]
        assert list(tasks) == list(STEPS) and {task["state"] for task in tasks.values()} == {"SUCCEEDED"}


def test_the_report_is_written(mill: Commands, started: str, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    early = mill("runs", started, "--report", str(target))
    assert early.code == 2 and "--report: expected a run that has made its report" in early.err and not target.exists()
    mill.service.storage.step(started, "promote", records=WHOLE, report="<p>ä</p>".encode())
    assert mill("runs", started, "--follow", "--report", str(target)).code == 0
    assert target.read_text(encoding="utf-8") == "<p>ä</p>"
    assert mill("runs", started, "--report", str(tmp_path / "no" / "folder.html")).code == 2
    assert mill("runs", "--report", str(target)).code == 2


def test_the_report_of_an_unchanged_run_is_the_earlier_runs(mill: Commands, started: str, tmp_path: Path) -> None:
    """Its promote did not run: Kubeflow Pipelines keeps the report with the run that its record names."""
    mill.service.storage.step(started, "promote", records=WHOLE, report=b"<p>earlier</p>")
    rerun = start(mill)
    report = f"s3://mill/work/runs/{started}/report.html"
    gate = replace(WHOLE["promote"], metrics=WHOLE["promote"].metrics | {"report": report})
    mill.service.storage.step(rerun, "finish", records=WHOLE | {"promote": gate})
    target = tmp_path / "report.html"
    details = mill("runs", rerun, "--follow", "--report", str(target))
    assert details.code == 0 and target.read_bytes() == b"<p>earlier</p>", details.err


LAUNCHER = "I1122 launcher_v2.go:90] input\n[clean] error: color: expected rgb\nF1122 main.go:50] failed to execute "
LAUNCHER += "component: exit status 2\n"


def test_logs_are_read_from_pods_artifacts_and_the_archive(mill: Commands, started: str) -> None:
    storage = mill.service.storage
    running = storage.step(started, "train", "RUNNING")
    storage.pod_logs[running] = "[train] epoch 1"
    assert mill("runs", started, "--logs", "train").out == "[train] epoch 1\n"
    failed_pod = storage.step(started, "clean", "FAILED", logs=("[clean] first try\n", "[clean] error: color\n"))
    storage.pod_logs[failed_pod] = LAUNCHER
    assert mill("runs", started, "--logs", "clean").out == "[clean] error: color\n"  # the step's own lines
    archived = storage.step(started, "resize", "FAILED")
    storage.archived_logs[archived] = "[resize] archived ä\n"
    assert mill("runs", started, "--logs", "resize").out == "[resize] archived ä\n"
    storage.step(started, "promote")
    missing = mill("runs", started, "--logs", "promote")
    assert (
        missing.code == 2
        and "expected the log of promote, found none: " in missing.err
        and "artifact not found" in missing.err
    )
    unknown = mill("runs", started, "--logs", "evaluate")
    assert (
        unknown.code == 2 and "a step that has begun (train, clean, resize, promote), found 'evaluate'" in unknown.err
    )
    assert mill("runs", started, "--logs", "clean", "--follow").code == 2
    assert mill("runs", "no-such-run", "--logs", "clean").code == 2


OOM = {"status": {"containerStatuses": [
    {"name": "wait", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
    {"name": "main", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}},
]}}  # fmt: skip
EVICTED = {"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}}


@pytest.mark.parametrize(
    ("log", "pod", "code", "message"),
    [
        (LAUNCHER, {}, 2, "clean: color: expected rgb"),
        ("[clean] 12 rows\n", OOM, 1, "clean: its pod was killed: out of memory (OOMKilled, exit code 137)"),
        ("[clean] 12 rows\n", EVICTED, 1, "clean: its pod was ended: Evicted: The node was low on memory."),
        ("failed to execute component: signal: killed", {}, 1, "clean: its process was killed (signal killed)"),
        ("failed to execute component: exit status 75", {}, 1, "clean: ended with exit code 75 and without a message"),
        ("", {}, 1, "the run failed in clean; clean was lost or killed"),
    ],
)
def test_missing_record_is_replaced_by_the_log_or_the_pod_status(
    mill: Commands, log: str, pod: dict[str, Any], code: int, message: str
) -> None:
    def keep(run: str) -> None:
        mill.service.storage.step(run, "download", record=record("download"))
        name = mill.service.storage.step(run, "clean", "FAILED")
        mill.service.storage.pod_logs[name] = log
        if pod:
            mill.service.storage.pods[name] = pod
        mill.service.storage.step(run, "finish", records={})

    mill.service.scripts = [script("download", "clean", last="FAILED")]
    when_looked_at(mill, keep)
    result = mill("submit", "--json")
    assert result.code == code and result.json["error"].startswith(message), result.json["error"]
    assert "can't be read" not in result.err


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Commands]:
    """Behind Kubeflow's gateway: below /pipeline, with a login and namespaces; the metadata store below the origin."""
    service = KfpService(multi_user=True, cookie="authservice_session=s3cr3t", prefix="/pipeline")
    service.storage.authorized = True
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        service.url += "/pipeline"
        monkeypatch.setenv("KF_PIPELINES_COOKIE", service.cookie)
        yield mill


def test_multi_user_mode_reads_everything_through_the_gateway(profiles: Commands, tmp_path: Path) -> None:
    run = start(profiles, "--namespace", "team")
    pod = profiles.service.storage.step(run, "promote", records=WHOLE, report=b"<p>team</p>")
    profiles.service.storage.pod_logs[pod] = "[promote] first\n"
    options = ["--namespace", "team"]
    target = tmp_path / "report.html"
    details = profiles("runs", run, "--follow", "--report", str(target), *options)
    assert details.code == 0 and target.read_bytes() == b"<p>team</p>", details.err
    assert profiles("runs", run, "--logs", "promote", *options).out == "[promote] first\n"
    assert "0.947" in profiles("runs", *options).out


def test_a_login_that_is_not_the_pages_leaves_the_store(
    mill: Commands, started: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that KFP can't give are read from the workspace."""
    from imagemill.pipelines.kfp import artifacts

    monkeypatch.setattr(artifacts, "read_stored_records", lambda workspace, run: dict(WHOLE))
    mill.service.fail("401", 1000, "POST", "ml_metadata")
    assert mill("runs", started, "--follow").code == 0
    assert "0.947" in mill("runs").out
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", f"{mill.service.url}/elsewhere")
    assert mill("runs", started, "--report", "r.html").code == 1


def test_a_place_that_cant_be_read_is_asked_once(mill: Commands) -> None:
    for _ in range(3):
        start(mill, looks=[("SUCCEEDED", {})])
    mill.service.fail("404 plain", 1000, "POST", "ml_metadata")
    listed = mill("runs")
    assert listed.code == 0 and len(listed.out.splitlines()) == 4
    assert mill.service.asked("POST", "ml_metadata") == 1


def test_the_metadata_store_is_read_as_its_own_engine_answers() -> None:
    golden = json.loads(GOLDEN.read_text())

    def call(method: str, request: bytes) -> bytes:
        assert request.hex() == golden[method]["request"]
        return bytes.fromhex(golden[method]["answer"])

    manifest, log, report = kfp_metadata.read_artifacts(call, "run-1")
    assert (manifest.type, manifest.uri, manifest.properties) == (
        "system.Dataset",
        "minio://mlpipeline/v2/m",
        {"record": "{}"},
    )
    assert (report.id, report.type) == (3, kfp_metadata.HTML_TYPE)
    clean, promote = kfp_metadata.read_executions(call, "run-1")
    assert (clean.task, clean.state, clean.logs) == ("clean", "COMPLETE", (log,))
    assert (promote.task, promote.state, promote.pod, promote.namespace) == (
        "promote", "FAILED", "wf-system-container-impl-2", "kubeflow"
    )  # fmt: skip
    assert promote.created > 1_700_000_000_000 and promote.logs == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (kfp_metadata.frame(b"grpc-status: 14\r\ngrpc-message:away\r\n", 0x80), "status 14: away"),
        (b"", "something else"),
        (b"<!DOCTYPE html><html>log in</html>", "something else"),
        (kfp_metadata.frame(b"x" * 9)[:-3], "something else"),
    ],
)
def test_invalid_grpc_responses_are_errors(body: bytes, message: str) -> None:
    with pytest.raises(MillError, match=message):
        kfp_metadata.unframe(body)


@pytest.mark.parametrize(
    ("host", "named", "address"),
    [
        ("http://localhost:8080", "", "http://localhost:8080"),
        ("https://kubeflow.example.com/pipeline/", "", "https://kubeflow.example.com/pipeline"),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", "", "http://ml-pipeline-ui.kubeflow.svc.cluster.local"),
        ("http://localhost:8888", "http://localhost:8080/", "http://localhost:8080"),
    ],
)
def test_the_pages_are_where_the_api_is_or_where_it_is_said(
    host: str, named: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", named)
    assert resolve_ui_address(host) == address
