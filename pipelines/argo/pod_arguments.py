"""The command line of Argo's pods for download and clean, which do more than their step: pipeline parameters, the JSON
`config`, parents. The pods of other steps run the steps' own commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...components.step.command_line import Parser
from ...components.step.config import StepConfig, name_flag
from ..parameters import RunParameters, list_form_parameters, parse_form


@dataclass(frozen=True)
class PodArguments:
    """The parsed arguments of a pod. `form`: parameters of the form by name; `parents`: URIs of datasets, and
    `options`: other texts, by the name of their flag; `outputs`: the folder with one file for each output parameter,
    which Argo reads."""

    form: Mapping[str, str]
    run: str
    parents: Mapping[str, str]
    outputs: Path
    options: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> RunParameters:
        """The parameters of the run; UserError for a wrong JSON `config`."""
        return parse_form(self.form)

    def config(self, step: str, **values: Any) -> StepConfig:
        """Return the checked config of a step of this run; `values` are further fields, such as its parents."""
        return dataclasses.replace(self.parameters.config(step), run=self.run, **values)

    def write(self, name: str, text: str) -> None:
        """Write an output parameter."""
        (self.outputs / name).write_text(text, encoding="utf-8")


def parse_pod_arguments(
    prog: str, help: str, parents: Sequence[str], argv: Sequence[str] | None, options: Sequence[str] = ()
) -> PodArguments:
    """Parse a command line; UserError names the flag that is wrong.

    `parents`: names of the flags that hold URIs of datasets, all of which are required; `options`: those of other
    texts, empty where they are left out. Every parameter of the form is a flag as well.
    """
    parser = Parser(prog=f"python -m {prog}", description=help)
    for name, parameter in list_form_parameters().items():
        parser.add_argument(name_flag(name), dest=name, help=parameter.help.replace("%", "%%"))
    for name in parents:
        parser.add_argument(f"--{name}", dest=name, required=True, metavar="URI", help=f"the {name} dataset")
    for name in options:
        parser.add_argument(f"--{name}", dest=f"option {name}", default="", help="an input of a search")
    parser.add_argument("--run", required=True, metavar="NAME", help="the run that the records belong to")
    parser.add_argument("--outputs", required=True, metavar="FOLDER", help="write output values into this folder")
    values = vars(parser.parse_args(argv))
    run, outputs = values.pop("run"), values.pop("outputs")
    uris = {name: values.pop(name) for name in parents}
    texts = {name: values.pop(f"option {name}") for name in options}
    form = {name: value for name, value in values.items() if value is not None}
    Path(outputs).mkdir(parents=True, exist_ok=True)
    return PodArguments(form, run, uris, Path(outputs), texts)
