"""Train a configuration with a seed, and read the validation scores of trainings, of those under way too.

What another trial, or a run, has made in the workspace is not made again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...components.dataset.kinds import ModelExtra
from ...components.dataset.manifest import Dataset, digest, find_dataset, read_dataset
from ...components.dataset.records import CostRecord, StepRecord
from ...components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ...components.step.config import StepConfig
from ...components.step.step import RAN
from ...components.storage import uri as uris
from ...components.storage.errors import MillError, UserError, wrong
from ...components.train.config import CHAMPION, TrainConfig
from ...components.train.loop.history import TAGS, diagnose
from ..local.step_process import StepRunner, Watch, build_parents
from ..parameters import ALL_STEPS, RunParameters, resolve_parameters

LAST_STEPS = STEPS[: STEPS.index("promote")]
"""The steps of a trial; no champion is compared with, and none made."""
POLL_S = 3.0
"""Seconds between two looks at a training's event file, which on S3 is downloaded for it."""
_LATE = 0.75
"""Share of the epochs after which a best epoch counts as late."""


@dataclass(frozen=True)
class Configuration:
    """Parameters of a run under a `label`, the place that they were read from."""

    label: str
    parameters: RunParameters

    @classmethod
    def read(cls, source: str, flags: Mapping[str, Any]) -> Configuration:
        """Read a YAML file, or JSON text in its place; `flags` count for more. UserError names the file and field."""
        if not source.strip():
            raise wrong("configuration", "a YAML file, or a JSON object ({…})", source)
        configuration = cls(source, resolve_parameters(flags, source))
        configuration.refuse_rerun()
        return configuration

    def refuse_rerun(self) -> None:
        """Raise UserError for parameters by which a trial would not use what exists."""
        for name in ("rerun", "run"):
            if value := self.parameters.pipeline.get(name):
                raise wrong(self.parameters.place(name), "nothing: trials share what they make", value)

    def config(self, step: str) -> StepConfig:
        """Return a step's config, without parents."""
        return self.parameters.config(step)

    @property
    def seed(self) -> int:
        train = self.config("train")
        assert isinstance(train, TrainConfig)
        return train.seed

    def with_values(self, step: str, **values: Any) -> Configuration:
        """Return the configuration with other values of a step's parameters; UserError for an invalid one."""
        pipeline, sections = dict(self.parameters.pipeline), dict(self.parameters.sections)
        sections[step] = {**sections.get(step, {}), **values}
        changed = replace(self, parameters=replace(self.parameters, pipeline=pipeline, sections=sections))
        changed.config(step)
        return changed


@dataclass(frozen=True)
class Trial:
    """The records of a trial's steps, and `seconds` that each took when it was run; None where that is not known."""

    records: dict[str, StepRecord]
    seconds: dict[str, float | None]

    def read(self, kind: str) -> Dataset:
        """Return a dataset of the trial, by its kind."""
        step = next(step for step, product in PRODUCTS.items() if product == kind)
        return read_dataset(self.records[step].uri, kind)


