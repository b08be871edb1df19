"""Delete the RayJobs that a run has left behind, and say why one failed that nobody followed: for the exit steps."""

from __future__ import annotations

from contextlib import suppress

from ..components.resize import STEP
from ..components.store.errors import MillError
from ..components.store.workspace import Workspace
from .cluster import RUN_LABEL, Cluster
from .kube import Json, Kube, namespace_here
from .ray_failures import failure
from .ray_pods import RayPods
from .rayjob import FAILED, run_label, verdict


def clean_up(cluster: Cluster, run: str, workspace: str = "") -> list[str]:
    """Delete what is left of a run, by its label; the names of the RayJobs that were. UserError without the right.

    Of one that failed before its command could say why, the step's record in `workspace` says it then.
    """
    if not cluster.ray.makes_rayjobs:
        return []
    kube = Kube.connect(namespace_here(cluster.namespace))
    found = kube.jobs(f"{RUN_LABEL}={run_label(run)}")
    for job in found:
        if workspace and verdict(job.get("status") or {}) == FAILED:
            with suppress(MillError):  # it says no more than it did
                _explain(kube, job, run, Workspace.from_uri(workspace))
        kube.delete(str(job["metadata"]["name"]), str(job["metadata"]["uid"]))
    return [str(job["metadata"]["name"]) for job in found]


def _explain(kube: Kube, job: Json, run: str, workspace: Workspace) -> None:
    """Say in the step's record why a RayJob failed, unless its command or its launcher has."""
    record = workspace.step_record(run, STEP.name)
    if record is None or record["inputs"]:
        return
    name = str(job["metadata"]["name"])
    pods = RayPods(kube, name, run)
    pods.look(job["status"])
    error = failure(name, job["status"], pods.pods, "", pods.events)
    told = record | {"exit_code": error.exit_code, "error": str(error)}
    workspace.write_step_record(run, STEP.name, told)
