"""Delete the RayJobs that a run has left behind, and record why one failed: for the exit steps."""

from __future__ import annotations

from contextlib import suppress

from ...components.dataset.workspace import Workspace
from ...components.resize import STEP
from ...components.storage.errors import MillError
from ..cluster.cluster_file import RUN_LABEL, Cluster
from ..cluster.kube_client import Json, KubeClient, read_own_namespace
from .failures import explain_failure
from .manifest import FAILED, build_run_label, classify_status
from .pods import RayPods


def delete_rayjobs(cluster: Cluster, run: str, workspace: str = "") -> list[str]:
    """Delete the RayJobs with the run's label, and return their names. UserError without the right.

    If one failed before its command could record why, the error is written to the step's record in `workspace`.
    """
    if not cluster.ray.makes_rayjobs:
        return []
    kube = KubeClient.connect(read_own_namespace(cluster.namespace))
    jobs = kube.list_rayjobs(f"{RUN_LABEL}={build_run_label(run)}")
    for job in jobs:
        if workspace and classify_status(job.get("status") or {}) == FAILED:
            with suppress(MillError):  # the record stays as it was
                _record_failure(kube, job, run, Workspace.from_uri(workspace))
        kube.delete_rayjob(str(job["metadata"]["name"]), str(job["metadata"]["uid"]))
    return [str(job["metadata"]["name"]) for job in jobs]


def _record_failure(kube: KubeClient, job: Json, run: str, workspace: Workspace) -> None:
    """Write to the step's record why a RayJob failed, unless its command or its launcher has."""
    record = workspace.step_record(run, STEP.name)
    if record is None or record["inputs"]:
        return
    name = str(job["metadata"]["name"])
    pods = RayPods(kube, name, run)
    pods.refresh(job["status"])
    error = explain_failure(name, job["status"], pods.pods, "", pods.events)
    failed = record | {"exit_code": error.exit_code, "error": str(error)}
    workspace.write_step_record(run, STEP.name, failed)
