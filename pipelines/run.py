"""`imagemill run`: look at everything that can be known beforehand, run the pipeline here, say what came of it."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..components.download.config import DownloadConfig
from ..components.store.config import PRODUCTS, STEPS
from ..components.store.errors import EXIT_OK, MillError
from ..components.store.progress import duration
from ..components.store.step import CACHED, new_run
from ..components.store.uri import normalize
from ..components.store.workspace import Workspace
from ..components.train.config import TrainConfig
from .cluster import Cluster
from .parameters import RunParameters
from .unchanged import cached_records, write_cached_records

if TYPE_CHECKING:
    from .in_docker import Engine
    from .local import InDocker


def run(parameters: RunParameters, as_json: bool, cluster: Cluster | None = None) -> int:
    """Run the pipeline with these parameters, in subprocesses or, with a cluster's images, in Docker; prints the
    result and returns the exit code."""
    started = time.monotonic()
    result = failed()
    try:
        engine, docker = None, None
        if cluster:
            from . import docker_mounts, in_docker

            engine, parameters = in_docker.connect(cluster), docker_mounts.absolute(parameters)
        workspace, name = check_beforehand(parameters, engine)
        if engine:
            docker = partial(in_docker.containers_of, engine, parameters)
        result |= {"name": name, "run": new_run(name)}
        print(f"run {result['run']} in {workspace.uri}", file=sys.stderr, flush=True)
        named = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace.uri, "name": name})
        try:
            records = _run_what_is_missing(named, workspace, result["run"], docker)
        finally:
            _add_facts(result, workspace)
        _must_be_complete(records)
        result |= {"status": "succeeded", **facts(records)}
        code = EXIT_OK
    except MillError as error:
        result = failed(error, result)
        code = error.exit_code
    except Exception as error:  # an unforeseen one: exit code 1, its trace on stderr
        traceback.print_exc()
        ours = MillError(f"{type(error).__name__}: {error} (an error of imagemill's)")
        result = failed(ours, result)
        code = ours.exit_code
    if code:
        print(f"imagemill: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        print(_summary(result, time.monotonic() - started))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def _run_what_is_missing(
    parameters: RunParameters, workspace: Workspace, run: str, docker: InDocker | None
) -> dict[str, dict[str, Any]]:
    """Return the steps' records: of the whole pipeline, or, where nothing has changed, of what is there."""
    if records := cached_records(parameters, run, {}):
        write_cached_records(workspace, run, records)
        return records
    from .local import run_here

    return run_here(parameters.arguments(), workspace, run, docker)


def failed(error: MillError | None = None, so_far: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result as `--json` prints it, of a run that `error` ended; what it gave `so_far` is kept."""
    result: dict[str, Any] = {"status": "failed", "name": "", **dict.fromkeys(PRODUCTS.values(), ""), "report": ""}
    result |= {"metrics": {}, "promoted": False, "steps": {}} | (so_far or {})
    return result | ({"error": str(error), "exit_code": error.exit_code} if error else {})


def check_beforehand(parameters: RunParameters, engine: Engine | None = None) -> tuple[Workspace, str]:
    """What is known before data is read: a wrong value, a missing source, a workspace that can't be written, by this
    process or by the containers of `engine`."""
    from ..components.clean.classes import read_class_list
    from ..components.clean.config import CleanConfig
    from ..components.download.labels import open_dataset
    from ..components.train.weights import weights_uri

    download, clean, train = (parameters.config(step) for step in ("download", "clean", "train"))
    assert isinstance(download, DownloadConfig) and isinstance(clean, CleanConfig) and isinstance(train, TrainConfig)
    if clean.class_list:
        read_class_list(clean.class_list)
    if train.weights and not train.weights_are_named:
        weights_uri(train.weights)
    _check_device(train.device, engine)
    open_dataset(download)
    if engine:
        engine.make_writable(normalize(download.workspace, "workspace"))
    workspace = Workspace.open(download.workspace)
    return workspace, download.dataset_name()


def _check_device(device: str, engine: Engine | None) -> None:
    """A GPU that was asked for by name is missed here, and not after hours of cleaning. Importing torch takes seconds,
    so nothing is asked otherwise; what containers see only they can tell."""
    if device == "cuda" and engine is None:
        from ..components.store.model import pick_device

        pick_device(device)


def facts(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the records of a run's steps say of it, under the names of `--json`; those that are missing say nothing."""
    gate = records.get("promote", {}).get("metrics") or {}
    metrics = records.get("evaluate", {}).get("metrics") or {}
    return {
        **{kind: records.get(step, {}).get("uri", "") for step, kind in PRODUCTS.items()},
        "report": gate.get("report", ""),
        "metrics": {key: value for key, value in metrics.items() if key != "champion_evaluation"},
        "promoted": bool(gate.get("promoted")),
        "verdict": gate.get("verdict", ""),
        "champion": records.get("promote", {}).get("uri", ""),
        "steps": {step: {"state": one["state"], "seconds": one["seconds"]} for step, one in records.items()},
    }


def _add_facts(result: dict[str, Any], workspace: Workspace) -> None:
    """What the steps recorded, also of a run that failed."""
    try:
        result |= facts(workspace.step_records(result["run"]))
    except MillError:  # the store is gone: the run's own error says so
        return


def _must_be_complete(records: dict[str, dict[str, Any]]) -> None:
    if missing := [step for step in STEPS if step not in records]:
        raise MillError(f"the run ended without a record of {', '.join(missing)}")


def _summary(result: dict[str, Any], seconds: float) -> str:
    states = result["steps"]
    cached = "every step cached" if all(s["state"] == CACHED for s in states.values()) else ""
    metrics = result["metrics"]
    lines = [
        "",
        f"{result['name']}: top-1 {metrics['top1']:.3f} · macro-F1 {metrics['macro_f1']:.3f}"
        f" · {result['verdict'].replace('_', ' ')} · {duration(seconds)}{' · ' + cached if cached else ''}",
        *(f"  {kind:<11}{result[kind]}" for kind in PRODUCTS.values()),
        f"  {'champion':<11}{result['champion'] or 'none'}",
        f"  {'report':<11}{result['report']}",
    ]
    return "\n".join(lines)
