"""Training stopped at any moment by SIGKILL or SIGTERM and resumed: the same model file in the end.

Every option is on that a step can depend on: moving average, mixing, RandAugment, dropout, accumulation, freezing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import command, finish, make_tensors, model_of, start, weights_sha256

from imagemill.components.dataset.kinds import ModelExtra
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.models.artifact import ModelSpec, build_network, load_model
from imagemill.components.train import STEP
from imagemill.components.train.loop.validation import Validator

STEP_OPTIONS = {
    "recipe": "plain", "batch_size": 8, "ema": 0.99, "mixup_probability": 0.4, "cutmix_probability": 0.4,
    "policy": "randaugment", "dropout": 0.3, "accumulate": 2, "probe_epochs": 1, "unfreeze_epochs": 2,
    "checkpoint_minutes": 0.001, "run": "r", "backbone": "squeezenet1_1",
}  # fmt: skip
QUICK: dict[str, Any] = {
    "recipe": "plain", "batch_size": 9, "backbone": "squeezenet1_1", "epochs": 2, "run": "r", "precision": "float32",
}  # fmt: skip


def prepare(folder: Path) -> tuple[Dataset, str]:
    """Make tensors in a workspace, and a file of pretrained weights, without which no block is frozen."""
    from safetensors.torch import save_file

    tensors = make_tensors(folder)
    torch.manual_seed(1)
    network = build_network(ModelSpec(str(STEP_OPTIONS["backbone"]), ("a", "b"), tensors.manifest.image))
    weights = folder / "pretrained.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, str(weights))
    return tensors, str(weights)


pytestmark = pytest.mark.usefixtures("one_thread")


def train_uninterrupted(folder: Path, **values: Any) -> Dataset:
    """Train in this process; return the model."""
    tensors, weights = prepare(folder)
    assert STEP.main(command(tensors, weights=weights, **values)[3:]) == 0
    return model_of(folder)


def start_and_wait(folder: Path, arguments: list[str], text: str = "augmentation:") -> subprocess.Popen[str]:
    """The command, when it has said so: that it is about to take its first step of this try, or has ended an epoch."""
    process = start(arguments)
    assert process.stderr
    for line in process.stderr:
        if text in line:
            return process
    raise AssertionError(f"ended with {process.wait()} before it trained")


def stop(process: subprocess.Popen[str], after: float, kind: signal.Signals) -> tuple[int, str]:
    """Stop a training after so many seconds; return (exit code, stderr)."""
    time.sleep(after)
    os.kill(process.pid, kind)
    return finish(process)


def test_stopped_trainings_end_with_the_model_of_an_uninterrupted_one(tmp_path: Path) -> None:
    expected = train_uninterrupted(tmp_path / "whole", **STEP_OPTIONS, epochs=8)
    tensors, weights = prepare(tmp_path / "stopped")
    arguments = command(tensors, weights=weights, **STEP_OPTIONS, epochs=8)
    code, stderr = stop(start_and_wait(tmp_path, arguments, "epoch 1/8"), 0.1, signal.SIGTERM)
    assert code == 75 and "[train] error: stopped by SIGTERM after" in stderr
    assert not list((tmp_path / "stopped" / "model").glob("*/_manifest.json"))
    code, stderr = stop(start_and_wait(tmp_path, arguments, "resuming after"), 0.1, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert STEP.main(arguments[3:]) == 0
    model = model_of(tmp_path / "stopped")
    assert model.fingerprint == expected.fingerprint and weights_sha256(model) == weights_sha256(expected)
    assert not list(Path(model.uri).glob("_work/checkpoint*"))


@pytest.mark.proof
@pytest.mark.parametrize("seed", [0])
def test_training_stopped_at_twenty_random_moments(tmp_path: Path, seed: int) -> None:
    """One training that is stopped 20 times, every other time by SIGTERM, at random moments all over it."""
    values = STEP_OPTIONS | {"epochs": 60, "unfreeze_epochs": 30, "probe_epochs": 5}
    expected = train_uninterrupted(tmp_path / "whole", **values)
    tensors, weights = prepare(tmp_path / "stopped")
    arguments = command(tensors, weights=weights, **values)
    moments, longest = random.Random(seed), expected.manifest.extra.seconds / 14
    for number in range(20):
        kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        code, stderr = stop(start_and_wait(tmp_path, arguments), moments.uniform(0, longest), kind)
        assert code == (75 if kind is signal.SIGTERM else -kind), f"stop {number}: {stderr}"
        print(f"stop {number + 1} by {kind.name}: {stderr.splitlines()[-1:]}", file=sys.stderr)
    code, stderr = finish(start(arguments), 600)
    assert code == 0, stderr
    assert weights_sha256(model_of(tmp_path / "stopped")) == weights_sha256(expected)


def check_validation_in_one_process(model: Dataset, tensors: Dataset) -> None:
    """Check that the stored weights have, to the last bit, the scores of the epoch that they are of."""
    extra = model.manifest.extra
    assert isinstance(extra, ModelExtra) and extra.best_epoch
    row, device = extra.history[extra.best_epoch - 1], torch.device("cpu")
    scores = Validator(tensors, 4 * QUICK["batch_size"], device, nullcontext).validate(load_model(model)[0], bool)
    assert scores == {name: row[name] for name in ("val_loss", "val_top1", "val_macro_f1")}


def test_two_processes_train_like_a_single_one(tmp_path: Path) -> None:
    """A network without batch normalization sees the same images in the same batches, half of each in each process;
    what differs is the order in which floats are added up. Tolerance: 1e-4 of each loss. The number of processes counts
    in the fingerprint, that of the loader's threads does not. Both validate: two batches and one."""
    rows, models = [], []
    for number in (1, 2):
        tensors = make_tensors(tmp_path / str(number), val=80)
        arguments = command(tensors, **QUICK, policy="randaugment", accumulate=2, ema=0.9, processes=number)
        code, stderr = (STEP.main(arguments[3:]), "") if number == 1 else finish(start(arguments))
        assert code == 0, stderr
        models.append(model_of(tmp_path / str(number)))
        rows.append(models[-1].manifest.extra.history)
    assert models[0].fingerprint != models[1].fingerprint and "processes" not in models[0].manifest.config
    assert models[1].manifest.config["processes"] == 2
    assert "batch normalization" not in stderr, "there is none"
    assert "on 2 processes, each on cpu" in stderr and stderr.count("[train] epoch 2/2") == 1
    assert stderr.count("[train] done") == stderr.count("[train] best epoch") == 1
    for row, other_row in zip(*rows, strict=True):
        for name in ("train_loss", "val_loss"):
            assert other_row[name] == pytest.approx(row[name], rel=1e-4)
        assert other_row["updates"] == row["updates"]
    check_validation_in_one_process(models[1], tensors)
    assert [path.name for path in (tmp_path / "2" / "runs" / "r").glob("*.json")] == ["train.json"]


