"""Trainings as runs of MLflow: of a stand-in, and as a proof of the real server with a SQLite file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import Tracking, serve
from trained import command, make_tensors, model_of

from imagemill.components.storage.errors import TransientError, UserError
from imagemill.components.storage.json_client import MlflowClient
from imagemill.components.train import STEP
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.mlflow_run import MlflowRun, choose_experiment

QUICK = {"recipe": "plain", "batch_size": 16, "backbone": "squeezenet1_1", "epochs": 2, "run": "weekly-7"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_server_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACKING_URI", "TRACKING_TOKEN", "TRACKING_USERNAME", "EXPERIMENT_NAME"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)


@pytest.fixture(params=["stand-in", pytest.param("mlflow", marks=pytest.mark.proof)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a server of either kind."""
    if request.param == "stand-in":
        with serve(Tracking()) as url:
            yield url
        return
    program = shutil.which("mlflow")
    if program is None:
        pytest.skip("mlflow is not installed: nothing is shown about the real server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "mlflow"
    folder.mkdir()
    words = ["server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log.txt").open("w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven more processes
        process = subprocess.Popen(
            [program, *words], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not answers(url):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the server and its workers
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def runs_of(url: str, experiment: str) -> list[dict[str, Any]]:
    """Runs of an experiment, with `params` and `tags` as dictionaries."""
    client = MlflowClient(url)
    number = client.require("GET", "/experiments/get-by-name", experiment_name=experiment)["experiment"]
    runs = client.require("POST", "/runs/search", {"experiment_ids": [number["experiment_id"]]}).get("runs", [])
    return [run | {name: {p["key"]: p["value"] for p in run["data"].get(name, [])} for name in ("params", "tags")}
            for run in runs]  # fmt: skip


def test_a_training_is_a_run_with_parameters_epochs_and_the_model(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    arguments = command(make_tensors(tmp_path / "mill"), **QUICK)[3:]
    assert STEP.main(arguments) == 0 == STEP.main(arguments), "the second one is cached, and no run"
    model = model_of(tmp_path / "mill")
    (run,) = runs_of(server, "small")
    assert run["info"]["status"] == "FINISHED" and run["info"]["run_name"] == "weekly-7"
    assert run["params"]["epochs"] == "2" and run["params"]["backbone"] == "squeezenet1_1"
    assert run["tags"]["imagemill.model"] == model.uri
    assert run["tags"]["imagemill.fingerprint"] == model.fingerprint and run["tags"]["imagemill.run"] == "weekly-7"
    client, extra = MlflowClient(server), model.manifest.extra
    for name in ("train_loss", "val_macro_f1", "learning_rate"):
        query = {"run_id": run["info"]["run_id"], "metric_key": name}
        points = client.require("GET", "/metrics/get-history", **query)["metrics"]
        logged = {int(point["step"]): point["value"] for point in points}
        assert logged == {row["epoch"]: pytest.approx(row[name]) for row in extra.history}


def test_a_training_that_goes_on_continues_its_run(server: str) -> None:
    def start() -> MlflowRun:
        run = MlflowRun(server, "00000000000000aa")
        run.start("weekly", "name", {"seed": 1, "long": "x" * 900, **{f"p{n}": n for n in range(150)}}, {})
        return run

    first = start()
    first.log_epoch({"epoch": 1, "train_loss": 2.0, "updates": 3})
    with pytest.raises(TransientError), first.mark_failures():
        raise TransientError("stopped by SIGTERM")
    (run,) = runs_of(server, "weekly")
    assert run["info"]["status"] == "KILLED" and len(run["params"]) == 152
    second = start()
    (run,) = runs_of(server, "weekly")
    assert run["info"]["status"] == "RUNNING"
    with pytest.raises(UserError), second.mark_failures():
        raise UserError("the loss is nan")
    assert [run["info"]["status"] for run in runs_of(server, "weekly")] == ["FAILED"]


@pytest.mark.parametrize("answered", [0, 5])
def test_a_server_that_fails_costs_one_warning(
    answered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the first request on, or once the run is there."""
    monkeypatch.setattr("imagemill.components.storage.json_client.RETRY_S", 0.0)

    class Failing(Tracking):
        def answer(self, *arguments: Any) -> Any:
            return super().answer(*arguments) if len(self.requests) <= answered else (500, {})

    with serve(Failing()) as url:
        assert STEP.main(command(make_tensors(tmp_path), **QUICK, mlflow=url)[3:]) == 0
    stderr = capfd.readouterr().err
    assert stderr.count(f"[train] warning: the training is not logged to MLflow at {url}: ") == 1
    assert model_of(tmp_path).manifest.extra.epochs == 2


def test_the_server_and_the_experiment_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_experiment("pets") == "pets"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "weekly")
    assert choose_experiment("pets") == "weekly"
    TrainConfig(tensors="x", mlflow="none").check()
    with pytest.raises(UserError, match="mlflow: expected http"):
        TrainConfig(tensors="x", mlflow="sqlite:///x").check()
