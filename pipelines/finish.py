"""A run's result as `--json` prints it, and the exit step: write a run's summary as a page of Markdown, and delete the
RayJobs that the run left behind.

The summary is made from the records that the steps wrote to `runs/<run>/`: they hold the message and the exit code,
which KFP's own status of a run lacks. An error here does not make a run fail that succeeded: the page shows it instead.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..components.dataset.records import StepRecord
from ..components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ..components.step.progress import format_duration, say
from ..components.storage import uri as uris
from ..components.storage.errors import EXIT_INTERNAL, EXIT_OK, EXIT_TRANSIENT, EXIT_USER, MillError
from .cluster.pod_fields import read_pod_cluster

FINISH = "finish"
"""The name of the exit step."""
SUMMARY = "summary.md"
"""The summary's file name in the run's folder."""
EXIT_CODE_MEANINGS = {
    EXIT_OK: "done",
    EXIT_USER: "wrong input: a retry does not help",
    EXIT_TRANSIENT: "storage, network or preemption: run it again",
    EXIT_INTERNAL: "internal error; please report it",
}
Records = Mapping[str, StepRecord]
_NO_RECORD = StepRecord()


@dataclass(frozen=True)
class RunSummary:
    """The records of a run's steps, or in `unread` why they can't be read.

    `ended`: the orchestrator's status of the run (SUCCEEDED, FAILED, …); empty while it goes on, as for promote.
    """

    name: str
    workspace: str
    records: Records
    unread: str = ""
    ended: str = ""

    @property
    def failed_at(self) -> str:
        """The step at which the run failed, or an empty string. A step without a record was lost with its pod; the
        orchestrator's status does not tell, because KFP calls a run complete whose pods were killed."""
        for index, step in enumerate(STEPS):
            record = self.records.get(step)
            if record is not None and record.exit_code:
                return step
            if self.ended and not any(later_step in self.records for later_step in STEPS[index:]):
                return step
        return ""


def finish(workspace: str, run: str, ended: str, path: str, note: str = "") -> RunSummary:
    """Write a run's summary to the file `path` and to the run's folder, and delete the RayJobs that it left behind.

    `note`: a paragraph that the page has besides. Returns the summary.
    """
    cleaned_up = _clean_up(run, workspace)  # first, for it may find why the run failed
    summary = read_run_records(workspace, run, ended)
    text = render_summary(summary) + (f"\n{_escape_markdown(note)}\n" if note else "") + cleaned_up
    _write(path, text)
    try:
        store_workspace = Workspace.from_uri(workspace)
        store_workspace.store.put(store_workspace.run_file_uri(summary.name, SUMMARY), text.encode())
    except MillError as error:
        say("finish", f"the summary could not be stored: {error}")
    say("finish", f"failed at {summary.failed_at}" if summary.failed_at else "every step is done")
    return summary


def write_summary(workspace: str, run: str, path: str) -> RunSummary:
    """Write the summary as promote's artifact, which every runner has; return it."""
    summary = read_run_records(workspace, run)
    _write(path, render_summary(summary))
    return summary


def read_run_records(workspace: str, run: str, ended: str = "") -> RunSummary:
    """Return the records of a run."""
    try:
        store_workspace = Workspace.from_uri(workspace)
        records = store_workspace.step_records(run)
        return RunSummary(run, store_workspace.uri, records, ended=ended)
    except MillError as error:
        return RunSummary(run, uris.redact(workspace), {}, str(error), ended)


def render_summary(run: RunSummary) -> str:
    """Return the page: each step's state, time and result, or its error and exit code; drift, metrics and verdict."""
    download, clean, evaluate, promote = (
        run.records.get(step, _NO_RECORD) for step in ("download", "clean", "evaluate", "promote")
    )
    name = _escape_markdown(download.metrics.get("name", "")) or "Training"
    work = f" · {format_duration(sum(record.seconds for record in run.records.values()))} of work"
    steps = [f"| {step} | {' | '.join(_build_row(run, step))} |" for step in STEPS]
    parts = [
        f"# {name}: {_describe_outcome(run)}",
        f"Run `{run.name}` in `{run.workspace}`{work if run.records else ''}",
        "\n".join(["| step | state | time | result |", "|---|---|---|---|", *steps]),
    ]
    if run.unread:
        parts.append(f"The steps' records can't be read: {_escape_markdown(run.unread)}")
    if drift := [*clean.metrics.get("drift", []), *evaluate.metrics.get("feature_drift", [])]:
        lines = [f"- {_escape_markdown(line)}" for line in drift]
        parts += ["## Drift since the champion's data", "\n".join(lines)]
    if evaluate.metrics and not evaluate.exit_code:
        numbers = {key: value for key, value in evaluate.metrics.items() if isinstance(value, float)}
        lines = [f"| {_escape_markdown(key)} | {value:.3f} |" for key, value in numbers.items()]
        parts += ["## On the test images", "\n".join(["| metric | value |", "|---|---|", *lines])]
    if promote.metrics and not promote.exit_code:
        champion = f"`{promote.uri}` (promotion {promote.metrics['n']})" if promote.uri else "none"
        report = f"\n- report: `{promote.metrics['report']}`" if promote.metrics["report"] else ""
        parts += ["## Verdict", _escape_markdown(promote.metrics["reason"]), f"- champion: {champion}{report}"]
    return "\n\n".join(parts) + "\n"


