"""How a step runs, wherever it runs: config in, one outcome out, a record of it, and an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import json
import logging
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from .config import StepConfig, field_types, parse_config
from .errors import (
    EXIT_OK,
    EXIT_OURS,
    EXIT_USER,
    MillError,
    UserError,
    wrong,
)
from .extras import needed_by
from .filesystem import store_for
from .fingerprint import digest
from .manifest import MANIFEST, Dataset, place_of, read_dataset, ready
from .progress import duration, say
from .runner import end_with_runner
from .uri import join, normalize
from .workspace import Workspace

RUN = "IMAGEMILL_RUN"
RANK_RECORDS = "IMAGEMILL_RANK_RECORDS"
"""A folder: a step that runs in several processes collects the records of each there, and speaks for all."""
RAN, CACHED = "ran", "cached"
_OUTPUTS_HELP = (
    "write what the step gives into this folder, a file a value: uri, state, metrics, the manifest or report"
)


@dataclass(frozen=True)
class Outcome:
    """What a step gives: the URI of its dataset, whether it was there already, and numbers worth telling."""

    uri: str
    fingerprint: str
    state: str
    metrics: dict[str, Any] = field(default_factory=dict)


class NotCached(Exception):
    """A step would have to make something, where it was asked only for what is there."""


@dataclass(frozen=True)
class Context:
    """Where a step works: its workspace, its run, and the attempt that `--rerun` asks for.

    `only_cached`: the step may make and decide nothing; it raises NotCached where it would have to.
    """

    step: str
    workspace: Workspace
    run: str
    rerun: bool
    only_cached: bool = False

    def attempt(self) -> dict[str, str]:
        """What `--rerun` adds to the fingerprint's config: stable within a run, so that a retry is safe."""
        return {"attempt": self.run} if self.rerun else {}

    def find(self, uri: str) -> Dataset | None:
        """Return the finished dataset at `uri`, or None where the step has to make it."""
        dataset = ready(uri)
        if dataset is None:
            self.require_work(uri)
        return dataset

    def require_work(self, thing: str) -> None:
        """Raise NotCached if `thing`, which is not there, may not be made now."""
        if self.only_cached:
            raise NotCached(thing)

    def parent(self, field: str, uri: str, kind: str) -> Dataset:
        """The parent dataset that the config's `field` names. It must lie in this workspace: manifests point to
        their parents by relative URIs, so that the whole can be moved."""
        if not uri:
            raise wrong(field, f"the URI of a {kind} dataset", uri)
        absolute = place_of(uri, field)
        if not absolute.startswith(f"{self.workspace.uri}/{kind}/"):
            expected = f"a {kind} dataset of the workspace {self.workspace.uri} (--workspace)"
            place = absolute.rpartition(f"/{kind}/")[0]
            hint = f", of the workspace {place}: say --workspace {place}" if place else ""
            raise UserError(f"{wrong(field, expected, uri)}{hint}")
        return read_dataset(absolute, kind)

    def note_latest(self, name: str, dataset: Dataset) -> None:
        """Note `dataset` as the newest of its kind under `name`, unless this only looks at what is there."""
        if not self.only_cached:
            self.workspace.note_latest(name, dataset, self.run)

    def say(self, text: str) -> None:
        if not rank() and not self.only_cached:
            say(self.step, text)


