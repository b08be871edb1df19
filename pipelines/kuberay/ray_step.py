"""Where the step of a pod works: in the pod, for clean and resize as a RayJob, or for resize on an existing Ray
cluster.

A RayJob's pods take 35 to 60 s before they do any work (measured on a node of two busy cores, with the images there),
Ray in the step's own pod about 10 s, clean's processes less: so a small dataset is done sooner there. The time of the
work is estimated by `estimate_core_seconds` of components/clean and components/resize.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...components.clean.config import CleanConfig
from ...components.dataset.manifest import find_intact_dataset
from ...components.resize.config import ResizeConfig
from ...components.step.config import StepConfig
from ...components.step.progress import format_duration
from ...components.step.step import CACHED, Context, Outcome, Step
from ...components.storage.errors import UserError
from ..cluster.cluster_file import Cluster, Mode, require_s3_workspace
from ..cluster.pod_fields import read_pod_cluster
from ..settings import parse_quantity
from .launcher import Target, run_rayjob
from .manifest import count_gpus, refuse_address


def place_step(step: Step) -> Step:
    """Return a step that does its work where the cluster file of this pod says; its config, record, errors and exit
    codes are its own."""
    try:
        cluster = read_pod_cluster()
    except UserError as error:
        return _StepElsewhere.of(step, partial(_refuse, str(error)))
    if cluster is not None and cluster.ray.may_make_rayjob(step.name):
        return _StepElsewhere.of(step, partial(_place_and_run, step, cluster))
    if cluster is not None and cluster.ray.get_mode(step.name) == "address":
        return _StepElsewhere.of(step, partial(_run_at_address, step, cluster.ray.address))
    return step


def _run_at_address(step: Step, address: str, config: Any, context: Context) -> Outcome:
    return step.run(replace(config, ray_address=config.ray_address or address), context)


def _place_and_run(step: Step, cluster: Cluster, config: StepConfig, context: Context) -> Outcome:
    """Return the dataset if it exists; otherwise make it in this pod or by a RayJob, as `choose_mode` decides."""
    require_s3_workspace(context.workspace.uri)
    target = find_target(config, context, cluster)
    if dataset := find_intact_dataset(target.uri):
        return target.report(dataset, CACHED, context)
    core_seconds = target.estimate_core_seconds(context)
    if choose_mode(cluster, step.name, core_seconds, target.device) == "rayjob":
        return run_rayjob(cluster, target, context)
    seconds = core_seconds / parse_quantity(cluster.steps[step.name].cpu)
    context.say(
        f"about {format_duration(max(1.0, seconds))} of work: done in this pod, without a RayJob (ray.auto_seconds)"
    )
    return step.run(target.config, context)


def find_target(config: StepConfig, context: Context, cluster: Cluster) -> Target:
    """Return the dataset that clean or resize makes; UserError for an address of Ray where it may have a RayJob."""
    makes_rayjob = cluster.ray.may_make_rayjob(context.step)
    if makes_rayjob:
        refuse_address(getattr(config, "ray_address", ""))
    if isinstance(config, CleanConfig):
        from ...components.clean import clean

        return clean.find_target(config, context)
    from ...components.resize import target

    assert isinstance(config, ResizeConfig)
    return target.find_target(config, context, count_gpus(cluster) if makes_rayjob else 0)


def choose_mode(cluster: Cluster, step: str, core_seconds: float, device: str = "cpu") -> Mode:
    """Return where clean or resize runs: as the cluster file says, or if that is `auto` by the size of the work, which
    does not count the start of anything (`Target.estimate_core_seconds`). The step's own pod has no GPU for `cuda`."""
    if (mode := cluster.ray.get_mode(step)) != "auto":
        return mode
    seconds = core_seconds / parse_quantity(cluster.steps[step].cpu)
    return "pod" if device == "cpu" and seconds <= cluster.ray.auto_seconds else "rayjob"


@dataclass(frozen=True)
class _StepElsewhere(Step):
    """A step whose work is another function, which may do it elsewhere: what it `needs` here is found then."""

    work: Callable[[Any, Context], Outcome]

    @classmethod
    def of(cls, step: Step, work: Callable[[Any, Context], Outcome]) -> Step:
        return cls(step.name, step.config, step.entry_point, step.help, work)

    def run(self, config: StepConfig, context: Context) -> Outcome:
        return self.work(config, context)


def _refuse(message: str, config: Any, context: Context) -> Outcome:
    """Raise the error of a step that can't begin, so that it is recorded: no other attempt can succeed."""
    raise UserError(message)
