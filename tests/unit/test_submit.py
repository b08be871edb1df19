"""`imagemill submit` through KFP's own client against an API server: the run and its result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kfp_commands
import pytest
import yaml
from kfp_commands import CLUSTER, Commands, compiled_once, record, script
from kfp_server import KfpService, serving

from imagemill.components.dataset.records import StepRecord

SECRET = "s3cr3t-0f-somebody"
mill, records = kfp_commands.mill, kfp_commands.records


def test_run_is_submitted_and_followed(mill: Commands, records: dict[str, StepRecord]) -> None:
    records |= {
        "download": record("download"),
        "evaluate": record("evaluate", metrics={"macro_f1": 0.91, "top1": 0.93}),
    }
    records["promote"] = record("promote", metrics={"report": "s3://r.html", "promoted": True, "verdict": "promoted"})
    mill.service.scripts = [script()]
    ran = mill("submit", "--name", "cats", "--epochs", "3", "--weight-decay", "0.1", "--json")
    run = mill.service.runs[0]
    assert ran.code == 0, ran.err
    assert ran.json["state"] == "SUCCEEDED" and ran.json["status"] == "succeeded" and ran.json["run"] == run["run_id"]
    assert ran.json["link"] == f"{mill.service.url}/#/runs/details/{run['run_id']}"
    assert ran.json["metrics"] == {"macro_f1": 0.91, "top1": 0.93} and ran.json["promoted"] is True
    assert ran.json["records"]["download"]["uri"] == "s3://mill/work/download/00"
    parameters = run["runtime_config"]["parameters"]
    assert parameters == {"name": "cats", "epochs": "3", "config": '{"train": {"weight_decay": 0.1}}'}
    assert ran.err.count("[train] running\n") == 1 and "[train] succeeded after " in ran.err
    assert run["display_name"].startswith("cats-20") and "driver" not in ran.err and "[root]" not in ran.err
    assert mill.service.experiments[0]["display_name"] == "imagemill"


def test_only_a_changed_package_is_uploaded(mill: Commands, tmp_path: Path) -> None:
    submit = ["submit", "--no-wait", "--cluster", str(tmp_path / "cluster.yaml")]
    assert mill(*submit).code == 0
    assert mill(*submit, "--epochs", "7").code == 0  # a parameter is no part of the package
    assert len(mill.service.versions) == 1
    assert [run["runtime_config"]["parameters"] for run in mill.service.runs] == [{}, {"epochs": "7"}]
    (tmp_path / "cluster.yaml").write_text(CLUSTER + "steps:\n  clean:\n    cpu: 7\n")
    assert mill(*submit).code == 0
    assert len(mill.service.versions) == 2 and len(mill.service.pipelines) == 1
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in mill.service.runs]
    first, second = (version["pipeline_version_id"] for version in mill.service.versions)
    assert used == [first, first, second]
    assert len(mill.service.experiments) == 1


def test_compiled_package_is_submitted(mill: Commands, tmp_path: Path) -> None:
    package = compiled_once()
    ran = mill("submit", "--package", str(package), "--no-wait", "--json", "--run-name", "friday")
    assert ran.code == 0, ran.err
    assert ran.json["status"] == "running" and ran.json["run_name"] == "friday"
    documents = [*yaml.safe_load_all(package.read_text())]
    assert mill.service.versions[0]["pipeline_spec"] == {"pipeline_spec": documents[0], "platform_spec": documents[1]}
    assert not mill.service.runs[0]["runtime_config"]["parameters"]
    other = tmp_path / "other.yaml"
    other.write_text(package.read_text().replace("      model_preset:", "      model_of:"))
    refused = mill("submit", "--package", str(other), "--model-preset", "resnet50")
    assert refused.code == 2 and "--model-preset: expected a parameter of the pipeline" in refused.err
    other.write_text("a: [b")
    assert mill("submit", "--package", str(other)).code == 2 and len(mill.service.runs) == 1


def test_failed_step_determines_exit_code_and_message(mill: Commands, records: dict[str, StepRecord]) -> None:
    records |= {
        "download": record("download"),
        "clean": record("clean", state="failed", exit_code=2, error="color: expected one of rgb, found 'x'"),
    }
    mill.service.scripts = [script("download", "clean", last="FAILED")]
    ran = mill("submit", "--json")
    assert ran.code == 2 and "imagemill: error: clean: color: expected one of rgb, found 'x'" in ran.err
    assert ran.json["exit_code"] == 2 and ran.json["status"] == "failed" and ran.json["state"] == "FAILED"
    assert "[clean] failed after" in ran.err


def test_step_without_a_record_is_reported(mill: Commands, records: dict[str, StepRecord]) -> None:
    records["download"] = record("download")
    mill.service.scripts = [script("download", "clean", last="FAILED")]
    ran = mill("submit")
    assert ran.code == 1 and "the run failed in clean; clean was lost or killed" in ran.err


def test_result_without_records_is_the_runs_state(mill: Commands) -> None:
    mill.service.scripts = [script("download", last="FAILED"), script(last="CANCELED"), script()]
    failed = mill("submit", "--json")
    assert failed.code == 1 and "the steps' records can't be read from here (Kubeflow" in failed.json["error"]
    assert "s3://mill/work/runs/" in failed.json["error"]
    cancelled = mill("submit")
    assert cancelled.code == 1 and "imagemill: error: the run was cancelled" in cancelled.err
    assert mill("submit", "--json").json["status"] == "succeeded"


def test_run_deleted_while_followed(mill: Commands) -> None:
    mill.service.scripts = [[("RUNNING", {})]]

    def delete(method: str, path: str) -> None:
        if mill.service.asked("GET", "/runs/[^/]+$") > 2:
            mill.service.runs.clear()

    mill.service.on_request = delete
    ran = mill("submit", "--json")
    assert ran.code == 2 and "(the run was deleted while it was followed)" in ran.json["error"]
    assert "goes on" not in ran.json["error"]


def test_credentials_in_a_parameter_are_refused(mill: Commands, tmp_path: Path) -> None:
    """A run's parameters are there for everyone who may see the run."""
    login = f"https://me:{SECRET}@photos.example/x.zip"
    for words in (
        ["--dataset", "folder", "--source", login],
        ["--dataset", "folder", "--source", f"https://photos.example/x.zip?signature={SECRET}"],
        ["--backgrounds", login],
        ["--ray-address", f"http://me:{SECRET}@head:8265"],
        ["--workspace", f"s3://me:{SECRET}@bucket/work"],
    ):
        for package in ([], ["--cluster", str(tmp_path / "cluster.yaml")]):
            ran = mill("submit", *words, *package)
            assert ran.code == 2 and f"{words[-2]}: expected a URL without a login or query" in ran.err, ran.err
            assert SECRET not in ran.err + ran.out and "s3://" in ran.err
    assert not mill.service.requests


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "argo"], "argo submit --from workflowtemplate/"),
        (["--workspace", "./here"], "workspace: expected s3://bucket/prefix"),
        (["--dataset", "folder", "--source", "./photos"], "--source: expected s3://… or http(s)://…"),
        (["--epoch", "3"], "is it --epochs?"),
        (["--epochs", "many"], "--epochs: expected"),
        (["--pipeline-name", " "], "--pipeline-name: expected"),
        (["--token-file", "/no/such/file"], "--token-file: expected a file"),
        (["--namespace", "My Team"], "--namespace: expected a name of lower-case letters, digits and '-', found 'My"),
    ],
)
def test_invalid_arguments_are_refused_without_a_request(mill: Commands, words: list[str], message: str) -> None:
    ran = mill("submit", *words)
    assert ran.code == 2 and message in ran.err
    assert not mill.service.requests


def test_ctrl_c_leaves_the_run_running(tmp_path: Path) -> None:
    service = KfpService(scripts=[[("RUNNING", {"clean": "RUNNING"})]])
    words = ["submit", "--host", "URL", "--package", str(compiled_once()), "--json"]
    with serving(service):
        words[2] = service.url
        command = subprocess.Popen(
            [sys.executable, "-m", "imagemill.pipelines.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"HOME": str(tmp_path)},
        )  # fmt: skip
        assert command.stderr is not None
        stderr_lines = ""
        for line in command.stderr:
            stderr_lines += line
            if "[clean] running" in line:
                break
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=60)
    run = service.runs[0]["run_id"]
    assert command.returncode == 130, stderr_lines + err
    assert f"the run goes on: {service.url}/#/runs/details/{run}; `imagemill runs {run} --follow` follows it" in err
    assert json.loads(out)["run"] == run and "Traceback" not in err