@dataclass(frozen=True)
class Step:
    """One step: its name, its config and, imported only when it runs, the function that does the work.

    `work` is `module:function` of type `(config, context) -> Outcome`; `needs` are the optional modules that it can't
    do without.
    """

    name: str
    config: type[StepConfig]
    work: str
    help: str
    needs: tuple[str, ...] = field(default=(), kw_only=True)

    def execute(self, config: StepConfig, result: str = "") -> int:
        """Run the step, write its record, return its exit code. Nothing is raised but KeyboardInterrupt."""
        end_with_runner()
        share_the_cores()
        started = time.monotonic()
        record: dict[str, Any] = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "error": ""}
        record |= {"inputs": self._inputs(config), "exit_code": 0}
        run = config.run or new_run(self.name)
        workspace: Workspace | None = None
        try:
            with needed_by(self.name, self.needs):
                config.check()
                if not config.run:
                    self._refuse_parents(config)
                workspace = Workspace.open(config.workspace)
                self._refuse_what_was_refused(workspace, run, record["inputs"])
                reruns = {item.strip() for item in config.rerun.split(",")}
                context = Context(self.name, workspace, run, self.name in reruns)
                outcome = self._function()(config, context)
            record |= dataclasses.asdict(outcome)
        except MillError as error:
            record |= {"exit_code": error.exit_code, "error": str(error)}
        except Exception as error:
            # The one place where an unforeseen error becomes exit code 1, its trace in the log.
            traceback.print_exc()
            record |= {"exit_code": EXIT_OURS, "error": f"{type(error).__name__}: {error} (an error of imagemill's)"}
        record["seconds"] = round(time.monotonic() - started, 3)
        self._report(record)
        self._write(record, workspace, run, result)
        return int(record["exit_code"])

    def execute_cached(self, config: StepConfig) -> dict[str, Any]:
        """Return the record that `execute` would write if all of the step's results are there already.

        Nothing is made, decided or recorded. NotCached where something is missing; MillError where the step can't
        begin.
        """
        started = time.monotonic()
        config.check()
        reruns = {item.strip() for item in config.rerun.split(",")}
        workspace = Workspace.known(config.workspace)
        context = Context(self.name, workspace, config.run, self.name in reruns, only_cached=True)
        if context.rerun:
            context.require_work(self.name)
        outcome = self._function()(config, context)
        record = dataclasses.asdict(outcome) | {"state": CACHED, "error": "", "exit_code": EXIT_OK}
        seconds = round(time.monotonic() - started, 3)
        return record | {"inputs": self._inputs(config), "seconds": seconds}

    def _inputs(self, config: StepConfig) -> str:
        """Return the digest by which a retry recognizes the same inputs."""
        return digest({**dataclasses.asdict(config), "step": self.name})

    def _function(self) -> Callable[[StepConfig, Context], Outcome]:
        module, _, name = self.work.partition(":")
        function: Callable[[StepConfig, Context], Outcome] = getattr(importlib.import_module(module), name)
        return function

    def _refuse_parents(self, config: StepConfig) -> None:
        """A step alone that can't begin leaves nothing behind: no workspace, no run. One of a run leaves its record,
        for whoever looks what became of it."""
        context = Context(self.name, Workspace(normalize(config.workspace, "workspace")), "", False)
        for field_name in self.config.PARENTS:  # each has the name of its kind
            context.parent(field_name, getattr(config, field_name), field_name)

    def _refuse_what_was_refused(self, workspace: Workspace, run: str, inputs: str) -> None:
        """A cluster's retry of a step whose input was wrong fails at once, with the same message."""
        earlier = workspace.step_record(run, self.name)
        if earlier and earlier.get("exit_code") == EXIT_USER and earlier.get("inputs") == inputs:
            raise UserError(str(earlier.get("error")))

    def _report(self, record: dict[str, Any]) -> None:
        if os.environ.get(RANK_RECORDS) or (rank() and not record["exit_code"]):
            return
        if record["exit_code"]:
            say(self.name, f"error: {record['error']}")
        else:
            took = duration(record["seconds"]) if record["state"] == RAN else record["state"]
            say(self.name, f"{'done' if record['state'] == RAN else 'there already'} ({took}): {record['uri']}")

    def _write(self, record: dict[str, Any], workspace: Workspace | None, run: str, result: str) -> None:
        folder = os.environ.get(RANK_RECORDS, "")
        if folder:
            result, workspace = str(Path(folder) / f"{rank()}.json"), None
        elif rank():
            return
        try:
            if result:
                Path(result).write_text(json.dumps(record, indent=1) + "\n")
            if workspace is not None:
                workspace.write_step_record(run, self.name, record)
        except (MillError, OSError) as error:  # the step's own outcome stands
            say(self.name, f"the record could not be written: {error}")

    def component(self, config: str, artifact: str, **values: Any) -> dict[str, Any]:
        """The step as the body of a KFP component: named values and the JSON parameter; returns its record.

        The dataset's manifest is copied to the file `artifact`, if one is named. Ends the process with the
        step's exit code when it fails.
        """
        quiet_logs()
        values["run"] = os.environ.get(RUN) or values.get("run", "")
        values = {key: value for key, value in values.items() if key in field_types(self.config)}
        try:
            made = self.config.from_values(values | self._section(config, values))
        except UserError as error:
            say(self.name, f"error: {error}")
            raise SystemExit(error.exit_code) from None
        result = Path(os.environ.get("TMPDIR", "/tmp")) / f"imagemill-{self.name}-{secrets.token_hex(6)}.json"
        try:
            code = self.execute(made, str(result))
            if code:
                raise SystemExit(code)
            record: dict[str, Any] = json.loads(result.read_text())
            manifest = join(record["uri"], MANIFEST)
            if artifact and (code := self.hand_over(lambda: copy_to(manifest, artifact))):
                raise SystemExit(code)
            return record
        finally:
            result.unlink(missing_ok=True)

    def main(
        self, argv: Sequence[str] | None = None, prog: str = "", check_config: Callable[[str], object] = parse_config
    ) -> int:
        """The step's own command line: `python -m imagemill.components.<step>`.

        `check_config`: raises UserError for a wrong `--config`, of which the step knows its own part only.
        """
        quiet_logs()
        parser = Parser(prog=prog or f"python -m imagemill.components.{self.name}", description=self.help)
        for one in dataclasses.fields(self.config):
            add_flag(parser, one.name, one.default, one.metadata["help"], one.metadata["choices"])
        parser.add_argument("--result", default="", metavar="FILE", help="write the step's record to this file")
        parser.add_argument("--outputs", default="", metavar="FOLDER", help=_OUTPUTS_HELP)
        parser.add_argument(
            "--config", default="", metavar="JSON", help="more parameters, by step, as pipelines' config"
        )
        try:
            values = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
            result, outputs, sections = values.pop("result"), values.pop("outputs"), values.pop("config")
            check_config(sections)
            if result and not Path(result).absolute().parent.is_dir():
                raise wrong("--result", "a file in a folder that is there", result)
            config = self.config.from_values(self._section(sections, values) | values, where="--")
        except UserError as error:
            say(self.name, f"error: {error}")
            return error.exit_code
        if not outputs:
            return self.execute(config, result)
        Path(outputs).mkdir(parents=True, exist_ok=True)
        code = self.execute(config, result := result or str(Path(outputs) / "record.json"))
        return code or self.hand_over(lambda: write_outputs(json.loads(Path(result).read_text()), Path(outputs)))

    def hand_over(self, write: Callable[[], None]) -> int:
        """Give an orchestrator what the step has made; the exit code. Nothing is lost where the store is away just
        then: the next try finds the dataset there."""
        try:
            write()
        except (MillError, OSError) as error:
            say(self.name, f"error: what the step made could not be handed over: {error}")
            return error.exit_code if isinstance(error, MillError) else EXIT_OURS
        return EXIT_OK

    def _section(self, sections: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """This step's part of the JSON parameter `config`; UserError where it says what was said already. Names of
        other steps' parameters are left to them."""
        shared, by_step = parse_config(sections)
        own = {name: value for name, value in shared.items() if name in field_types(self.config)}
        section = own | by_step.get(self.name, {})
        if twice := sorted({*values, *self.config.PARENTS} & set(section)):
            raise wrong(f"config.{self.name}", "what is no parameter of its own", twice[0])
        return section


def write_outputs(record: Mapping[str, Any], folder: Path) -> None:
    """A record as files of a folder, one a value: what Argo takes parameters and artifacts from.

    `uri`, `state` and each of the metrics; the dataset's manifest as `manifest.json`, a report as `report.html`.
    """
    for name, value in {"uri": record["uri"], "state": record["state"], **record["metrics"]}.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(record["metrics"], indent=1) + "\n", encoding="utf-8")
    if record["fingerprint"]:
        copy_to(join(record["uri"], MANIFEST), str(folder / "manifest.json"))
    if report := record["metrics"].get("report"):
        copy_to(report, str(folder / "report.html"))


