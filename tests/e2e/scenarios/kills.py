"""Pods killed while they work: the run must end well, and its datasets be those of the undisturbed run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagemill.components.dataset.workspace import STEPS
from imagemill.pipelines.cluster.cluster_file import Cluster
from imagemill.pipelines.kuberay import manifest as rayjob

from ..access.kube import Doc, name_of
from ..access.mirror import say
from ..options import in_pods, with_rayjob
from ..runs import ARGO, KFP, Run, main_container, uid_of
from ..scenario import Failed, Late
from ..session import Session, Trial
from .common import NEEDS, add, add_after, check_complete, check_same, datasets, format_seconds, submit
from .retries import policy_of


@dataclass(frozen=True)
class Target:
    """Task whose pod is killed, by its possible names, and the seconds after it began to work."""

    name: str
    tasks: tuple[str, ...]
    after: float
    of_ray: bool = False


TARGETS = {
    "steps": (
        Target("download", ("download",), 1),
        Target("clean", ("clean",), 1),
        Target("resize", ("resize",), 1),
        Target("train", ("train",), 4),
        Target("evaluate", ("evaluate",), 1),
        Target("promote", ("promote",), 0.3),
    ),
    "rayjob": (Target("resize", ("resize",), 5), Target("ray-worker", ("ray-worker",), 0, of_ray=True)),
    "ray-head": (Target("ray-head", ("ray-head",), 0, of_ray=True),),
}
"""By run, the pods that are killed in it, in the order in which they work."""
_TRIES = 3
"""So often a run is started for the targets that had ended before they could be killed."""


@dataclass(frozen=True)
class Victim:
    """A pod that was deleted at once, without a word to it."""

    target: Target
    pod: Doc


def kill_each(trial: Trial, targets: Sequence[Target], cluster: Cluster) -> str:
    """Kill one pod of each target, in a run that must end as if nothing had happened."""
    expected = datasets(trial)
    notes: list[str] = []
    remaining = list(targets)
    for attempt in range(1, _TRIES + 1):
        workspace = trial.workspace(f"{trial.scenario}-{attempt}")
        run = submit(trial, workspace, cluster=cluster)
        victims = [victim for target in remaining if (victim := kill(trial, run, target, hasty=attempt > 1))]
        run.succeed(trial.deadline)
        lost = [victim for victim in victims if was_lost(run, victim)]
        check_same(check_complete(trial, run), expected, "the undisturbed run")
        notes += [_describe(run, victim) for victim in lost]
        remaining = [target for target in remaining if target not in [victim.target for victim in lost]]
        if not remaining:
            return f"{'; '.join(notes)}; the same datasets ({format_seconds(run.seconds())})"
        say(f"{', '.join(target.name for target in remaining)} had ended before the kill; once more")
    names = ", ".join(target.name for target in remaining)
    raise Failed(f"{names} ended {_TRIES} times before the pod could be killed")


def kill(trial: Trial, run: Run, target: Target, hasty: bool = False) -> Victim | None:
    """The pod that was killed when it had worked for a while; None when it had ended before."""
    pod = _caught(trial, run, target, 0.0 if hasty else target.after)
    if pod is None:
        return None
    trial.kube.delete("pods", name_of(pod), grace=0)
    say(f"killed {name_of(pod)}")
    return Victim(target, pod)


def _caught(trial: Trial, run: Run, target: Target, after: float) -> Doc | None:
    """The pod, when it has worked for `after` seconds; None when it has ended before."""
    since: dict[str, float] = {}
    left = trial.deadline.left

    def find_working() -> Doc | bool | None:
        for pod in (pod for task in target.tasks for pod in run.pods(task)):
            state = main_container(pod)
            if "terminated" in state or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
                return True
            if "running" in state and (not target.of_ray or _ray_works(run)):
                began = since.setdefault(uid_of(pod), left())
                if began - left() >= after:
                    return pod
        if run.ended:
            return True
        return None

    awaited = f"a working pod of {' or '.join(target.tasks)}"
    pod_or_end = trial.mirror.wait(find_working, awaited, trial.deadline, run.doing, every=0.2)
    return None if pod_or_end is True else pod_or_end  # type: ignore[return-value]


def _ray_works(run: Run) -> bool:
    return any(rayjob.classify_status(job.get("status") or {}) == rayjob.RUNNING for job in run.rayjobs(living=True))


def was_lost(run: Run, victim: Victim) -> bool:
    """Whether the kill came in time: the pod's container had not ended well by itself, and another pod took over.

    The API forgets a pod that is deleted without grace at once, and Argo makes the next one under the same name, so
    pods are told apart by uid.
    """
    last = run.place.mirror.last_state("pods", uid_of(victim.pod)) or victim.pod
    ended = main_container(last).get("terminated") or {}
    if ended.get("exitCode") == 0:
        return False
    # What comes after a lost pod of Ray's is KubeRay's and Ray's own doing.
    return victim.target.of_ray or bool(_successors(run, victim))


def _successors(run: Run, victim: Victim) -> list[Doc]:
    """The pods of the same task that were made after the victim."""
    pods = [pod for task in victim.target.tasks for pod in run.pods(task)]
    created_at = str(victim.pod["metadata"]["creationTimestamp"])
    return [
        pod for pod in pods
        if uid_of(pod) != uid_of(victim.pod) and str(pod["metadata"]["creationTimestamp"]) >= created_at
    ]  # fmt: skip


def _describe(run: Run, victim: Victim) -> str:
    more = len(_successors(run, victim))
    after = f"went on in {more} more pod{'s' * (more != 1)}" if more else "went on without it"
    jobs = len(run.rayjobs())
    ray = f", {jobs} RayJob{'s' * (jobs != 1)}" if jobs else ""
    return f"{victim.target.name} killed, {after}{ray}"


def _deleted(trial: Trial) -> str:
    """The workflow is deleted while its RayJob runs."""
    run = submit(trial, trial.workspace(trial.scenario), cluster=with_rayjob(trial.cluster))

    def resizing() -> Doc | None:
        if run.ended:
            raise Failed(f"{run.workflow} ended {run.phase} before it could be deleted: {run.message}{run.failures()}")
        return next(iter(run.rayjobs(living=True)), None)

    job = trial.mirror.wait(resizing, "a RayJob", trial.deadline, run.doing)
    owners = [owner["kind"] for owner in job["metadata"].get("ownerReferences") or ()]
    if not owners:
        raise Failed(f"RayJob {name_of(job)} has no owner: it would outlive its run")
    trial.kube.delete("workflows", run.workflow)
    say(f"deleted {run.workflow}")
    begun = {step for step in STEPS if run.pods(step)}
    try:
        run.wait_for_nothing_left(trial.within(300))
    except Late as error:
        raise Failed(f"{error}, though the RayJob is owned by {', '.join(owners)}") from None
    if went_on := [step for step in STEPS if run.pods(step) and step not in begun]:
        raise Failed(f"{run.workflow} went on with {', '.join(went_on)} after it was deleted")
    return f"RayJob {name_of(job)}, owned by {', '.join(owners)}, went with it"


def register() -> None:
    for engine in (KFP, ARGO):
        steps = "the pods of download, clean, resize, train, evaluate and promote are killed, in one run"
        add_after(engine, "kill-steps", steps, _killer("steps", in_pods), lacks=lacks_policy(engine))
        both = "the pod that waits for the RayJob is killed, then one of Ray's workers"
        add_after(engine, "kill-rayjob", both, _killer("rayjob", with_rayjob), "kuberay", lacks=lacks_policy(engine))
        head = "the pod of Ray's head is killed"
        add_after(engine, "kill-ray-head", head, _killer("ray-head", with_rayjob), "kuberay")
        add(engine, "deleted", "a run deleted midway leaves no RayJob", _deleted, (*NEEDS[engine], "kuberay"))


def _killer(targets: str, choose_pods: Callable[[Cluster], Cluster]) -> Callable[[Trial], str]:
    return lambda trial: kill_each(trial, TARGETS[targets], choose_pods(trial.cluster))


def lacks_policy(engine: str) -> Callable[[Session], str]:
    """KFP's retries have no policy of their own: under Argo's default a run ends with a pod that is lost."""

    def lacks(session: Session) -> str:
        policy = policy_of(session)
        if engine == ARGO or policy in ("", "OnError", "Always"):
            return ""
        return (
            f"Argo's controller tries {policy} again: a lost pod ends a run of KFP; its config map lacks "
            "workflowDefaults: {spec: {templateDefaults: {retryStrategy: {limit: 2, retryPolicy: OnError}}}}"
        )

    return lacks
