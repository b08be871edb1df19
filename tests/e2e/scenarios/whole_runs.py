"""Runs that end well: submitted, scheduled, on CPUs and GPUs, two at once."""

from __future__ import annotations

import functools
import json
from typing import Any

from .. import argo, kfp
from ..access.kube import labels_of, name_of
from ..access.probe import COMPONENT
from ..options import ON_GPU, SMALL, with_clean_rayjob, without_gpus
from ..runs import ARGO, KFP, Run, created, main_container, moment
from ..scenario import Deadline, Failed
from ..session import Session, Trial
from .common import (
    NEEDS,
    add,
    add_after,
    asked_for,
    baseline,
    check_complete,
    check_same,
    check_unchanged,
    datasets,
    format_seconds,
    look,
    records_of,
    source,
    submit,
)

NOTHING_LEFT_S = 180


def _submitted(trial: Trial) -> str:
    options = {"wait": True} if trial.engine == KFP else {}
    run = submit(trial, trial.workspace(trial.engine), **options)
    trial.session.baselines[trial.engine] = run.succeed(trial.deadline)
    stored = datasets(trial)
    other = {ARGO: KFP, KFP: ARGO}[trial.engine]
    same = ""
    if (stored_by_other := trial.session.facts.get(f"datasets {other}")) is not None:
        check_same(stored, stored_by_other, f"the run through {other}")
        same = f"; the same datasets as through {other}"
    return f"{format_seconds(run.seconds())}{same}"


def _nothing_left(trial: Trial) -> str:
    run = baseline(trial)
    run.wait_for_nothing_left(trial.within(NOTHING_LEFT_S))
    return f"no RayJob, no Ray cluster and no living pod of {run.workflow}"


def _cpu_only(trial: Trial) -> str:
    run = baseline(trial)
    if any(pod.gpu for pod in trial.cluster.steps.values()):
        cluster = without_gpus(trial.cluster)
        run = submit(trial, trial.workspace(f"{trial.engine}-cpu"), cluster=cluster).succeed(trial.deadline)
    for pod in run.pods():
        if resources := asked_for(pod):
            raise Failed(f"pod {name_of(pod)} asks for {', '.join(sorted(resources))}")
    check_complete(trial, run)
    return format_seconds(run.seconds())


def _clean_on_ray(trial: Trial) -> str:
    run = submit(trial, trial.workspace(trial.scenario), cluster=with_clean_rayjob(trial.cluster))
    run.succeed(trial.deadline)
    check_same(check_complete(trial, run), datasets(trial), "the run that cleaned in its pod")
    steps = [labels_of(job).get(COMPONENT) for job in run.rayjobs()]
    if steps != ["clean"]:
        raise Failed(f"expected one RayJob, of clean, found {steps or 'none'}")
    record = records_of(look(trial, run.workspace), run)["clean"]
    if record["state"] != "ran":
        raise Failed(f"clean's record says {record['state']}, and not how long its RayJob worked")
    run.wait_for_nothing_left(trial.within(NOTHING_LEFT_S))
    return f"the same datasets; clean worked for {record['seconds']:.0f} s; {format_seconds(run.seconds())}"


def _gpu(trial: Trial) -> str:
    asks = _gpu_steps(trial)
    file = trial.session.folder / "gpu.json"  # JSON is YAML
    file.write_text(json.dumps({step: {"device": "cuda"} for step in asks}))  # without a GPU that is an error
    run = submit(trial, trial.workspace(f"{trial.engine}-gpu"), config_file=str(file)).succeed(trial.deadline)
    for step, kind in asks.items():
        if kind not in asked_for(run.pods(step)[-1]):
            raise Failed(f"the pod of {step} asks for no {kind}")
    check_complete(trial, run)
    return f"{' and '.join(asks)} on CUDA: {format_seconds(run.seconds())}"


