"""How a run ended, in one page of Markdown, and nothing of it left behind: the work of KFP's exit step.

What happened is read from the records that the steps wrote to `runs/<run>/`: they hold the message and the exit code,
which KFP's own status of a run has not. No error here makes a run fail that succeeded: it is told in the page instead.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..components.store import uri as uris
from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OK, EXIT_OURS, EXIT_TRANSIENT, EXIT_USER, MillError
from ..components.store.progress import format_duration, say
from ..components.store.step import RUN_ENV
from ..components.store.workspace import Workspace
from .artifacts import records_metadata
from .kfp_server import ignored
from .pod_settings import cluster_of_pod

SUMMARY = "summary.md"
"""The page's name in the run's folder."""
MEANING = {
    EXIT_OK: "done",
    EXIT_USER: "wrong input, which no retry mends",
    EXIT_TRANSIENT: "storage, network or preemption: run it again",
    EXIT_OURS: "an error of imagemill's",
}
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """What is known of a run: the steps' records, and why there are none where they can't be read.

    `ended`: KFP's word on its steps (SUCCEEDED, FAILED, …); empty while the run goes on, as promote sees it.
    """

    name: str
    workspace: str
    records: Records
    unread: str = ""
    ended: str = ""

    @property
    def failed_at(self) -> str:
        """The step that ended the run, or an empty string. Without a record it was lost with its pod: KFP's own word
        is no help, for it calls a run complete whose pods were killed."""
        for at, step in enumerate(STEPS):
            record = self.records.get(step)
            if record is not None and record["exit_code"]:
                return step
            if self.ended and not any(later in self.records for later in STEPS[at:]):
                return step
        return ""


def finish(workspace: str, run: str, ended: str, path: str) -> dict[str, str]:
    """Write the page of a run to the file `path` and to the run's folder, and delete what is left of it in the cluster
    that this pod was told of. Returns the records of its steps as the page's metadata."""
    left = _left_behind(os.environ.get(RUN_ENV) or run, workspace)  # first, for it may find why the run failed
    found = read(workspace, run, ended)
    told = f"\n{_plain(why)}\n" if (why := ignored()) else ""
    text = page(found) + told + left
    _write(path, text)
    try:
        place = Workspace.from_uri(workspace)
        place.store.put(place.run_file(found.name, SUMMARY), text.encode())
    except MillError as error:
        say("finish", f"the summary could not be stored: {error}")
    say("finish", f"failed at {found.failed_at}" if found.failed_at else "every step is done")
    return _metadata(found)


def write_summary(workspace: str, run: str, path: str) -> dict[str, str]:
    """The page as promote's artifact, which every runner has; returns its metadata."""
    found = read(workspace, run)
    _write(path, page(found))
    return _metadata(found)


def _metadata(run: Run) -> dict[str, str]:
    """The records, also where there are none; nothing where they can't be read."""
    return {} if run.unread else records_metadata(run.records)


def read(workspace: str, run: str, ended: str = "") -> Run:
    """The records of a run; IMAGEMILL_RUN names it where it is set, as it does for the steps."""
    name = os.environ.get(RUN_ENV) or run
    try:
        place = Workspace.from_uri(workspace)
        records = place.step_records(name)
        return Run(name, place.uri, records, ended=ended)
    except MillError as error:
        return Run(name, uris.redact(workspace), {}, str(error), ended)


def page(run: Run) -> str:
    """The run in short: each step's state, time and result, or its error and exit code; metrics and verdict."""
    parts = [_head(run), _steps(run)]
    if run.unread:
        parts.append(f"The steps' records can't be read: {_plain(run.unread)}")
    if metrics := _metrics(run):
        parts.append(metrics)
    if verdict := _verdict(run):
        parts.append(verdict)
    return "\n\n".join(parts) + "\n"


def _head(run: Run) -> str:
    data = str(run.records.get("download", {}).get("metrics", {}).get("name", ""))
    about = f"Run `{run.name}` in `{run.workspace}`"
    total = sum(float(record["seconds"]) for record in run.records.values())
    about += f" · {format_duration(total)} of work" if run.records else ""
    return f"# {_plain(data) or 'Training'}: {_outcome(run)}\n\n{about}"