@dataclass
class TrialRunner:
    """Runs trials of one dataset (`name`) as parts of the experiment `run`, whose `kind` is the experiment's command.

    Hints and the champion of `name` are not touched: from clean on, steps run under a name of their own, `scope`, whose
    class list is that of `name`.
    """

    steps: StepRunner
    name: str
    run: str
    kind: str
    _records: dict[str, StepRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("clean", "tensors"):
            latest = self.workspace.latest_uri(self.name, kind)
            if latest and (dataset := find_dataset(latest)):
                self.workspace.note_latest(self.scope, dataset, self.run)

    @property
    def workspace(self) -> Workspace:
        return self.steps.workspace

    @property
    def scope(self) -> str:
        """The name under which the steps of trials leave hints."""
        return f"{self.name}.{self.kind}"

    def run_trial(
        self, configuration: Configuration, label: str, last_step: str = LAST_STEPS[-1], watch: Watch | None = None
    ) -> Trial:
        """Run a configuration's steps as far as they have not run before; return their records.

        `label` of the trial in the names of its records' folders; `watch` is called while the training runs. Raises the
        error of the step that fails.
        """
        records: dict[str, StepRecord] = {}
        for step in LAST_STEPS[: LAST_STEPS.index(last_step) + 1]:
            config = replace(
                configuration.config(step), workspace=self.workspace.uri, name=self._choose_name(step, configuration),
                run=f"{self.run}.{label}", **build_parents(step, records),
            )  # fmt: skip
            records[step] = self._run_step(step, config, watch if step == "train" else None)
        return Trial(records, {step: self.find_seconds(step, record) for step, record in records.items()})

    def _run_step(self, step: str, config: StepConfig, watch: Watch | None) -> StepRecord:
        key = digest({"step": step, **dataclasses.asdict(config), "run": ""})
        if key not in self._records:
            record = self.steps.find(step, config) or self.steps.run(step, config, watch)
            if record.state == RAN and record.fingerprint:
                self.workspace.add_cost(self.scope, record.fingerprint, CostRecord(step, record.seconds, config.run))
            self._records[key] = record
        return self._records[key]

    def _choose_name(self, step: str, configuration: Configuration) -> str:
        train = configuration.config("train")
        starts_from_champion = isinstance(train, TrainConfig) and train.start == CHAMPION
        return self.name if step == "download" or (step == "train" and starts_from_champion) else self.scope

    def find_seconds(self, step: str, record: StepRecord) -> float | None:
        """Return the seconds of the step when it ran: as an experiment recorded them, or the model's manifest."""
        if cost := self.workspace.cost(self.scope, record.fingerprint):
            return cost.seconds
        if step == "train":
            return ModelExtra.of(read_dataset(record.uri, "model").manifest).seconds
        return None


def check_comparable(first: Configuration, second: Configuration) -> None:
    """Raise UserError, which names the field, where two configurations can't be tested on the same images."""
    for step, names in SHARED_FIELDS.items():
        configs = [configuration.config(step) for configuration in (first, second)]
        for name in names:
            values = [getattr(config, name) for config in configs]
            if values[0] != values[1]:
                shown = [repr(uris.redact(value)) if isinstance(value, str) else repr(value) for value in values]
                raise UserError(
                    f"{name}: expected the same in {first.label} and {second.label}, which are compared on the same "
                    f"images and classes, found {shown[0]} and {shown[1]}"
                )


def check_same_classes(first: Dataset, second: Dataset) -> None:
    """Raise UserError where the clean datasets of two configurations have other classes or another task."""
    if first.manifest.task != second.manifest.task:
        raise UserError(
            f"label_separator: expected one task in both, found {first.manifest.task}-label and "
            f"{second.manifest.task}-label"
        )
    sides = first.manifest.classes, second.manifest.classes
    if sides[0] != sides[1]:
        alone = [sorted(set(own) - set(other)) for own, other in (sides, sides[::-1])]
        named = [", ".join(repr(name) for name in names[:5]) or "no other" for names in alone]
        raise UserError(
            f"classes: expected the same list in both, found classes of the first alone: {named[0]}; of the second "
            f"alone: {named[1]}. Options of clean reject all images of a class, or give the list in another order"
        )


def list_parameter_differences(first: Configuration, second: Configuration) -> list[tuple[str, str, str, str]]:
    """Return (step, name, first value, second value) of all parameters in which two configurations differ."""
    rows = []
    for step in LAST_STEPS:
        configs = [configuration.config(step) for configuration in (first, second)]
        for config_field in dataclasses.fields(ALL_STEPS[step].config):
            values = [getattr(config, config_field.name) for config in configs]
            if values[0] != values[1]:
                texts = ["by default" if value in (None, "") else str(value) for value in values]
                rows.append((step, config_field.name, *(uris.redact(text) for text in texts)))
    return rows  # type: ignore[return-value]


SHARED_FIELDS = {
    "download": ("workspace", "name", "dataset", "source", "annotations", "label_pattern", "demo_seed"),
    "clean": (
        "val_fraction", "test_fraction", "split", "fold", "declared_splits", "class_list", "keep_classes", "map_labels",
        "unknown_labels",
        "label_separator", "rare_classes", "rare_below", "other_class",
    ),
    "train": ("seed",),
    "promote": ("metric",),
}  # fmt: skip
"""Fields that say which images and classes are compared on, and by which score."""


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
            entries = list(workspace.store.list(workspace.run_file_uri(run, "tensorboard")))
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
