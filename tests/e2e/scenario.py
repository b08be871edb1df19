"""Scenarios: their outcome, their registry, and their selection."""

from __future__ import annotations

import fnmatch
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .session import Session, Trial

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
Body = Callable[["Trial"], str | None]
"""Runs the scenario; returns a note for the table. Raises Failed or Skip."""
B = TypeVar("B", bound=Callable[..., Any])


class Failed(Exception):
    """Raised when the product, or the cluster, did not behave as expected."""


class Skip(Exception):
    """Raised when this cluster can't be tested for the scenario."""


class Late(Failed):
    """Raised when a deadline is over."""


class Stopped(Exception):
    """Raised in the threads of scenarios after Ctrl-C."""


@dataclass(frozen=True)
class Scenario:
    """One line of the table. `needs` names those that must have passed before.

    `alone`: nothing else runs meanwhile, because seconds are measured or the cluster itself is changed. `lacks` says,
    after the preflight and before anything is run, what is missing for it; an empty string: nothing.
    """

    name: str
    description: str
    body: Body
    needs: tuple[str, ...] = ()
    minutes: float = 5.0
    engine: str = ""
    alone: bool = False
    lacks: Callable[[Session], str] | None = None
    preflight: bool = False


@dataclass
class Row:
    """Outcome of a scenario."""

    name: str
    outcome: str
    seconds: float
    note: str = ""
    saved: str = ""
    description: str = ""


class Deadline:
    """Point in time a number of seconds from now, or the setting of `stop`."""

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, stop: threading.Event | None = None
    ) -> None:
        self.seconds = seconds
        self.stop = stop
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds; never less than 0."""
        return max(0.0, self._end - self._clock())

    def check(self, awaited: str) -> None:
        """Raise Stopped after Ctrl-C, and Late when no time is left."""
        if self.stop and self.stop.is_set():
            raise Stopped(awaited)
        if not self.left():
            raise Late(f"not within {self.seconds:.0f} s: {awaited}")


@dataclass
class Registry:
    """All scenarios, in the order of the table."""

    scenarios: dict[str, Scenario] = field(default_factory=dict)

    def add(self, scenario: Scenario) -> None:
        if scenario.name in self.scenarios:
            raise ValueError(f"two scenarios are named {scenario.name}")
        if unknown := [need for need in scenario.needs if need not in self.scenarios]:
            raise ValueError(f"{scenario.name} needs {unknown}, which must come before it")
        self.scenarios[scenario.name] = scenario

    def preflight(self, name: str, needs: Sequence[str] = (), minutes: float = 5.0) -> Callable[[B], B]:
        """Decorate the body of a check of the cluster, whose docstring's first line becomes the description."""

        def register(body: B) -> B:
            description = (body.__doc__ or "").strip().splitlines()[0]
            self.add(Scenario(name, description, body, tuple(needs), minutes, preflight=True))
            return body

        return register

    def select(self, only: Iterable[str]) -> list[Scenario]:
        """Return the scenarios that match the patterns (`argo-*`) with all their needs, in order; all if none is given.

        ValueError for an unknown one."""
        selected: set[str] = set()
        patterns = list(only)
        for pattern in patterns:
            names = fnmatch.filter(self.scenarios, pattern)
            if not names:
                raise ValueError(f"--only {pattern}: expected one of {', '.join(self.scenarios)}, or a pattern of them")
            selected.update(names)
        if not patterns:
            selected = set(self.scenarios)
        for name in reversed(list(self.scenarios)):  # what is needed comes before what needs it
            if name in selected:
                selected.update(self.scenarios[name].needs)
        return [scenario for name, scenario in self.scenarios.items() if name in selected]


def unmet(scenario: Scenario, rows: Iterable[Row]) -> str:
    """Return which of the scenario's needs did not pass, or an empty string."""
    outcomes = {row.name: row for row in rows}
    for need in scenario.needs:
        row = outcomes.get(need)
        if row is None or row.outcome != PASSED:
            outcome = f"{row.outcome}: {row.note}" if row else "not tried"
            return f"needs {need}, which was {outcome}"
    return ""
