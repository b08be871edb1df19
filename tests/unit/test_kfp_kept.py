"""`imagemill runs` and `submit` for somebody who has KFP's address and no keys of the store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
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


def start(mill: Commands, *words: str, looks: Any = None) -> str:
    """Start a run that is not followed; its id."""
    mill.service.scripts = [looks or script()]
    assert mill("submit", "--no-wait", *words).code == 0
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


def test_a_failed_step_is_told_by_the_exit_steps_summary(mill: Commands) -> None:
    wrong = record("clean", state="failed", uri="", exit_code=2, error="color: expected one of rgb, found 'x'")

    def keep(run: str) -> None:
        mill.service.kept.step(run, "download", record=record("download"))
        mill.service.kept.step(run, "clean", "FAILED")
        mill.service.kept.step(run, "finish", records={"download": record("download"), "clean": wrong})

    mill.service.scripts = [script("download", "clean", last="FAILED")]
    when_looked_at(mill, keep)
    ran = mill("submit", "--json")
    assert ran.code == 2 and ran.json["error"] == "clean: color: expected one of rgb, found 'x'", ran.err
    assert ran.json["records"]["download"]["uri"] == "s3://mill/work/download/00"
    assert "credentials" not in ran.err and "can't be read" not in ran.err
    shown = mill("runs", last_run(mill))
    assert "failed, exit code 2" in shown.out and "color: expected one of rgb" in shown.out and shown.code == 0
    assert "resize    not reached" in shown.out and "resize" not in ran.err
    assert "failed at clean" in mill("runs").out


def test_numbers_and_verdicts_are_listed(mill: Commands, started: str) -> None:
    mill.service.kept.step(started, "promote", records=WHOLE)
    assert mill("runs", started, "--follow").code == 0
    row = mill("runs").out.splitlines()[1]
    assert "0.947" in row and "first" in row
    shown = mill("runs", started).out
    assert "top-1 0.950 · macro-F1 0.947 · first" in shown and "s3://mill/work/train/00" in shown


def test_runs_of_a_package_that_the_sdk_started_are_listed(mill: Commands) -> None:
    """They have no version: the package goes along with the run."""
    import kfp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = kfp.Client(host=mill.service.url)
        client.create_experiment("Default")
        client.create_run_from_pipeline_package(str(compiled_once()), arguments={"name": "by-sdk"}, run_name="by-sdk")
    run = last_run(mill)
    assert "pipeline_version_reference" not in mill.service.runs[-1]
    mill.service.kept.step(run, "promote", records=WHOLE)
    row = mill("runs").out.splitlines()[-1]  # the SDK has printed, too
    assert row.startswith("by-sdk") and "0.947" in row and "first" in row
    assert "by-sdk" not in mill("runs", "--pipeline-name", "another").out
    shown = mill("runs", run)
    assert shown.code == 0 and shown.err == "", shown.err


def test_a_pipeline_uploaded_under_another_name_is_asked_for_once(mill: Commands) -> None:
    runs = [start(mill, "--pipeline-name", "weekly") for _ in range(3)]
    before = mill.service.asked("GET", "/versions/")
    assert [json.loads(line)["run"] for line in mill("runs", "--json").out.splitlines()] == runs[::-1]
    assert mill.service.asked("GET", "/versions/") == before + 1
    assert len(mill("runs", "--json", "--pipeline-name", "weekly").out.splitlines()) == 3
    assert training.NAME == PIPELINE_NAME


def test_a_run_that_goes_on_shows_what_its_steps_have_made(mill: Commands) -> None:
    run = start(mill, looks=[("RUNNING", {"download": "SUCCEEDED", "clean": "RUNNING"})])
    mill.service.kept.step(run, "download", record=record("download", state="cached"))
    mill.service.kept.step(run, "clean", "RUNNING")
    shown = mill("runs", run)
    assert "download  succeeded, cached" in shown.out and "s3://mill/work/download/00" in shown.out


def test_what_may_be_tried_again_is_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with commands(tmp_path, monkeypatch, capsys, KfpService(retries=True)) as mill:
        mill.service.scripts = [script()]
        ran = mill("submit", "--json")
        assert ran.err.count("[clean] running") == 1 and "(0)" not in ran.err
        tasks = json.loads(mill("runs", last_run(mill), "--json").out)["tasks"]
        assert list(tasks) == list(STEPS) and {one["state"] for one in tasks.values()} == {"SUCCEEDED"}


def test_the_report_is_written(mill: Commands, started: str, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    early = mill("runs", started, "--report", str(target))
    assert early.code == 2 and "--report: expected a run that has made its report" in early.err and not target.exists()
    mill.service.kept.step(started, "promote", records=WHOLE, report="<p>ä</p>".encode())
    assert mill("runs", started, "--follow", "--report", str(target)).code == 0
    assert target.read_text(encoding="utf-8") == "<p>ä</p>"
    assert mill("runs", started, "--report", str(tmp_path / "no" / "folder.html")).code == 2
    assert mill("runs", "--report", str(target)).code == 2


def test_the_report_of_an_unchanged_run_is_the_earlier_runs(mill: Commands, started: str, tmp_path: Path) -> None:
    """Its promote did not run: Kubeflow Pipelines keeps the report with the run that its record names."""
    mill.service.kept.step(started, "promote", records=WHOLE, report=b"<p>earlier</p>")
    again = start(mill)
    report = f"s3://mill/work/runs/{started}/report.html"
    gate = WHOLE["promote"] | {"metrics": WHOLE["promote"]["metrics"] | {"report": report}}
    mill.service.kept.step(again, "finish", records=WHOLE | {"promote": gate})
    target = tmp_path / "report.html"
    shown = mill("runs", again, "--follow", "--report", str(target))
    assert shown.code == 0 and target.read_bytes() == b"<p>earlier</p>", shown.err


LAUNCHER = "I1122 launcher_v2.go:90] input\n[clean] error: color: expected rgb\nF1122 main.go:50] failed to execute "
LAUNCHER += "component: exit status 2\n"


def test_logs_come_from_where_they_are(mill: Commands, started: str) -> None:
    kept = mill.service.kept
    running = kept.step(started, "train", "RUNNING")
    kept.pod_logs[running] = "[train] epoch 1"
    assert mill("runs", started, "--logs", "train").out == "[train] epoch 1\n"
    ended = kept.step(started, "clean", "FAILED", logs=("[clean] first try\n", "[clean] error: color\n"))
    kept.pod_logs[ended] = LAUNCHER
    assert mill("runs", started, "--logs", "clean").out == "[clean] error: color\n"  # the step's own lines
    archived = kept.step(started, "resize", "FAILED")
    kept.archived_logs[archived] = "[resize] archived ä\n"
    assert mill("runs", started, "--logs", "resize").out == "[resize] archived ä\n"
    kept.step(started, "promote")
    gone = mill("runs", started, "--logs", "promote")
    assert (
        gone.code == 2 and "expected the log of promote, found none: " in gone.err and "artifact not found" in gone.err
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
    ("log", "pod", "code", "said"),
    [
        (LAUNCHER, {}, 2, "clean: color: expected rgb"),
        ("[clean] 12 rows\n", OOM, 1, "clean: its pod was killed: out of memory (OOMKilled, exit code 137)"),
        ("[clean] 12 rows\n", EVICTED, 1, "clean: its pod was ended: Evicted: The node was low on memory."),
        ("failed to execute component: signal: killed", {}, 1, "clean: its process was killed (signal killed)"),
        ("failed to execute component: exit status 75", {}, 1, "clean: ended with exit code 75 and without a message"),
        ("", {}, 1, "the run failed in clean; clean ended without a record"),
    ],
)
def test_without_a_record_the_log_or_the_pod_tells(
    mill: Commands, log: str, pod: dict[str, Any], code: int, said: str
) -> None:
    def keep(run: str) -> None:
        mill.service.kept.step(run, "download", record=record("download"))
        name = mill.service.kept.step(run, "clean", "FAILED")
        mill.service.kept.pod_logs[name] = log
        if pod:
            mill.service.kept.pods[name] = pod
        mill.service.kept.step(run, "finish", records={})

    mill.service.scripts = [script("download", "clean", last="FAILED")]
    when_looked_at(mill, keep)
    ran = mill("submit", "--json")
    assert ran.code == code and ran.json["error"].startswith(said), ran.json["error"]
    assert "can't be read" not in ran.err


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Commands]:
    """Behind Kubeflow's gateway: below /pipeline, with a login and namespaces; the metadata store below the origin."""
    service = KfpService(multi_user=True, cookie="authservice_session=s3cr3t", prefix="/pipeline")
    service.kept.authorized = True
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        service.url += "/pipeline"
        monkeypatch.setenv("KF_PIPELINES_COOKIE", service.cookie)
        yield mill


