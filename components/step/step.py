"""Steps: a config and a context in, one outcome out, with its record and exit code, wherever the step runs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..dataset.manifest import Dataset, digest, find_intact_dataset, normalize_dataset_uri, read_dataset
from ..dataset.records import StepRecord
from ..dataset.workspace import Workspace
from ..storage.errors import EXIT_INTERNAL, EXIT_USER, MillError, UserError, describe_internal_error, wrong
from ..storage.store import get_store
from ..storage.uri import normalize
from .command_line import HelpAction, Parser, add_flag, configure_logging, explain_missing_modules
from .config import (
    StepConfig,
    field_types,
    is_json_object,
    name_variable,
    parse_config,
    read_config_file,
    requested_default,
    unset_blank,
)
from .progress import format_duration, say
from .runner_exit import StopRequest, exit_with_runner

RANK_RECORDS = "IMAGEMILL_RANK_RECORDS"
"""Variable that names a folder: a step in several processes collects the records of all of them there."""
RAN, CACHED = "ran", "cached"


@dataclass(frozen=True)
class Outcome:
    """The result of a step: the URI of its dataset, the state `ran` or `cached`, and metrics."""

    uri: str
    fingerprint: str
    state: str
    metrics: dict[str, Any] = field(default_factory=dict)


class NotCached(Exception):
    """Raised where a step would have to make a dataset but was asked only for existing ones."""


@dataclass(frozen=True)
class Context:
    """The environment of one execution of a step: workspace, run, and whether `--rerun` names the step.

    `only_cached`: the step may make and decide nothing; it raises NotCached where it would have to. `stop`: whoever
    runs the step may set it; training looks at it.
    """

    step: str
    workspace: Workspace
    run: str
    rerun: bool
    only_cached: bool = False
    stop: StopRequest = field(default_factory=StopRequest)

    def rerun_salt(self) -> dict[str, str]:
        """Return what `--rerun` adds to the fingerprint, so that the dataset is another: the name of the run, which all
        attempts of a run have in common, so that a retry is safe. Empty without `--rerun`."""
        return {"attempt": self.run} if self.rerun else {}

    def find(self, uri: str) -> Dataset | None:
        """Return the finished dataset at `uri`; None where the step has to make it."""
        dataset = find_intact_dataset(uri)
        if dataset is None:
            self.refuse_if_only_cached(uri)
        return dataset

    def refuse_if_only_cached(self, missing: str) -> None:
        """Raise NotCached, of what is `missing`, if the step may make nothing."""
        if self.only_cached:
            raise NotCached(missing)

    def parent(self, field: str, uri: str, kind: str) -> Dataset:
        """Return the parent dataset that the config's `field` names.

        It must lie in this workspace: manifests point to their parents by relative URIs, so that a workspace can be
        moved.
        """
        if not uri:
            raise wrong(field, f"the URI of a {kind} dataset", uri)
        absolute = normalize_dataset_uri(uri, field)
        if not absolute.startswith(f"{self.workspace.uri}/{kind}/"):
            expected = f"a {kind} dataset of the workspace {self.workspace.uri} (--workspace)"
            other = absolute.rpartition(f"/{kind}/")[0]
            hint = f", of the workspace {other}: say --workspace {other}" if other else ""
            raise UserError(f"{wrong(field, expected, uri)}{hint}")
        return read_dataset(absolute, kind)

    def note_latest(self, name: str, dataset: Dataset) -> None:
        """Note `dataset` as the newest of its kind under `name`, unless `only_cached`."""
        if not self.only_cached:
            self.workspace.note_latest(name, dataset, self.run)

    def say(self, text: str) -> None:
        if not rank() and not self.only_cached:
            say(self.step, text)


@dataclass(frozen=True)
class Step:
    """One step: its name, its config and, imported only when it runs, the function that does the work.

    `entry_point` is `module:function` of type `(config, context) -> Outcome`; `needs` are the optional modules that it
    requires.
    """

    name: str
    config: type[StepConfig]
    entry_point: str
    help: str
    needs: tuple[str, ...] = field(default=(), kw_only=True)

    def run(self, config: StepConfig, context: Context) -> Outcome:
        """Do the step's work; its errors are raised. All else here prepares this call, or stores what it returns."""
        module, _, name = self.entry_point.partition(":")
        work: Callable[[StepConfig, Context], Outcome] = getattr(importlib.import_module(module), name)
        return work(config, context)

    def execute(self, config: StepConfig, result: str = "", stop: StopRequest | None = None) -> StepRecord:
        """Run the step, write its record, also to the file `result`, and return it. Nothing is raised but
        KeyboardInterrupt.

        `stop`: a request by which the caller may end a training early.
        """
        set_passive_waiting()
        started = time.monotonic()
        record = StepRecord(inputs=self._digest_inputs(config))
        run = config.run or new_run(self.name)
        workspace: Workspace | None = None
        try:
            with explain_missing_modules(self.name, self.needs):
                config.check()
                if not config.run:
                    self._check_parents(config)
                workspace = Workspace.open(config.workspace)
                self._raise_recorded_user_error(workspace, run, record.inputs)
                reruns = {item.strip() for item in config.rerun.split(",")}
                context = Context(self.name, workspace, run, self.name in reruns, stop=stop or StopRequest())
                record = replace(record, **vars(self.run(config, context)))
        except MillError as error:
            record = replace(record, exit_code=error.exit_code, error=str(error))
        except Exception as error:
            # The one place where an unexpected error becomes exit code 1, its traceback in the log.
            traceback.print_exc()
            record = replace(record, exit_code=EXIT_INTERNAL, error=describe_internal_error(error))
        record = replace(record, seconds=round(time.monotonic() - started, 3))
        self._print_outcome(record)
        self._write_record(record, workspace, run, result)
        return record

    def execute_cached(self, config: StepConfig) -> StepRecord:
        """Return the record that `execute` would write if all of the step's results exist.

        Nothing is made, decided or recorded. NotCached where a dataset is missing; MillError where the step can't
        begin.
        """
        started = time.monotonic()
        config.check()
        reruns = {item.strip() for item in config.rerun.split(",")}
        workspace = Workspace.from_uri(config.workspace)
        context = Context(self.name, workspace, config.run, self.name in reruns, only_cached=True)
        if context.rerun:
            context.refuse_if_only_cached(self.name)
        outcome = self.run(config, context)
        seconds = round(time.monotonic() - started, 3)
        values = vars(outcome) | {"state": CACHED}
        return StepRecord(**values, inputs=self._digest_inputs(config), seconds=seconds)

    def _digest_inputs(self, config: StepConfig) -> str:
        """Return the digest by which a retry recognizes the same inputs."""
        return digest({**dataclasses.asdict(config), "step": self.name})

    def _check_parents(self, config: StepConfig) -> None:
        """Raise UserError for a missing parent before a workspace or run is created.

        Only for a step alone: a step of a run leaves its record, for whoever looks at the run.
        """
        context = Context(self.name, Workspace(normalize(config.workspace, "workspace")), "", False)
        for field_name in self.config.PARENTS:  # each has the name of its kind
            context.parent(field_name, getattr(config, field_name), field_name)

    def _raise_recorded_user_error(self, workspace: Workspace, run: str, inputs: str) -> None:
        """Raise the UserError of an earlier attempt with the same inputs: a cluster's retry fails at once."""
        earlier = workspace.step_record(run, self.name)
        if earlier and earlier.exit_code == EXIT_USER and earlier.inputs == inputs:
            raise UserError(earlier.error)

    def _print_outcome(self, record: StepRecord) -> None:
        if os.environ.get(RANK_RECORDS) or (rank() and not record.exit_code):
            return
        if record.exit_code:
            say(self.name, f"error: {record.error}")
        else:
            detail = format_duration(record.seconds) if record.state == RAN else record.state
            words = f"{'done' if record.state == RAN else 'there already'} ({detail})"
            say(self.name, f"{words}: {record.uri}" if record.uri else words)

    def _write_record(self, record: StepRecord, workspace: Workspace | None, run: str, result: str) -> None:
        if folder := os.environ.get(RANK_RECORDS):
            workspace, result = None, str(Path(folder) / f"{rank()}.json")
        elif rank():
            return
        try:
            if result:
                Path(result).write_text(json.dumps(record.to_dict(), indent=1) + "\n")
            if workspace is not None:
                workspace.write_step_record(run, self.name, record)
        except (MillError, OSError) as error:  # the step's own outcome stands
            say(self.name, f"the record could not be written: {error}")

    def main(
        self, argv: Sequence[str] | None = None, prog: str = "", check_config: Callable[[str], object] = parse_config
    ) -> int:
        """Run the step's own command line, `python -m imagemill.components.<step>`; return its exit code.

        `check_config`: raises UserError for an invalid `--config`, given as JSON; the step knows only its own section.
        """
        configure_logging()
        exit_with_runner()
        parser = self._make_parser(prog)
        parser.add_argument("--result", default="", metavar="FILE", help="write the step's record to this file")
        parser.add_argument(
            "--config",
            default="",
            metavar="FILE.yaml|JSON",
            help="more parameters: a YAML file, as that of imagemill "
            'run, or JSON ({"seed": 7, "train": {"ema": 0.999}}), in which no flag is repeated',
        )
        try:
            values = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
            result, sections = values.pop("result"), values.pop("config")
            is_file = bool(sections.strip()) and not is_json_object(sections)
            sections = read_config_file(sections) if is_file else sections
            check_config(sections)
            if result and not Path(result).absolute().parent.is_dir():
                raise wrong("--result", "a file in a folder that is there", result)
            section = self._section(sections, {} if is_file else values)
            is_of_a_run = values.get("run") or section.get("run")  # whose values count, and no variables
            places = {} if is_of_a_run else self._find_variables()
            variables = {name: os.environ[variable] for name, variable in places.items() if name not in values}
            requested = section | variables | self._unset_blanks(values)  # flags over variables over a file
            config = self.config.from_values(requested, "--", {name: places[name] for name in variables})
        except UserError as error:
            say(self.name, f"error: {error}")
            return error.exit_code
        return self.execute(config, result).exit_code

    def _make_parser(self, prog: str) -> Parser:
        """Return a parser of the options, in the config's `HELP_GROUPS`."""
        name, short = prog or f"python -m imagemill.components.{self.name}", self.config.SHORT_HELP
        usage = "%(prog)s [--<option> VALUE ...]" if short else None
        parser = Parser(prog=name, description=self.help, add_help=False, usage=usage)
        text = "print this; --help all: with every option" if short else "print this"
        parser.add_argument("-h", "--help", action=HelpAction, short=(*short, "config") if short else (), help=text)
        group: Any = parser
        for option in dataclasses.fields(self.config):
            if title := self.config.HELP_GROUPS.get(option.name):
                group = parser.add_argument_group(title)
            add_flag(group, option.name, requested_default(option), option.metadata["help"], option.metadata["choices"])
        return parser

    def _find_variables(self) -> dict[str, str]:
        """Return the environment variables that set options, by option: those for this step before those for all."""
        names = [name for name in field_types(self.config) if name not in ("run", *self.config.PARENTS)]
        variables = ((name, name_variable(name, step)) for name in names for step in ("", self.name))
        return {name: variable for name, variable in variables if os.environ.get(variable, "").strip()}

    def _unset_blanks(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a form or of flags by name, with None for a blank one that means unset."""
        defaults = {option.name: requested_default(option) for option in dataclasses.fields(self.config)}
        return {name: unset_blank(value, defaults[name]) for name, value in values.items()}

    def _section(self, sections: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return this step's values in the JSON parameter `config`; UserError for one that is also given elsewhere.

        Names of other steps' parameters are left to them.
        """
        shared, by_step = parse_config(sections)
        own = {name: value for name, value in shared.items() if name in field_types(self.config)}
        section = own | by_step.get(self.name, {})
        if duplicates := sorted({*values, *self.config.PARENTS} & set(section)):
            raise wrong(f"config.{self.name}", "what is no parameter of its own", duplicates[0])
        return section


def download_file(uri: str, path: str) -> None:
    """Copy a small stored file to a local one, which an orchestrator's UI shows."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(get_store(uri).read(uri))


def new_run(prefix: str) -> str:
    """Return a name for a run that sorts by time: `demo-20261121-081500-3f9a`."""
    return f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def rank() -> int:
    """Return this process's rank among those that torchrun has started for one step (RANK, WORLD_SIZE), or 0."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def set_passive_waiting() -> None:
    """Let OpenMP's threads sleep while they wait for one another; called before a library that uses it is imported.

    By default they spin: beside one other busy process on two cores training was 50 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