def test_the_weights_do_not_depend_on_the_number_of_loading_threads(tmp_path: Path) -> None:
    values, models = QUICK | {"policy": "randaugment", "erasing": 0.5, "mixup_probability": 0.5}, []
    for number in (1, 3):
        arguments = command(make_tensors(tmp_path / str(number)), **values, load_threads=number)
        assert STEP.main(arguments[3:]) == 0
        models.append(model_of(tmp_path / str(number)))
    assert models[0].fingerprint == models[1].fingerprint
    assert weights_sha256(models[0]) == weights_sha256(models[1])


@pytest.mark.proof
@pytest.mark.parametrize("ema", [0, 0.9])
def test_batch_normalization_on_cpus_is_by_process_and_said_to_be(tmp_path: Path, ema: float) -> None:
    """Both processes validate with the main one's statistics, which are stored."""
    tensors = make_tensors(tmp_path, val=80)
    values = QUICK | {"backbone": "resnet18", "processes": 2, "ema": ema}
    code, stderr = finish(start(command(tensors, **values)))
    assert code == 0 and stderr.count("each process normalizes by its own share of a batch") == 1
    check_validation_in_one_process(model_of(tmp_path), tensors)


@pytest.mark.proof
def test_error_of_a_process_is_the_steps_error(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path)
    code, stderr = finish(start(command(tensors, **QUICK, processes=2, dropout=0.5, learning_rate=10)))
    assert code == 2 and stderr.splitlines()[-1].startswith("[train] error: epoch 1: the loss is nan")
    assert "Traceback" not in stderr and "torch/distributed" not in stderr


@pytest.mark.proof
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_processes_are_stopped_and_resumed_together(tmp_path: Path, kind: signal.Signals) -> None:
    """SIGTERM to the step, or the sudden end of it: nothing is left running, and the next try goes on."""
    tensors = make_tensors(tmp_path)
    values = QUICK | {"epochs": 40, "checkpoint_minutes": 0.001, "processes": 2}
    process = start_and_wait(tmp_path, command(tensors, **values))
    code, stderr = stop(process, 2.5, kind)
    assert code == (75 if kind is signal.SIGTERM else -kind)
    if kind is signal.SIGTERM:
        assert "stopped by SIGTERM after" in stderr.splitlines()[-1]
    code, stderr = finish(start(command(tensors, **values)))
    assert code == 0 and "resuming after" in stderr