def _describe_outcome(run: RunSummary) -> str:
    if run.unread:
        return run.ended.lower() or "unknown"
    if not run.failed_at:
        return "done"
    record = run.records.get(run.failed_at)
    return f"failed at {run.failed_at}" + (f" (exit code {record.exit_code})" if record else " (no record)")


def _build_row(run: RunSummary, step: str) -> tuple[str, str, str]:
    """Return the state, time and result of one step."""
    record = run.records.get(step)
    if record is None:
        if step == run.failed_at and not run.unread:
            return "**lost**", "", "no record: its pod was killed (for memory?), evicted, or never started"
        has_later_record = any(later in run.records for later in STEPS[STEPS.index(step) :])
        return "unknown" if run.unread or has_later_record else "not reached", "", ""
    time, code = format_duration(record.seconds), record.exit_code
    if not code:
        return record.state, time, " · ".join(_describe_result(step, record))
    meaning = f" ({EXIT_CODE_MEANINGS[code]})" if code in EXIT_CODE_MEANINGS else ""
    return f"**failed**, exit code {code}", time, _escape_markdown(f"{record.error}{meaning}")


def _describe_result(step: str, record: StepRecord) -> list[str]:
    metrics = record.metrics
    parts = []
    if "rows_in" in metrics:
        parts.append(f"{metrics['rows_in']:,} rows in, {metrics['rows']:,} kept, {metrics['rejected']:,} rejected")
    elif "rows" in metrics:
        parts.append(f"{metrics['rows']:,} images")
    if step in ("train", "evaluate") and isinstance(score := metrics.get("macro_f1"), float):
        parts.append(f"{'validation ' if step == 'train' else ''}macro-F1 {score:.3f}")
    if record.uri:
        parts.append(f"`{'/'.join(record.uri.split('/')[-2:])}`")
    return parts


def _clean_up(run: str, workspace: str) -> str:
    """Delete the run's RayJobs; return a section of the page with their names, or with the error that occurred."""
    try:
        cluster = read_pod_cluster()
        if cluster is None or not cluster.ray.makes_rayjobs:
            return ""
        from .kuberay.pods import delete_rayjobs

        deleted = delete_rayjobs(cluster, run, workspace)
    except (MillError, SystemExit, OSError) as error:
        message = (
            f"What the run may have left could not be looked for: {_escape_markdown(error)}. Its deadlines end it."
        )
    except Exception as error:  # an unforeseen one must not hide how the run ended
        traceback.print_exc()
        message = (
            f"What the run may have left could not be looked for: {type(error).__name__}: {_escape_markdown(error)}."
        )
    else:
        message = f"Deleted: {', '.join(f'`{name}`' for name in deleted)}" if deleted else "Nothing was left behind."
    say("finish", message)
    return f"\n## Cleaned up\n\n{message}\n"


def _escape_markdown(text: object) -> str:
    """Return a text in one line, escaped for Markdown, HTML in it and its tables."""
    one_line = " ".join(str(text).split())
    for character in "\\`*_[]|<>#":
        one_line = one_line.replace(character, {"<": "&lt;", ">": "&gt;"}.get(character, f"\\{character}"))
    return one_line


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def make_failed_result(error: MillError | None = None, partial: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the result, as `--json` prints it, of a run that `error` ended; keys of a `partial` result are kept."""
    result: dict[str, Any] = {"status": "failed", "name": "", **dict.fromkeys(PRODUCTS.values(), ""), "report": ""}
    result |= {"metrics": {}, "promoted": False, "steps": {}} | (partial or {})
    return result | ({"error": str(error), "exit_code": error.exit_code} if error else {})


def read_record_facts(records: Records) -> dict[str, Any]:
    """Return what the records of a run's steps contribute to the result that `--json` prints; steps may be missing."""
    gate, evaluation = (records.get(step, _NO_RECORD) for step in ("promote", "evaluate"))
    return {
        **{kind: records.get(step, _NO_RECORD).uri for step, kind in PRODUCTS.items()},
        "report": gate.metrics.get("report", ""),
        "metrics": {key: value for key, value in evaluation.metrics.items() if isinstance(value, (int, float))},
        "warning": evaluation.metrics.get("warning", ""),
        "promoted": bool(gate.metrics.get("promoted")),
        "verdict": gate.metrics.get("verdict", ""),
        "champion": gate.uri,
        "steps": {step: {"state": record.state, "seconds": record.seconds} for step, record in records.items()},
    }
