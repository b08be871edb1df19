"""`imagemill runs`: the pipeline's runs in Kubeflow Pipelines, or the steps of one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OK, MillError, wrong
from ..components.store.filesystem import store_for
from ..components.store.progress import duration
from . import following
from .cluster import from_file
from .kfp_client import Connection, Service, add_flags
from .kfp_pages import Pages
from .kfp_records import read_log, read_report
from .kfp_uploads import PIPELINE, find_pipeline
from .run import facts, failed
from .run_records import RunRecords, Specs

HELP = "the runs in Kubeflow Pipelines, or the steps of one, its report and logs"
PAGE, PAGES = 100, 20
"""Runs are looked through so many at a time, and so many times: the service can't filter them by pipeline."""


def add_command(commands: Any) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("runs", help=HELP, description=HELP)
    parser.add_argument("run_id", nargs="?", default="", metavar="RUN_ID", help="the steps of this run")
    parser.add_argument("--last", default="10", metavar="N", help="how many runs, newest first (default: 10)")
    parser.add_argument("--follow", action="store_true", help="follow the run to its end, and exit with its result")
    parser.add_argument("--report", default="", metavar="FILE", help="write the run's report, a page of HTML, to FILE")
    parser.add_argument("--logs", default="", metavar="STEP", help="print the log of one of the run's steps")
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used: its namespace")
    parser.add_argument("--pipeline-name", default="", metavar="NAME", help="only runs of what was uploaded under this "
                        "name (default: all of imagemill's pipeline)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON a run")
    add_flags(parser)


def run(found: dict[str, Any]) -> int:
    """Print what the parsed flags ask for; returns the exit code, which is the run's own with --follow."""
    cluster_file = found["cluster"]
    connection = Connection.from_flags(found, from_file(cluster_file).namespace if cluster_file else "")
    last, run_id, as_json = found["last"], found["run_id"], found["json"]
    if not last.isascii() or not last.isdigit() or not 1 <= int(last) <= PAGE:
        raise wrong("--last", f"a whole number from 1 to {PAGE}", last)
    for flag in ("follow", "report", "logs"):
        if found[flag] and not run_id:
            raise wrong(f"--{flag}", "the id of a run before it", "none")
    if found["logs"] and (found["follow"] or found["report"]):
        raise wrong("--logs", "it alone", "--follow or --report beside it")
    service = Service(connection)
    if found["logs"]:
        return print_log(service, run_id, found["logs"])
    if run_id:
        return _one(service, run_id, found["follow"], as_json, found["report"])
    specs = Specs(service)
    runs = _newest(service, specs, found["pipeline_name"], int(last))
    records = RunRecords(service, specs)
    rows = [_row(service, one, records) for one in runs]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        name = found["pipeline_name"] or PIPELINE
        print(_table(rows) if rows else f"no runs of {name}; `imagemill submit` starts one")
    return EXIT_OK


def _newest(service: Service, specs: Specs, pipeline_name: str, last: int) -> list[Any]:
    """The newest runs of what was uploaded as `pipeline_name`; without one, all of the pipeline that imagemill
    compiles: also those of a package that the SDK or the pages sent along or uploaded under another name."""
    pipeline = find_pipeline(service, pipeline_name or PIPELINE)

    def is_wanted(run: Any) -> bool:
        reference = run.pipeline_version_reference
        if pipeline and reference and reference.pipeline_id == pipeline:
            return True
        return not pipeline_name and specs.name(run) == PIPELINE

    found: list[Any] = []
    token = ""
    for _ in range(PAGES if pipeline or not pipeline_name else 0):
        space = {"namespace": service.namespace} if service.namespace else {}
        page = service.call(
            "listing the runs", service.client.runs.run_service_list_runs,
            page_size=PAGE, page_token=token, sort_by="created_at desc", **space,
        )  # fmt: skip
        for one in page.runs or []:
            if len(found) < last and is_wanted(one):
                found.append(one)
        token = page.next_page_token or ""
        if len(found) >= last or not token:
            break
    return found


