"""Runs that must fail, in the right way: wrong input, and GPUs that nobody has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from imagemill.components.storage.errors import EXIT_USER
from imagemill.pipelines.kfp.pods import supports_run_settings

from .. import kfp
from ..access.kube import Doc, name_of
from ..access.probe import unschedulable
from ..options import E2E_LABEL
from ..runs import ARGO, KFP, SUCCEEDED, Run, created, last_words
from ..scenario import Deadline, Failed, Late
from ..session import Trial
from .common import NEEDS, add, add_after, asked_for, baseline, look, records_of, submit
from .retries import record

NO_SUCH_GPU = "imagemill.io/no-such-gpu"
"""No node has it, and no autoscaler makes one that does: a GPU that is absent on every cluster."""
LATE_S = 60
"""How long after a run's deadline its end may take."""
PENDING_S = 60
"""How long train waits for its GPU, about: the run's deadline is so much more than the steps before it took before."""


def wrong_input(trial: Trial) -> str:
    """A source that is not there: exit code 2, a message that names it, and nothing after it."""
    workspace = trial.workspace(trial.scenario)
    source = f"{workspace}/there-is-nothing"
    run = submit(trial, workspace, source=source)
    phase = run.end(trial.deadline)
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded with a source that is not there, {source}")
    download = records_of(look(trial, workspace), run).get("download") or {}
    if download.get("exit_code") != EXIT_USER:
        raise Failed(f"download recorded exit code {download.get('exit_code')}: {download.get('error')}; expected 2")
    if source.rpartition("/")[2] not in download["error"]:
        raise Failed(f"the message does not name what is wrong: {download['error']}")
    _check_tries(trial, run)
    if later := run.pods("clean"):
        raise Failed(f"the run went on: {name_of(later[0])}")
    return f"{record(trial, run, 'wrong input (exit code 2)', run.wall_seconds())}: {download['error']}"


def _check_tries(trial: Trial, run: Run) -> None:
    """Argo knows the exit code and tries once; KFP knows a count only, and each further try ends at once."""
    pods = run.pods("download")
    max_pods = 1 if trial.engine == ARGO else 1 + trial.cluster.limits.lost_pod_retries
    if not 1 <= len(pods) <= max_pods:
        raise Failed(f"download had {len(pods)} pods, expected {'one' if max_pods == 1 else f'1 to {max_pods}'}: "
                     + "; ".join(last_words(pod) for pod in pods))  # fmt: skip


def _gpu_absent(trial: Trial) -> str:
    steps = dict(trial.cluster.steps)
    steps["train"] = replace(steps["train"], gpu=1, gpu_type=NO_SUCH_GPU)
    deadline = PENDING_S + round(_seconds_to_train(trial))
    limits = replace(trial.cluster.limits, run_deadline_seconds=deadline)
    cluster = replace(trial.cluster, steps=steps, limits=limits)
    unchecked = {"check": False} if trial.engine == KFP else {}  # submit would refuse a cluster without that GPU
    run = submit(trial, trial.workspace(trial.engine), cluster=cluster, seed=21, **unchecked)

    def pending() -> Doc | None:
        waiting = next((pod for pod in run.pods("train") if unschedulable(pod)), None)
        if run.ended and waiting is None:
            raise Failed(f"{run.workflow} ended {run.phase} before train waited for a GPU: {run.message}")
        return waiting

    pod = trial.mirror.wait(pending, "train's pod that no node can take", trial.deadline, run.doing)
    if NO_SUCH_GPU not in asked_for(pod):
        raise Failed(f"pod {name_of(pod)} does not ask for {NO_SUCH_GPU}")
    why = unschedulable(pod)
    if NO_SUCH_GPU not in why:
        raise Failed(f"pod {name_of(pod)} waits for something else: {why}")
    if trial.engine == KFP and not supports_run_settings(trial.cluster.kfp.version):
        return _terminated(trial, run, why)
    touched = _end_by_deadline(trial, run, deadline)
    if run.phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded without its GPU")
    messages = f"{run.message} {' '.join(last_words(train_pod) for train_pod in run.pods('train'))}"
    if "deadline" not in messages.lower():
        raise Failed(f"the end does not say that it was the deadline's: {messages}")
    run.wait_for_nothing_left(trial.within(120))
    return f"pending ({why}), ended by the deadline of {deadline} s{touched}: {run.message}"


def _end_by_deadline(trial: Trial, run: Run, deadline: float) -> str:
    """Wait for the end of a run of which nothing but its deadline is to come; what had to be done for it.

    Argo's controller (4.1) loses sight of a run's deadline when it has anything else to wait for, and looks again at
    all workflows every 20 minutes. Argo's own template makes it look; in Kubeflow Pipelines nothing does, so that here
    the Workflow is touched.
    """
    late = trial.within(LATE_S).seconds
    workflow = run.object()
    passed = (datetime.now(UTC) - created(workflow)).total_seconds() if workflow else 0.0
    try:
        run.end(Deadline(max(0.0, deadline - passed) + late, stop=trial.deadline.stop))
        return ""
    except Late:
        if trial.engine == ARGO:
            raise
    annotations = {"metadata": {"annotations": {E2E_LABEL: "touched"}}}
    trial.kube.merge(trial.kube.path("workflows", run.workflow), annotations)
    run.end(trial.within(LATE_S))
    return f", {late:.0f} s later, when its Workflow was touched (Argo looks by itself every 20 minutes)"


def _seconds_to_train(trial: Trial) -> float:
    """Return the seconds of the undisturbed run until its pod of train was created."""
    run = baseline(trial)
    workflow, pods = run.object(), run.pods("train")
    return (created(pods[0]) - created(workflow)).total_seconds() if workflow and pods else 0.0


def _terminated(trial: Trial, run: Run, why: str) -> str:
    """KFP before 2.17 has no deadline of runs, and Kubernetes' own counts from a pod's start: somebody ends the run."""
    kfp.terminate(trial, run)
    phase = run.end(trial.within(240))
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded without its GPU")
    run.wait_for_nothing_left(trial.within(120))
    return f"pending ({why}); nothing ends that in KFP before 2.17 but terminating the run: {run.message or phase}"


def register() -> None:
    for engine in (KFP, ARGO):
        wrong = "wrong input ends with exit code 2, and is not tried again"
        add(engine, "wrong-input", wrong, wrong_input, NEEDS[engine])
        ends = "the deadline ends it" if engine == ARGO else "the deadline ends it (before 2.17 it is terminated)"
        add_after(engine, "gpu-absent", f"a GPU that no node has: pending, until {ends}", _gpu_absent)
