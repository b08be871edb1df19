"""Every parameter there is, from the steps' configs: flags, YAML, the forms of KFP and Argo, with one default each."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..components import clean, download, evaluate, promote, resize, train
from ..components.store.config import STEPS, Scalar, StepConfig, check_field, convert, field_types, parse_config
from ..components.store.errors import UserError, wrong
from ..components.store.step import Step
from .settings import load_yaml, text

ALL_STEPS: dict[str, Step] = {
    step.name: step for step in (download.STEP, clean.STEP, resize.STEP, train.STEP, evaluate.STEP, promote.STEP)
}
NOT_PARAMETERS = {"run", "champion_evaluation", *(p for step in ALL_STEPS.values() for p in step.config.PARENTS)}
"""What the DAG fills in."""
FORM_PARAMETERS = (
    "dataset", "source", "name", "workspace",
    "preset", "model_preset", "image_size",
    "backbone", "weights", "recipe", "epochs",
    "promote", "rerun",
)  # fmt: skip
"""The parameters of the forms in Kubeflow's and Argo's pages, in their order; after them comes `config`, with the rest.

They are what changes from one run to the next: whose pictures, of what kind and size, which network, how long, and what
becomes of it. What is set once for a dataset (`label_pattern`, the splits' fractions), what suits most as it is
(`encoding`, `min_gain`, `seed`) and what a recipe knows better (`learning_rate`) is left to `config`: Kubeflow's form
sorts by name and describes nothing, so each further name hides the others.
"""
CONFIG = "config"
"""The form's parameter for all parameters that are not in it."""
CONFIG_HELP = (
    'all other parameters as JSON, for every step that has them or by step: {"seed": 7, "train": {"ema": 0.999}}'
)
WORKSPACE_HELP = "where datasets, models and reports live: s3://bucket/prefix"
"""Of `workspace` where a cluster runs the steps: no folder is seen by all of its pods."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as the user sees it; `steps` are those that have it."""

    name: str
    default: Scalar
    kind: type
    help: str
    choices: tuple[str, ...]
    steps: tuple[str, ...]

    @property
    def is_in_form(self) -> bool:
        """Whether it is a parameter of the pipeline, rather than a part of `config`."""
        return self.name in FORM_PARAMETERS


def list_parameters() -> dict[str, Parameter]:
    """All parameters by name: those of the forms, then the others in the order of the steps. A shared name means one
    thing in every step."""
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
                steps=(*(known.steps if known else ()), step.name),
            )
    return {name: found[name] for name in (*FORM_PARAMETERS, *found)}


def list_form_parameters() -> dict[str, Parameter]:
    """The parameters of the forms by name, in their order: of the KFP pipeline, and of the Argo workflow."""
    known = list_parameters()
    form = {name: known[name] for name in FORM_PARAMETERS}
    form["workspace"] = replace(form["workspace"], help=WORKSPACE_HELP)
    return form | {CONFIG: Parameter(CONFIG, "", str, CONFIG_HELP, (), STEPS)}


def format_form_value(value: Any) -> str:
    """A value as a form has it, in which all are texts, and blank what is unset."""
    return "" if value is None else text(value)


@dataclass(frozen=True)
class RunParameters:
    """The parameters of one run: `pipeline` has those of the forms by name, `sections` the others by step."""

    pipeline: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    places: Mapping[tuple[str, str], str] = field(default_factory=dict, compare=False)
    """(step or nothing, name) → where a file says it."""
    flags: Collection[str] = field(default=(), compare=False)
    """Names that a flag says, which counts for more than a file."""

    def place(self, name: str, step: str = "") -> str:
        """What a message about a value calls it: its flag, or its file and field."""
        said = self.places.get((step, name)) or self.places.get(("", name))
        return said if said and name not in self.flags else f"--{name.replace('_', '-')}"

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield (name, value) of every parameter that was set, one of a section once for each of its steps."""
        for values in (self.pipeline, *self.sections.values()):
            yield from values.items()

    def config(self, step: str) -> StepConfig:
        """The step's checked config, without its parents."""
        cls = ALL_STEPS[step].config
        shared = {key: value for key, value in self.pipeline.items() if key in field_types(cls)}
        return cls.from_values({**shared, **self.sections.get(step, {})})

    def arguments(self) -> dict[str, str]:
        """As the pipeline's arguments: every parameter of the forms that was chosen, and `config`."""
        config = json.dumps(self.sections, sort_keys=True) if self.sections else ""
        return {name: format_form_value(value) for name, value in self.pipeline.items()} | {CONFIG: config}


