"""The parameters of a run, declared by the steps' configs and set by flags, variables, a file or a cluster's form."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..components.dataset.workspace import STEPS, WORKSPACES_ENV
from ..components.step.config import (
    VARIABLE_PREFIX,
    Scalar,
    StepConfig,
    check_field,
    convert,
    field_types,
    is_json_object,
    name_flag,
    name_variable,
    parse_config,
    read_yaml,
    requested_default,
    unset_blank,
)
from ..components.storage import uri as uris
from ..components.storage.errors import UserError, wrong
from ..components.train.config import TrainConfig
from .settings import to_text
from .steps import PIPELINE

NOT_PARAMETERS = {"run", *(name for step in PIPELINE.values() for name in step.inputs)} - {"name"}
"""Fields of configs that the DAG fills in."""
FORM_PARAMETERS = (
    "dataset", "source", "name", "workspace",
    "preset", "model_preset", "image_size",
    "backbone", "weights", "recipe", "epochs",
    "promote", "rerun",
)  # fmt: skip
"""The parameters of the forms in Kubeflow's and Argo's pages, in their order; after them comes `config`, with the rest.

They are those that change from run to run: source, kind and size of the images, network, epochs, promotion. What is set
once for a dataset (`label_pattern`, the splits' fractions), what is seldom changed (`encoding`, `min_gain`,
`seed`) and what a recipe sets (`learning_rate`) is left to `config`: Kubeflow's form sorts by name and describes
nothing, so each further name hides the others.
"""
MAX_FORM_PARAMETERS = 14
"""The most names of a form, `config` among them. It is full: a new one takes the place of another."""
CONFIG = "config"
"""The parameter of the form that holds, as JSON, all parameters that are not in it."""
CONFIG_HELP = (
    'all other parameters as JSON, for every step that has them or by step: {"seed": 7, "train": {"ema": 0.999}}'
)
WORKSPACE_HELP = "where datasets, models and reports live: s3://bucket/prefix"
"""The help of `workspace` where a cluster runs the steps: no folder is seen by all of its pods."""
PATH_PARAMETERS = (
    "source", "annotations", "class_list", "map_labels", "weights", "domain_adversarial", "copy_pipeline",
    "augment_pipeline", "backgrounds",
)  # fmt: skip
"""Parameters that are read and may be a path."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name, default (None: unset), type, help and fixed values, and the `steps` that have it.

    `low`, `high`: the inclusive range of a number.
    """

    name: str
    default: Scalar
    kind: type
    help: str
    choices: tuple[str, ...]
    steps: tuple[str, ...]
    low: float | None = None
    high: float | None = None

    @property
    def is_in_form(self) -> bool:
        """Return whether it is a parameter of the pipeline, rather than a part of `config`."""
        return self.name in FORM_PARAMETERS

    def owners(self, step: str = "") -> tuple[str, ...]:
        """Return the steps under which a value is kept: all that have it, or `step`; one empty text for the form's."""
        return ("",) if self.is_in_form else (step,) if step else self.steps

    def convert(self, place: str, value: Any) -> Scalar:
        """Return a value as the parameter's type, None if it is unset; UserError names the `place`."""
        return convert(place, value, self.kind, choices=self.choices, may_be_unset=self.default is None)


def list_parameters() -> dict[str, Parameter]:
    """Return all parameters by name: those of the forms, then the others in the order of the steps. A shared name means
    one thing in every step."""
    parameters: dict[str, Parameter] = {}
    for step in PIPELINE.values():
        types = field_types(step.config)
        for config_field in dataclasses.fields(step.config):
            name = config_field.name
            if name in NOT_PARAMETERS:
                continue
            earlier = parameters.get(name)
            parameters[name] = Parameter(
                name=name,
                default=requested_default(config_field),
                kind=types[name],
                help=config_field.metadata["help"],
                choices=config_field.metadata["choices"],
                low=config_field.metadata["low"],
                high=config_field.metadata["high"],
                steps=(*(earlier.steps if earlier else ()), step.name),
            )
    return {name: parameters[name] for name in (*FORM_PARAMETERS, *parameters)}


def list_form_parameters() -> dict[str, Parameter]:
    """Return the parameters of the forms by name, in their order: of the KFP pipeline, and of the Argo workflow."""
    parameters = list_parameters()
    form = {name: parameters[name] for name in FORM_PARAMETERS}
    form["workspace"] = replace(form["workspace"], help=WORKSPACE_HELP)
    return form | {CONFIG: Parameter(CONFIG, "", str, CONFIG_HELP, (), STEPS)}


