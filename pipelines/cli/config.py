"""`imagemill config`: the values that a run would have, each with where it comes from, or the schema of a file.

The JSON Schema is of the files that `--config` reads; editors check and complete a YAML file by it. Rules over several
options, and words such as the names of networks, are beyond it: printing the values of a run checks these, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

from ...components.dataset.workspace import STEPS
from ...components.step.config import Scalar, StepConfig, describe_default
from ...components.step.presets import PRESETS
from ...components.storage.errors import EXIT_OK
from ..parameters import Parameter, RunParameters, list_parameters

HELP = "the parameters of a run, each with where its value comes from; the schema of a --config file"
DESCRIPTION = (
    "Check parameters and print those of every step as YAML, each with where its value comes from: flag, variable, "
    "file, preset or default. A --config file can be made of it."
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DESCRIPTION = (
    "Parameters of imagemill's pipeline by name, for every step that has them, or in a section named for one step. "
    "What is left out, or null, has its default."
)
_TYPES = {bool: ["boolean"], int: ["integer"], float: ["number"], str: ["string", "number"]}
"""The types of values in a file, by a parameter's type: a name such as 2026 is a number to YAML."""
_YAML_VALUES: dict[str, Scalar] = {"true": True, "on": True, "false": False, "off": False}
"""Words that YAML reads as booleans."""


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("config", help=HELP, description=DESCRIPTION)
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of a --config file instead")
    add_parameters(parser)


def print_schema() -> int:
    """Print the JSON Schema of a `--config` file."""
    print(json.dumps(build_config_schema(), indent=2, ensure_ascii=False))
    return EXIT_OK


def print_values(parameters: RunParameters) -> int:
    """Print the resolved value of every parameter, with its origin."""
    print("\n".join(format_values(parameters)))
    return EXIT_OK


def format_values(parameters: RunParameters) -> Iterator[str]:
    """Yield lines of YAML: parameters that have one value in all steps, then by step those that have several.

    A comment at each tells its origin. The lines are a `--config` file of the same run.
    """
    configs = {step: parameters.config(step) for step in STEPS}
    sections: dict[str, list[str]] = {"": []}
    for name, parameter in list_parameters().items():
        lines = {
            step: f"{name}: {json.dumps(getattr(configs[step], name), ensure_ascii=False)}  "
            f"# {parameters.find_place(name, step) or _describe_unset(parameter, configs[step])}"
            for step in parameter.steps
        }
        if len(set(lines.values())) == 1:
            sections[""].append(next(iter(lines.values())))
            continue
        for step, line in lines.items():
            sections.setdefault(step, []).append(f"  {line}")
    for step, section in sections.items():
        yield from [f"{step}:", *section] if step else section


def _describe_unset(parameter: Parameter, config: StepConfig) -> str:
    """Return the origin of a value that nobody sets."""
    value: Any = getattr(config, parameter.name)
    if value in (None, ""):
        return f"unset: {describe_default(parameter.help) or 'none'}"
    values = vars(config)
    if value == type(config).__dataclass_fields__[parameter.name].default:
        return "default"
    preset = PRESETS[values["preset"]].values
    return f"preset {values['preset']}" if parameter.name in preset else f"model_preset {values['model_preset']}"


def build_config_schema() -> dict[str, Any]:
    """Return the schema as a document of JSON Schema, draft 2020-12."""
    parameters = list_parameters()
    references = {name: {"$ref": f"#/$defs/{name}"} for name in parameters}
    properties: dict[str, Any] = dict(references)
    for step in STEPS:
        names = [name for name, parameter in parameters.items() if step in parameter.steps]
        section = {
            "description": f"Parameters of {step} alone.",
            "type": ["object", "null"],
            "properties": {name: references[name] for name in names},
            "additionalProperties": False,
        }
        properties[step] = {"anyOf": [references[step], section]} if step in parameters else section  # promote is both
    return {
        "$schema": DIALECT,
        "title": "Configuration of imagemill",
        "description": _DESCRIPTION,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {name: build_parameter_schema(parameter) for name, parameter in parameters.items()},
    }


def build_parameter_schema(parameter: Parameter) -> dict[str, Any]:
    """Return the schema of a parameter's value: its type or choices, range, default and description."""
    schema: dict[str, Any] = {"description": parameter.help}
    if parameter.choices:
        schema["enum"] = [*_list_values(parameter.choices), None]
    else:
        schema["type"] = [*_TYPES[parameter.kind], "null"]
    limits = {"minimum": parameter.low, "maximum": parameter.high}
    schema |= {name: limit for name, limit in limits.items() if limit is not None}
    return schema if parameter.default in (None, "") else schema | {"default": parameter.default}


def _list_values(choices: tuple[str, ...]) -> list[Scalar]:
    """Return the choices, and what YAML reads some of these words as: booleans and numbers."""
    values: list[Scalar] = list(choices)
    for choice in choices:
        value = int(choice) if choice.isdecimal() else _YAML_VALUES.get(choice)
        if value is not None and not any(value is other for other in values):
            values.append(value)
    return values