def _row(service: Service, run: Any, records: RunRecords) -> dict[str, Any]:
    created = following.moment(run.created_at)
    recorded = records.of(run)[0]
    known = facts(recorded)
    return {
        "run": run.run_id,
        "run_name": run.display_name,
        "state": run.state or "PENDING",
        "started": created.isoformat(timespec="seconds") if created else "",
        "seconds": following.took(run),
        "scheduled": bool(run.recurring_run_id),
        "macro_f1": known["metrics"].get("macro_f1"),
        "verdict": known["verdict"],
        "failed_at": next((step for step, record in recorded.items() if record["exit_code"]), ""),
        "link": service.link(run.run_id),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("run", "state", "started (UTC)", "took", "macro-F1", "verdict", "id and link")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        score = f"{row['macro_f1']:.3f}" if isinstance(row["macro_f1"], float) else "-"
        took = duration(row["seconds"]) if row["seconds"] is not None else "-"
        started = row["started"][:16].replace("T", " ") or "-"
        verdict = row["verdict"].replace("_", " ") or "-"
        state = row["state"].lower() + (
            f" at {row['failed_at']}" if row["state"] == "FAILED" and row["failed_at"] else ""
        )
        lines.append((row["run_name"], state, started, took, score, verdict, row["link"]))
    return _columns(lines)


def _columns(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _one(service: Service, run_id: str, follow: bool, as_json: bool, report: str) -> int:
    from .submit import end, headline

    found = following.get_run(service, run_id)
    result = failed() | {"status": "running", "name": "", "run": run_id, "run_name": found.display_name,
                         "link": service.link(run_id), "state": found.state or "PENDING", "records": {}}  # fmt: skip
    if follow:
        found = following.follow(service, run_id)
        code = following.finish(service, found, result)
        if report and result["report"]:
            write_report(service, found, result, report)
        return end(result, as_json, code)
    if result["state"] in following.ENDED:
        following.finish(service, found, result)
    else:
        records, _ = RunRecords(service).of(found)
        result |= facts(records) | {"records": records}
    if report:
        write_report(service, found, result, report)
    states = {name: (state, seconds) for name, state, seconds in following.tasks(found)}
    result["tasks"] = {name: {"state": state, "seconds": seconds} for name, (state, seconds) in states.items()}
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return EXIT_OK
    took = following.took(found)
    print(f"{found.display_name}: {result['state'].lower()}, {duration(took or 0)}\n{result['link']}")
    print(_steps(states, result["records"]))
    if numbers := headline(result):
        print(numbers)
    if result.get("error"):
        print(result["error"])
    return EXIT_OK


def write_report(service: Service, run: Any, result: dict[str, Any], target: str) -> None:
    """Write a run's report to the file `target`: KFP's artifact, or the workspace's own where it can be read."""
    report, why = None, ""
    try:
        pages = Pages(service)
        report = read_report(pages, run.run_id)
        if report is None and result["report"]:  # an unchanged run names an earlier one's: …/runs/<id>/report.html
            report = read_report(pages, result["report"].rpartition("/")[0].rpartition("/")[2])
    except MillError as error:
        why = f" ({error})"
    if report is None and result["report"]:
        try:
            report = store_for(result["report"]).read(result["report"])
        except (MillError, FileNotFoundError) as error:
            raise MillError(f"the report can't be read from here: {result['report']}: {error}{why}") from None
    if report is None:
        raise wrong("--report", f"a run that has made its report, as its last step does{why}", result["state"].lower())
    try:
        Path(target).write_bytes(report)
    except OSError as error:
        raise wrong("--report", "a file that can be written", f"{target} ({error.strerror})") from None
    print(f"wrote {target}", file=sys.stderr)


def print_log(service: Service, run_id: str, step: str) -> int:
    """Print what a step of a run has printed; returns the exit code."""
    following.get_run(service, run_id)
    log = read_log(Pages(service), run_id, step)
    sys.stdout.write(log if log.endswith("\n") or not log else f"{log}\n")
    return EXIT_OK


def _steps(states: dict[str, tuple[str, float | None]], records: dict[str, dict[str, Any]]) -> str:
    lines: list[tuple[str, ...]] = [("step", "state", "took", "result")]
    for name in [*(step for step in STEPS if step in {*states, *records}), *(n for n in states if n not in STEPS)]:
        record = records.get(name, {})
        state, seconds = states.get(name, (str(record.get("state", "")), record.get("seconds")))
        took = duration(seconds) if seconds is not None else "-"
        cached = ", cached" if record.get("state") == "cached" != state else ""
        code = f", exit code {record['exit_code']}" if record.get("exit_code") else ""
        result = str(record.get("error") or record.get("uri") or "")
        lines.append((name, state.lower().replace("_", " ") + code + cached, took, result))
    return _columns(lines)
