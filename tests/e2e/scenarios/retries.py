"""Retries of failed steps, their number and time: by Argo's template, and by KFP's count.

KFP compiles a number of tries and no policy, so that its retries are those of Argo's controller: by Argo's own default
pods that failed, by the defaults of KFP's installation (OnError) those that were lost. The outcome is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..access.controller import Controller, find_controller, other_policy
from ..access.kube import Doc, name_of
from ..access.mirror import say
from ..runs import ARGO, KFP, SUCCEEDED, Run, main_container, own_seconds, uid_of
from ..scenario import Failed
from ..session import Session, Trial
from .common import NEEDS, add, submit

TABLE = "retries"
NOBODY_LISTENS = "http://127.0.0.1:9/images.tar"
"""A source that can't be reached from any pod, which is an error that may pass: exit code 75."""
TOO_LITTLE = "40Mi"
"""Memory in which the download step can't start."""
NEXT_POD_S = 240


def policy_of(session: Session) -> str:
    """Return the retry policy of Argo's controller for templates without one; empty where it can't be seen."""
    controller = controller_of(session)
    return str(session.facts.get("other_policy") or (controller.policy if controller else ""))


def controller_of(session: Session) -> Controller | None:
    """Argo's controller that runs KFP's workflows, as it was at the beginning."""
    place = session.places[KFP]
    controller: Controller | None = session.once(
        "controller", lambda: find_controller(place.kube, place.kube.namespace)
    )
    return controller


def record(trial: Trial, run: Run, failure: str, seconds: float) -> str:
    """Add what a failure of the download step came to to the results; the same in words."""
    pods = run.pods("download")
    codes = [_exit_code(pod) for pod in pods]
    policy = policy_of(trial.session) or "unknown"
    outcome = "went on" if not run.ended or run.phase == SUCCEEDED else f"ended {run.phase}"
    trial.session.measure(
        TABLE, failure=failure, engine=trial.engine, policy=policy, pods=len(pods), exit_codes=codes,
        own_seconds=[round(own_seconds(pod)) for pod in pods], seconds=round(seconds), outcome=outcome,
    )  # fmt: skip
    return f"{len(pods)} pod(s), {seconds:.0f} s, {outcome} under the policy {policy}"


def _exit_code(pod: Doc) -> str:
    ended = main_container(pod).get("terminated") or {}
    return " ".join(filter(None, [str(ended.get("exitCode", "-")), _reason(ended)]))


def _reason(ended: Doc) -> str:
    return str(ended["reason"]) if ended.get("reason") not in (None, "Error", "Completed") else ""


def lost_pod(trial: Trial) -> str:
    """The download step's pod is deleted; whether another one takes over."""
    run = submit(trial, trial.workspace(trial.scenario))

    def find_working() -> Doc | None:
        if run.ended:
            raise Failed(f"{run.workflow} ended {run.phase} before its pod could be deleted: {run.message}")
        return next((pod for pod in run.pods("download") if "running" in main_container(pod)), None)

    victim = trial.mirror.wait(find_working, "a working pod of download", trial.deadline, run.doing, every=0.2)
    trial.kube.delete("pods", name_of(victim), grace=0)
    say(f"killed {name_of(victim)}")

    def find_successor() -> Doc | bool | None:
        later = [pod for pod in run.pods("download") if uid_of(pod) != uid_of(victim)]
        ended = [pod for pod in later if "terminated" in main_container(pod)]
        return run.ended or (ended[0] if ended else None)

    seconds = trial.deadline.left()
    trial.mirror.wait(find_successor, "another pod, or the end of the run", trial.within(NEXT_POD_S), run.doing)
    seconds -= trial.deadline.left()
    note = record(trial, run, "lost pod", seconds)
    if trial.engine == ARGO and run.ended and run.phase != SUCCEEDED:
        raise Failed(f"a lost pod ended the run: {run.message}{run.failures()}")
    return note


def transient(trial: Trial) -> str:
    """A source that can't be reached: exit code 75, which Argo's template tries again."""
    run = submit(trial, trial.workspace(trial.scenario), source=NOBODY_LISTENS)
    phase = run.end(trial.deadline)
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded with a source that nobody serves, {NOBODY_LISTENS}")
    note = record(trial, run, "exit code 75", run.wall_seconds())
    expected = 1 + trial.cluster.limits.lost_pod_retries
    if trial.engine == ARGO and len(run.pods("download")) != expected:
        raise Failed(f"expected {expected} pods of download, found {note}{run.failures()}")
    return note


def out_of_memory(trial: Trial) -> str:
    """A step that takes more memory than it may have: it would again, so Argo's template does not try again."""
    steps = dict(trial.cluster.steps)
    steps["download"] = replace(steps["download"], memory=TOO_LITTLE, memory_limit="", shm="")
    run = submit(trial, trial.workspace(trial.scenario), cluster=replace(trial.cluster, steps=steps))
    phase = run.end(trial.deadline)
    if phase == SUCCEEDED:
        raise Failed(f"{run.workflow} succeeded with {TOO_LITTLE} for download")
    note = record(trial, run, "out-of-memory kill", run.wall_seconds())
    if trial.engine == ARGO and len(run.pods("download")) != 1:
        raise Failed(f"expected one pod of download, found {note}{run.failures()}")
    return note


def other(trial: Trial) -> str:
    """All failures once more with the other policy in the controller's config map, which is then put back."""
    from .refusals import wrong_input

    session = trial.session
    controller = controller_of(session)
    assert controller  # the check of that name has found it
    bodies: dict[str, Callable[[Trial], str]] = {
        "wrong-input": wrong_input, "lost-pod": lost_pod, "transient": transient, "out-of-memory": out_of_memory
    }  # fmt: skip
    trials = [
        (Trial(session, f"{trial.engine}-{name}-other", trial.engine, trial.deadline), body)
        for name, body in bodies.items()
    ]
    say(f"{controller.path} is changed and put back; as it was: {session.folder}/controller.json")
    before = trial.kube.read(controller.path)
    (session.folder / "controller.json").write_text(json.dumps(before, indent=1), encoding="utf-8")
    with other_policy(trial.kube, controller) as policy, ThreadPoolExecutor(len(trials)) as pool:
        session.facts["other_policy"] = policy
        try:
            notes = list(pool.map(lambda pair: _try(*pair), trials))
        finally:
            del session.facts["other_policy"]
    if failed := [words for words, is_failure in notes if is_failure]:
        raise Failed("; ".join(failed))
    return f"{policy}: " + "; ".join(words for words, _ in notes)


def _try(trial: Trial, body: Callable[[Trial], str]) -> tuple[str, bool]:
    """(what came of it, whether it failed)."""
    try:
        return f"{trial.scenario}: {body(trial)}", False
    except Failed as error:
        return f"{trial.scenario}: {error}", True
    finally:
        trial.clean()


def register() -> None:
    for engine in (KFP, ARGO):
        add(engine, "lost-pod", "a pod of download is lost: whether it is tried again", lost_pod)
        add(engine, "transient", "a source that can't be reached: how often exit code 75 is tried again", transient)
        add(engine, "out-of-memory", "a step with too little memory: whether it is tried again", out_of_memory)


def register_other() -> None:
    """Apart, for they change the cluster: alone and last."""
    description = "the same failures under the other retry policy of Argo's controller"
    for engine in (KFP, ARGO):
        add(engine, "other-policy", description, other, (*NEEDS[engine], "controller"), alone=True, lacks=_lacks)


def _lacks(session: Session) -> str:
    if not session.options.change_controller:
        return "changes the config map of Argo's controller, for everybody: --change-controller"
    return ""
