"""Runs that end well: submitted, scheduled, cached, and with nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from imagemill.components.store.config import STEPS

from . import argo, kfp, probe
from .kube import Doc, name_of
from .options import ON_GPU, without_gpus
from .preflight import REGISTRY
from .runs import ARGO, KFP, Run, main_container, moment
from .scenario import Deadline, Failed, Skip
from .session import Session

DATASETS = ("raw", "clean", "tensors")
"""What must be the same in every run, byte for byte. A model's weights may differ from one kind of CPU to another."""
ENGINES = {ARGO: (argo.submit, ("images", "store", "argo", "resizing")),
           KFP: (kfp.submit, ("images", "store", "kfp", "resizing"))}  # fmt: skip
NOTHING_LEFT_S = 180
FIRST_MINUTES = 40
"""Minutes that a run may take which pulls images and finds no nodes yet."""


Body = Callable[[Session, str], str]
"""Does a scenario through an engine; what is worth a note."""


def submit(session: Session, engine: str, workspace: str, **options: Any) -> Run:
    return ENGINES[engine][0](session, workspace, **options)


def baseline(session: Session, engine: str) -> Run:
    """The undisturbed run, of `<engine>-submit`, that others are compared with."""
    return session.baselines[engine]


def look(session: Session, workspace: str) -> dict[str, Any]:
    """What is stored in a workspace: {"datasets": {kind: {fingerprint: files}}, "runs": {run: {step: record}}}."""
    return probe.ask(session, "look", workspace)


def records(session: Session, run: Run) -> dict[str, Any]:
    """The steps' records of a run."""
    found = look(session, run.workspace)["runs"]
    mine = found.get(run.run) or found.get(run.workflow)
    if mine is None:
        raise Failed(f"{run.workspace} has no records of run {run.run}, only of {sorted(found) or 'none'}")
    return dict(mine)


def check_complete(session: Session, run: Run) -> dict[str, Any]:
    """A run's datasets; Failed unless there is one of each kind, and each step has a good record."""
    found = look(session, run.workspace)
    for kind in (*DATASETS, "model", "evaluation"):
        if not found["datasets"].get(kind):
            raise Failed(f"{run.workspace} has no {kind}")
    made = found["runs"].get(run.run) or found["runs"].get(run.workflow) or {}
    bad = {step: made[step]["error"] for step in made if step in STEPS and made[step]["exit_code"]}
    missing = [step for step in STEPS if step not in made and step != "resize"]
    if bad or missing:
        raise Failed(f"records of {run.run}: missing {missing or 'none'}, failed {bad or 'none'}")
    return {kind: found["datasets"][kind] for kind in DATASETS}


def datasets(session: Session, engine: str) -> dict[str, Any]:
    """Those of the undisturbed run."""
    key = f"datasets-{engine}"
    if key not in session.facts:
        session.facts[key] = check_complete(session, baseline(session, engine))
    return dict(session.facts[key])


def check_same(found: dict[str, Any], expected: dict[str, Any], whose: str) -> None:
    """Failed, naming the kind, unless fingerprints and every file's rows and sha256 are the same."""
    for kind in DATASETS:
        if found[kind] != expected[kind]:
            names = f"{sorted(found[kind])}, expected {sorted(expected[kind])} with the same files"
            raise Failed(f"{kind} differs from that of {whose}: {names}")


def told_seconds(seconds: dict[str, float]) -> str:
    return ", ".join(f"{step} {seconds[step]:.0f} s" for step in STEPS if step in seconds)


def _submitted(session: Session, engine: str) -> str:
    run = submit(session, engine, session.workspace(engine), **({"wait": True} if engine == KFP else {}))
    session.baselines[engine] = run.succeed(session.deadline)
    datasets(session, engine)
    other = {ARGO: KFP, KFP: ARGO}[engine]
    same = ""
    if other in session.baselines:
        check_same(datasets(session, engine), datasets(session, other), f"the run through {other}")
        same = f"; the same datasets as through {other}"
    return f"{told_seconds(run.seconds())}{same}"


def _nothing_left(session: Session, engine: str) -> str:
    run = baseline(session, engine)
    run.wait_for_nothing_left(session.within(NOTHING_LEFT_S))
    return f"no RayJob, no Ray cluster and no living pod of {run.workflow}"


def _cached(session: Session, engine: str) -> str:
    run = submit(session, engine, session.workspace(engine)).succeed(session.deadline)
    made = records(session, run)
    ran = [step for step in made if step in STEPS and made[step]["state"] != "cached"]
    if ran:
        raise Failed(f"made again: {', '.join(ran)}")
    if run.rayjobs():
        raise Failed(f"a RayJob was started: {', '.join(map(name_of, run.rayjobs()))}")
    return told_seconds({step: made[step]["seconds"] for step in made if step in STEPS})


