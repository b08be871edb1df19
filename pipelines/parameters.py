"""Every parameter there is, from the steps' configs: flags, a YAML file, KFP's parameters, one default each."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..components import clean, download, evaluate, promote, resize, train
from ..components.store.config import STEPS, StepConfig, convert, field_types
from ..components.store.errors import UserError, wrong
from ..components.store.step import Step

ALL_STEPS: dict[str, Step] = {
    step.name: step for step in (download.STEP, clean.STEP, resize.STEP, train.STEP, evaluate.STEP, promote.STEP)
}
NOT_PARAMETERS = {"run", "champion_evaluation", *(p for step in ALL_STEPS.values() for p in step.config.PARENTS)}
"""What the DAG fills in."""
CONFIG_HELP = 'all other parameters as JSON, by step: {"train": {"weight_decay": 0.05}}'
"""Of the pipeline's parameter `config`."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as the user sees it; `steps` are those that have it."""

    name: str
    default: str | int | float | bool
    kind: type
    help: str
    choices: tuple[str, ...]
    pipeline: bool
    steps: tuple[str, ...]


def parameters() -> dict[str, Parameter]:
    """All parameters by name, in the order of the steps. A shared name means one thing in every step."""
    found: dict[str, Parameter] = {}
    for step in ALL_STEPS.values():
        types = field_types(step.config)
        for one in dataclasses.fields(step.config):
            if one.name in NOT_PARAMETERS:
                continue
            known = found.get(one.name)
            about = one.metadata
            found[one.name] = Parameter(
                name=one.name,
                default=getattr(step.config, one.name),
                kind=types[one.name],
                help=about["help"],
                choices=about["choices"],
                pipeline=about["pipeline"],
                steps=(*(known.steps if known else ()), step.name),
            )
    return found


@dataclass(frozen=True)
class Chosen:
    """The parameters of one run: `pipeline` parameters by name, the others by step in `sections`."""

    pipeline: dict[str, Any]
    sections: dict[str, dict[str, Any]]

    def config(self, step: str) -> StepConfig:
        """The step's checked config, without its parents."""
        cls = ALL_STEPS[step].config
        shared = {key: value for key, value in self.pipeline.items() if key in field_types(cls)}
        return cls.from_values({**shared, **self.sections.get(step, {})})

    def arguments(self) -> dict[str, Any]:
        """As the pipeline's arguments: every pipeline parameter that was chosen, and `config`."""
        return {**self.pipeline, "config": json.dumps(self.sections, sort_keys=True) if self.sections else ""}


def choose(flags: Mapping[str, Any], config_file: str = "") -> Chosen:
    """Flags over the YAML file over the defaults; UserError for an unknown name or a value of the wrong form."""
    known = parameters()
    values, sections = _read_yaml(config_file, known) if config_file else ({}, {})
    values |= flags
    pipeline: dict[str, Any] = {}
    for name, value in values.items():
        parameter = known[name]
        place = f"--{name.replace('_', '-')}" if name in flags else f"{config_file} ({name})"
        typed = convert(place, value, parameter.kind)
        if parameter.pipeline:
            pipeline[name] = typed
        else:
            for step in parameter.steps:
                sections.setdefault(step, {})[name] = typed
    chosen = Chosen(pipeline, sections)
    for step in STEPS:
        chosen.config(step)
    return chosen


def _read_yaml(path: str, known: Mapping[str, Parameter]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(parameters, sections) of a config file: names on top, or under the name of a step."""
    import yaml

    try:
        body = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise wrong("--config", "a YAML file that can be read", f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config: expected YAML in {path}, found something else: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(body, dict):
        raise wrong("--config", "names and values", f"{path} with {type(body).__name__}")
    values: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in body.items():
        if key in STEPS and isinstance(value, dict):
            for name, inner in value.items():
                _place(f"{path} ({key}.{name})", name, inner, key, known, values, sections)
        else:
            _place(f"{path} ({key})", key, value, "", known, values, sections)
    return values, sections


def _place(
    where: str,
    name: Any,
    value: Any,
    step: str,
    known: Mapping[str, Parameter],
    values: dict[str, Any],
    sections: dict[str, dict[str, Any]],
) -> None:
    """One entry of a file: among the values, for every step that has it, or in the section of the one step named."""
    parameter = known.get(name)
    if parameter is None or (step and step not in parameter.steps):
        names = [n for n, p in known.items() if not step or step in p.steps]
        near = difflib.get_close_matches(str(name), names if step else [*names, *STEPS], 1)
        what = f"a parameter of {step}" if step else "a parameter or a step"
        raise wrong(where, f"{what}{f'; is it {near[0]}?' if near else ''}", name)
    if step and not parameter.pipeline:
        sections.setdefault(step, {})[name] = value
    else:
        values[name] = value
