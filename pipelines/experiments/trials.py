"""Train a configuration with a seed, and tell which configurations can be compared.

What another trial, or a run, has made in the workspace is not made again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...components.dataset.kinds import ModelExtra
from ...components.dataset.manifest import Dataset, digest, find_dataset, read_dataset
from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ...components.step.config import StepConfig
from ...components.step.step import RAN
from ...components.storage import uri as uris
from ...components.storage.errors import UserError, wrong
from ...components.train.config import CHAMPION, TrainConfig
from ..local import StepRunner, Watch
from ..parameters import RunParameters, resolve_parameters
from ..steps import PIPELINE, select_inputs

LAST_STEPS = STEPS[: STEPS.index("promote")]
"""The steps of a trial; no champion is compared with, and none made."""


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
        parameters = resolve_parameters(flags, source)
        for name in ("rerun", "run"):
            if value := parameters.pipeline.get(name):
                raise wrong(parameters.place(name), "nothing: trials share what they make", value)
        return cls(source, parameters)

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
        section = {**self.parameters.sections.get(step, {}), **values}
        sections = {**self.parameters.sections, step: section}
        changed = replace(self, parameters=replace(self.parameters, sections=sections))
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
    workspace: Workspace
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
                configuration.config(step), workspace=self.workspace.uri, run=f"{self.run}.{label}",
                **(select_inputs(step, records) | {"name": self._choose_name(step, configuration)}),
            )  # fmt: skip
            records[step] = self._run_step(step, config, watch if step == "train" else None)
        return Trial(records, {step: self.find_seconds(step, record) for step, record in records.items()})

    def _run_step(self, step: str, config: StepConfig, watch: Watch | None) -> StepRecord:
        key = digest({"step": step, **dataclasses.asdict(config), "run": ""})
        if key not in self._records:
            record = self.steps.find(step, config) or self.steps.run(step, config, watch)
            if record.state == RAN and record.fingerprint:
                self.workspace.add_cost(self.scope, record)
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


def list_parameter_differences(first: Configuration, second: Configuration) -> list[dict[str, str]]:
    """Return the `step`, `name`, and values `A` and `B` of all parameters in which two configurations differ."""
    rows = []
    for step in LAST_STEPS:
        configs = [configuration.config(step) for configuration in (first, second)]
        for config_field in dataclasses.fields(PIPELINE[step].config):
            values = [getattr(config, config_field.name) for config in configs]
            if values[0] != values[1]:
                texts = [uris.redact("by default" if value in (None, "") else str(value)) for value in values]
                rows.append({"step": step, "name": config_field.name, "A": texts[0], "B": texts[1]})
    return rows


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
