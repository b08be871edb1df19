"""`imagemill run`: check the parameters, run the pipeline on this machine, print the result."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ...components.download.config import DownloadConfig
from ...components.step.progress import format_duration
from ...components.step.step import CACHED, new_run
from ...components.storage.errors import EXIT_OK, MillError, describe_internal_error
from ...components.storage.uri import normalize
from ...components.train.config import TrainConfig
from ..cluster.check_and_download import find_cached_records, write_cached_records
from ..cluster.cluster_file import Cluster
from ..finish import make_failed_result, read_record_facts
from ..parameters import RunParameters

if TYPE_CHECKING:
    from ..docker.runner import Engine
    from .kfp_runner import PrepareContainers


def run(parameters: RunParameters, as_json: bool, cluster: Cluster | None = None) -> int:
    """Run the pipeline in subprocesses or, with a cluster's images, in Docker; print the result and return the exit
    code."""
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
        named = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace.uri, "name": name})
        try:
            records = _run_unless_cached(named, workspace, result["run"], prepare_containers)
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
        ours = MillError(describe_internal_error(error))
        result = make_failed_result(ours, result)
        code = ours.exit_code
    if code:
        print(f"imagemill: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        print(_format_summary(result, time.monotonic() - started))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def _run_unless_cached(
    parameters: RunParameters, workspace: Workspace, run: str, prepare_containers: PrepareContainers | None
) -> dict[str, dict[str, Any]]:
    """Run the pipeline, unless nothing has changed since an earlier run; return the steps' records."""
    if records := find_cached_records(parameters, run, {}):
        write_cached_records(workspace, run, records)
        return records
    from .kfp_runner import run_locally

    return run_locally(parameters.arguments(), workspace, run, prepare_containers)


def check_parameters(parameters: RunParameters, engine: Engine | None = None) -> tuple[Workspace, str]:
    """Return the workspace and the dataset's name. Raises UserError for mistakes that show before data is read: a wrong
    value, a missing source, a workspace that this process, or the containers of `engine`, can't write."""
    from ...components.clean.config import CleanConfig
    from ...components.clean.labels import read_class_list
    from ...components.download.dataset_kinds import open_dataset
    from ...components.train.pretrained_weights import find_weights_file

    download, clean, train = (parameters.config(step) for step in ("download", "clean", "train"))
    assert isinstance(download, DownloadConfig) and isinstance(clean, CleanConfig) and isinstance(train, TrainConfig)
    if clean.class_list:
        read_class_list(clean.class_list)
    if train.weights and not train.weights_are_named:
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
    states = result["steps"]
    cached = "every step cached" if all(step["state"] == CACHED for step in states.values()) else ""
    metrics = result["metrics"]
    lines = [
        "",
        f"{result['name']}: top-1 {metrics['top1']:.3f} · macro-F1 {metrics['macro_f1']:.3f}"
        f" · {result['verdict'].replace('_', ' ')} · {format_duration(seconds)}{' · ' + cached if cached else ''}",
        *(f"  {kind:<11}{result[kind]}" for kind in PRODUCTS.values()),
        f"  {'champion':<11}{result['champion'] or 'none'}",
        f"  {'report':<11}{result['report']}",
    ]
    return "\n".join(lines)
