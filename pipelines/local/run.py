"""`imagemill run`: check the parameters, run the pipeline on this machine with KFP's local runners, print the result.

The runners' output goes to a log, the steps' to the terminal.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from ...components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ...components.download.config import DownloadConfig
from ...components.step.progress import format_duration, format_scores
from ...components.step.runner_exit import RUNNER_PID
from ...components.step.step import CACHED, RUN_ENV, new_run
from ...components.storage import uri as uris
from ...components.storage.errors import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_USER,
    MillError,
    TransientError,
    UserError,
    describe_internal_error,
    error_for_exit_code,
)
from ...components.storage.uri import normalize
from ...components.train.config import TrainConfig
from ..cluster.check_and_download import Records, find_cached_records, write_cached_records
from ..cluster.cluster_file import Cluster
from ..compat import replace_python_in_program
from ..finish import make_failed_result, read_record_facts
from ..parameters import RunParameters

if TYPE_CHECKING:
    from ..docker.runner import Containers, Engine


def run(parameters: RunParameters, as_json: bool, cluster: Cluster | None = None) -> int:
    """Run the pipeline in subprocesses or, with a `cluster`, in Docker with its images; print the result and return the
    exit code."""
    started = time.monotonic()
    result = make_failed_result()
    try:
        engine, prepare_containers = None, None
        if cluster:
            from ..docker import environment, runner

            engine, parameters = runner.open_engine(cluster), environment.make_absolute(parameters)
        workspace, name = check_parameters(parameters, engine)
        if engine:
            prepare_containers = partial(runner.prepare_containers, engine, parameters)
        result |= {"name": name, "run": new_run(name)}
        print(f"run {result['run']} in {workspace.uri}", file=sys.stderr, flush=True)
        resolved = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace.uri, "name": name})
        try:
            records = _run_unless_cached(resolved, workspace, result["run"], prepare_containers)
        finally:
            _add_record_facts(result, workspace)
        if missing := [step for step in STEPS if step not in records]:
            raise MillError(f"the run ended without a record of {', '.join(missing)}")
        result |= {"status": "succeeded", **read_record_facts(records)}
        code = EXIT_OK
    except MillError as error:
        result = make_failed_result(error, result)
        code = error.exit_code
    except Exception as error:  # a bug: exit code 1, its traceback on stderr
        traceback.print_exc()
        internal_error = MillError(describe_internal_error(error))
        result = make_failed_result(internal_error, result)
        code = internal_error.exit_code
    if code:
        print(f"imagemill: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        print(_format_summary(result, time.monotonic() - started))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def _run_unless_cached(
    parameters: RunParameters, workspace: Workspace, run: str, prepare_containers: PrepareContainers | None
) -> Records:
    """Run the pipeline, unless nothing has changed since an earlier run; return the steps' records."""
    if records := find_cached_records(parameters, run, {}):
        write_cached_records(workspace, run, records)
        return records

    return run_locally(parameters.arguments(), workspace, run, prepare_containers)


def check_parameters(parameters: RunParameters, engine: Engine | None = None) -> tuple[Workspace, str]:
    """Check the parameters before any data is read; return the workspace and the dataset's name.

    Raises UserError for a wrong value, a missing source, and a workspace that this process, or the containers of
    `engine`, can't write.
    """
    from ...components.clean.config import CleanConfig
    from ...components.clean.labels import read_class_list, read_label_map
    from ...components.download.dataset_kinds import open_dataset
    from ...components.train.pretrained_weights import find_weights_file

    download, clean, train = (parameters.config(step) for step in ("download", "clean", "train"))
    assert isinstance(download, DownloadConfig) and isinstance(clean, CleanConfig) and isinstance(train, TrainConfig)
    if clean.class_list:
        read_class_list(clean.class_list)
    read_label_map(clean)
    if train.weights_are_stored:
        find_weights_file(train.weights)
    _check_device(train.device, engine)
    open_dataset(download)
    if engine:
        engine.make_writable(normalize(download.workspace, "workspace"))
    workspace = Workspace.open(download.workspace)
    return workspace, download.dataset_name()


def _check_device(device: str, engine: Engine | None) -> None:
    # A missing GPU shows here rather than after hours of cleaning. Importing torch takes seconds, so other devices are
    # not checked; nor are the GPUs of containers, which this process can't see.
    if device == "cuda" and engine is None:
        from ...components.models.artifact import pick_device

        pick_device(device)


def _add_record_facts(result: dict[str, Any], workspace: Workspace) -> None:
    with contextlib.suppress(MillError):  # the store can't be reached: the run's own error says so
        result |= read_record_facts(workspace.step_records(result["run"]))


def _format_summary(result: dict[str, Any], seconds: float) -> str:
    cached = " · every step cached" if all(step["state"] == CACHED for step in result["steps"].values()) else ""
    metrics = result["metrics"]
    lines = [
        "",
        *([f"warning: {result['warning']}"] if result["warning"] else []),
        f"{result['name']}: {format_scores(metrics)} on {metrics['test_images']:,} test images"
        f" · {result['verdict'].replace('_', ' ')} · {format_duration(seconds)}{cached}",
        *(f"  {kind:<11}{result[kind]}" for kind in PRODUCTS.values()),
        f"  {'champion':<11}{result['champion'] or 'none'}",
        f"  {'report':<11}{result['report']}",
    ]
    return "\n".join(lines)