def _outcome(run: Run) -> str:
    if run.unread:
        return run.ended.lower() or "unknown"
    if not run.failed_at:
        return "done"
    record = run.records.get(run.failed_at)
    return f"failed at {run.failed_at}" + (f" (exit code {record['exit_code']})" if record else " (no record)")


def _steps(run: Run) -> str:
    lines = ["| step | state | time | result |", "|---|---|---|---|"]
    reached = True
    for step in STEPS:
        record = run.records.get(step)
        lines.append(f"| {step} | {' | '.join(_row(run, step, record, reached))} |")
        reached = reached and step != run.failed_at
    return "\n".join(lines)


def _row(run: Run, step: str, record: Mapping[str, Any] | None, reached: bool) -> tuple[str, str, str]:
    """State, time and result of one step."""
    if record is None:
        if reached and step == run.failed_at and not run.unread:
            return "**lost**", "", "no record: its pod was killed (for memory?), evicted, or never started"
        return "unknown" if run.unread or step not in _after(run) else "not reached", "", ""
    time, code = format_duration(float(record["seconds"])), int(record["exit_code"])
    if code:
        why = MEANING.get(code, "")
        return f"**failed**, exit code {code}", time, _plain(f"{record['error']} ({why})" if why else record["error"])
    return str(record["state"]), time, " · ".join(_result(step, record))


def _after(run: Run) -> tuple[str, ...]:
    """The steps after the last one that left a record."""
    last = max((STEPS.index(step) for step in run.records), default=-1)
    return STEPS[last + 1 :]


def _result(step: str, record: Mapping[str, Any]) -> list[str]:
    metrics = record["metrics"]
    told = []
    if "rows_in" in metrics:
        told.append(f"{metrics['rows_in']:,} rows in, {metrics['rows']:,} kept, {metrics['rejected']:,} rejected")
    elif "rows" in metrics:
        told.append(f"{metrics['rows']:,} images")
    if step in ("train", "evaluate") and isinstance(score := metrics.get("macro_f1"), float):
        told.append(f"macro-F1 {score:.4f}")
    if record["uri"]:
        told.append(f"`{'/'.join(str(record['uri']).split('/')[-2:])}`")
    return told


def _metrics(run: Run) -> str:
    """The challenger's on the test images."""
    record = run.records.get("evaluate")
    if record is None or record["exit_code"]:
        return ""
    numbers = {key: value for key, value in record["metrics"].items() if isinstance(value, float)}
    lines = ["## On the test images", "", "| metric | value |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_plain(key)} | {value:.4f} |" for key, value in numbers.items())])


def _verdict(run: Run) -> str:
    record = run.records.get("promote")
    if record is None or record["exit_code"]:
        return ""
    metrics = record["metrics"]
    lines = ["## Verdict", "", f"**{_plain(metrics['verdict'].replace('_', ' '))}**: {_plain(metrics['reason'])}", ""]
    lines.append(f"- champion: `{record['uri']}` (promotion {metrics['n']})" if record["uri"] else "- champion: none")
    if metrics["report"]:
        lines.append(f"- report: `{metrics['report']}`")
    return "\n".join(lines)


def _left_behind(run: str, workspace: str) -> str:
    """What was deleted of a run, as a section of the page; an error is told, for deadlines end what is left."""
    try:
        cluster = cluster_of_pod()
        if cluster is None or not cluster.ray.makes_rayjobs:
            return ""
        from .ray_cleanup import clean_up

        deleted = clean_up(cluster, run, workspace)
    except (MillError, SystemExit, OSError) as error:
        said = f"What the run may have left could not be looked for: {_plain(error)}. Its deadlines end it."
    except Exception as error:  # an unforeseen one must not hide how the run ended
        traceback.print_exc()
        said = f"What the run may have left could not be looked for: {type(error).__name__}: {_plain(error)}."
    else:
        said = f"Deleted: {', '.join(f'`{name}`' for name in deleted)}" if deleted else "Nothing was left behind."
    say("finish", said)
    return f"\n## Cleaned up\n\n{said}\n"


def _plain(text: object) -> str:
    """A text that Markdown, HTML in it and its tables leave as it is, in one line."""
    one_line = " ".join(str(text).split())
    for character in "\\`*_[]|<>#":
        one_line = one_line.replace(character, {"<": "&lt;", ">": "&gt;"}.get(character, f"\\{character}"))
    return one_line


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
