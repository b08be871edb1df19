"""Body of the resize component of every KFP run: resizes in the step's own process, on an existing Ray cluster, or as a
RayJob. Without a cluster file, as on a laptop, it is the step as it is.

A RayJob's pods take 35 to 60 s before they do any work (measured on a node of two busy cores, with the images there),
Ray in the step's own pod about 10 s: so a small dataset is done sooner there. The time of the work is estimated in
components/resize/core_seconds.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from ...components.dataset.manifest import Totals, find_intact_dataset
from ...components.resize import STEP
from ...components.resize.config import ResizeConfig
from ...components.resize.core_seconds import estimate_core_seconds
from ...components.step.config import parse_config
from ...components.step.progress import format_duration, say
from ...components.step.step import CACHED, Context, Outcome, Step
from ...components.storage.errors import UserError
from ..cluster.cluster_file import Cluster, Pod, require_s3_workspace
from ..cluster.pod_fields import read_pod_cluster
from ..settings import parse_quantity
from .launcher import run_rayjob
from .manifest import count_gpus, refuse_address

Mode = Literal["pod", "rayjob", "address"]


def run_resize(config: str, artifact: str, **values: Any) -> dict[str, Any]:
    """Run the resize step where the cluster file says, and return its record.

    Arguments, results and exit codes are those of `STEP.component`.
    """
    try:
        cluster = read_pod_cluster()
    except UserError as error:
        return _replace_work(partial(_refuse, str(error))).component(config, artifact, **values)
    if cluster is not None and cluster.ray.makes_rayjobs:
        return _replace_work(partial(_place_and_run, cluster)).component(config, artifact, **values)
    if cluster is not None and cluster.ray.mode == "address":
        config = add_ray_address(config, cluster.ray.address)
    return STEP.component(config, artifact, **values)


def _place_and_run(cluster: Cluster, config: ResizeConfig, context: Context) -> Outcome:
    """Return the tensors if they exist; otherwise make them in this pod or by a RayJob, as `choose_mode` decides."""
    from ...components.resize.resize import find_target, report_outcome, resize

    refuse_address(config.ray_address)
    require_s3_workspace(context.workspace.uri)
    target = find_target(config, context, count_gpus(cluster))
    if dataset := find_intact_dataset(target.uri):
        return report_outcome(target, dataset, CACHED, context)
    totals, copies = target.estimate_totals(context), target.config.copies
    if choose_mode(cluster, totals, copies, target.config.device) == "rayjob":
        return run_rayjob(cluster, target, context)
    seconds = estimate_seconds(cluster.steps["resize"], totals, copies)
    context.say(
        f"about {format_duration(max(1.0, seconds))} of work: done in this pod, without a RayJob (ray.auto_seconds)"
    )
    return resize(target.config, context)


@dataclass(frozen=True)
class _StepWithOtherWork(Step):
    """The resize step with another function: config, record, errors and exit codes are its own."""

    work: Callable[[Any, Context], Outcome]

    def run(self, config: Any, context: Context) -> Outcome:
        return self.work(config, context)


def _replace_work(work: Callable[[Any, Context], Outcome]) -> Step:
    return _StepWithOtherWork(STEP.name, STEP.config, STEP.entry_point, STEP.help, work)


def _refuse(message: str, config: Any, context: Context) -> Outcome:
    """Raise the error of a step that can't begin, so that it is recorded: no other try can succeed."""
    raise UserError(message)


def add_ray_address(config: str, address: str) -> str:
    """Return the JSON parameter `config` with `resize.ray_address`, unless the run's own config has one."""
    try:
        options, sections = parse_config(config)
    except UserError as error:
        say(STEP.name, f"error: {error}")
        raise SystemExit(error.exit_code) from None
    section = {"ray_address": options.pop("ray_address", address)} | sections.get(STEP.name, {})
    return json.dumps(options | sections | {STEP.name: section}, sort_keys=True)


def choose_mode(cluster: Cluster, totals: Totals, copies: int = 0, device: str = "cpu") -> Mode:
    """Return where tensors are made. A pure function, so that a retry decides alike.

    Args:
        cluster: the cluster file; `ray.mode` decides unless it is `auto`.
        totals: of the images to resize (`Target.estimate_totals`).
        copies: augmented copies of every training image, `ResizeConfig.copies`.
        device: `cpu`, or `cuda` where the workers' GPUs are used: the step's own pod has none.
    """
    if cluster.ray.mode != "auto":
        return cast(Mode, cluster.ray.mode)
    seconds = estimate_seconds(cluster.steps["resize"], totals, copies)
    return "pod" if device == "cpu" and seconds <= cluster.ray.auto_seconds else "rayjob"


def estimate_seconds(pod: Pod, totals: Totals, copies: int = 0) -> float:
    """Return how long a pod resizes on the cores that it is promised, without the start of Ray (about 8 s)."""
    return estimate_core_seconds(totals, copies) / parse_quantity(pod.cpu)