def test_with_profiles_everything_goes_through_the_gateway(profiles: Commands, tmp_path: Path) -> None:
    run = start(profiles, "--namespace", "team")
    pod = profiles.service.kept.step(run, "promote", records=WHOLE, report=b"<p>team</p>")
    profiles.service.kept.pod_logs[pod] = "[promote] first\n"
    words = ["--namespace", "team"]
    target = tmp_path / "report.html"
    shown = profiles("runs", run, "--follow", "--report", str(target), *words)
    assert shown.code == 0 and target.read_bytes() == b"<p>team</p>", shown.err
    assert profiles("runs", run, "--logs", "promote", *words).out == "[promote] first\n"
    assert "0.947" in profiles("runs", *words).out


def test_a_login_that_is_not_the_pages_leaves_the_store(
    mill: Commands, started: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be had through KFP comes from the workspace, where that can be read."""
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
    ("body", "said"),
    [
        (kfp_metadata.frame(b"grpc-status: 14\r\ngrpc-message:away\r\n", 0x80), "status 14: away"),
        (b"", "something else"),
        (b"<!DOCTYPE html><html>log in</html>", "something else"),
        (kfp_metadata.frame(b"x" * 9)[:-3], "something else"),
    ],
)
def test_an_answer_that_is_none_is_an_error(body: bytes, said: str) -> None:
    with pytest.raises(MillError, match=said):
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
