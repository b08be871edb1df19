"""`imagemill schedule` through KFP's own client: one recurring run per name, after any failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import kfp_commands
import pytest
from kfp_commands import CLUSTER, Commands, commands, compiled_once
from kfp_server import KfpService

WEEKLY = ["schedule", "--cron", "0 3 * * 1"]
NAME = "imagemill-training-demo"

mill = kfp_commands.mill


def list_enabled(service: KfpService) -> list[dict[str, Any]]:
    return [schedule for schedule in service.recurring if schedule["mode"] == "ENABLE"]


def list_crons(schedules: list[dict[str, Any]]) -> list[str]:
    return [schedule["trigger"]["cron_schedule"]["cron"] for schedule in schedules]


def test_schedule_creates_a_recurring_run(mill: Commands) -> None:
    ran = mill(*WEEKLY, "--epochs", "3", "--min-gain", "0.5", "--weight-decay", "0.1")
    assert ran.code == 0, ran.err
    (schedule,) = mill.service.recurring
    assert schedule["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (schedule["max_concurrency"], schedule["no_catchup"], schedule["mode"]) == ("1", True, "ENABLE")
    assert schedule["display_name"] == NAME and schedule["description"] == "imagemill: 0 3 * * 1"
    parameters = schedule["runtime_config"]["parameters"]
    assert parameters == {
        "epochs": "3", "config": '{"promote": {"min_gain": 0.5}, "train": {"weight_decay": 0.1}}'
    }  # fmt: skip
    assert f"{NAME}: 0 3 * * 1, enabled" in ran.out


def test_schedule_runs_the_newest_version(mill: Commands, tmp_path: Path) -> None:
    assert mill(*WEEKLY).code == 0
    first = mill.service.versions[0]["pipeline_version_id"]
    assert "pipeline_version_id" not in mill.service.recurring[0]["pipeline_version_reference"]
    assert mill.service.fire(NAME)["pipeline_version_reference"]["pipeline_version_id"] == first
    (tmp_path / "cluster.yaml").write_text(CLUSTER + "steps:\n  clean:\n    cpu: 7\n")
    cluster = ["--cluster", str(tmp_path / "cluster.yaml")]
    assert mill("submit", "--no-wait", *cluster).code == 0  # a new version, and the schedule takes it
    second = mill.service.versions[1]["pipeline_version_id"]
    assert mill.service.fire(NAME)["pipeline_version_reference"]["pipeline_version_id"] == second
    assert mill(*WEEKLY).code == 0  # the old package again: it is there, but not the newest
    third = mill.service.versions[2]
    assert third["name"].startswith(mill.service.versions[0]["name"] + "-")
    assert mill.service.fire(NAME)["pipeline_version_reference"]["pipeline_version_id"] == third["pipeline_version_id"]
    assert mill(*WEEKLY).code == 0 and len(mill.service.versions) == 3


def test_schedule_of_the_same_name_is_replaced(mill: Commands) -> None:
    assert mill(*WEEKLY).code == 0
    old_id = mill.service.recurring[0]["recurring_run_id"]
    ran = mill("schedule", "--cron", "0 4 * * 1", "--epochs", "2")
    assert ran.code == 0, ran.err
    (schedule,) = mill.service.recurring
    assert schedule["trigger"]["cron_schedule"]["cron"] == "0 0 4 * * 1" and schedule["recurring_run_id"] != old_id
    assert mill.service.deletions == [(old_id, "ORPHAN")]
    assert mill("schedule", "--cron", "0 5 * * 1", "--name", "cats").code == 0  # another name, another schedule
    names = {schedule["display_name"] for schedule in list_enabled(mill.service)}
    assert names == {"imagemill-training-cats", NAME} and len(list_enabled(mill.service)) == 2


def test_same_schedule_again_changes_nothing(mill: Commands) -> None:
    for _ in range(2):
        ran = mill(*WEEKLY, "--epochs", "3")
        assert ran.code == 0, ran.err
    assert "unchanged" in ran.err and mill.service.asked("POST", "/recurringruns$") == 1
    assert not mill.service.deletions


def test_running_run_survives_the_replacement(mill: Commands) -> None:
    """KFP before its propagation policy deletes what belongs to a recurring run with it."""
    assert mill(*WEEKLY).code == 0
    run = mill.service.fire(NAME)["run_id"]
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert ran.code == 0 and f"not deleted before its run {run} has ended" in ran.err
    assert [schedule["mode"] for schedule in mill.service.recurring] == ["DISABLE", "ENABLE"]
    assert [entry["run_id"] for entry in mill.service.runs] == [run] and not mill.service.deletions
    mill.service.runs[0]["state"] = "SUCCEEDED"
    assert mill("schedule", "--cron", "0 4 * * 1").code == 0
    assert list_crons(mill.service.recurring) == ["0 0 4 * * 1"]
    assert mill.service.runs


@pytest.mark.parametrize("kind", ["drop", "drop after", "500"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/recurringruns$"), ("POST", ":disable$"), ("DELETE", ""), ("GET", "/recurringruns$")]
)
def test_transient_faults_leave_one_schedule(mill: Commands, kind: str, method: str, path: str) -> None:
    assert mill(*WEEKLY).code == 0
    mill.service.fail(kind, 1, method, path)
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert ran.code == 0, ran.err
    assert list_crons(mill.service.recurring) == ["0 0 4 * * 1"]
    assert mill.service.faults[0].times == 0


@pytest.mark.parametrize(
    ("method", "path", "left"),
    [
        ("POST", "/recurringruns$", "0 0 3 * * 1"),  # the new one can't be made: the old one stays
        ("POST", ":disable$", "0 0 3 * * 1"),  # the old one can't be stopped: the new one goes again
        ("DELETE", "", "0 0 4 * * 1"),  # it is stopped: that counts
    ],
)
def test_permanent_faults_leave_one_schedule(
    mill: Commands, monkeypatch: pytest.MonkeyPatch, method: str, path: str, left: str
) -> None:
    assert mill(*WEEKLY).code == 0
    monkeypatch.setattr("imagemill.pipelines.kfp.client.RETRY_S", 0.3)
    mill.service.fail("500", 1000, method, path)
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert list_crons(list_enabled(mill.service)) == [left]
    assert ran.code == (0 if method == "DELETE" else 75)
    assert path != ":disable$" or "the schedule is as it was" in ran.err


def test_disable_with_a_lost_response_is_reverted(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old schedule is disabled without our hearing of it: it must go again, for the new one is deleted."""
    assert mill(*WEEKLY).code == 0
    monkeypatch.setattr("imagemill.pipelines.kfp.client.RETRY_S", 0.3)
    mill.service.fail("drop after", 1000, "POST", ":disable$")
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert ran.code == 75 and "the schedule is as it was" in ran.err
    assert list_crons(list_enabled(mill.service)) == ["0 0 3 * * 1"]
    assert len(mill.service.recurring) == 1


