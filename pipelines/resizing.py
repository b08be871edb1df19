"""Where the resize step of a KFP pipeline runs: in its pod, on a Ray cluster that is there, or as a RayJob."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..components.resize import STEP
from ..components.resize.config import ResizeConfig
from ..components.store.config import parse_config
from ..components.store.errors import UserError
from ..components.store.manifest import find_intact_dataset
from ..components.store.progress import format_duration, say
from ..components.store.step import CACHED, Context, Outcome, Step
from .cluster import Cluster, shared
from .launcher import launched
from .pod_settings import cluster_of_pod
from .ray_mode import choose_mode, estimate_seconds
from .rayjob import gpus, refuse_address


def resize(config: str, artifact: str, **values: Any) -> dict[str, Any]:
    """The step's record, as `STEP.component(config, artifact, **values)` returns it; ends the process as that does."""
    try:
        known = cluster_of_pod()
    except UserError as error:
        return _doing(partial(_refuse, str(error))).component(config, artifact, **values)
    if known is not None and known.ray.makes_rayjobs:
        return _doing(partial(_placed, known)).component(config, artifact, **values)
    if known is not None and known.ray.mode == "address":
        config = with_address(config, known.ray.address)
    return STEP.component(config, artifact, **values)


def _placed(cluster: Cluster, config: ResizeConfig, context: Context) -> Outcome:
    """Find the tensors, or make them where `choose_mode` says: in this pod, or by a RayJob."""
    from ..components.resize.resize import find, outcome, resize

    refuse_address(config.ray_address)
    shared(context.workspace.uri)
    target = find(config, context, gpus(cluster))
    if dataset := find_intact_dataset(target.uri):
        return outcome(target, dataset, CACHED, context)
    totals, copies = target.clean.manifest.totals, target.config.copies
    if choose_mode(cluster, totals, copies, target.config.device) == "rayjob":
        return launched(cluster, target, context)
    seconds = estimate_seconds(cluster.steps["resize"], totals, copies)
    context.say(
        f"about {format_duration(max(1.0, seconds))} of work: done in this pod, without a RayJob (ray.auto_seconds)"
    )
    return resize(target.config, context)


@dataclass(frozen=True)
class _Doing(Step):
    """The step, of which only the work is another: config, record, errors and exit codes are its own."""

    does: Callable[[Any, Context], Outcome]

    def _function(self) -> Callable[[Any, Context], Outcome]:
        return self.does


def _doing(work: Callable[[Any, Context], Outcome]) -> Step:
    return _Doing(STEP.name, STEP.config, STEP.work, STEP.help, work)


def _refuse(why: str, config: Any, context: Context) -> Outcome:
    """A step that can't begin, with a record that says so: no other try is better."""
    raise UserError(why)


def with_address(config: str, address: str) -> str:
    """The JSON parameter `config` with `resize.ray_address`, unless it names one itself: the run's word is the last."""
    try:
        shared, sections = parse_config(config)
    except UserError as error:
        say(STEP.name, f"error: {error}")
        raise SystemExit(error.exit_code) from None
    section = {"ray_address": shared.pop("ray_address", address)} | sections.get(STEP.name, {})
    return json.dumps(shared | sections | {STEP.name: section}, sort_keys=True)
