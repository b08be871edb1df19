"""Argo's pod for clean: it cleans, and then says where the tensors come from.

An Argo resource template can make a RayJob, but can't return the tensors' URI, nor see that none is needed. So this
pod, which has the clean dataset at hand, says where the tensors will lie (`tensors`), what makes them (`executor`) and,
if that is a RayJob, its manifest (`rayjob`). Exit codes are a step's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..components.clean import STEP as CLEAN
from ..components.resize import STEP as RESIZE
from ..components.resize.config import ResizeConfig
from ..components.store.command_line import configure_logging
from ..components.store.errors import EXIT_OK, EXIT_OURS, MillError, wrong
from ..components.store.progress import say
from ..components.store.step import CACHED, RUN_ENV, Context, write_outputs
from ..components.store.workspace import Workspace
from .cluster import Cluster
from .pod_arguments import PodArguments, parse
from .pod_settings import VARIABLE, cluster_of_pod

NONE, POD, RAYJOB = "none", "pod", "rayjob"
"""The values of `executor`: the tensors are there; the resize step's own pod makes them; a RayJob makes them."""


@dataclass(frozen=True)
class Plan:
    """Where the tensors of a run come from. `tensors`: their URI, empty where only the pod that makes them can tell;
    `executor`: NONE, POD or RAYJOB; `rayjob`: the RayJob's manifest as JSON, for RAYJOB only."""

    tensors: str
    executor: str
    rayjob: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m imagemill.pipelines.planning`: clean and plan; returns the exit code."""
    configure_logging()
    step = CLEAN.name
    try:
        arguments = parse("imagemill.pipelines.planning", CLEAN.help, CLEAN.config.PARENTS, argv)
        cluster = cluster_of_pod()
        if cluster is None:
            raise wrong(VARIABLE, "the cluster's file as JSON", "")
        result = arguments.outputs / "record.json"
        if code := CLEAN.execute(arguments.config(CLEAN.name, **arguments.parents), str(result)):
            return code
        record = json.loads(result.read_text(encoding="utf-8"))
        if code := CLEAN.write_results(lambda: write_outputs(record, arguments.outputs)):
            return code
        step = RESIZE.name
        write_plan(arguments, record["uri"], cluster)
    except MillError as error:
        say(step, f"error: {error}")
        return error.exit_code
    return EXIT_OK


def write_plan(arguments: PodArguments, clean: str, cluster: Cluster) -> None:
    """Plan for the clean dataset at the URI `clean`, and write the plan's fields as output values.

    MillError where the resize step can't do what it is asked for. The step's record tells that, and any error of ours,
    as if it had run.
    """
    workspace = Workspace.from_uri(clean.rpartition("/clean/")[0])
    run = os.environ.get(RUN_ENV) or arguments.run
    try:
        config = arguments.config(RESIZE.name, clean=clean)
        assert isinstance(config, ResizeConfig)
        reruns = {item.strip() for item in config.rerun.split(",")}
        planned = plan(config, cluster, Context(RESIZE.name, workspace, run, RESIZE.name in reruns))
    except Exception as error:
        record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "inputs": "", "seconds": 0}
        if isinstance(error, MillError):
            record |= {"error": str(error), "exit_code": error.exit_code}
        else:
            record |= {"error": f"{type(error).__name__}: {error} (an error of imagemill's)", "exit_code": EXIT_OURS}
        workspace.write_step_record(run, RESIZE.name, record)
        raise
    for field in dataclasses.fields(planned):
        arguments.write(field.name, getattr(planned, field.name))


def only_resize_knows_tensors(cluster: Cluster) -> bool:
    """Whether only the resize step's own pod can tell the tensors' URI, which depends on whether they are made on a
    GPU: on a Ray cluster that is there, or in a pod with a GPU that torch may not be able to use."""
    return cluster.ray.mode == "address" or (cluster.ray.mode == "pod" and cluster.steps[RESIZE.name].gpu > 0)


def plan(config: ResizeConfig, cluster: Cluster, context: Context) -> Plan:
    """Return where the tensors of `config` come from; writes the resize step's record where they are there already."""
    from ..components.resize.ray_job import command, write_waiting_record
    from ..components.resize.resize import find, outcome
    from ..components.store.manifest import find_intact_dataset
    from . import rayjob
    from .ray_mode import choose_mode

    if only_resize_knows_tensors(cluster):
        return Plan("", POD)
    if cluster.ray.mode != "pod":
        rayjob.refuse_address(config.ray_address)
    target = find(config, context, rayjob.gpus(cluster) if cluster.ray.makes_rayjobs else 0)
    if dataset := find_intact_dataset(target.uri):
        _write_cached_record(dataclasses.asdict(outcome(target, dataset, CACHED, context)), context)
        return Plan(target.uri, NONE)
    mode = choose_mode(cluster, target.clean.manifest.totals, config.copies, target.config.device)
    if mode == "pod":
        return Plan(target.uri, POD)
    job = rayjob.job_name(context.run, target.fingerprint)
    manifest = rayjob.manifest(
        cluster, job, command(target.for_job(context)), context.run,
        identity="" if cluster.storage.secret else cluster.argo.service_account,
        retries=cluster.limits.lost_pod_retries,  # Argo itself never tries a failed resource again
    )  # fmt: skip
    write_waiting_record(job, context)
    context.say(f"the tensors have to be made, by the RayJob {job}: {target.uri}")
    return Plan(target.uri, RAYJOB, json.dumps(manifest, separators=(",", ":")))


def _write_cached_record(record: dict[str, Any], context: Context) -> None:
    """Write the record that the resize step would write, had it been asked for what is there."""
    record |= {"exit_code": EXIT_OK, "error": "", "seconds": 0.0, "inputs": ""}
    context.workspace.write_step_record(context.run, RESIZE.name, record)


if __name__ == "__main__":
    sys.exit(main())
