"""Functions that scenarios share: start of a small run through each engine, and checks of its datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imagemill.components.dataset.workspace import STEPS
from imagemill.components.storage import uri as uris

from .. import argo, kfp
from ..access import probe
from ..access.kube import Doc, name_of
from ..options import SMALL
from ..runs import ARGO, KFP, Run
from ..scenario import Body, Failed, Registry, Scenario
from ..session import Session, Trial

REGISTRY = Registry()
DATASETS = ("raw", "clean", "tensors")
"""What must be the same in every run, byte for byte. A model's weights may differ from one kind of CPU to another."""
NEEDS = {ARGO: ("images", "dataset", "argo", "resizing"), KFP: ("images", "dataset", "kfp", "resizing")}
FIRST_MINUTES = 40
"""Minutes that a run may take which pulls images and finds no nodes yet."""


def submit(trial: Trial, workspace: str, **options: Any) -> Run:
    """Start a small run through the trial's engine; parameters given here win over those of SMALL."""
    values = {**SMALL, "source": source(trial), **options}
    return start(trial, workspace, **values)


def start(trial: Trial, workspace: str, **options: Any) -> Run:
    """Start a run with these parameters alone."""
    return (argo.submit if trial.engine == ARGO else kfp.submit)(trial, workspace, **options)


def source(trial: Trial) -> str:
    """The images that small runs read."""
    return uris.join(trial.cluster.storage.workspace, "source")


def baseline(trial: Trial) -> Run:
    """The undisturbed run, of `<engine>-submit`, that others are compared with."""
    return trial.session.baselines[trial.engine]


def look(trial: Trial, workspace: str) -> dict[str, Any]:
    """What is stored in a workspace: {"datasets": {kind: {fingerprint: files}}, "runs": {run: {step: record}},
    "files": {run: names}}."""
    return probe.ask(trial, "look", workspace=workspace)


def records_of(stored: dict[str, Any], run: Run) -> dict[str, Any]:
    """The steps' records of a run; empty where there are none."""
    runs = stored["runs"]
    return dict(runs.get(run.run) or runs.get(run.workflow) or {})


def check_complete(trial: Trial, run: Run) -> dict[str, Any]:
    """A run's datasets; Failed unless there is one of each kind, and each step has a good record."""
    stored = look(trial, run.workspace)
    for kind in (*DATASETS, "model", "evaluation"):
        if not stored["datasets"].get(kind):
            raise Failed(f"{run.workspace} has no {kind}")
    records = records_of(stored, run)
    bad = {step: records[step]["error"] for step in records if step in STEPS and records[step]["exit_code"]}
    missing = [step for step in STEPS if step not in records and step != "resize"]
    if bad or missing:
        raise Failed(f"records of {run.run}: missing {missing or 'none'}, failed {bad or 'none'}")
    return {kind: stored["datasets"][kind] for kind in DATASETS}


def check_unchanged(trial: Trial, run: Run) -> str:
    """Failed unless a run that had nothing to do made nothing: no step ran, no RayJob, as few pods as may be."""
    records = records_of(look(trial, run.workspace), run)
    ran = [step for step in records if step in STEPS and records[step]["state"] not in ("cached", "skipped")]
    if ran:
        raise Failed(f"made again: {', '.join(ran)}")
    if run.rayjobs():
        raise Failed(f"a RayJob was started: {', '.join(map(name_of, run.rayjobs()))}")
    return f"nothing was made again, {len(run.pods())} pods"


def datasets(trial: Trial) -> dict[str, Any]:
    """Return those of the undisturbed run."""
    facts = trial.session.facts
    key = f"datasets {trial.engine}"
    if key not in facts:
        facts[key] = check_complete(trial, baseline(trial))
    return dict(facts[key])


def check_same(actual: dict[str, Any], expected: dict[str, Any], whose: str) -> None:
    """Failed, naming the kind, unless fingerprints and every file's rows and sha256 are the same."""
    for kind in DATASETS:
        if actual[kind] != expected[kind]:
            names = f"{sorted(actual[kind])}, expected {sorted(expected[kind])} with the same files"
            raise Failed(f"{kind} differs from that of {whose}: {names}")


def format_seconds(seconds: dict[str, float]) -> str:
    return ", ".join(f"{step} {seconds[step]:.0f} s" for step in STEPS if step in seconds)


def asked_for(pod: Doc) -> set[str]:
    """The extended resources, such as GPUs, that a pod's containers ask for."""
    limits = [(part.get("resources") or {}).get("limits") or {} for part in pod["spec"]["containers"]]
    return {name for limit in limits for name in limit if "/" in name}


def add(
    engine: str, name: str, description: str, body: Body, needs: tuple[str, ...] | None = None, *, minutes: float = 0,
    alone: bool = False, lacks: Callable[[Session], str] | None = None,
) -> None:  # fmt: skip
    """Register a scenario of one engine, `argo-submit`; `needs`: what any run through it does."""
    required = NEEDS[engine] if needs is None else needs
    REGISTRY.add(
        Scenario(f"{engine}-{name}", description, body, required, minutes or FIRST_MINUTES, engine, alone, lacks)
    )


def add_after(engine: str, name: str, description: str, body: Body, *needs: str, **options: Any) -> None:
    """Register a scenario that compares with the undisturbed run, or goes on from what it has stored."""
    add(engine, name, description, body, (*needs, f"{engine}-submit"), **options)
