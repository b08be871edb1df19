"""Validation scores of trainings, of those under way too, and what they say of regularization."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...components.dataset.kinds import ModelExtra
from ...components.dataset.manifest import Dataset
from ...components.dataset.workspace import Workspace
from ...components.storage.errors import MillError, UserError
from ...components.train.loop.history import TAGS, diagnose

POLL_S = 3.0
"""Seconds between two looks at a training's event file, which on S3 is downloaded for it."""
_LATE = 0.75
"""Share of the epochs after which a best epoch counts as late."""


def read_course(model: Dataset, metric: str) -> tuple[float, ...]:
    """Return the validation score of each epoch; UserError for a model without validation."""
    column = f"val_{metric}"
    course = tuple(float(row[column]) for row in ModelExtra.of(model.manifest).history if column in row)
    if not course:
        raise UserError(
            "val_fraction: expected validation images, by which values are chosen, found none in the source"
        )
    return course


@dataclass
class CourseWatch:
    """Watches the validation score of a training by its TensorBoard events; `should_end` judges each new epoch.

    `course`: the scores so far, one an epoch.
    """

    workspace: Workspace
    run: str
    metric: str
    should_end: Callable[[list[float]], bool]
    course: list[float] = field(default_factory=list)
    _next_look: float = 0.0

    def __call__(self) -> bool:
        """Return whether the training is to end."""
        if time.monotonic() < self._next_look:
            return False
        course = read_events(self.workspace, self.run, TAGS[f"val_{self.metric}"])
        self._next_look = time.monotonic() + POLL_S
        if len(course) <= len(self.course):
            return False
        self.course = course
        return self.should_end(course)


def read_events(workspace: Workspace, run: str, tag: str) -> list[float]:
    """Return the values of a tag in a run's TensorBoard files, in the order of their steps, of which a training that
    went on from a checkpoint may have repeated some; what can't be read yet is left out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    values: dict[int, float] = {}
    with TemporaryDirectory(prefix="imagemill-events-") as folder:
        try:
            entries = list(workspace.store.list(workspace.run_file(run, "tensorboard")))
            for number, entry in enumerate(sorted(entries, key=lambda entry: entry.uri)):
                path = Path(folder) / f"{number}.tfevents"
                path.write_bytes(workspace.store.read(entry.uri))
                for event in EventFileLoader(str(path)).Load():
                    for value in event.summary.value:
                        if value.tag == tag:
                            values[event.step] = _read_scalar(value)
        except (MillError, FileNotFoundError):  # the next look sees more
            pass
    return [values[step] for step in sorted(values)]


def _read_scalar(value: Any) -> float:
    # The loader turns `simple_value` into a tensor.
    return float(value.tensor.float_val[0]) if value.HasField("tensor") else float(value.simple_value)


def describe_regularization(model: Dataset, base: Dataset, metric: str) -> str:
    """Return what the losses of a training say of its regularization, against the base; empty where nothing stands out.

    Too little: the training images are learned by heart (`diagnose`). Too much: augmented images stay harder than those
    of validation to the end, the best epoch is a late one, and the score is below the base's.
    """
    extra = ModelExtra.of(model.manifest)
    config = model.manifest.config
    has_hard_targets = not any(
        config.get(name) for name in ("label_smoothing", "mixup_probability", "cutmix_probability")
    )
    history, best_epoch = extra.history, extra.best_epoch or 0
    if diagnosis := diagnose(history, best_epoch, has_hard_targets):
        return diagnosis
    last = history[-1]
    is_harder = last["train_loss"] > 1.1 * last.get("val_loss", last["train_loss"])
    is_late = best_epoch > _LATE * len(history)
    if is_harder and is_late and max(read_course(model, metric)) < max(read_course(base, metric)):
        return "too much regularization for so few epochs: the training loss stays above the validation loss"
    return ""
