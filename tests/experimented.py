"""Helpers for tests of experiments: photographs whose classes are colors, and steps that are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagemill.components.dataset.records import StepRecord
from imagemill.components.step.config import StepConfig
from imagemill.components.train.artifact import publish
from imagemill.pipelines.local import StepRunner, StoppedByWatch, Watch

COLORS = {"green": (40, 150, 60), "red": (230, 50, 70)}
"""About as light as one another: a gray image does not tell them apart."""
QUICK: dict[str, Any] = {
    "image_size": 32, "backbone": "resnet18", "recipe": "plain", "epochs": 3, "batch_size": 8, "learning_rate": 0.001,
    "device": "cpu", "precision": "float32", "load_threads": 1, "test_fraction": 0.35, "val_fraction": 0.15,
    "near_duplicates": "off", "review": "false", "leakage": "report",
}  # fmt: skip


def make_colors(folder: Path, images_per_class: int = 60) -> Path:
    """`<folder>/<class>/<number>.png`: noisy pictures in the class's color, of any lightness."""
    random = np.random.default_rng(7)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images_per_class):
            brightness = random.uniform(0.7, 1.1)
            pixels = np.array(color) * brightness + random.normal(0, 25, (40, 40, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


def write_config(path: Path, **values: Any) -> str:
    """A YAML file (JSON is YAML) of parameters."""
    path.write_text(json.dumps(values))
    return str(path)


@contextmanager
def counted_steps(step_names: list[str]) -> Iterator[None]:
    """The names of the steps that run are added to a list. Models have no ONNX file, which takes longer than these
    trainings; a watch is asked once, when a training has ended."""
    original = StepRunner.run

    def run(self: StepRunner, step: str, config: StepConfig, watch: Watch | None = None) -> StepRecord:
        step_names.append(step)
        record = original(self, step, config)
        if watch and watch():
            raise StoppedByWatch
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "run", run)
        patch.setattr(publish, "_export_and_compare", lambda *_: (b"", "none"))
        yield
