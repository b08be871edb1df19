"""Deletion of a run by a user: datasets, records and report stay in the workspace, and nothing else is left."""

from __future__ import annotations

from .. import kfp
from ..access import probe
from ..access.mirror import say
from ..cleaning import wait_until_gone
from ..runs import ARGO, KFP
from ..scenario import Failed
from ..session import Trial
from .common import add_after, look, submit

GONE_S = 120
FORGOTTEN_S = 120
"""How long Argo's garbage collection of artifacts may take after its workflow is deleted."""


def _left(trial: Trial) -> str:
    workspace = trial.workspace(trial.engine)
    run = submit(trial, workspace, seed=41).succeed(trial.deadline)
    places = run.artifact_places(trial.cluster.storage.endpoint)
    before = probe.ask(trial, "count", places=places) if places else {}
    if trial.engine == KFP:
        kfp.delete(trial, run)
    trial.kube.delete("workflows", run.workflow)
    say(f"deleted {run.workflow}")
    if left := wait_until_gone(trial.place, [run.workflow, run.run], trial.within(GONE_S)):
        raise Failed(f"a deleted run has left in {trial.kube.namespace}: {', '.join(left)}")
    note = _check_artifacts(trial, places, before)
    stored = look(trial, workspace)
    if not stored["datasets"].get("model"):
        raise Failed(f"the model went with the run: {workspace} has {sorted(stored['datasets'])}")
    if "report.html" not in stored["files"].get(run.run, ()):
        raise Failed(f"the report went with the run: {workspace}/runs/{run.run} has {stored['files'].get(run.run)}")
    return f"no object in the cluster; {note}; datasets, records and report stay ({stored['work']} of finished parts)"


def _check_artifacts(trial: Trial, places: list[str], before: dict[str, int]) -> str:
    """Failed if Argo's copies outlive their workflow. KFP never deletes what its pages show of a run."""
    num_artifacts = sum(before.values())
    if not num_artifacts:
        return "no copies of artifacts were made"
    if trial.engine == KFP:
        return f"{num_artifacts} artifacts, which Kubeflow Pipelines keeps"
    deadline = trial.within(FORGOTTEN_S)
    while (left := sum(probe.ask(trial, "count", places=places).values())) and deadline.left():
        deadline.check("Argo's garbage collection of artifacts")
    if left:
        raise Failed(f"{left} artifacts of a deleted workflow stay in the store: {', '.join(places)}")
    return f"its {num_artifacts} artifacts went with it"


def register() -> None:
    for engine in (KFP, ARGO):
        description = "a run that a user deletes leaves its datasets and records, and nothing else"
        add_after(engine, "left-after-deletion", description, _left)
