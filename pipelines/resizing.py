"""Where the resize step of a KFP pipeline runs: in its pod, on a Ray cluster that is there, or as a RayJob."""

from __future__ import annotations

import json
from typing import Any

from ..components.resize import STEP
from ..components.store.config import parse_sections
from ..components.store.errors import UserError
from ..components.store.progress import say
from .cluster import from_json


def resize(cluster: str, config: str, artifact: str, **values: Any) -> dict[str, Any]:
    """The step's record, as `STEP.component(config, artifact, **values)` returns it; ends the process as that does.

    `cluster` is the JSON of a `Cluster`, or empty for a runner without one.
    """
    ray = from_json(cluster).ray if cluster else None
    if ray is not None and ray.mode == "rayjob":
        from .launcher import resize as by_job

        return by_job(cluster, config, artifact, **values)
    if ray is not None and ray.mode == "address":
        config = with_address(config, ray.address)
    return STEP.component(config, artifact, **values)


def with_address(config: str, address: str) -> str:
    """The JSON parameter `config` with `resize.ray_address`, unless it names one itself: the run's word is the last."""
    try:
        sections = parse_sections(config)
    except UserError as error:
        say(STEP.name, f"error: {error}")
        raise SystemExit(error.exit_code) from None
    section = {"ray_address": address} | sections.get(STEP.name, {})
    return json.dumps(sections | {STEP.name: section}, sort_keys=True)