def list_step_parameters(step: str) -> list[str]:
    """Return the names of the form's parameters that the pod of a step is given: its own, and for the first step all,
    since what is wrong with any shall be found there."""
    return [name for name, parameter in list_form_parameters().items() if step in (STEPS[0], *parameter.steps)]


def format_form_value(value: Any) -> str:
    """Return a value as a form holds it: as text, blank where it is unset."""
    return "" if value is None else to_text(value)


@dataclass(frozen=True)
class RunParameters:
    """The requested parameters of one run: `pipeline` has those of the forms by name, `sections` the others by step.

    None is unset. `config` resolves those of a step.
    """

    pipeline: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    places: Mapping[tuple[str, str], str] = field(default_factory=dict, compare=False)
    """The flag, variable, or file and field that sets a value, by (step, name); the step is empty as in `items`."""

    def place(self, name: str, step: str = "") -> str:
        """Return what messages call a parameter: what sets it, else its flag."""
        return self.find_place(name, step) or name_flag(name)

    def find_place(self, name: str, step: str) -> str:
        """Return the flag, variable, or file and field that sets a parameter of a step; empty if none does."""
        return self.places.get((step, name)) or self.places.get(("", name)) or ""

    def items(self) -> Iterator[tuple[str, str, Any]]:
        """Yield (step, name, value) of every parameter that is set; the step is empty for those of the form."""
        for step, values in (("", self.pipeline), *self.sections.items()):
            for name, value in values.items():
                yield step, name, value

    def find_paths(self) -> Iterator[tuple[str, str, str]]:
        """Yield (step, name, path) of every parameter of `PATH_PARAMETERS` that is set to a path."""
        for step, name, value in self.items():
            if name in PATH_PARAMETERS and self.is_path(name, value):
                yield step, name, value

    def is_path(self, name: str, value: Any) -> bool:
        """Return whether a value of a path parameter is a path, rather than a URI or the name of something built in."""
        if not isinstance(value, str) or not value or uris.scheme(value) not in ("", "file"):
            return False
        if name == "weights":
            train = self.config("train")
            return isinstance(train, TrainConfig) and train.weights_are_stored
        return not name.endswith("_pipeline") or "/" in value or "." in value  # else the name of a built-in one

    def config(self, step: str) -> StepConfig:
        """Return the step's resolved and checked config, without its parents."""
        cls = PIPELINE[step].config
        shared = {key: value for key, value in self.pipeline.items() if key in field_types(cls)}
        return cls.from_values({**shared, **self.sections.get(step, {})})

    def arguments(self) -> dict[str, str]:
        """Return the pipeline's arguments: every parameter of the forms that is set, and `config`."""
        config = json.dumps(self.sections, sort_keys=True) if self.sections else ""
        return {name: format_form_value(value) for name, value in self.pipeline.items()} | {CONFIG: config}


Layer = dict[tuple[str, str], tuple[Any, str]]
"""Values from one origin by (step, name), each with its place; the step is empty where a value is for all steps."""


def resolve_parameters(
    flags: Mapping[str, Any], config_file: str = "", environ: Mapping[str, str] | None = None
) -> RunParameters:
    """Return the parameters of a run: flags over environment variables over the YAML file over the defaults.

    `config_file` may also be JSON text; `environ`: the variables (default: this process's). UserError names the flag,
    the variable, or the file and its field, that is unknown or has a wrong value.
    """
    declared = list_parameters()
    layers: list[Layer] = [
        _read_yaml(config_file, declared) if config_file else {},
        _read_environment(os.environ if environ is None else environ, declared),
        {("", name): (unset_blank(value, declared[name].default), name_flag(name)) for name, value in flags.items()},
    ]
    requested: Layer = {}
    for layer in layers:
        for (step, name), entry in sorted(layer.items(), key=lambda item: bool(item[0][0])):  # for one step: the last
            for owner in declared[name].owners(step):
                requested[owner, name] = entry
    pipeline: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for (step, name), (value, place) in requested.items():
        parameter = declared[name]
        typed = parameter.convert(place, value)
        if step:
            sections.setdefault(step, {})[name] = typed
        elif typed is not None or parameter.default is None:  # else the form's default
            pipeline[name] = typed
    parameters = RunParameters(pipeline, sections, {key: place for key, (_, place) in requested.items()})
    for step in STEPS:
        try:
            parameters.config(step)
        except UserError as error:
            name, colon, rest = str(error).partition(":")
            place = parameters.place(name, step) if name in field_types(PIPELINE[step].config) else name
            raise UserError(f"{place}{colon}{rest}") from None
    return parameters


