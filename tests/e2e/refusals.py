"""Runs that must fail, in the right way: wrong input, and GPUs that nobody has."""

from __future__ import annotations

from dataclasses import replace

from imagemill.components.store.errors import EXIT_USER
from imagemill.pipelines.kfp_server import knows_whole_runs

from . import kfp
from .kube import Doc, name_of
from .probe import unschedulable
from .runs import ARGO, KFP, SUCCEEDED, Run, last_words
from .scenario import Failed
from .scenarios import ENGINES, add, add_after, asked_for, look, submit
from .session import Session

NO_SUCH_GPU = "imagemill.io/no-such-gpu"
"""No node has it, and no autoscaler makes one that does: a GPU that is absent on every cluster."""
_ABSENT_S = 420
"""The run's deadline where a GPU is absent: download to resize are cached, so most of it is waiting."""


def _wrong_input(session: Session, engine: str) -> str:
    workspace = session.workspace(session.scenario)
    source = f"{workspace}/there-is-nothing"
    run = submit(session, engine, workspace, dataset="folder", source=source)
    phase = run.end(session.deadline)
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded with a source that is not there, {source}")
    found = look(session, workspace)["runs"]
    record = (found.get(run.run) or found.get(run.workflow) or {}).get("download") or {}
    if record.get("exit_code") != EXIT_USER:
        raise Failed(f"download recorded exit code {record.get('exit_code')}: {record.get('error')}; expected 2")
    if source.rpartition("/")[2] not in record["error"]:
        raise Failed(f"the message does not name what is wrong: {record['error']}")
    _check_tries(run, engine)
    if later := run.pods("clean"):
        raise Failed(f"the run went on: {name_of(later[0])}")
    return f"exit code 2, {len(run.pods('download'))} pod(s): {record['error']}"


def _check_tries(run: Run, engine: str) -> None:
    """Argo knows the exit code and tries once; KFP knows a count only, and each further try ends at once."""
    pods = run.pods("download")
    most = 1 if engine == ARGO else 1 + run.session.cluster.limits.lost_pod_retries
    if not 1 <= len(pods) <= most:
        raise Failed(f"download had {len(pods)} pods, expected {'one' if most == 1 else f'1 to {most}'}: "
                     + "; ".join(last_words(pod) for pod in pods))  # fmt: skip


def _gpu_absent(session: Session, engine: str) -> str:
    steps = dict(session.cluster.steps)
    steps["train"] = replace(steps["train"], gpu=1, gpu_type=NO_SUCH_GPU)
    limits = replace(session.cluster.limits, run_deadline_seconds=_ABSENT_S)
    cluster = replace(session.cluster, steps=steps, limits=limits)
    run = submit(session, engine, session.workspace(engine), cluster=cluster, seed=21)

    def pending() -> Doc | None:
        if run.ended:
            raise Failed(f"{run.workflow} ended {run.phase} before train waited for a GPU: {run.message}")
        return next((pod for pod in run.pods("train") if unschedulable(pod)), None)

    pod = session.mirror.wait(pending, "train's pod that no node can take", session.deadline, run.doing)
    if NO_SUCH_GPU not in asked_for(pod):
        raise Failed(f"pod {name_of(pod)} does not ask for {NO_SUCH_GPU}")
    why = unschedulable(pod)
    if NO_SUCH_GPU not in why:
        raise Failed(f"pod {name_of(pod)} waits for something else: {why}")
    if engine == KFP and not knows_whole_runs(session.cluster.kfp.version):
        return _terminated(session, run, why)
    phase = run.end(session.within(_ABSENT_S + 240))
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded without its GPU")
    said = f"{run.message} {' '.join(last_words(one) for one in run.pods('train'))}"
    if "deadline" not in said.lower():
        raise Failed(f"the end does not say that it was the deadline's: {said}")
    run.wait_for_nothing_left(session.within(120))
    return f"pending ({why}), ended by the deadline: {run.message}"


def _terminated(session: Session, run: Run, why: str) -> str:
    """KFP before 2.17 has no deadline of runs, and Kubernetes' own counts from a pod's start: somebody ends the run."""
    kfp.terminate(session, run)
    phase = run.end(session.within(240))
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded without its GPU")
    run.wait_for_nothing_left(session.within(120))
    return f"pending ({why}); nothing ends that in KFP before 2.17 but terminating the run: {run.message or phase}"


def register() -> None:
    for engine in (ARGO, KFP):
        wrong = "wrong input ends with exit code 2, and is not tried again"
        add(engine, "wrong-input", wrong, _wrong_input, ENGINES[engine][1])
        ends = "the deadline ends it" if engine == ARGO else "the deadline ends it (before 2.17 it is terminated)"
        add_after(engine, "gpu-absent", f"a GPU that no node has: pending, until {ends}", _gpu_absent)
