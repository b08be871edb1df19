"""Plans of Argo's pods for the step after theirs: download's for clean, clean's for resize.

An Argo resource template can create a RayJob, but can't return the URI of the dataset that it makes, nor find that it
exists already. So the pod before, which knows the parent, outputs what makes the dataset (`executor`) and, if that is a
RayJob, its manifest (`rayjob`).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from ...components.dataset.manifest import find_intact_dataset
from ...components.dataset.workspace import Workspace
from ...components.engine.ray_job import build_command, write_pending_record
from ...components.resize import STEP as RESIZE
from ...components.step.config import StepConfig
from ...components.step.step import CACHED, RUN_ENV, Context
from ...components.storage.errors import EXIT_OK, EXIT_OURS, MillError, describe_internal_error
from ..cluster.cluster_file import Cluster
from ..kuberay.manifest import build_job_name, build_rayjob
from ..kuberay.ray_step import choose_mode, find_target
from .pod_arguments import PodArguments

NONE, POD, RAYJOB = "none", "pod", "rayjob"
"""The values of `executor`: the dataset exists; the step's own pod makes it; a RayJob makes it."""


@dataclass(frozen=True)
class Plan:
    """The plan of a step's dataset. `uri`: empty where only the pod that makes it knows it; `executor`: NONE, POD or
    RAYJOB; `rayjob`: the RayJob's manifest as JSON, for RAYJOB only."""

    uri: str
    executor: str
    rayjob: str = ""


def write_plan(arguments: PodArguments, workspace: Workspace, step: str, cluster: Cluster, **values: str) -> Plan:
    """Plan for clean or resize, write `executor` and `rayjob` as output values, and return the plan.

    `values`: the URI of the step's parent, and further fields of its config. MillError where the config is not
    possible. Like an internal error it is also written to the step's record, as if the step had run.
    """
    run = os.environ.get(RUN_ENV) or arguments.run
    try:
        config = arguments.config(step, **values)
        reruns = {item.strip() for item in config.rerun.split(",")}
        plan = make_plan(config, cluster, Context(step, workspace, run, step in reruns))
    except Exception as error:
        record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "inputs": "", "seconds": 0}
        if isinstance(error, MillError):
            record |= {"error": str(error), "exit_code": error.exit_code}
        else:
            record |= {"error": describe_internal_error(error), "exit_code": EXIT_OURS}
        workspace.write_step_record(run, step, record)
        raise
    arguments.write("executor", plan.executor)
    arguments.write("rayjob", plan.rayjob)
    return plan


def only_resize_knows_tensors(cluster: Cluster) -> bool:
    """Return whether only the resize step's own pod knows the tensors' URI, which depends on whether they are made on a
    GPU: with an existing Ray cluster, or in a pod with a GPU that torch may not be able to use."""
    return cluster.ray.mode == "address" or (cluster.ray.mode == "pod" and cluster.steps[RESIZE.name].gpu > 0)


def make_plan(config: StepConfig, cluster: Cluster, context: Context) -> Plan:
    """Return the plan for the dataset of `config`; write resize's record if its tensors exist already, for then it has
    no pod that does."""
    step = context.step
    if step == RESIZE.name and only_resize_knows_tensors(cluster):
        return Plan("", POD)
    target = find_target(config, context, cluster)
    if dataset := find_intact_dataset(target.uri):
        if step == RESIZE.name:
            record = asdict(target.report(dataset, CACHED, context))
            record |= {"exit_code": EXIT_OK, "error": "", "seconds": 0.0, "inputs": ""}
            context.workspace.write_step_record(context.run, step, record)
        return Plan(target.uri, NONE)
    if choose_mode(cluster, step, target.estimate_core_seconds(context), target.device) == "pod":
        return Plan(target.uri, POD)
    job = build_job_name(context.run, target.fingerprint)
    manifest = build_rayjob(
        cluster, step, job, build_command(step, target.make_job_config(context)), context.run,
        identity="" if cluster.storage.secret else cluster.argo.service_account,
        retries=cluster.limits.lost_pod_retries,  # KubeRay's backoffLimit: Argo does not retry a RayJob that failed
    )  # fmt: skip
    write_pending_record(job, context)
    context.say(f"to be made by the RayJob {job}: {target.uri}")
    return Plan(target.uri, RAYJOB, json.dumps(manifest, separators=(",", ":")))