def test_old_schedule_that_may_not_be_deleted_is_reported(mill: Commands) -> None:
    assert mill(*WEEKLY).code == 0
    mill.service.fail("403", 1000, "DELETE")
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert ran.code == 0 and "is disabled; it could not be deleted" in ran.err and "(403: " in ran.err
    assert list_crons(list_enabled(mill.service)) == ["0 0 4 * * 1"]
    ran = mill("schedule", "--delete")
    assert ran.code == 2 and "is disabled; it could not be deleted" in ran.err and not list_enabled(mill.service)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("method", "path"), [("POST", "/recurringruns"), ("POST", ":disable"), ("DELETE", "")])
def test_signal_waits_for_the_replacement(mill: Commands, number: int, method: str, path: str) -> None:
    assert mill(*WEEKLY).code == 0
    requests: list[str] = []

    def interrupt(verb: str, url_path: str) -> None:
        if verb == method and url_path.endswith(path) and not requests:
            requests.append(url_path)
            os.kill(os.getpid(), number)

    mill.service.on_request = interrupt
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert requests and ran.code == 130
    assert list_crons(mill.service.recurring) == ["0 0 4 * * 1"]
    assert [schedule["mode"] for schedule in mill.service.recurring] == ["ENABLE"]


def test_kill_during_the_replacement_leaves_two_schedules(mill: Commands) -> None:
    """Nothing can make one step of two requests; the next `schedule` mends it."""
    assert mill(*WEEKLY).code == 0
    words = ["schedule", "--cron", "0 4 * * 1", "--host", mill.service.url, "--package", str(compiled_once())]
    command = subprocess.Popen(
        [sys.executable, "-m", "imagemill.pipelines.cli", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    mill.service.fail("drop", 1, "POST", ":disable$")
    mill.service.on_request = lambda method, path: command.kill() if path.endswith(":disable") else None
    assert command.wait(60) == -signal.SIGKILL
    mill.service.on_request = None
    assert list_crons(list_enabled(mill.service)) == ["0 0 3 * * 1", "0 0 4 * * 1"]
    assert mill("schedule", "--cron", "0 4 * * 1").code == 0
    assert list_crons(mill.service.recurring) == ["0 0 4 * * 1"]


def test_duplicate_schedules_become_one(mill: Commands) -> None:
    assert mill(*WEEKLY).code == 0
    mill.service.recurring.append(mill.service.recurring[0] | {"recurring_run_id": "left", "runtime_config": {}})
    listed = mill("schedule", "--list")
    assert listed.out.count(NAME) == 2 and "is there twice" in listed.err
    assert mill("schedule", "--enable").code == 2
    assert mill(*WEEKLY).code == 0
    assert [schedule["recurring_run_id"] == "left" for schedule in mill.service.recurring] == [False]


def test_foreign_recurring_run_is_not_replaced(mill: Commands) -> None:
    assert mill(*WEEKLY).code == 0
    mill.service.recurring[0]["description"] = "made by hand"
    ran = mill("schedule", "--cron", "0 4 * * 1")
    assert ran.code == 2 and "--schedule-name: expected a name that no other recurring run has" in ran.err
    assert len(list_enabled(mill.service)) == 1
    assert mill("schedule", "--list").out == "no schedules of imagemill-training\n"
    assert mill("schedule", "--cron", "0 4 * * 1", "--schedule-name", "mine").code == 0


def test_schedule_is_disabled_enabled_and_deleted(mill: Commands) -> None:
    assert mill(*WEEKLY).code == 0
    assert mill("schedule", "--disable").out == f"{NAME}: disabled\n" and not list_enabled(mill.service)
    assert mill("schedule", "--enable").out == f"{NAME}: enabled\n" and len(list_enabled(mill.service)) == 1
    (listed,) = [json.loads(line) for line in mill("schedule", "--list", "--json").out.splitlines()]
    assert listed["cron"] == "0 3 * * 1" and listed["kfp_cron"] == "0 0 3 * * 1" and listed["enabled"] is True
    assert mill("schedule", "--delete").out == f"{NAME}: deleted\n" and not mill.service.recurring
    ran = mill("schedule", "--delete")
    assert ran.code == 2 and f"--schedule-name: expected a schedule that there is (none), found '{NAME}'" in ran.err
    assert mill(*WEEKLY, "--disable").code == 0
    assert [schedule["mode"] for schedule in mill.service.recurring] == ["DISABLE"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "schedule: expected --cron, or one of"),
        (["--list", "--delete"], "found '--list, --delete'"),
        (["--cron", "0 3 * * 1", "--delete"], "found '--cron, --delete'"),
        (["--cron", "61 3 * * 1"], "--cron (minute): expected numbers from 0 to 59"),
        (["--cron", "0 0 3 * * 1"], "--cron: expected five fields"),
        (["--cron", "*/90 3-5 * * 7"], "--cron (day of the week): expected numbers from 0 to 6"),
        (["--cron", "0 3 * * 1", "--dataset", "folder", "--source", "./photos"], "--source: expected s3://"),
    ],
)
def test_invalid_arguments_are_refused_without_a_request(mill: Commands, words: list[str], message: str) -> None:
    ran = mill("schedule", *words)
    assert ran.code == 2 and message in ran.err
    assert not mill.service.requests


def test_schedules_of_two_namespaces_are_independent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = KfpService(multi_user=True)
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        assert mill(*WEEKLY, "--namespace", "team").code == 0
        assert mill(*WEEKLY, "--namespace", "other").code == 0  # of the same name, and none of this one's business
        assert [schedule["namespace"] for schedule in service.recurring] == ["team", "other"]
        assert mill("schedule", "--delete", "--namespace", "team").code == 0
        assert [schedule["namespace"] for schedule in service.recurring] == ["other"]
        assert mill("schedule", "--list").code == 2
        ran = mill("schedule", "--list", "--namespace", "team", "--pipeline-name", "mine")
        assert ran.code == 0 and ran.out == "no schedules of mine\n"
