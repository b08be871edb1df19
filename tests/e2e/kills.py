"""A pod killed in each step: the run must end well, and its datasets be those of the undisturbed run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imagemill.pipelines import rayjob

from .kube import Doc, name_of
from .mirror import say
from .runs import ARGO, KFP, Run, main_container
from .scenario import Failed, Late, Skip
from .scenarios import ENGINES, add, add_after, check_complete, check_same, datasets, submit, told_seconds
from .session import Session


@dataclass(frozen=True)
class Target:
    """Whose pod is killed: the tasks that it may be of, and how many seconds after it began to work."""

    tasks: tuple[str, ...]
    after: float
    of_ray: bool = False


TARGETS = {
    "download": Target(("download",), 2),
    "clean": Target(("clean",), 2),
    "resize": Target(("rayjob", "resize"), 5),
    "ray-head": Target(("ray-head",), 0, of_ray=True),
    "ray-worker": Target(("ray-worker",), 0, of_ray=True),
    "train": Target(("train",), 8),
    "evaluate": Target(("evaluate",), 1),
    "promote": Target(("promote",), 0.3),
}
_TRIES = 3
"""So often a run is started anew when the step had ended before it could be killed."""


def _kill(session: Session, engine: str, target: Target) -> str:
    if target.of_ray and session.cluster.ray.mode != "rayjob":
        raise Skip(f"ray.mode is {session.cluster.ray.mode}")
    expected = datasets(session, engine)
    for attempt in range(1, _TRIES + 1):
        workspace = session.workspace(f"{session.scenario}-{attempt}")
        run = submit(session, engine, workspace)
        after = target.after if attempt == 1 else 0.0
        victim = _caught(session, run, target, after)
        if victim is not None:
            session.kube.delete("pods", name_of(victim), grace=0)
            say(f"  killed {name_of(victim)}")
        run.succeed(session.deadline)
        if victim is not None and _was_lost(run, target, victim):
            check_same(check_complete(session, run), expected, "the undisturbed run")
            return f"{_told(run, target, victim)}; the same datasets ({told_seconds(run.seconds())})"
        say(f"  {' or '.join(target.tasks)} had ended before it could be killed; once more")
    raise Failed(f"{' or '.join(target.tasks)} ended {_TRIES} times before its pod could be killed")


def _caught(session: Session, run: Run, target: Target, after: float) -> Doc | None:
    """The pod, when it has worked for `after` seconds; None when it has ended before."""
    since: dict[str, float] = {}
    left = session.deadline.left

    def working() -> Doc | bool | None:
        for pod in (pod for task in target.tasks for pod in run.pods(task)):
            state = main_container(pod)
            if "terminated" in state or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                return True
            if "running" in state and (not target.of_ray or _ray_works(run)):
                began = since.setdefault(name_of(pod), left())
                if began - left() >= after:
                    return pod
        if run.ended:
            return True
        return None

    what = f"a working pod of {' or '.join(target.tasks)}"
    found = session.mirror.wait(working, what, session.deadline, run.doing, every=0.2)
    return None if found is True else found  # type: ignore[return-value]


def _ray_works(run: Run) -> bool:
    return any(rayjob.verdict(one.get("status") or {}) == rayjob.RUNNING for one in run.rayjobs(living=True))


def _was_lost(run: Run, target: Target, victim: Doc) -> bool:
    """Whether the killing came in time: the killed container did not end by itself, with exit code 0."""
    last = run.session.find("pods", name_of(victim)) or victim
    ended = main_container(last).get("terminated") or {}
    if ended.get("exitCode") == 0:
        return False
    if target.of_ray:  # what comes after is KubeRay's and Ray's own doing
        return True
    return len([pod for task in target.tasks for pod in run.pods(task)]) > 1


def _told(run: Run, target: Target, victim: Doc) -> str:
    pods = [pod for task in target.tasks for pod in run.pods(task)]
    more = [name_of(pod) for pod in pods if name_of(pod) != name_of(victim)]
    jobs = len(run.rayjobs())
    after = f"went on in {len(more)} more pod{'s' * (len(more) != 1)}" if more else "went on without it"
    return f"killed {name_of(victim)}, {after}" + (f", {jobs} RayJob{'s' * (jobs != 1)}" if jobs else "")


def _deleted(session: Session, engine: str) -> str:
    """The workflow is deleted while its RayJob runs."""
    if session.cluster.ray.mode != "rayjob":
        raise Skip(f"ray.mode is {session.cluster.ray.mode}")
    run = submit(session, engine, session.workspace(session.scenario))

    def resizing() -> Doc | None:
        if run.ended:
            raise Failed(f"{run.workflow} ended {run.phase} before it could be deleted: {run.message}")
        return next(iter(run.rayjobs(living=True)), None)

    job = session.mirror.wait(resizing, "a RayJob", session.deadline, run.doing)
    owners = [one["kind"] for one in job["metadata"].get("ownerReferences") or ()]
    if not owners:
        raise Failed(f"RayJob {name_of(job)} has no owner: it would outlive its run")
    session.kube.delete("workflows", run.workflow)
    say(f"  deleted {run.workflow}")
    try:
        run.wait_for_nothing_left(session.within(300))
    except Late as error:
        raise Failed(f"{error}, though the RayJob is owned by {', '.join(owners)}") from None
    return f"RayJob {name_of(job)}, owned by {', '.join(owners)}, went with it"


def register() -> None:
    for engine in (ARGO, KFP):
        needs = ENGINES[engine][1]
        for name, target in TARGETS.items():
            kuberay = ("kuberay",) if target.of_ray else ()
            add_after(engine, f"kill-{name}", f"the pod of {name} is killed", _killer(target), kuberay)
        add(engine, "deleted", "a run deleted midway leaves no RayJob", _deleted, (*needs, "kuberay"))


def _killer(target: Target) -> Callable[[Session, str], str]:
    return lambda session, engine: _kill(session, engine, target)
