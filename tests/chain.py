"""The steps after clean, one after the other in this process: real datasets, without Ray and the command."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import photos
import pytest
from cleaned import Row, draft

from imagemill.components.evaluate.config import EvaluateConfig
from imagemill.components.evaluate.evaluate import evaluate
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.store.manifest import Dataset, commit, read_dataset
from imagemill.components.store.step import Context
from imagemill.components.store.workspace import Workspace
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.train import train

resize_module = importlib.import_module("imagemill.components.resize.resize")
NUMBERS = {"train": 24, "val": 9, "test": 9}


def clean_photos(workspace: Workspace, color: str = "rgb", numbers: dict[str, int] = NUMBERS) -> Dataset:
    """Made photographs of two classes in JPEG and PNG, of odd and even sizes."""
    rows = []
    for split, number in numbers.items():
        for n in range(number):
            pixels = photos.made(n, 90 + 7 * n % 31, 70 + 5 * n % 23)
            pixels[..., 2 * (n % 2)] //= 2  # one class is less red, the other less blue
            data = photos.saved(pixels, "JPEG", quality=92) if n % 3 else photos.saved(pixels)
            rows.append(Row(f"{split}{n}", ("cat", "dog")[n % 2], split, data))
    image = {"color": color, "channels": 3 if color in ("rgb", "ycbcr", "lab") else 1}
    uri = workspace.dataset("clean", "0" * 16)
    return commit(uri, dataclasses.replace(draft(uri, rows).manifest, image=image))


@contextmanager
def _no_session(*_: Any) -> Iterator[int]:
    yield 1


def _here(jobs: Iterable[Any], work: Any, arguments: Sequence[Any], *_: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    for job in jobs:
        yield job, json.loads(json.dumps(work(job, *arguments)))  # as it crosses processes


def resized(workspace: Workspace, clean: Dataset, **options: Any) -> Dataset:
    config = ResizeConfig.from_values({"workspace": workspace.uri, "clean": clean.uri} | options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize_module, "ray_session", _no_session)
        patch.setattr(resize_module, "run_jobs", _here)
        return read_dataset(resize_module.resize(config, Context("resize", workspace, "r", False)).uri, "tensors")


def trained(workspace: Workspace, tensors: Dataset, **options: Any) -> Dataset:
    values = {"workspace": workspace.uri, "tensors": tensors.uri, "backbone": "shufflenet_v2_x0_5", "epochs": 1}
    config = TrainConfig.from_values(values | {"batch_size": 8, "device": "cpu"} | options)
    return read_dataset(train(config, Context("train", workspace, "r", False)).uri, "model")


def evaluated(workspace: Workspace, model: Dataset, clean: Dataset) -> tuple[Dataset, str]:
    """The evaluation, and the URI of the champion's."""
    config = EvaluateConfig(workspace=workspace.uri, model=model.uri, clean=clean.uri, device="cpu")
    outcome = evaluate(config, Context("evaluate", workspace, "r", False))
    return read_dataset(outcome.uri, "evaluation"), outcome.metrics["champion_evaluation"]


@contextmanager
def one_core() -> Iterator[None]:
    """torch's threads wait for one another by spinning: on a busy machine two are far slower than one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("train.train", "evaluate.inputs", "store.parallel"):
            patch.setattr(f"imagemill.components.{module}.cores", lambda: 1)
        yield