def _gpu_steps(trial: Trial) -> dict[str, str]:
    """Return the kind of GPU that each step asks for."""
    return {step: pod.gpu_type for step, pod in trial.cluster.steps.items() if step in ON_GPU and pod.gpu}


def _lacks_gpu_steps(engine: str, session: Session) -> str:
    steps = session.places[engine].cluster.steps
    return "" if any(steps[step].gpu for step in ON_GPU) else "no step asks for a GPU (steps.train.gpu in the file)"


def _cron(trial: Trial) -> str:
    parameters: dict[str, Any] = {**SMALL, "source": source(trial)}
    run = argo.fire_cron(trial, trial.workspace(ARGO), trial.within(300), **parameters).succeed(trial.deadline)
    return f"fired as {run.workflow}; {check_unchanged(trial, run)}; {len(argo.fired_by(trial, run))} run in all"


def _recurring(trial: Trial) -> str:
    parameters: dict[str, Any] = {**SMALL, "source": source(trial)}
    run = kfp.fire_schedule(trial, trial.workspace(KFP), trial.within(300), **parameters).succeed(trial.deadline)
    return f"fired as {run.workflow}; {check_unchanged(trial, run)}"


def _two_at_once(trial: Trial) -> str:
    workspace = trial.workspace(trial.engine)
    template_name = argo.template(trial, trial.cluster, {})
    first = submit(trial, workspace, template_name=template_name, seed=11)
    second = submit(trial, workspace, template_name=template_name, seed=12)
    waited = _watch_turns(trial, first, second, trial.deadline)
    first.succeed(trial.deadline)
    second.succeed(trial.deadline)
    earlier, later = sorted((first, second), key=_began)
    ended = moment((earlier.object() or {})["status"]["finishedAt"])
    if _began(later) < ended:
        raise Failed(f"{later.workflow} had a pod before {earlier.workflow} had ended")
    return f"the second waited ({waited})"


def _watch_turns(trial: Trial, first: Run, second: Run, deadline: Deadline) -> str:
    """Wait until one of the runs waits for the other and return its message; Failed when both work at the same time."""

    def waiting() -> str | None:
        working = [run for run in (first, second) if any(_works(pod) for pod in run.pods(living=True))]
        if len(working) == 2:
            raise Failed("both retrainings work at the same time")
        if all(run.ended for run in (first, second)):
            raise Failed("neither of two retrainings was seen to wait for the other")
        messages = [run.message for run in (first, second) if run.phase == "Pending" and "lock" in run.message.lower()]
        return messages[0] if messages else None

    return trial.mirror.wait(waiting, "one of two runs that waits for the other", deadline,
                             lambda: f"{first.doing()} | {second.doing()}")  # fmt: skip


def _works(pod: dict[str, Any]) -> bool:
    return "running" in main_container(pod)


def _began(run: Run) -> Any:
    return created(run.pods()[0])


def register() -> None:
    """Add them to the registry, for both engines; Kubeflow's runs, which take longer, first."""
    for engine in (KFP, ARGO):
        add(engine, "submit", f"a run through {engine}, from download to promotion", _submitted)
    for engine in (KFP, ARGO):
        add_after(engine, "nothing-left", "no RayJob, Ray cluster or living pod after the end", _nothing_left)
        description = "clean as a RayJob gives the datasets of clean in its pod"
        add_after(engine, "clean-on-ray", description, _clean_on_ray, "kuberay")
        add_after(engine, "cpu-only", "steps with gpu: 0 finish without GPUs", _cpu_only)
        add(engine, "gpu", "train and evaluate use the GPU that they ask for", _gpu, (*NEEDS[engine], "gpus"),
            lacks=functools.partial(_lacks_gpu_steps, engine))  # fmt: skip
    add_after(KFP, "recurring", "the recurring run fires", _recurring)
    add_after(ARGO, "cron", "the CronWorkflow fires", _cron)
    add_after(ARGO, "two-at-once", "two retrainings wait for each other", _two_at_once)
