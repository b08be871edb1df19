"""Entry point of the clean pod under Argo: runs clean, and then plans how the tensors are made.

An Argo resource template can create a RayJob, but can't return the tensors' URI, nor find that they exist already. So
this pod, which knows the clean dataset, outputs the tensors' URI (`tensors`), what makes them (`executor`) and, if that
is a RayJob, its manifest (`rayjob`). Exit codes are a step's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...components.clean import STEP as CLEAN
from ...components.dataset.workspace import Workspace
from ...components.resize import STEP as RESIZE
from ...components.resize.config import ResizeConfig
from ...components.step.command_line import configure_logging
from ...components.step.progress import say
from ...components.step.step import CACHED, RUN_ENV, Context, write_outputs
from ...components.storage.errors import EXIT_OK, EXIT_OURS, MillError, describe_internal_error, wrong
from ..cluster.cluster_file import Cluster
from ..cluster.pod_fields import CLUSTER_VARIABLE, read_pod_cluster
from .pod_arguments import PodArguments, parse_pod_arguments

NONE, POD, RAYJOB = "none", "pod", "rayjob"
"""The values of `executor`: the tensors exist; the resize step's own pod makes them; a RayJob makes them."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run's tensors. `tensors`: their URI, empty where only the pod that makes them knows it; `executor`:
    NONE, POD or RAYJOB; `rayjob`: the RayJob's manifest as JSON, for RAYJOB only."""

    tensors: str
    executor: str
    rayjob: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m imagemill.pipelines.argo.clean_and_plan`: clean and plan; return the exit code."""
    configure_logging()
    step = CLEAN.name
    try:
        arguments = parse_pod_arguments(
            "imagemill.pipelines.argo.clean_and_plan", CLEAN.help, CLEAN.config.PARENTS, argv
        )
        cluster = read_pod_cluster()
        if cluster is None:
            raise wrong(CLUSTER_VARIABLE, "the cluster file as JSON", "")
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

    MillError where the config of the resize step is not possible. Like an internal error it is also written to the
    step's record, as if the step had run.
    """
    workspace = Workspace.from_uri(clean.rpartition("/clean/")[0])
    run = os.environ.get(RUN_ENV) or arguments.run
    try:
        config = arguments.config(RESIZE.name, clean=clean)
        assert isinstance(config, ResizeConfig)
        reruns = {item.strip() for item in config.rerun.split(",")}
        tensor_plan = plan_tensors(config, cluster, Context(RESIZE.name, workspace, run, RESIZE.name in reruns))
    except Exception as error:
        record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "inputs": "", "seconds": 0}
        if isinstance(error, MillError):
            record |= {"error": str(error), "exit_code": error.exit_code}
        else:
            record |= {"error": describe_internal_error(error), "exit_code": EXIT_OURS}
        workspace.write_step_record(run, RESIZE.name, record)
        raise
    for field in dataclasses.fields(tensor_plan):
        arguments.write(field.name, getattr(tensor_plan, field.name))


def only_resize_knows_tensors(cluster: Cluster) -> bool:
    """Return whether only the resize step's own pod knows the tensors' URI, which depends on whether they are made on a
    GPU: with an existing Ray cluster, or in a pod with a GPU that torch may not be able to use."""
    return cluster.ray.mode == "address" or (cluster.ray.mode == "pod" and cluster.steps[RESIZE.name].gpu > 0)


def plan_tensors(config: ResizeConfig, cluster: Cluster, context: Context) -> Plan:
    """Return the plan for the tensors of `config`; write the resize step's record if they exist already."""
    from ...components.dataset.manifest import find_intact_dataset
    from ...components.resize.ray_job import build_command, write_pending_record
    from ...components.resize.resize import find_target, report_outcome
    from ..kuberay.manifest import build_job_name, build_rayjob, count_gpus, refuse_address
    from ..kuberay.resize_step import choose_mode

    if only_resize_knows_tensors(cluster):
        return Plan("", POD)
    if cluster.ray.mode != "pod":
        refuse_address(config.ray_address)
    target = find_target(config, context, count_gpus(cluster) if cluster.ray.makes_rayjobs else 0)
    if dataset := find_intact_dataset(target.uri):
        _write_cached_record(dataclasses.asdict(report_outcome(target, dataset, CACHED, context)), context)
        return Plan(target.uri, NONE)
    mode = choose_mode(cluster, target.estimate_totals(context), config.copies, target.config.device)
    if mode == "pod":
        return Plan(target.uri, POD)
    job = build_job_name(context.run, target.fingerprint)
    manifest = build_rayjob(
        cluster, job, build_command(target.make_job_config(context)), context.run,
        identity="" if cluster.storage.secret else cluster.argo.service_account,
        retries=cluster.limits.lost_pod_retries,  # KubeRay's backoffLimit: Argo does not retry a RayJob that failed
    )  # fmt: skip
    write_pending_record(job, context)
    context.say(f"the tensors have to be made, by the RayJob {job}: {target.uri}")
    return Plan(target.uri, RAYJOB, json.dumps(manifest, separators=(",", ":")))


def _write_cached_record(record: dict[str, Any], context: Context) -> None:
    """Write the record that the resize step writes for tensors that exist."""
    record |= {"exit_code": EXIT_OK, "error": "", "seconds": 0.0, "inputs": ""}
    context.workspace.write_step_record(context.run, RESIZE.name, record)


if __name__ == "__main__":
    sys.exit(main())
