"""Helpers for tests of experiments: photographs whose classes are colors, and steps run in this process."""

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
from imagemill.pipelines.local import step_process
from imagemill.pipelines.local.step_process import StepRunner, StoppedByWatch, Watch
from imagemill.pipelines.parameters import ALL_STEPS

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
def steps_in_this_process(step_names: list[str] | None = None) -> Iterator[None]:
    """Steps run by their own code in this process, which starts no Python for each; `ran` gets their names.

    Models have no ONNX file, which takes longer than these trainings.
    """

    def run(self: StepRunner, step: str, config: StepConfig, watch: Watch | None = None) -> StepRecord:
        result = self.scratch / "record.json"
        ALL_STEPS[step].execute(config, str(result))
        if step_names is not None:
            step_names.append(step)
        record = StepRecord.read(result)
        if record.exit_code:
            raise step_process.error_for_exit_code(record.exit_code, f"{step}: {record.error}")
        if watch and watch():  # asked once, when the training has ended
            raise StoppedByWatch
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepRunner, "run", run)
        patch.setattr(publish, "_export_and_compare", lambda *_: (b"", "none"))
        yield
