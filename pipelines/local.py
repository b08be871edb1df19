"""`imagemill run`: check the parameters, run the steps one after another, print the result.

The steps run in this process: a step's start costs nothing, and what one has imported the next one has. With a cluster
file each runs in a container instead (`docker/runner.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..components.dataset.records import StepRecord
from ..components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ..components.download.config import DownloadConfig
from ..components.step.command_line import configure_logging
from ..components.step.config import StepConfig
from ..components.step.progress import format_duration, format_scores
from ..components.step.runner_exit import StopRequest
from ..components.step.step import CACHED, NotCached, new_run
from ..components.storage.errors import (
    EXIT_OK,
    MillError,
    describe_internal_error,
    error_for_exit_code,
)
from ..components.storage.uri import normalize
from ..components.train.config import TrainConfig
from .cluster.cluster_file import Cluster
from .cluster.unchanged import find_cached_records, write_cached_records
from .finish import make_failed_result, read_record_facts
from .parameters import RunParameters
from .run_log import RunLog
from .steps import PIPELINE, Records, select_inputs

if TYPE_CHECKING:
    from .docker.runner import Engine

Watch = Callable[[], bool]
"""Is called about once a second while a training runs; True ends it at the next batch."""
POLL_S = 1.0


class StoppedByWatch(Exception):
    """Raised for a step that its `Watch` has ended."""


def run(parameters: RunParameters, as_json: bool, cluster: Cluster | None = None) -> int:
    """Run the pipeline in this process or, with a `cluster`, in Docker with its images; print the result and return the
    exit code."""
    started = time.monotonic()
    result = make_failed_result()
    try:
        engine = None
        if cluster:
            from .docker import environment, runner

            engine, parameters = runner.open_engine(cluster), environment.make_absolute(parameters)
        workspace, name = check_parameters(parameters, engine)
        result |= {"name": name, "run": new_run(name)}
        print(f"run {result['run']} in {workspace.uri}", file=sys.stderr, flush=True)
        resolved = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace.uri, "name": name})
        try:
            records = _run_unless_cached(resolved, workspace, result["run"], engine)
        finally:
            _add_record_facts(result, workspace)
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
        print(format_summary(result, time.monotonic() - started))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def _run_unless_cached(parameters: RunParameters, workspace: Workspace, run: str, engine: Engine | None) -> Records:
    """Run the pipeline, unless nothing has changed since an earlier run; return the steps' records."""
    if records := find_cached_records(parameters, run, {}):
        write_cached_records(workspace, run, records)
        return records
    with RunLog.open(workspace, run, parameters.arguments().values()) as log:
        if engine is None:
            return run_steps(parameters, run, StepRunner(log).run)
        from .docker.runner import open_containers

        with open_containers(engine, parameters, workspace, run, log) as containers:
            return run_steps(parameters, run, containers.run_step)


def run_steps(parameters: RunParameters, run: str, run_step: Callable[[str, StepConfig], StepRecord]) -> Records:
    """Run all steps in their order, each with what those before it gave; return their records."""
    records: Records = {}
    for step in STEPS:
        config = replace(parameters.config(step), run=run, **select_inputs(step, records))
        records[step] = run_step(step, config)
    return records


@dataclass(frozen=True)
class StepRunner:
    """Runs steps in this process. `log` gets all that they and their libraries print, the terminal their own lines."""

    log: RunLog

    def find(self, step: str, config: StepConfig) -> StepRecord | None:
        """Return the record of a step whose result exists; None where it has to run, if only to raise its error."""
        try:
            return PIPELINE[step].step.execute_cached(config)
        except (NotCached, MillError, ImportError):
            return None

    def run(self, step: str, config: StepConfig, watch: Watch | None = None) -> StepRecord:
        """Run a step and return its record.

        Raises the step's error, StoppedByWatch where `watch` has ended it, and KeyboardInterrupt where a signal has.
        """
        stop = StopRequest()
        with self.log.capture(), _watched(watch, stop):
            configure_logging()
            try:
                record = PIPELINE[step].step.execute(config, stop=stop)
            except SystemExit:  # Ray's answer to SIGTERM
                raise KeyboardInterrupt from None
        _release_memory()
        if stop.is_by_signal:
            raise KeyboardInterrupt
        if stop.is_requested and record.exit_code:
            raise StoppedByWatch
        if record.exit_code:
            raise error_for_exit_code(record.exit_code, f"{step}: {record.error}")
        return record


@contextlib.contextmanager
def _watched(watch: Watch | None, stop: StopRequest) -> Iterator[None]:
    """Call `watch` in a thread of its own within the block, until it says to stop."""
    if watch is None:
        yield
        return
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(POLL_S):
            if watch():
                stop.is_requested, stop.requested_by = True, "its watch"
                return

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _release_memory() -> None:
    """Give a step's memory back to the system before the next one begins: freed memory stays with the allocators."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_parameters(parameters: RunParameters, engine: Engine | None = None) -> tuple[Workspace, str]:
    """Check the parameters before any data is read; return the workspace and the dataset's name.

    Raises UserError for a wrong value, a missing source, and a workspace that this process, or the containers of
    `engine`, can't write.
    """
    from ..components.clean.config import CleanConfig
    from ..components.clean.labels import read_class_list, read_label_map
    from ..components.download.dataset_kinds import open_dataset
    from ..components.train.pretrained_weights import find_weights_file

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
        from ..components.models.artifact import pick_device

        pick_device(device)


def _add_record_facts(result: dict[str, Any], workspace: Workspace) -> None:
    with contextlib.suppress(MillError):  # the store can't be reached: the run's own error says so
        result |= read_record_facts(workspace.step_records(result["run"]))


def format_summary(result: dict[str, Any], seconds: float) -> str:
    """Return a succeeded run in lines for people."""
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