def copy_to(uri: str, path: str) -> None:
    """A small stored file as a local one: what an orchestrator's UI shows."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(store_for(uri).read(uri))


class Parser(argparse.ArgumentParser):
    """argparse that raises a UserError for a mistake, and does not guess abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what is unknown here: only a command's own parser knows the flags that may have been meant."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(word, flags, 1)
            hint = f"; is it {near[0]}?" if near else f" (see {self.prog} --help)"
            known = "a known flag" if word.startswith("-") else "nothing more, or a flag (--…) before it"
            raise UserError(f"{word}: expected {known}{hint}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A word that is none of the choices, with the one that may have been meant."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = difflib.get_close_matches(str(value), known, 1)
            hint = f"is it {near[0]}?" if near else f"see {self.prog} --help"
            field = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            raise UserError(f"{wrong(field, 'one of ' + ', '.join(known), value)}; {hint}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_flag(parser: argparse.ArgumentParser, name: str, default: Any, help: str, choices: Sequence[str]) -> None:
    """The flag of one config field, with its help and default; None where it is left out."""
    shown = "" if default in ("", None) or "(default: " in help else f" (default: {default})"
    listed = f" [{', '.join(choices)}]" if choices else ""
    text = f"{help}{listed}{shown}".replace("%", "%%")
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool) or "true" in choices:  # `--flip`, `--flip false`
        parser.add_argument(flag, dest=name, metavar="true|false", nargs="?", const="true", help=text)
    else:
        parser.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)


def new_run(prefix: str) -> str:
    """A name for a run that sorts by time: `demo-20261121-081500-3f9a`."""
    return f"{prefix}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def quiet_logs() -> None:
    """Warnings of ours on stderr; the libraries' chatter stays out."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)


def rank() -> int:
    """This process's number among those of one step that torchrun has started (RANK, WORLD_SIZE); alone it is 0."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def share_the_cores() -> None:
    """Let the arithmetic libraries' threads sleep while they wait for one another, before one of them is imported.

    By default they spin: beside one other busy process on two cores training was 50 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
