"""Argo's `plan` step: are the tensors there already, and if not, which RayJob makes them?

An Argo resource template can make a RayJob, but can't return the tensors' URI, nor see that none is needed. So this
step says where they will lie (`uri`), whether they have to be made (`needed`), and with what (`rayjob`, a manifest).
Its flags are those of resize, with the `config` section of resize, and the exit codes are a step's.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..components.resize import STEP as RESIZE
from ..components.resize.config import ResizeConfig
from ..components.store.config import option
from ..components.store.errors import wrong
from ..components.store.fingerprint import digest
from ..components.store.step import CACHED, RAN, Context, Outcome, Step
from .cluster import from_json

NEEDED, NOT_NEEDED = "true", "false"


@dataclass(frozen=True, kw_only=True)
class PlanConfig(ResizeConfig):
    """What resize is told, and the cluster that it may need."""

    cluster: str = option("", "the cluster's file as JSON, in one line", counts=False)

    def resize(self) -> ResizeConfig:
        """The resize step's own config."""
        return ResizeConfig(**{one.name: getattr(self, one.name) for one in dataclasses.fields(ResizeConfig)})


class Planning(Step):
    """A step that has no section of its own in `config`: it reads that of resize."""

    def _section(self, sections: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return Step(RESIZE.name, self.config, self.work, self.help)._section(sections, values)


STEP = Planning(
    "plan",
    PlanConfig,
    "imagemill.pipelines.planning:plan",
    "Say whether the tensors exist, and which RayJob makes them if not.",
)


def plan(config: PlanConfig, context: Context) -> Outcome:
    """Where the tensors are or will be; `rayjob` is the manifest of the job that makes them, or empty."""
    from ..components.resize.ray_job import command, write_waiting_record
    from ..components.resize.resize import find, outcome
    from ..components.store.manifest import ready
    from . import rayjob

    if not config.cluster:
        raise wrong("cluster", "the cluster's file as JSON", config.cluster)
    cluster = from_json(config.cluster)
    rayjob.refuse_address(config.ray_address)
    reruns = {item.strip() for item in config.rerun.split(",")}
    ours = Context(RESIZE.name, context.workspace, context.run, RESIZE.name in reruns)
    target = find(config.resize(), ours, rayjob.gpus(cluster))
    if there := ready(target.uri):
        found = outcome(target, there, CACHED, ours)
        _write_record(found, target.config, ours)
        return Outcome(found.uri, found.fingerprint, RAN, {"needed": NOT_NEEDED, "rayjob": ""})
    job = rayjob.job_name(context.run, target.fingerprint)
    identity = "" if cluster.storage.secret else cluster.argo.service_account
    manifest = rayjob.manifest(
        cluster, job, command(target.for_job(ours)), context.run, identity=identity,
        retries=cluster.limits.lost_pod_retries,  # Argo itself never tries a failed resource again
    )  # fmt: skip
    write_waiting_record(job, ours)
    context.say(f"the tensors have to be made, by the RayJob {job}: {target.uri}")
    return Outcome(target.uri, "", RAN, {"needed": NEEDED, "rayjob": json.dumps(manifest, separators=(",", ":"))})


def _write_record(found: Outcome, config: ResizeConfig, context: Context) -> None:
    """The record that the resize step would write, had it been asked for what is there."""
    record = dataclasses.asdict(found) | {"exit_code": 0, "error": "", "seconds": 0.0}
    record |= {"inputs": digest({**dataclasses.asdict(config), "step": RESIZE.name})}
    context.workspace.write_step_record(context.run, RESIZE.name, record)


if __name__ == "__main__":
    sys.exit(STEP.main())
