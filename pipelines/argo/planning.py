"""The command line of Argo's pods for download and clean, which do more than their step, and their plans for the next
one: download's for clean, clean's for resize.

An Argo resource template can create a RayJob, but can't return the URI of the dataset that it makes, nor find that it
exists already. So the pod before, which knows the parent, outputs what makes the dataset (`executor`) and, if that is a
RayJob, its manifest (`rayjob`). The pods of other steps run the steps' own commands.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...components.dataset.manifest import find_intact_dataset
from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import Workspace
from ...components.engine.ray_job import build_command, write_pending_record
from ...components.resize import STEP as RESIZE
from ...components.step.command_line import Parser
from ...components.step.config import StepConfig, name_flag
from ...components.step.step import CACHED, RUN_ENV, Context
from ...components.storage.errors import EXIT_INTERNAL, MillError, describe_internal_error
from ..cluster.cluster_file import Cluster
from ..kuberay.manifest import build_job_name, build_rayjob
from ..kuberay.ray_step import choose_mode, find_target
from ..parameters import RunParameters, list_form_parameters, parse_form

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
        record = StepRecord(error=describe_internal_error(error), exit_code=EXIT_INTERNAL)
        if isinstance(error, MillError):
            record = StepRecord(error=str(error), exit_code=error.exit_code)
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
            record = StepRecord(**vars(target.report(dataset, CACHED, context)))
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


@dataclass(frozen=True)
class PodArguments:
    """The parsed arguments of a pod. `form`: parameters of the form by name; `parents`: URIs of datasets by the name of
    their flag; `outputs`: the folder with one file for each output parameter, which Argo reads."""

    form: Mapping[str, str]
    run: str
    parents: Mapping[str, str]
    outputs: Path

    @cached_property
    def parameters(self) -> RunParameters:
        """The parameters of the run; UserError for a wrong JSON `config`."""
        return parse_form(self.form)

    def config(self, step: str, **values: Any) -> StepConfig:
        """Return the checked config of a step of this run; `values` are further fields, such as its parents."""
        return dataclasses.replace(self.parameters.config(step), run=self.run, **values)

    def write(self, name: str, text: str) -> None:
        """Write an output parameter."""
        (self.outputs / name).write_text(text, encoding="utf-8")


def parse_pod_arguments(prog: str, help: str, parents: Sequence[str], argv: Sequence[str] | None) -> PodArguments:
    """Parse a command line; UserError names the flag that is wrong.

    `parents`: names of the flags that hold URIs of datasets, all of which are required. Every parameter of the form is
    a flag as well.
    """
    parser = Parser(prog=f"python -m {prog}", description=help)
    for name, parameter in list_form_parameters().items():
        parser.add_argument(name_flag(name), dest=name, help=parameter.help.replace("%", "%%"))
    for name in parents:
        parser.add_argument(f"--{name}", dest=name, required=True, metavar="URI", help=f"the {name} dataset")
    parser.add_argument("--run", required=True, metavar="NAME", help="the run that the records belong to")
    parser.add_argument("--outputs", required=True, metavar="FOLDER", help="write output values into this folder")
    values = vars(parser.parse_args(argv))
    run, outputs = values.pop("run"), values.pop("outputs")
    uris = {name: values.pop(name) for name in parents}
    form = {name: value for name, value in values.items() if value is not None}
    Path(outputs).mkdir(parents=True, exist_ok=True)
    return PodArguments(form, run, uris, Path(outputs))
