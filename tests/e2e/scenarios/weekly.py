"""Week after week: a source that grows, runs that do only what is new, and retrainings that lose pods."""

from __future__ import annotations

import random
from typing import Any

from .. import argo
from ..access import probe
from ..access.mirror import say
from ..options import SMALL, in_pods
from ..runs import ARGO, KFP, Run
from ..scenario import Failed
from ..session import Session, Trial
from .common import add, look, records_of, submit
from .kills import TARGETS, kill, was_lost

TIMES = 4
"""So many times the images of other scenarios: 336, to which a week brings 3, one of each class."""
STEPS = ("download", "clean", "resize")
FRESH = "rows of the second week, made from nothing"
SECONDS_A_RETRAINING = 240


def _second_week(trial: Trial) -> str:
    """Run twice in one workspace, with 1% new images before the second; compare with a run from nothing."""
    source, workspace = trial.workspace(f"{trial.engine}-photos"), trial.workspace(f"{trial.engine}-weeks")
    seconds: dict[int, dict[str, float]] = {}
    stored: dict[int, dict[str, Any]] = {0: {"bytes": {}}}
    for week in (1, 2):
        images = probe.ask(trial, "plant", source=source, times=TIMES, weeks=week - 1)["images"]
        run = submit(trial, workspace, source=source).succeed(trial.deadline)
        seconds[week] = _own_seconds(trial, run)
        stored[week] = probe.ask(trial, "rows", workspace=workspace)
        added = sum(stored[week]["bytes"].values()) - sum(stored[week - 1]["bytes"].values())
        trial.session.measure("weekly", engine=trial.engine, week=week, images=images, steps=seconds[week], bytes=added)
    rows = trial.session.facts.get(FRESH)
    if rows is None:
        fresh = submit(trial, trial.workspace(f"{trial.engine}-fresh"), source=source).succeed(trial.deadline)
        rows = trial.session.facts[FRESH] = probe.ask(trial, "rows", workspace=fresh.workspace)["hashes"]
    _check_same_rows(stored[2]["hashes"], rows)
    durations = ", ".join(f"{step} {seconds[1][step]} and {seconds[2][step]} s" for step in STEPS)
    return f"{durations}; the rows of a run from nothing"


def _own_seconds(trial: Trial, run: Run) -> dict[str, float]:
    """Seconds of each step's work, as its record says. Failed for a step that made no dataset of its own."""
    records = records_of(look(trial, run.workspace), run)
    if missing := [step for step in STEPS if step not in records]:
        raise Failed(f"records of {run.run}: missing {', '.join(missing)}")
    if cached := [step for step in STEPS if records[step]["state"] != "ran"]:
        raise Failed(f"{', '.join(cached)} of {run.run} made nothing, though there are new images")
    return {step: round(records[step]["seconds"], 1) for step in STEPS}


def _check_same_rows(stored: dict[str, dict[str, str]], fresh: dict[str, dict[str, str]]) -> None:
    """Failed unless each dataset made from nothing is there, with the same rows."""
    for kind, hashes in fresh.items():
        for fingerprint, rows in hashes.items():
            if stored[kind].get(fingerprint) != rows:
                actual = stored[kind].get(fingerprint, "none of that fingerprint")
                raise Failed(f"{kind} {fingerprint}: expected the {rows} of a run from nothing, found {actual}")


def _retrainings(trial: Trial) -> str:
    """Scheduled runs in a row, a pod killed at random in each, new images in each week."""
    count, rng = trial.options.retrainings, random.Random(trial.session.suffix)
    source, workspace = trial.workspace("retrainings-photos"), trial.workspace("retrainings")
    probe.ask(trial, "plant", source=source)
    name = argo.start_cron(trial, in_pods(trial.cluster), workspace, **{**SMALL, "source": source})
    killed: dict[str, int] = {}
    for week in range(1, count + 1):
        run = argo.next_of_cron(trial, name, workspace, trial.within(SECONDS_A_RETRAINING), week - 1)
        if week == count:
            argo.stop_cron(trial, name)
        target = rng.choice(TARGETS["steps"])
        victim = kill(trial, run, target)
        if week < count:
            probe.ask(trial, "plant", source=source, weeks=week)
        run.succeed(trial.within(SECONDS_A_RETRAINING))
        if victim and was_lost(run, victim):
            killed[target.name] = killed.get(target.name, 0) + 1
        say(f"retraining {week} of {count} ended well; killed so far: {killed}")
    if sum(killed.values()) < count * 2 / 3:
        raise Failed(f"only {sum(killed.values())} of {count} pods were killed before they had ended: {killed}")
    fresh = submit(trial, trial.workspace("retrainings-fresh"), source=source).succeed(trial.deadline)
    _check_same_rows(*(probe.ask(trial, "rows", workspace=place)["hashes"] for place in (workspace, fresh.workspace)))
    counts = ", ".join(f"{times} of {step}" for step, times in killed.items())
    return (
        f"{count} retrainings, pods killed: {counts}; the last week's rows are those of an undisturbed run from nothing"
    )


def _lacks_retrainings(session: Session) -> str:
    return "" if session.options.retrainings else "how many? --retrainings 30"


def register() -> None:
    for engine in (KFP, ARGO):
        add(engine, "second-week", "with 1% new images the same rows as from nothing, in seconds of work", _second_week)
    add(ARGO, "retrainings", "scheduled retrainings in a row, a pod killed in each", _retrainings, minutes=120,
        lacks=_lacks_retrainings)  # fmt: skip
