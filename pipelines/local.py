"""The pipeline here: KFP's own local runner, its noise in the log file, the steps' lines on the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..components.store import uri as uris
from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OURS, EXIT_USER, TransientError, UserError, error_for_exit_code
from ..components.store.runner import RUNNER_PID
from ..components.store.step import RUN
from ..components.store.workspace import Workspace

if TYPE_CHECKING:
    from .in_docker import Containers

_STEP_LINE = re.compile(rf"^\s*(\[(?:{'|'.join(STEPS)})\] .*)")  # KFP indents what a task prints
LOG = "log.txt"
InDocker = Callable[[Workspace, str, str], AbstractContextManager["Containers"]]
"""Gives the containers of a run: of its workspace, its name and its own folder."""


class _Tee(io.TextIOBase):
    """Everything into the log; the steps' own lines to the terminal as well, as they come."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self._log, self._terminal, self._line = log, terminal, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if found := _STEP_LINE.match(line):
                self._terminal.write(found.group(1) + "\n")
                self._terminal.flush()
        return len(text)


def run_here(
    arguments: dict[str, Any], workspace: Workspace, run: str, docker: InDocker | None = None
) -> dict[str, dict[str, Any]]:
    """Run the whole pipeline on this machine, in subprocesses or by `docker`; the steps' records by name.

    Raises the error of the step that failed, with its message and exit code.
    """
    codes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="imagemill-run-") as scratch:
        log_path = Path(scratch) / LOG
        try:
            with log_path.open("w", encoding="utf-8") as log:
                if docker is None:
                    with _environment(run, scratch):
                        failed = _run_kfp(arguments, scratch, log)
                else:
                    with docker(workspace, run, scratch) as containers:
                        codes = containers.codes
                        failed = _run_kfp(arguments, scratch, log, containers)
        finally:
            _keep_log(log_path, arguments, workspace, run)
    records = workspace.step_records(run)
    if failed or any(record["exit_code"] for record in records.values()):
        _raise_from(records, workspace.run_file(run, LOG), codes)
    return records


def _keep_log(path: Path, arguments: dict[str, Any], workspace: Workspace, run: str) -> None:
    """Store the log without passwords and tokens: KFP prints every argument, also a URL with a login in it. A run that
    was refused before anything began has none, and leaves no folder."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        return
    for value in arguments.values():
        if isinstance(value, str) and uris.scheme(value):
            text = text.replace(value, uris.safe(value)).replace(json.dumps(value)[1:-1], uris.safe(value))
    try:
        workspace.store.put(workspace.run_file(run, LOG), text.encode())
    except (TransientError, UserError) as error:  # the store is gone: the step's own error says why
        print(f"the log could not be stored: {error}", file=sys.stderr)


def _run_kfp(arguments: dict[str, Any], scratch: str, log: TextIO, containers: Containers | None = None) -> bool:
    """Whether the pipeline failed. KFP says only that it did; the records say why."""
    with _quiet(log):
        from kfp import local

        from .training import training_pipeline

        runner = containers.runner() if containers else local.SubprocessRunner(use_venv=False)
        local.init(runner=runner, pipeline_root=f"{scratch}/kfp", workspace_root=f"{scratch}/kfp-workspace")
        _leave_arguments_alone()
        for task in training_pipeline.pipeline_spec.root.dag.tasks.values():
            task.ClearField("retry_policy")  # for lost pods: here a wrong input would be tried three times in 90 s
        try:
            training_pipeline(**arguments)
        except RuntimeError as error:
            log.write(f"{error}\n")
            return True
    return False


def _leave_arguments_alone() -> None:
    """KFP puts the interpreter's path wherever the text `python3` stands in a task's command line, also into a
    parameter such as a workspace named `python3-photos`. Only the program is meant."""
    from kfp.local import subprocess_task_handler as handler

    def replace(full_command: list[str], new_executable: str) -> list[str]:
        program = next(
            (i for i, part in enumerate(full_command) if "ephemeral_component.py" in part), len(full_command)
        )
        return [
            part.replace("python3", new_executable) if i <= program else part for i, part in enumerate(full_command)
        ]

    handler.replace_python_executable = replace


@contextlib.contextmanager
def _environment(run: str, scratch: str) -> Iterator[None]:
    """What the steps' processes inherit: their run's name, and whose end is theirs too."""
    changed = {RUN: run, RUNNER_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    changed["TMPDIR"] = scratch  # KFP leaves a folder a task, and a killed step what it had: all goes with the run
    changed["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR", "/tmp")  # its sockets need a short path
    before = {key: os.environ.get(key) for key in changed}
    os.environ |= changed
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _quiet(log: TextIO) -> Iterator[None]:
    """KFP prints and logs to stdout, stderr and through its own handlers: all of it goes to the log."""
    terminal = sys.stderr
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    before = root.handlers[:]
    with warnings.catch_warnings(), contextlib.redirect_stdout(_Tee(log, terminal)):
        warnings.simplefilter("ignore")
        root.handlers[:] = [handler]
        try:
            yield
        finally:
            root.handlers[:] = before


def _raise_from(records: dict[str, dict[str, Any]], log: str, codes: dict[str, int]) -> None:
    """`codes`: how the processes of steps ended, as far as that is known."""
    for step in STEPS:
        record, code = records.get(step), codes.get(step, 0)
        if record is None and code in (EXIT_OURS, EXIT_USER):  # before the step had read its parameters
            raise error_for_exit_code(code, f"{step}: ended with {code} and without a record; the log is {log}")
        if record is None:
            raise TransientError(
                f"{step}: ended without a record, as a process does that is killed (for memory?); run again to go on "
                f"from what is finished; the log is {log}"
            )
        if record["exit_code"]:
            raise error_for_exit_code(record["exit_code"], f"{step}: {record['error']}")
    raise TransientError(f"KFP ended the run although every step is done; the log is {log}")
