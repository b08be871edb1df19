"""The command of a step's pod, under Kubeflow Pipelines and under Argo: `python -m imagemill.pipelines.pod STEP …`.

It gives the step its parameters, runs it here or as a RayJob (`kuberay/ray_step.py`), and writes what later steps take
(`steps.py`) and what the orchestrator's pages show. The first step checks the parameters of all steps before it works;
where no other step has anything to do, it writes the records of all, and their pods do not start.

Argo gives each parameter as a flag and reads files of `--outputs`. KFP gives its executor input as JSON (`--kfp`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..components.dataset.records import StepRecord
from ..components.dataset.workspace import STEPS
from ..components.step.command_line import Parser, configure_logging
from ..components.step.config import name_flag
from ..components.step.progress import say
from ..components.step.step import download_file
from ..components.storage.errors import EXIT_INTERNAL, EXIT_OK, MillError, wrong
from .cluster.unchanged import CHANGED, UNCHANGED, check_form, complete_if_unchanged
from .finish import FINISH, SUMMARY, RunSummary, finish
from .kuberay.ray_step import place_step
from .parameters import list_form_parameters, list_step_parameters, parse_form
from .steps import PIPELINE, select_outputs

PROGRAM = "imagemill.pipelines.pod"


class Results(Protocol):
    """Where an orchestrator finds what a pod gives."""

    def write(self, step: str, record: StepRecord, outputs: Mapping[str, str]) -> None:
        """Write the output parameters of a step, and what the pages show of its record."""

    def locate_summary(self) -> Path:
        """Return the file of a run's summary, in Markdown."""

    def write_summary(self, summary: RunSummary) -> None:
        """Write what the pages show of a run's summary, whose file is there."""


@dataclass(frozen=True)
class Request:
    """What a pod is asked for: a step or `finish`, the run, the values of its parameters and inputs by name, and where
    its results go."""

    step: str
    run: str
    values: Mapping[str, str]
    results: Results


def main(argv: Sequence[str] | None = None) -> int:
    """Run a pod's command; return the step's exit code."""
    configure_logging()
    words = list(sys.argv[1:] if argv is None else argv)
    step = words[0] if words else ""
    try:
        if step not in (*STEPS, FINISH):
            raise wrong("step", f"one of {', '.join((*STEPS, FINISH))}", step)
        request = _parse(step, words[1:])
        return _finish_run(request) if step == FINISH else run_step(request)
    except MillError as error:
        say(step or "pod", f"error: {error}")
        return error.exit_code


def run_step(request: Request) -> int:
    """Run the step of a request and write its results; return its exit code."""
    step, run = request.step, request.run
    form = {name: value for name, value in request.values.items() if name in list_form_parameters()}
    parameters = check_form(run, form) if step == STEPS[0] else parse_form(form)
    inputs = {name: request.values[name] for name in PIPELINE[step].inputs}
    record = place_step(PIPELINE[step].step).execute(replace(parameters.config(step), run=run, **inputs))
    if record.exit_code:
        return record.exit_code
    outputs = select_outputs(step, record)
    if step == STEPS[0]:
        outputs["changed"] = UNCHANGED if complete_if_unchanged(parameters, run, record) else CHANGED
    try:  # nothing is lost where the store is unavailable now: the next attempt finds the dataset
        request.results.write(step, record, outputs)
    except (MillError, OSError) as error:
        say(step, f"error: the step's results could not be written for the orchestrator: {error}")
        return error.exit_code if isinstance(error, MillError) else EXIT_INTERNAL
    return EXIT_OK


def _finish_run(request: Request) -> int:
    """Write the run's summary, however its steps ended, and leave nothing of it in the cluster. A failed step is told
    in the summary, and is no error of this command."""
    from .kfp.results import describe_ignored_settings

    workspace, status = request.values["workspace"], request.values["status"]
    path = str(request.results.locate_summary())
    request.results.write_summary(finish(workspace, request.run, status, path, describe_ignored_settings()))
    return EXIT_OK


def _parse(step: str, words: Sequence[str]) -> Request:
    if "--kfp" in words:
        from .kfp.results import KfpResults

        values, results = KfpResults.parse(words)
        return Request(step, values.pop("run"), values, results)
    parser = Parser(prog=f"python -m {PROGRAM} {step}", description="the command of a step's pod")
    for name in ("run", "outputs", *list_values(step)):
        parser.add_argument(name_flag(name), dest=name, metavar="VALUE")
    values = {name: value for name, value in vars(parser.parse_args(words)).items() if value is not None}
    required = ("run", "outputs", *(PIPELINE[step].inputs if step in PIPELINE else ("workspace", "status")))
    if missing := [name for name in required if name not in values]:
        raise wrong(name_flag(missing[0]), "a value", "")
    return Request(step, values.pop("run"), values, Folder(Path(values.pop("outputs"))))


def list_values(step: str) -> list[str]:
    """Return the names of what a pod is given beside its run: parameters of the form, and inputs."""
    if step == FINISH:
        return ["workspace", "status"]
    return list(dict.fromkeys([*list_step_parameters(step), *PIPELINE[step].inputs]))


@dataclass(frozen=True)
class Folder:
    """A folder with a file for each output parameter, from which Argo takes them, and for each artifact."""

    path: Path

    def write(self, step: str, record: StepRecord, outputs: Mapping[str, str]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for name, value in outputs.items():
            (self.path / name).write_text(value, encoding="utf-8")
        (self.path / "metrics.json").write_text(json.dumps(record.metrics, indent=1) + "\n", encoding="utf-8")
        if report := record.metrics.get("report"):
            download_file(report, str(self.path / "report.html"))

    def locate_summary(self) -> Path:
        return self.path / SUMMARY

    def write_summary(self, summary: RunSummary) -> None:
        print(self.locate_summary().read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