def resolve_parameters(flags: Mapping[str, Any], config_file: str = "") -> RunParameters:
    """Flags over the YAML file over the defaults; UserError names the flag, or the file and its field, that is
    unknown or has a value that can't be."""
    known = list_parameters()
    values, sections, places = _read_yaml(config_file, known) if config_file else ({}, {}, {})
    values |= flags
    pipeline: dict[str, Any] = {}
    parameters = RunParameters(pipeline, sections, places, frozenset(flags))
    for name, value in values.items():
        parameter = known[name]
        typed = convert(parameters.place(name), value, parameter.kind, may_be_unset=parameter.default is None)
        if parameter.is_in_form:
            pipeline[name] = typed
            continue
        for step in parameter.steps:
            section = sections.setdefault(step, {})
            if name in flags or name not in section:  # what the file says of one step counts for more than of all
                section[name] = typed
    for step in STEPS:
        try:
            parameters.config(step)
        except UserError as error:
            name, colon, rest = str(error).partition(":")
            place = parameters.place(name, step) if name in field_types(ALL_STEPS[step].config) else name
            raise UserError(f"{place}{colon}{rest}") from None
    return parameters


def parse_form(values: Mapping[str, str]) -> RunParameters:
    """Return the parameters of a run from those of its form; UserError for a wrong `config`, and for nothing else."""
    pipeline = {name: value for name, value in values.items() if name != CONFIG}
    return RunParameters(pipeline, parse_sections(values.get(CONFIG, ""), FORM_PARAMETERS))


def parse_sections(text: str, given: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the JSON parameter `config` by step, a value for every step that has it under each of them.

    UserError for what no step, or not that step, can take, and for a name that is `given` as a parameter of its own.
    Each step by itself knows its own parameters only, and would find a mistake in them when its turn comes.
    """
    shared, by_step = parse_config(text)
    known = list_parameters()
    sections: dict[str, dict[str, Any]] = {}
    for step, values in (("", shared), *by_step.items()):
        for name, value in values.items():
            place = f"{CONFIG}.{step}.{name}" if step else f"{CONFIG}.{name}"
            _own_step(place, name, step, known)
            parameter = known[name]
            if name in given:
                raise wrong(place, "what is no parameter of its own", name)
            typed = convert(place, value, parameter.kind, may_be_unset=parameter.default is None)
            for owner in (step,) if step else parameter.steps:
                check_field(ALL_STEPS[owner].config.__dataclass_fields__[name], typed, place)
                sections.setdefault(owner, {})[name] = typed
    return sections


def _read_yaml(
    path: str, known: Mapping[str, Parameter]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[tuple[str, str], str]]:
    """(parameters, sections, places) of a config file: names on top, or under the name of a step."""
    import yaml

    try:
        body = load_yaml(Path(path).read_text(encoding="utf-8"), path) or {}
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
    places: dict[tuple[str, str], str] = {}
    for key, value in body.items():
        step = key if key in STEPS and (isinstance(value, dict) or key not in known) else ""  # promote is both
        if step and not isinstance(value, dict | None):
            raise wrong(f"{path} ({step})", "names and values", value)
        for name, inner in (value or {}).items() if step else ((key, value),):
            where = f"{path} ({key}.{name})" if step else f"{path} ({name})"
            own = _own_step(where, name, step, known)
            (sections.setdefault(own, {}) if own else values)[name] = inner
            places[own, name] = where
    return values, sections, places


def _own_step(where: str, name: Any, step: str, known: Mapping[str, Parameter]) -> str:
    """The step, if any, that an entry of a file is for alone; UserError for one that nobody, or not that step, has."""
    parameter = known.get(name)
    if parameter is None or (step and step not in parameter.steps):
        names = [n for n, p in known.items() if not step or step in p.steps]
        near = difflib.get_close_matches(str(name), names if step else [*names, *STEPS], 1)
        what = f"a parameter of {step}" if step else "a parameter or a step"
        raise wrong(where, f"{what}{f'; is it {near[0]}?' if near else ''}", name)
    return "" if parameter.is_in_form else step