def _cpu_only(session: Session, engine: str) -> str:
    run = baseline(session, engine)
    if any(pod.gpu for pod in session.cluster.steps.values()):
        cluster = without_gpus(session.cluster)
        run = submit(session, engine, session.workspace(f"{engine}-cpu"), cluster=cluster).succeed(session.deadline)
    for pod in run.pods():
        if asked := asked_for(pod):
            raise Failed(f"pod {name_of(pod)} asks for {', '.join(sorted(asked))}")
    check_complete(session, run)
    return told_seconds(run.seconds())


def _gpu(session: Session, engine: str) -> str:
    asks = {step: pod.gpu_type for step, pod in session.cluster.steps.items() if step in ON_GPU and pod.gpu}
    if not asks:
        raise Skip("no step asks for a GPU (steps.train.gpu in the cluster's file)")
    config = json.dumps({step: {"device": "cuda"} for step in asks})  # without a GPU that is an error
    run = submit(session, engine, session.workspace(f"{engine}-gpu"), config=config).succeed(session.deadline)
    for step, kind in asks.items():
        if kind not in asked_for(run.pods(step)[-1]):
            raise Failed(f"the pod of {step} asks for no {kind}")
    check_complete(session, run)
    return f"{' and '.join(asks)} on CUDA: {told_seconds(run.seconds())}"


def asked_for(pod: Doc) -> set[str]:
    """The extended resources, such as GPUs, that a pod's containers ask for."""
    limits = [(part.get("resources") or {}).get("limits") or {} for part in pod["spec"]["containers"]]
    return {name for one in limits for name in one if "/" in name}


def _cron(session: Session, _: str) -> str:
    run = argo.fire_cron(session, session.workspace(ARGO), session.within(300))
    run.succeed(session.deadline)
    return f"fired as {run.workflow}, {told_seconds(run.seconds())}; {len(argo.fired_by(session, run))} in all"


def _recurring(session: Session, _: str) -> str:
    run = kfp.fire_schedule(session, session.workspace(KFP), session.within(300))
    run.succeed(session.deadline)
    return f"fired as {run.workflow}, {told_seconds(run.seconds())}"


def _two_at_once(session: Session, engine: str) -> str:
    workspace = session.workspace(engine)
    one = submit(session, engine, workspace, seed=11)
    two = submit(session, engine, workspace, seed=12)
    waited = _watch_turns(session, one, two, session.deadline)
    one.succeed(session.deadline)
    two.succeed(session.deadline)
    first, second = sorted((one, two), key=lambda run: _began(run))
    ended = moment((first.object() or {})["status"]["finishedAt"])
    if _began(second) < ended:
        raise Failed(f"{second.workflow} had a pod before {first.workflow} had ended")
    return f"the second waited ({waited})"


def _watch_turns(session: Session, one: Run, two: Run, deadline: Deadline) -> str:
    """Until one of them waits; Failed when both work at the same time. The message of the one that waits."""

    def waiting() -> str | None:
        working = [run for run in (one, two) if any(_works(pod) for pod in run.pods(living=True))]
        if len(working) == 2:
            raise Failed("both retrainings work at the same time")
        if all(run.ended for run in (one, two)):
            raise Failed("neither of two retrainings was seen to wait for the other")
        told = [run.message for run in (one, two) if run.phase == "Pending" and "lock" in run.message.lower()]
        return told[0] if told else None

    return session.mirror.wait(waiting, "one of two runs that waits for the other", deadline,
                               lambda: f"{one.doing()} | {two.doing()}")  # fmt: skip


def _works(pod: dict[str, Any]) -> bool:
    return "running" in main_container(pod)


def _began(run: Run) -> Any:
    return moment(run.pods()[0]["metadata"]["creationTimestamp"])


def register() -> None:
    """Add them to the table's registry, for both engines."""
    for engine, (_, needs) in ENGINES.items():
        add(engine, "submit", f"a run through {engine}, from download to promotion", _submitted, needs)
        add_after(engine, "nothing-left", "no RayJob, Ray cluster or living pod after the end", _nothing_left)
        add_after(engine, "cached", "the same run again makes nothing again", _cached)
        add_after(engine, "cpu-only", "steps with gpu: 0 finish without GPUs", _cpu_only)
        add(engine, "gpu", "train and evaluate use the GPU that they ask for", _gpu, (*needs, "gpus"))
    add_after(ARGO, "cron", "the CronWorkflow fires", _cron)
    add_after(ARGO, "two-at-once", "two retrainings wait for each other", _two_at_once)
    add_after(KFP, "recurring", "the recurring run fires", _recurring)


def add_after(engine: str, what: str, about: str, body: Body, needs: tuple[str, ...] = ()) -> None:
    """A scenario that compares with the undisturbed run, or goes on from what it has stored."""
    add(engine, what, about, body, (*needs, f"{engine}-submit"))


def add(engine: str, what: str, about: str, body: Body, needs: tuple[str, ...]) -> None:
    """One scenario of one engine: `argo-submit`."""
    REGISTRY.add(f"{engine}-{what}", about, lambda session: body(session, engine), needs, FIRST_MINUTES)
