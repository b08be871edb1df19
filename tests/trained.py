"""A small tensors dataset to train on, and the train step on it: in this process, or as a command to be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save
from stored import commit_tensors, make_rows

from imagemill.components.dataset.kinds import ImageSpec, ModelExtra, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, File, Manifest, Parent, commit, read_dataset
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.step.step import Context
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.features import FeatureComputer
from imagemill.components.train.loop.distributed import Communicator
from imagemill.components.train.loop.head_solver import get_linear_head, solve_head
from imagemill.components.train.loop.trainer import Trainer
from imagemill.components.train.recipes import resolve

IMAGE = ImageSpec((32, 32, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
TIMES = ("seconds", "images_per_second", "waiting")
"""What of a row of the history no two trainings have in common."""
STEP = [sys.executable, "-m", "imagemill.components.train"]


def pictures(number: int, size: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (number, size, size, 3)).astype(np.uint8)


def make_tensors(workspace: Path, train: int = 40, val: int = 10, size: int = 32, image: ImageSpec = IMAGE) -> Dataset:
    """Noisy pictures for training and validation, of two classes that differ in brightness. The clean dataset that they
    come from is not there any more."""
    uri = str(workspace / "tensors" / "01")
    rows = []
    for split, number in (("train", train), ("val", val)):
        labels = [n % 2 for n in range(number)]
        images = pictures(number, size) // 2 + (np.array(labels) * 90).astype(np.uint8)[:, None, None, None]
        rows += make_rows(split, images, labels)
    image = replace(image, shape=(size, size, 3))
    parents, extra = (Parent("../../clean/00", "00", ""),), TensorsExtra(dataset_name="small")
    shape = (size, size, 3)
    return commit_tensors(uri, rows, shape, 16, parents=parents, classes=("a", "b"), image=image, extra=extra)


def settings(tensors: Dataset, **values: Any) -> TrainConfig:
    """A resolved config of a quick training on the CPU."""
    quick = {"backbone": "squeezenet1_1", "epochs": 3, "batch_size": 8, "precision": "float32", "device": "cpu",
             "weights": ""}  # fmt: skip
    return resolve(TrainConfig(**(quick | {"recipe": "plain", "load_threads": 1} | values)), tensors.manifest)


def trainer(
    tensors: Dataset,
    workspace: Path,
    config: TrainConfig,
    comm: Communicator | None = None,
    target: Dataset | None = None,
) -> Trainer:
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    spec = ModelSpec(config.backbone, tensors.manifest.classes, tensors.manifest.image)
    network = build_network(spec, config.dropout, config.drop_path)
    context = Context("train", Workspace.open(str(workspace)), "run", False)
    uri, device, solution = str(workspace / "model" / "01"), torch.device("cpu"), None
    if config.head == "solved" and get_linear_head(network):
        solution = solve_head(FeatureComputer(network, tensors, {"seed": config.seed}, device, context).run())
    return Trainer(
        network, tensors, config, device, uri, context, comm or Communicator(), solution=solution, target=target
    )


class Killed(Exception):
    """Raised in place of a lost machine."""


def raise_killed() -> None:
    raise Killed


def call_before_batch(training: Trainer, epoch: int, number: int, function: Callable[[], None]) -> None:
    """Call `function` before a batch of an epoch, both counted from 0."""
    step = training.stepper.train_batch

    def train_batch(batch: Any, batch_epoch: int, *more: Any) -> torch.Tensor:
        if (batch_epoch, batch.number) == (epoch, number):
            function()
        return step(batch, batch_epoch, *more)

    training.stepper.train_batch = train_batch  # type: ignore[method-assign]


def run_killed(training: Trainer, epoch: int, number: int) -> None:
    """Run a training that is lost before a batch of an epoch."""
    call_before_batch(training, epoch, number, raise_killed)
    with pytest.raises(Killed):
        training.run()


def assert_equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def history_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without the times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def command(tensors: Dataset, **values: Any) -> list[str]:
    """The step's command line on a dataset of a workspace."""
    workspace = str(Path(tensors.uri).parent.parent)
    options = {"tensors": tensors.uri, "workspace": workspace, "device": "cpu", "load_threads": 1} | values
    flags = [f"--{name.replace('_', '-')}={str(value).lower()}" if isinstance(value, bool)
             else f"--{name.replace('_', '-')}={value}" for name, value in options.items()]  # fmt: skip
    return [*STEP, *flags]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """The command, with one thread for arithmetic, as the leader of a process group of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 420) -> tuple[int, str]:
    """(exit code, all that it said)."""
    try:
        _, output = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        raise
    return process.returncode, output


def commit_model(
    workspace: Path | str, spec: ModelSpec, name: str = "feed", network: torch.nn.Module | None = None,
    files: tuple[File, ...] = (), **extra: Any,
) -> Dataset:  # fmt: skip
    """Commit a model, by default of random weights, as training does; `files` beside weights and description."""
    torch.manual_seed(3)
    network, uri = network or build_network(spec), f"{workspace}/model/{name}"
    weights = publish_bytes(uri, save(network.state_dict()), "model-", ".safetensors")
    files = (weights, publish_bytes(uri, spec.to_json(), "model-", ".json"), *files)
    return commit(
        uri,
        Manifest(
            "model", name, classes=spec.classes, task=spec.task, files=files, image=spec.image,
            extra=ModelExtra(**extra),
        ),
    )  # fmt: skip


def model_of(workspace: Path) -> Dataset:
    """The one model of a workspace."""
    (uri,) = [path.parent for path in (workspace / "model").glob("*/_manifest.json")]
    return read_dataset(str(uri), "model")


def weights_sha256(model: Dataset) -> str:
    (file,) = [file for file in model.files() if file.uri.endswith(".safetensors")]
    return file.sha256
