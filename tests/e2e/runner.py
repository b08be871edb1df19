"""Runs the selected scenarios one after another; whatever happens, each has its row and leaves nothing behind."""

from __future__ import annotations

import fnmatch
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from . import evidence, probe
from .kube import KubeError
from .mirror import say
from .scenario import FAILED, PASSED, SKIPPED, Deadline, Failed, Row, Scenario, Skip, unmet
from .session import Session

_AT_THE_END_S = 300


def run_all(session: Session, scenarios: Sequence[Scenario]) -> list[Row]:
    """One row for each, and one for the cleaning; after Ctrl-C the rest is said to be not reached."""
    rows: list[Row] = []
    stopped = False
    for number, scenario in enumerate(scenarios, 1):
        if stopped:
            rows.append(Row(scenario.name, SKIPPED, 0.0, "not reached", about=scenario.about))
            continue
        if why := unmet(scenario, rows):
            row = Row(scenario.name, SKIPPED, 0.0, why, about=scenario.about)
        else:
            say(f"[{number}/{len(scenarios)}] {scenario.name}: {scenario.about}")
            row, stopped = _run_one(session, scenario)
        row = _required(row, session.options.require)
        rows.append(row)
        say(f"[{number}/{len(scenarios)}] {row.name} {row.outcome} after {row.seconds:.1f} s: {row.note}")
    rows.append(_end(session))
    return rows


def _run_one(session: Session, scenario: Scenario) -> tuple[Row, bool]:
    """The row of a scenario, and whether Ctrl-C ended it."""
    session.scenario = scenario.name
    session.deadline = Deadline(scenario.minutes * 60 * session.options.patience)
    row = Row(scenario.name, PASSED, 0.0, about=scenario.about)
    started = time.monotonic()
    stopped = False
    problem = ""
    try:
        row.note = scenario.body(session) or ""
    except Skip as error:
        row.outcome, row.note = SKIPPED, str(error)
    except (Failed, KubeError) as error:
        row.outcome, row.note, problem = FAILED, str(error), str(error)
    except KeyboardInterrupt:
        row.outcome, row.note, problem, stopped = FAILED, "stopped by Ctrl-C", "stopped by Ctrl-C", True
        say("stopped; cleaning up what was made (Ctrl-C again: leave it, --sweep deletes it later)")
    except Exception as error:  # an error of the tests' own must not leave a cluster full of pods
        row.outcome, row.note, problem = FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()
    row.seconds = time.monotonic() - started
    if problem:
        row.saved = _save(session, session.folder / scenario.name, problem)
    if not session.options.keep:
        if left := session.clean():
            row.note += f" (not deleted: {'; '.join(left)})"
    else:
        session.let_be()
    return row, stopped


def _save(session: Session, folder: Path, problem: str) -> str:
    try:
        evidence.save(session, folder, problem)
    except Exception as error:  # the row matters more
        say(f"  what happened could not be saved: {error}")
    return str(folder)


def _required(row: Row, patterns: Sequence[str]) -> Row:
    """A scenario that may not be skipped, and was, has failed."""
    if row.outcome == SKIPPED and any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns):
        row.outcome, row.note = FAILED, f"--require: {row.note}"
    return row


def _end(session: Session) -> Row:
    """Delete what is left of the session, also in the object store."""
    row = Row("cleaning", PASSED, 0.0, about="nothing of the session stays in the cluster")
    if session.options.keep:
        row.outcome, row.note = (
            SKIPPED,
            f"--keep: all has the label imagemill.io/e2e={session.suffix}; --sweep deletes it",
        )
        return row
    started = time.monotonic()
    session.scenario, session.deadline = row.name, Deadline(_AT_THE_END_S * session.options.patience)
    problems: list[str] = []
    try:
        if session.facts.get("deletes"):
            found = probe.ask(session, "forget")
            row.note = f"{found['found']} objects deleted from the store"
            if found["left"]:
                problems.append(f"{found['left']} objects are left in {session.cluster.storage.workspace}")
        elif "deletes" in session.facts:
            row.note = f"the store forbids deleting: {session.cluster.storage.workspace} stays"
    except (Failed, KubeError) as error:
        problems.append(f"{session.cluster.storage.workspace}: {error}")
    problems += session.end()
    if problems:
        row.outcome, row.note = FAILED, "not deleted: " + "; ".join(problems)
    row.seconds = time.monotonic() - started
    return row
