"""Runner of the selected scenarios, some at a time: each has a row and leaves nothing behind."""

from __future__ import annotations

import contextlib
import fnmatch
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import evidence
from .access.kube import KubeError
from .access.mirror import say
from .cleaning import clean_up
from .scenario import FAILED, PASSED, SKIPPED, Deadline, Failed, Row, Scenario, Skip, Stopped, unmet
from .session import Session, Trial

CTRL_C = "stopped by Ctrl-C"


def run_all(session: Session, scenarios: Sequence[Scenario], at_once: int) -> list[Row]:
    """One row for each, and one for the cleaning; after Ctrl-C the rest is said to be not reached.

    Up to `at_once` scenarios run at the same time, those that must be alone by themselves after all others.
    """
    rows = _Schedule(session, scenarios, at_once).run()
    rows.append(clean_up(session))
    return rows


class _Schedule:
    """The scenarios that wait, those under way, and the rows of those that have ended."""

    def __init__(self, session: Session, scenarios: Sequence[Scenario], at_once: int) -> None:
        self._session = session
        self._scenarios = list(scenarios)
        self._waiting = list(scenarios)
        self._at_once = max(1, at_once)
        self._under_way: list[Scenario] = []
        self._ended: queue.Queue[tuple[Scenario, Row]] = queue.Queue()
        self._rows: dict[str, Row] = {}

    def run(self) -> list[Row]:
        """The rows in the order of the scenarios."""
        while self._waiting or self._under_way:
            try:
                self._start_ready()
                with contextlib.suppress(queue.Empty):
                    self._end(*self._ended.get(timeout=1.0))
            except KeyboardInterrupt:
                if self._session.stop.is_set():
                    raise
                say("stopped; cleaning up what was made (Ctrl-C again: leave it, --sweep deletes it later)")
                self._session.interrupt()
                for scenario in self._waiting:
                    self._rows[scenario.name] = Row(
                        scenario.name, SKIPPED, 0.0, "not reached", "", scenario.description
                    )
                self._waiting.clear()
        return [self._rows[scenario.name] for scenario in self._scenarios]

    def _start_ready(self) -> None:
        for scenario in list(self._waiting):
            if not self._is_ready(scenario):
                continue
            if missing := self._missing(scenario):
                self._waiting.remove(scenario)
                self._put(scenario, Row(scenario.name, SKIPPED, 0.0, missing, description=scenario.description))
            elif len(self._under_way) < self._at_once and self._may_start(scenario):
                self._waiting.remove(scenario)
                self._under_way.append(scenario)
                say(f"[{len(self._rows)}/{len(self._scenarios)}] {scenario.name} begins: {scenario.description}")
                # A daemon, so that a second Ctrl-C ends the command whatever it waits for.
                threading.Thread(target=self._try, args=(scenario,), daemon=True, name=scenario.name).start()

    def _is_ready(self, scenario: Scenario) -> bool:
        """Whether all that it needs has ended."""
        return all(need in self._rows for need in scenario.needs)

    def _missing(self, scenario: Scenario) -> str:
        return unmet(scenario, self._rows.values()) or (scenario.lacks(self._session) if scenario.lacks else "")

    def _may_start(self, scenario: Scenario) -> bool:
        if scenario.alone:
            others = [other for other in self._waiting if not other.alone and self._is_ready(other)]
            return not self._under_way and not others
        return not any(other.alone for other in self._under_way)

    def _try(self, scenario: Scenario) -> None:
        self._ended.put((scenario, try_scenario(self._session, scenario)))

    def _end(self, scenario: Scenario, row: Row) -> None:
        self._under_way.remove(scenario)
        self._put(scenario, row)
        preflight = [entry.name for entry in self._scenarios if entry.preflight]
        if scenario.preflight and all(name in self._rows for name in preflight):
            self._announce_skips()

    def _announce_skips(self) -> None:
        """Say once the preflight is over what will be skipped, and what each lacks."""
        rows = dict(self._rows)
        for scenario in self._waiting:
            ended_needs = [need for need in scenario.needs if need in rows]
            missing = unmet(replace(scenario, needs=tuple(ended_needs)), rows.values())
            if missing := missing or (scenario.lacks(self._session) if scenario.lacks else ""):
                rows[scenario.name] = Row(scenario.name, SKIPPED, 0.0, missing)
                say(f"will be skipped: {scenario.name}: {missing}")

    def _put(self, scenario: Scenario, row: Row) -> None:
        row = _required(row, self._session.options.require)
        self._rows[scenario.name] = row
        say(f"[{len(self._rows)}/{len(self._scenarios)}] {row.name} {row.outcome} after {row.seconds:.1f} s: "
            f"{row.note}")  # fmt: skip


def try_scenario(session: Session, scenario: Scenario) -> Row:
    """The row of a scenario, with what it made deleted again."""
    deadline = Deadline(scenario.minutes * 60 * session.options.patience, stop=session.stop)
    trial = Trial(session, scenario.name, scenario.engine, deadline)
    row = Row(scenario.name, PASSED, 0.0, description=scenario.description)
    started = time.monotonic()
    problem = ""
    try:
        row.note = scenario.body(trial) or ""
    except Skip as error:
        row.outcome, row.note = SKIPPED, str(error)
    except (Failed, KubeError) as error:
        row.outcome, row.note, problem = FAILED, str(error), str(error)
    except Stopped:
        row.outcome, row.note, problem = FAILED, CTRL_C, CTRL_C
    except Exception as error:  # an error of the tests' own must not leave a cluster full of pods
        row.outcome, row.note, problem = FAILED, f"{type(error).__name__}: {error}", traceback.format_exc()
    row.seconds = time.monotonic() - started
    if problem:
        row.saved = _save(trial, session.folder / scenario.name, problem)
    if not session.options.keep and (left := trial.clean()):
        row.note += f" (not deleted: {'; '.join(left)})"
    return row


def _save(trial: Trial, folder: Path, problem: str) -> str:
    try:
        evidence.save(trial, folder, problem)
    except Exception as error:  # the row matters more
        say(f"what happened could not be saved: {error}")
    return str(folder)


def _required(row: Row, patterns: Sequence[str]) -> Row:
    """A scenario that may not be skipped, and was, has failed."""
    if row.outcome == SKIPPED and any(fnmatch.fnmatch(row.name, pattern) for pattern in patterns):
        row.outcome, row.note = FAILED, f"--require: {row.note}"
    return row