def _read_environment(environ: Mapping[str, str], declared: Mapping[str, Parameter]) -> Layer:
    """Return the parameters that variables set; a blank one sets nothing. UserError for one that is misspelt."""
    keys = ((step, name) for name, parameter in declared.items() for step in ("", *parameter.steps))
    variables = {(step, name): name_variable(name, step) for step, name in keys}
    known = {*variables.values(), WORKSPACES_ENV}
    for unknown in (name for name in environ if name.startswith(VARIABLE_PREFIX) and name not in known):
        if matches := difflib.get_close_matches(unknown, known, 1, 0.9):
            raise UserError(f"{unknown}: expected a parameter's variable; is it {matches[0]}?")
    return {
        key: (environ[variable], variable) for key, variable in variables.items() if environ.get(variable, "").strip()
    }


def parse_form(values: Mapping[str, str]) -> RunParameters:
    """Return the parameters of a run from those of its form; UserError for a wrong `config`, and for nothing else."""
    form = list_form_parameters()
    pipeline = {name: unset_blank(value, form[name].default) for name, value in values.items() if name != CONFIG}
    return RunParameters(pipeline, parse_sections(values.get(CONFIG, ""), FORM_PARAMETERS))


def parse_sections(text: str, excluded: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the JSON parameter `config` by step; a value for all steps is repeated under each that has it.

    UserError for a parameter that no step, or not that step, has, for a wrong value, and for a name in `excluded`, the
    parameters that are not given by `config`. Each step would find only its own mistakes, and only at its turn.
    """
    shared, by_step = parse_config(text)
    declared = list_parameters()
    sections: dict[str, dict[str, Any]] = {}
    for step, values in (("", shared), *by_step.items()):
        for name, value in values.items():
            place = f"{CONFIG}.{step}.{name}" if step else f"{CONFIG}.{name}"
            _find_step(place, name, step, declared)
            parameter = declared[name]
            if name in excluded:
                raise wrong(place, "what is no parameter of its own", name)
            typed = parameter.convert(place, value)
            for owner in (step,) if step else parameter.steps:
                check_field(PIPELINE[owner].config.__dataclass_fields__[name], typed, place)
                sections.setdefault(owner, {})[name] = typed
    return sections


def _read_yaml(path: str, declared: Mapping[str, Parameter]) -> Layer:
    """Return the parameters of a config file, or of JSON text in place of its path, for JSON is YAML.

    Names are at the top level, or under the name of a step.
    """
    path, text = ("--config", path) if is_json_object(path) else (path, None)
    document = read_yaml("--config", path, text) or {}
    if not isinstance(document, dict):
        raise wrong("--config", "names and values", f"{path} with {type(document).__name__}")
    layer: Layer = {}
    for key, value in document.items():
        step = key if key in STEPS and (isinstance(value, dict) or key not in declared) else ""  # promote is both
        if step and not isinstance(value, dict | None):
            raise wrong(f"{path} ({step})", "names and values", value)
        for name, inner in (value or {}).items() if step else ((key, value),):
            where = f"{path} ({key}.{name})" if step else f"{path} ({name})"
            layer[_find_step(where, name, step, declared), name] = (inner, where)
    return layer


def _find_step(where: str, name: Any, step: str, declared: Mapping[str, Parameter]) -> str:
    """Return the step that an entry is for alone, or an empty text; UserError for a name that `step`, or without one
    any step, does not have."""
    parameter = declared.get(name)
    if parameter is None or (step and step not in parameter.steps):
        names = [key for key, candidate in declared.items() if not step or step in candidate.steps]
        matches = difflib.get_close_matches(str(name), names if step else [*names, *STEPS], 1)
        expected = f"a parameter of {step}" if step else "a parameter or a step"
        raise wrong(where, f"{expected}{f'; is it {matches[0]}?' if matches else ''}", name)
    return "" if parameter.is_in_form else step