_STEP_LINE = re.compile(rf"^\s*(\[(?:{'|'.join(STEPS)})\] .*)")  # KFP indents what a task prints
LOG_NAME = "log.txt"
PrepareContainers = Callable[[Workspace, str, str], AbstractContextManager["Containers"]]
"""Prepares the containers of a run, given its workspace, its name and a temporary folder of its own."""


def is_step_line(line: str) -> bool:
    """Return whether a line is a step's own, `[clean] …`, rather than a library's."""
    return _STEP_LINE.match(line) is not None


class _Tee(io.TextIOBase):
    """A text stream that writes everything to the log, and the steps' own lines to the terminal as well."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self._log, self._terminal, self._line = log, terminal, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if match := _STEP_LINE.match(line):
                self._terminal.write(match.group(1) + "\n")
                self._terminal.flush()
        return len(text)


def run_locally(
    arguments: dict[str, Any], workspace: Workspace, run: str, prepare_containers: PrepareContainers | None = None
) -> Records:
    """Run the pipeline in subprocesses, or in containers if there is a function to prepare them; return the records by
    step.

    Raises the error of the step that failed, with its message and exit code.
    """
    exit_codes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="imagemill-run-") as scratch:
        log_path = Path(scratch) / LOG_NAME
        try:
            with log_path.open("w", encoding="utf-8") as log:
                if prepare_containers is None:
                    with step_environment(run, scratch):
                        succeeded = _run_kfp(arguments, scratch, log)
                else:
                    with prepare_containers(workspace, run, scratch) as containers:
                        exit_codes = containers.exit_codes
                        succeeded = _run_kfp(arguments, scratch, log, containers)
        finally:
            _store_log(log_path, arguments, workspace, run)
    records = workspace.step_records(run)
    if not succeeded or any(record.exit_code for record in records.values()):
        _raise_step_error(records, workspace.run_file_uri(run, LOG_NAME), exit_codes)
    return records


def _store_log(path: Path, arguments: dict[str, Any], workspace: Workspace, run: str) -> None:
    """Store the log without passwords and tokens: KFP prints every argument, also a URL with a login in it. An empty
    log, of a run that was refused at once, is not stored, so that no folder is made for it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        return
    for value in arguments.values():
        if isinstance(value, str) and uris.scheme(value):
            text = text.replace(value, uris.redact(value)).replace(json.dumps(value)[1:-1], uris.redact(value))
    try:
        workspace.store.put(workspace.run_file_uri(run, LOG_NAME), text.encode())
    except (TransientError, UserError) as error:  # the store can't be reached: the step's own error says why
        print(f"the log could not be stored: {error}", file=sys.stderr)


def _run_kfp(arguments: dict[str, Any], scratch: str, log: TextIO, containers: Containers | None = None) -> bool:
    """Run the pipeline and return whether KFP reports success; why it failed is in the steps' records."""
    with _redirect_output(log):
        from kfp import local

        from ..training import training_pipeline

        runner = containers.make_runner() if containers else local.SubprocessRunner(use_venv=False)
        local.init(runner=runner, pipeline_root=f"{scratch}/kfp", workspace_root=f"{scratch}/kfp-workspace")
        replace_python_in_program()
        for task in training_pipeline.pipeline_spec.root.dag.tasks.values():
            task.ClearField("retry_policy")  # KFP's retries are for lost pods; here they would repeat a user's error
        try:
            training_pipeline(**arguments)
        except RuntimeError as error:
            log.write(f"{error}\n")
            return False
    return True


@contextlib.contextmanager
def step_environment(run: str, scratch: str) -> Iterator[None]:
    """Set the variables that the steps' processes inherit: the run's name, and this process, with which they end."""
    variables = {RUN_ENV: run, RUNNER_PID: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    # KFP leaves a folder for each task, and a killed step its files: all are removed with the run's own folder.
    variables["TMPDIR"] = scratch
    variables["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR", "/tmp")  # its sockets need a short path
    original = {key: os.environ.get(key) for key in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for key, value in original.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _redirect_output(log: TextIO) -> Iterator[None]:
    """Send what KFP prints, and what it logs by handlers of its own, to the log."""
    root = logging.getLogger()
    original = root.handlers[:]
    with warnings.catch_warnings(), contextlib.redirect_stdout(_Tee(log, sys.stderr)):
        warnings.simplefilter("ignore")
        root.handlers[:] = [logging.StreamHandler(log)]
        try:
            yield
        finally:
            root.handlers[:] = original


def _raise_step_error(records: Records, log: str, exit_codes: dict[str, int]) -> NoReturn:
    """Raise the error of the first step that failed. `exit_codes`: those of the steps' containers."""
    for step in STEPS:
        record, code = records.get(step), exit_codes.get(step, 0)
        if record is None and code in (EXIT_INTERNAL, EXIT_USER):  # before the step had read its parameters
            raise error_for_exit_code(
                code, f"{step}: exited with code {code} before it wrote its record; the log is {log}"
            )
        if record is None:
            raise TransientError(
                f"{step}: was killed (out of memory?); the same command continues from what is finished; the log is "
                f"{log}"
            )
        if record.exit_code:
            raise error_for_exit_code(record.exit_code, f"{step}: {record.error}")
    raise TransientError(f"KFP ended the run although every step is done; the log is {log}")
