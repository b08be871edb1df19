"""Cost of a run, measured alone: the demo, an unchanged run, and the ways to resize."""

from __future__ import annotations

from typing import Any

from imagemill.components.dataset.workspace import STEPS

from ..access.kube import Doc
from ..options import in_pods, with_rayjob
from ..runs import ARGO, KFP, Run, created, main_container, moment, own_seconds
from ..scenario import Failed
from ..session import Trial
from .common import NEEDS, add, check_complete, check_unchanged, start

TABLE = "cost"
BARS = {(ARGO, "demo"): 110, (KFP, "demo"): 180, (ARGO, "unchanged"): 30, (KFP, "unchanged"): 60}
"""Seconds from the making of the workflow to its end that a run may take."""
SIZES = {"pod": 72, "rayjob": 80}
"""Pixels by the way to resize: another size than the demo's, so that nothing before or after it is made again."""


def _demo(trial: Trial) -> str:
    run = start(trial, _workspace(trial), dataset="demo").succeed(trial.deadline)
    trial.session.facts[f"demo {trial.engine}"] = run
    check_complete(trial, run)
    return _record_cost(trial, run, "demo")


def _unchanged(trial: Trial) -> str:
    run = start(trial, _workspace(trial), dataset="demo").succeed(trial.deadline)
    return f"{_record_cost(trial, run, 'unchanged')}; {check_unchanged(trial, run)}"


def _workspace(trial: Trial) -> str:
    return trial.workspace(f"{trial.engine}-demo")


def _record_cost(trial: Trial, run: Run, kind: str) -> str:
    """The run's seconds, for the results and in words. Failed with --bars if they are over the bar."""
    seconds, bar = run.wall_seconds(), BARS[trial.engine, kind]
    pods = run.pods()
    own = sum(own_seconds(pod) for pod in pods)
    steps = {step: round(taken, 1) for step, taken in run.seconds().items() if step in STEPS}
    trial.session.measure(
        TABLE, run=f"{kind} run", engine=trial.engine, seconds=round(seconds), bar=bar, pods=len(pods),
        own_seconds=round(own), steps=steps,
    )  # fmt: skip
    note = f"{seconds:.0f} s of {bar} that it may take, {own:.0f} s of them its {len(pods)} pods' own"
    if seconds > bar:
        note = f"{note}: its bar is missed by {seconds - bar:.0f} s"
        if trial.options.bars:
            raise Failed(note)
    return note


def _resizing(trial: Trial) -> str:
    """The demo's images resized in the step's pod and as a RayJob: from the end of clean to the tensors' being there.

    Each run is ended when train begins.
    """
    seconds_by_mode: dict[str, Any] = {}
    for mode, cluster in (("pod", in_pods(trial.cluster)), ("rayjob", with_rayjob(trial.cluster))):
        run = start(trial, _workspace(trial), cluster=cluster, dataset="demo", image_size=SIZES[mode])
        seconds_by_mode[mode] = _resize_seconds(trial, run)
        trial.kube.delete("workflows", run.workflow)
        run.wait_for_nothing_left(trial.within(180))
        trial.session.measure(
            "resizing", mode=mode, engine=trial.engine, images="demo", seconds=round(seconds_by_mode[mode])
        )
    return ", ".join(f"{mode} {seconds:.0f} s" for mode, seconds in seconds_by_mode.items())


def _resize_seconds(trial: Trial, run: Run) -> float:
    def train() -> Doc | None:
        if run.ended:
            raise Failed(f"{run.workflow} ended {run.phase} before train: {run.message}{run.failures()}")
        return next(iter(run.pods("train")), None)

    begun = trial.mirror.wait(train, "the pod of train", trial.deadline, run.doing, every=0.5)
    cleaned = main_container(run.pods("clean")[-1]).get("terminated") or {}
    if not cleaned.get("finishedAt"):
        raise Failed(f"clean of {run.workflow} was not seen to end")
    return (created(begun) - moment(cleaned["finishedAt"])).total_seconds()


def register() -> None:
    for engine in (KFP, ARGO):
        bar, unchanged_bar = BARS[engine, "demo"], BARS[engine, "unchanged"]
        add(engine, "demo", f"the demo's run, alone; at most {bar} s", _demo, alone=True)
        description = f"the demo's run again, unchanged and alone; at most {unchanged_bar} s"
        add(engine, "unchanged", description, _unchanged, (f"{engine}-demo",), alone=True)
    description = "the demo's images resized in the step's pod and as a RayJob, alone"
    add(ARGO, "resizing", description, _resizing, (*NEEDS[ARGO], "kuberay", "argo-demo"), alone=True)
