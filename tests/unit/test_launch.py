"""Several processes: what they are told, how they agree, and whose error it was."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import make_tensors, settings

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.step.runner_exit import StopRequest
from imagemill.components.step.step import RANK_RECORDS, Context, Step, rank
from imagemill.components.storage.errors import MillError, TransientError, UserError
from imagemill.components.train import STEP
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.loop import processes
from imagemill.components.train.loop.distributed import LOST, Communicator, synchronize_batch_norm
from imagemill.components.train.loop.stepper import _find_unused_parameters


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=13, val=0)


def test_processes_get_the_config_of_the_step(tensors: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        tensors=tensors.uri, ema=0.99, flip="false", tensorboard=False, processes=3, rerun="train", seed=7
    )
    flags = processes.make_flags(config, "some-run")
    configs: list[TrainConfig] = []
    monkeypatch.setattr(Step, "execute", lambda self, parsed, result="": configs.append(parsed) or StepRecord())
    assert STEP.main(flags) == 0
    assert asdict(configs[0]) == asdict(config) | {"run": "some-run", "processes": None}
    assert processes.make_flags(TrainConfig(), "r") == ["--run=r"] or all("=" in flag for flag in flags)


def record(folder: Path, rank: int, code: int, error: str = "") -> None:
    (folder / f"{rank}.json").write_text(json.dumps({"exit_code": code, "error": error}))


@pytest.mark.parametrize(
    ("records", "last", "kind", "message"),
    [
        ([(75, f"{LOST}: Connection closed"), (2, "dropout: expected 0")], [], UserError, "dropout: expected 0"),
        ([(75, "stopped by SIGTERM"), (1, "KeyError: 3")], [], MillError, "KeyError: 3"),
        ([(75, f"{LOST}: x"), (75, "s3: unreachable")], [], TransientError, "s3: unreachable"),
        ([(75, f"{LOST}: x"), (75, f"{LOST}: y")], [], TransientError, f"{LOST}: x"),
        (
            [(75, f"{LOST}: x"), None],
            ["  Signal 9 (SIGKILL) received by PID 7"],
            TransientError,
            "1 of 2 processes were",
        ),
        ([None, None], ["run.py: error: no such option"], MillError, "torchrun failed: run.py"),
    ],
)
def test_error_of_the_failed_process_is_raised(
    tmp_path: Path, records: list[tuple[int, str] | None], last: list[str], kind: type[MillError], message: str
) -> None:
    for number, process_record in enumerate(records):
        if process_record:
            record(tmp_path, number, *process_record)
    error = processes._find_error(tmp_path, 2, last)
    assert type(error) is kind and str(error).startswith(message)


def test_torchruns_own_account_of_an_error_is_kept_back(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["[train] epoch 1\n", "a warning\n", "W1121 19:00:00.1 12 torch/distributed/run.py:1] Setting OMP\n",
             "E1121 19:00:00.1 12 torch/distributed/elastic/x.py:1] failed\n", "Traceback\n", "[train] error: no\n",
             "ChildFailedError\n"]  # fmt: skip
    last: deque[str] = deque(maxlen=3)
    processes._forward_lines(io.StringIO("".join(lines)), last)  # type: ignore[arg-type]
    assert capsys.readouterr().err.splitlines() == ["[train] epoch 1", "a warning", "[train] error: no"]
    assert list(last)[-1] == "ChildFailedError" and len(last) == 3


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, tensors: Dataset) -> None:
    def number(gpus: int = 0, **values: Any) -> int:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(processes, "_GPU_DRIVERS", ("/",) if gpus else ())
        return processes.choose_processes(settings(tensors, **values))

    assert number() == 1 and number(processes=3) == 3
    assert number(4, device="auto") == 4 and number(4, device="cuda", processes=2) == 2
    assert number(4) == 1, "on the CPU the GPUs do not count"
    assert number(4, device="auto", recipe="probe") == 1
    with pytest.raises(UserError, match="processes: expected at most one for each of 2 GPUs, found 3"):
        number(2, device="auto", processes=3)
    with pytest.raises(UserError, match="batch_size: expected at least two images for each of 5 processes, found 8"):
        number(processes=5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert number(4, device="auto", processes=3) == 2, "torchrun's"


def test_a_process_alone_agrees_with_itself() -> None:
    stop = StopRequest()
    alone = Communicator.join("cpu", stop)
    assert alone.is_main and alone.broadcast(3.0, 4) == [3.0, 4.0] and not alone.should_stop()
    assert alone.sum(torch.tensor(2.5, dtype=torch.float64)) == 2.5
    alone.check_equal("this", 1, 2)
    stop.is_requested = True
    assert alone.should_stop()
    alone.close()


def test_processes_other_than_the_first_log_errors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.open(str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    assert rank() == 0, "a variable of somebody else's"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank() == 1
    Context("train", workspace, "r", False).say("a line")
    bad = TrainConfig(workspace=str(tmp_path), tensors="/nowhere", run="r")
    assert STEP.execute(bad, str(tmp_path / "result.json")).exit_code == 2
    assert capsys.readouterr().err.startswith("[train] error: tensors: expected")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "result.json").exists()
    records = tmp_path / "records"
    records.mkdir()
    monkeypatch.setenv(RANK_RECORDS, str(records))
    assert STEP.execute(bad).exit_code == 2 and not capsys.readouterr().err
    assert json.loads((records / "1.json").read_text())["exit_code"] == 2
    assert not (tmp_path / "runs").exists()


def test_parameters_that_the_logits_do_not_depend_on_are_found() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(12, 2), torch.nn.Linear(3, 2)
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(self.used(images.flatten(1)))

    network = Odd().train()
    network.used.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert _find_unused_parameters(network, (3, 2, 2), torch.device("cpu")) == ["unused.weight", "unused.bias"]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training and not network.used.bias.requires_grad and network.used.weight.grad is None


@pytest.mark.parametrize("backbone", ["resnet18", "timm:efficientnet_lite0"])
def test_batch_normalizations_are_synchronized_on_gpus_and_elsewhere_it_is_said_that_they_are_not(
    backbone: str,
) -> None:
    """Parameters, names and what the network computes are the same; timm's activations stay with their layers."""
    network = build_network(ModelSpec(backbone, ("a", "b"), ImageSpec((32, 32, 3)))).eval()
    images, before = torch.randn(2, 3, 32, 32), dict(network.named_parameters())
    expected, names = network(images), list(network.state_dict())
    assert "each process normalizes by its own share" in synchronize_batch_norm(network, backbone, torch.device("cpu"))
    assert not any(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules())
    assert "SyncBatchNorm" in synchronize_batch_norm(network, backbone, torch.device("cuda"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules())
    assert list(network.state_dict()) == names and torch.equal(network(images), expected)
    assert all(parameter is before[name] for name, parameter in network.named_parameters())


def test_a_network_without_batch_normalization_is_left_alone() -> None:
    network = build_network(ModelSpec("squeezenet1_1", ("a", "b"), ImageSpec((32, 32, 3))))
    assert not synchronize_batch_norm(network, "squeezenet1_1", torch.device("cuda"))


def test_sigterm_outside_of_the_main_thread_is_left_alone() -> None:
    import threading

    stop, entered = StopRequest(), []

    def enter() -> None:
        with stop.handle_signals():
            entered.append(os.getpid())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered and not stop.is_requested
