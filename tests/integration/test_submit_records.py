"""`submit` and `runs` with step records on a real S3 server."""

from __future__ import annotations

import kfp_commands
import pytest
from kfp_commands import Commands, script

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace

mill = kfp_commands.mill


@pytest.fixture
def workspace(mill: Commands, s3_workspace: str) -> Workspace:
    """Workspace on the S3 server; after `mill`, which removes the user's variables."""
    return Workspace(s3_workspace)


def leave_records(mill: Commands, workspace: Workspace, **records: dict[str, object]) -> None:
    """Let the steps of the next run leave these records."""

    def on_request(method: str, path: str) -> None:
        run = path.rpartition("/runs/")[2]
        if method == "GET" and "/" not in run:
            mill.service.on_request = None
            for step, values in records.items():
                record = {"state": "ran", "seconds": 1.5, **values}
                workspace.write_step_record(run, step, StepRecord.from_dict(record, step))

    mill.service.on_request = on_request


def test_metrics_of_a_run_come_from_its_records(mill: Commands, workspace: Workspace) -> None:
    evaluation = {"metrics": {"top1": 0.953, "macro_f1": 0.947, "champion_evaluation": ""}}
    gate = {"metrics": {"report": f"{workspace.uri}/runs/r/report.html", "promoted": True, "verdict": "first"}}
    leave_records(mill, workspace, train={"uri": f"{workspace.uri}/model/01"}, evaluate=evaluation, promote=gate)
    mill.service.scripts = [script()]
    ran = mill("submit", "--workspace", workspace.uri, "--name", "cats")
    assert ran.code == 0, ran.err
    assert "cats: top-1 0.953 · macro-F1 0.947 · first" in ran.out and f"{workspace.uri}/model/01" in ran.out
    row = mill("runs").out.splitlines()[1]
    assert "0.947" in row and "first" in row
    output = mill("runs", mill.service.runs[0]["run_id"]).out
    assert f"{workspace.uri}/model/01" in output


@pytest.mark.parametrize("code", [1, 2, 75])
def test_command_has_the_exit_code_of_the_failed_step(mill: Commands, workspace: Workspace, code: int) -> None:
    leave_records(mill, workspace, download={}, clean={"state": "failed", "exit_code": code, "error": "what was wrong"})
    mill.service.scripts = [script("download", "clean", last="FAILED")]
    ran = mill("submit", "--workspace", workspace.uri, "--json")
    assert ran.code == code and ran.json["error"] == "clean: what was wrong" and ran.json["exit_code"] == code


def test_unreadable_records_fail_no_run(mill: Commands, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import forget_s3_clients

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    forget_s3_clients()
    mill.service.scripts = [script()]
    ran = mill("submit", "--workspace", workspace.uri, "--json")
    assert ran.code == 0 and ran.json["status"] == "succeeded" and ran.json["metrics"] == {}
    assert "the steps' records can't be read from here" in ran.err
