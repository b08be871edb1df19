"""RESULTS.md: outcome of the last full run on a cluster, with versions, options and all measurements."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagemill.components.dataset.manifest import code_version
from imagemill.components.dataset.workspace import STEPS

from .scenario import Row
from .session import Session
from .table import MARKS, summary

_ROOT = Path(__file__).parents[2]


def write(session: Session, rows: Sequence[Row], file: Path, seconds: float) -> None:
    """Write the results of a session as Markdown."""
    file.write_text(render(session, rows, seconds), encoding="utf-8")


def render(session: Session, rows: Sequence[Row], seconds: float) -> str:
    options = session.options
    words = " ".join(["tests/e2e/run", *_shorten_paths(options.words)])
    controller = session.facts.get("controller")
    properties = [
        ("Date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("imagemill", f"{code_version()}, {_commit()}"),
        *(session.facts.get("versions") or {}).items(),
        ("Cores of the nodes", f"{session.facts.get('cores', 0):g}, as the scheduler is told"),
        ("Argo's controller", f"retryPolicy {controller.policy}, DEFAULT_REQUEUE_TIME {controller.requeue or 'unset'}"
         if controller else "out of sight"),
        ("Command", f"`{words}`"),
        ("Where it ran", f"Python {platform.python_version()}"),
    ]  # fmt: skip
    parts = [
        "# On a real cluster\n\nWritten by `tests/e2e/run --results FILE`; not by hand.\n",
        _table(("", ""), properties),
        f"**{summary(rows, seconds)}**; scenarios run at the same time.\n",
        _scenarios(rows, session.folder),
        _cost(session.measured),
        _resizing(session.measured),
        _weekly(session.measured),
        _retries(session.measured),
    ]
    return "\n".join(filter(None, parts))


def _shorten_paths(words: Sequence[str]) -> list[str]:
    """Return the command's words with file names instead of paths."""
    return [_remove_folder(word) for word in words]


def _remove_folder(word: str) -> str:
    flag, equals, value = word.rpartition("=")
    return f"{flag}{equals}{Path(value).name if value.startswith('/') else value}"


def _commit() -> str:
    """The checkout's commit, and whether it had changes."""
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "from no checkout"
    return f"commit {commit}{' with changes' if changed else ''}"


def _git(*words: str) -> str:
    command = ["git", "-C", str(_ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _scenarios(rows: Sequence[Row], folder: Path) -> str:
    head = ("scenario", "what", "", "seconds", "note")
    return _table(head, [(f"`{row.name}`", row.description, MARKS[row.outcome], f"{row.seconds:.0f}",
                          row.note.replace(f"{folder}/", "")) for row in rows])  # fmt: skip


def _cost(measured: Sequence[Mapping[str, Any]]) -> str:
    runs = [run for run in measured if run["table"] == "cost"]
    if not runs:
        return ""
    head = ("run", "through", "seconds", "at most", "pods", "pods' own seconds", *STEPS)
    lines = [
        (run["run"], run["engine"], _mark_above(run["seconds"], run["bar"]), run["bar"], run["pods"],
         run["own_seconds"], *(run["steps"].get(step, "") for step in STEPS))
        for run in runs
    ]  # fmt: skip
    return (
        "## What a run costs\n\nEach alone on the cluster: seconds from the making of the workflow to its end, and "
        "how long the pods' main containers ran, together and step by step.\n\n" + _table(head, lines)
    )


def _mark_above(seconds: float, limit: float) -> str:
    return str(seconds) if seconds <= limit else f"**{seconds}**, missed"


def _resizing(measured: Sequence[Mapping[str, Any]]) -> str:
    runs = [run for run in measured if run["table"] == "resizing"]
    if not runs:
        return ""
    lines = [(run["mode"], run["engine"], run["seconds"]) for run in runs]
    return "## Resizing the demo's images\n\nSeconds from the end of clean to the pod of train.\n\n" + _table(
        ("ray.mode", "through", "seconds"), lines
    )


def _weekly(measured: Sequence[Mapping[str, Any]]) -> str:
    runs = [run for run in measured if run["table"] == "weekly"]
    if not runs:
        return ""
    steps = ("download", "clean", "resize")
    head = ("through", "week", "images", *steps, "kB stored in raw, clean and tensors")
    lines = [
        (run["engine"], run["week"], run["images"], *(run["steps"].get(step, "") for step in steps),
         f"{run['bytes'] / 1000:.0f}")
        for run in runs
    ]  # fmt: skip
    return (
        "## The second week\n\nSeconds of each step's own work as its record says, without its pod; what a week adds "
        "to the store.\n\n" + _table(head, lines)
    )


def _retries(measured: Sequence[Mapping[str, Any]]) -> str:
    failures = sorted(
        (failure for failure in measured if failure["table"] == "retries"),
        key=lambda failure: (failure["engine"], failure["policy"], failure["failure"]),
    )
    if not failures:
        return ""
    head = ("failure", "through", "controller's retryPolicy", "pods", "exit codes", "their own seconds", "seconds",
            "the run")  # fmt: skip
    lines = [
        (failure["failure"], failure["engine"], failure["policy"], failure["pods"], ", ".join(failure["exit_codes"]),
         ", ".join(map(str, failure["own_seconds"])), failure["seconds"], failure["outcome"])
        for failure in failures
    ]  # fmt: skip
    return (
        "## What is tried again\n\nA failure of the download step. Argo's templates say by exit code what is tried "
        "again; Kubeflow Pipelines compiles a number alone, and Argo's controller decides. For a lost pod the seconds "
        "are those until another one had ended, else those of the whole run.\n\n" + _table(head, lines)
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rule = ["---"] * len(head)
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in (head, rule, *lines))


def _cell(value: Any) -> str:
    """-"""
    return " ".join(str(value).split()).replace("|", "\\|")
