"""`imagemill runs`: the pipeline's runs in Kubeflow Pipelines, or the steps of one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OK, MillError, wrong
from ..components.store.progress import duration
from . import following
from .cluster import from_file
from .kfp_client import Connection, Service, add_flags
from .kfp_uploads import PIPELINE, find_pipeline
from .run import facts, failed

HELP = "the runs in Kubeflow Pipelines, or the steps of one"
PAGE, PAGES = 100, 20
"""Runs are looked through so many at a time, and so many times: the service can't filter them by pipeline."""


def add_command(commands: Any) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("runs", help=HELP, description=HELP)
    parser.add_argument("run_id", nargs="?", default="", metavar="RUN_ID", help="the steps of this run")
    parser.add_argument("--last", default="10", metavar="N", help="how many runs, newest first (default: 10)")
    parser.add_argument("--follow", action="store_true", help="follow the run to its end, and exit with its result")
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used: its namespace")
    parser.add_argument("--pipeline-name", default=PIPELINE, metavar="NAME", help=f"(default: {PIPELINE})")
    parser.add_argument("--json", action="store_true", help="print one line of JSON a run")
    add_flags(parser)


def run(found: dict[str, Any]) -> int:
    """Print what the parsed flags ask for; returns the exit code, which is the run's own with --follow."""
    cluster_file = found["cluster"]
    connection = Connection.from_flags(found, from_file(cluster_file).namespace if cluster_file else "")
    last, run_id, as_json = found["last"], found["run_id"], found["json"]
    if not last.isascii() or not last.isdigit() or not 1 <= int(last) <= PAGE:
        raise wrong("--last", f"a whole number from 1 to {PAGE}", last)
    if found["follow"] and not run_id:
        raise wrong("--follow", "the id of a run to follow", "none")
    service = Service(connection)
    if run_id:
        return _one(service, run_id, found["follow"], as_json)
    rows = [_row(service, one) for one in _newest(service, found["pipeline_name"], int(last))]
    _add_results(service, rows)
    if as_json:
        for row in rows:
            print(json.dumps({key: value for key, value in row.items() if key != "_run"}, ensure_ascii=False))
    else:
        print(_table(rows) if rows else f"no runs of {found['pipeline_name']}; `imagemill submit` starts one")
    return EXIT_OK


def _newest(service: Service, pipeline_name: str, last: int) -> list[Any]:
    pipeline = find_pipeline(service, pipeline_name)
    found: list[Any] = []
    token = ""
    for _ in range(PAGES if pipeline else 0):
        space = {"namespace": service.namespace} if service.namespace else {}
        page = service.call(
            "listing the runs", service.client.runs.run_service_list_runs,
            page_size=PAGE, page_token=token, sort_by="created_at desc", **space,
        )  # fmt: skip
        for one in page.runs or []:
            reference = one.pipeline_version_reference
            if reference and reference.pipeline_id == pipeline:
                found.append(one)
        token = page.next_page_token or ""
        if len(found) >= last or not token:
            break
    return found[:last]


def _row(service: Service, run: Any) -> dict[str, Any]:
    created = following.moment(run.created_at)
    return {
        "run": run.run_id,
        "run_name": run.display_name,
        "state": run.state or "PENDING",
        "started": created.isoformat(timespec="seconds") if created else "",
        "seconds": following.took(run),
        "scheduled": bool(run.recurring_run_id),
        "macro_f1": None,
        "verdict": "",
        "link": service.link(run.run_id),
        "_run": run,
    }


def _add_results(service: Service, rows: list[dict[str, Any]]) -> None:
    """Macro-F1 and verdict from the workspace; a workspace that can't be read is asked once."""
    unreadable: set[str] = set()
    workspaces: dict[str, str] = {}  # by version: runs that don't say it share their pipeline's default
    for row in rows:
        one = row["_run"]
        if row["state"] != "SUCCEEDED":
            continue
        given = ((one.runtime_config.parameters if one.runtime_config else None) or {}).get("workspace")
        reference = one.pipeline_version_reference
        key = str(given or (reference.pipeline_version_id if reference else ""))
        if key not in workspaces:
            try:
                workspaces[key] = following.workspace_of(service, one)
            except MillError:
                workspaces[key] = ""
        workspace = workspaces[key]
        if workspace in unreadable:
            continue
        made, unread = following.readable_records(workspace, row["run"])
        if unread:
            unreadable.add(workspace)
        known = facts(made)
        row |= {"macro_f1": known["metrics"].get("macro_f1"), "verdict": known["verdict"]}


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("run", "state", "started (UTC)", "took", "macro-F1", "verdict", "id and link")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        score = f"{row['macro_f1']:.3f}" if isinstance(row["macro_f1"], float) else "-"
        took = duration(row["seconds"]) if row["seconds"] is not None else "-"
        started = row["started"][:16].replace("T", " ") or "-"
        lines.append((row["run_name"], row["state"].lower(), started, took, score, row["verdict"] or "-", row["link"]))
    return _columns(lines)


def _columns(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _one(service: Service, run_id: str, follow: bool, as_json: bool) -> int:
    from .submit import end

    found = following.get_run(service, run_id)
    result = failed() | {"status": "running", "name": "", "run": run_id, "run_name": found.display_name,
                         "link": service.link(run_id), "state": found.state or "PENDING", "records": {}}  # fmt: skip
    if follow:
        found = following.follow(service, run_id)
        return end(result, as_json, following.finish(service, found, result))
    if result["state"] in following.ENDED:
        following.finish(service, found, result)
    else:
        made, _ = following.records_of(service, found)
        result |= facts(made) | {"records": made}
    states = {name: (state, seconds) for name, state, seconds in following.tasks(found)}
    result["tasks"] = {name: {"state": state, "seconds": seconds} for name, (state, seconds) in states.items()}
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return EXIT_OK
    took = following.took(found)
    print(f"{found.display_name}: {result['state'].lower()}, {duration(took or 0)}\n{result['link']}")
    print(_steps(states, result["records"]))
    if result.get("error"):
        print(result["error"])
    return EXIT_OK


def _steps(states: dict[str, tuple[str, float | None]], records: dict[str, dict[str, Any]]) -> str:
    lines: list[tuple[str, ...]] = [("step", "state", "took", "result")]
    for name in [*(step for step in STEPS if step in {*states, *records}), *(n for n in states if n not in STEPS)]:
        record = records.get(name, {})
        state, seconds = states.get(name, (str(record.get("state", "")), record.get("seconds")))
        took = duration(seconds) if seconds is not None else "-"
        cached = ", cached" if record.get("state") == "cached" else ""
        lines.append((name, state.lower() + cached, took, str(record.get("error") or record.get("uri") or "")))
    return _columns(lines)
