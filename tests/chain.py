"""The steps after clean, one after the other in this process: real datasets, without Ray and the command."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import photos
import pytest
from cleaned import Row, draft
from copied import open_this_process

from imagemill.components.dataset.kinds import CleanImage
from imagemill.components.dataset.manifest import Dataset, commit, read_dataset
from imagemill.components.dataset.splits import compute_shuffle_index
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.config import EvaluateConfig
from imagemill.components.evaluate.evaluate import evaluate
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Context
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.train import train

resize_module = importlib.import_module("imagemill.components.resize.resize")
NUMBERS = {"train": 24, "val": 9, "test": 9}


@cache
def _photo(number: int) -> bytes:
    """Make a photograph, of the first class where the number is even; JPEG, and every third one PNG."""
    pixels = photos.made(number, 90 + 7 * number % 31, 70 + 5 * number % 23)
    pixels[..., 2 * (number % 2)] //= 2  # one class is less red, the other less blue
    return photos.saved(pixels, "JPEG", quality=92) if number % 3 else photos.saved(pixels)


def clean_photos(workspace: Workspace, color: str = "rgb", numbers: dict[str, int] = NUMBERS) -> Dataset:
    """Commit made photographs of two classes, of odd and even sizes."""
    rows = [
        Row(f"{split}{n}", ("cat", "dog")[n % 2], split, _photo(n + 100 * at), declared=split)
        for at, (split, number) in enumerate(numbers.items())
        for n in range(number)
    ]
    rows.sort(key=lambda row: compute_shuffle_index(hashlib.sha256(row.data).hexdigest()))  # as clean writes them
    image = CleanImage(color, 3 if color in ("rgb", "ycbcr", "lab") else 1)
    uri = workspace.dataset_uri("clean", "0" * 16)
    return commit(uri, dataclasses.replace(draft(uri, rows).manifest, image=image))


def resized(workspace: Workspace, clean: Dataset, **options: Any) -> Dataset:
    """The tensors."""
    config = ResizeConfig.from_values({"workspace": workspace.uri, "clean": clean.uri} | options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize_module, "open_ray_session", open_this_process)
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
        for module in ("evaluate.inference", "storage.parallel"):
            patch.setattr(f"imagemill.components.{module}.cores", lambda: 1)
        yield
