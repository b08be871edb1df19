"""`imagemill runs`: list the pipeline's runs in Kubeflow Pipelines; show the steps, the report or a log of one."""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from ...components.dataset.workspace import STEPS
from ...components.step.command_line import parse_count
from ...components.step.progress import format_duration
from ...components.storage.errors import EXIT_OK, MillError, wrong
from ...components.storage.store import get_store
from ..cluster.cluster_file import load_cluster
from ..finish import make_failed_result, read_record_facts
from ..kfp import following
from ..kfp.artifacts import PipelineSpecs, RunRecords, read_log, read_report
from ..kfp.client import PAGE_SIZE, Connection, KfpService, add_connection_flags
from ..kfp.ui import KfpUi
from ..kfp.uploads import PIPELINE_NAME, find_pipeline

HELP = "the runs in Kubeflow Pipelines, or the steps of one, its report and logs"
MAX_PAGES = 20
"""Of the list of runs that is searched: the service can't filter it by pipeline."""


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
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
    add_connection_flags(parser)


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code, which is the run's own with --follow."""
    cluster_file = flags["cluster"]
    connection = Connection.from_flags(flags, load_cluster(cluster_file).namespace if cluster_file else "")
    run_id, as_json = flags["run_id"], flags["json"]
    last = parse_count("--last", flags["last"], f"a whole number from 1 to {PAGE_SIZE}", low=1, high=PAGE_SIZE)
    for flag in ("follow", "report", "logs"):
        if flags[flag] and not run_id:
            raise wrong(f"--{flag}", "the id of a run before it", "none")
    if flags["logs"] and (flags["follow"] or flags["report"]):
        raise wrong("--logs", "it alone", "--follow or --report beside it")
    service = KfpService(connection)
    if flags["logs"]:
        return print_log(service, run_id, flags["logs"])
    if run_id:
        return _show_run(service, run_id, flags["follow"], as_json, flags["report"])
    specs = PipelineSpecs(service)
    records = RunRecords(service, specs)
    runs = _list_newest(service, specs, flags["pipeline_name"], last)
    rows = [_describe_run(service, listed, records) for listed in runs]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        name = flags["pipeline_name"] or PIPELINE_NAME
        print(_format_runs(rows) if rows else f"no runs of {name}; `imagemill submit` starts one")
    return EXIT_OK


def _list_newest(service: KfpService, specs: PipelineSpecs, pipeline_name: str, last: int) -> list[Any]:
    """Return the `last` newest runs of the pipeline that was uploaded as `pipeline_name`; without a name, of all that
    imagemill compiled, also of packages that were sent without an upload or uploaded under other names."""
    pipeline = find_pipeline(service, pipeline_name or PIPELINE_NAME)

    def is_wanted(run: Any) -> bool:
        reference = run.pipeline_version_reference
        if pipeline and reference and reference.pipeline_id == pipeline:
            return True
        return not pipeline_name and specs.read_name(run) == PIPELINE_NAME

    list_runs = service.client.runs.run_service_list_runs
    pages = service.iterate_pages("listing the runs", list_runs, sort_by="created_at desc")
    searched = (run for page in islice(pages, MAX_PAGES) for run in page.runs or [])
    return list(islice(filter(is_wanted, searched), last)) if pipeline or not pipeline_name else []


def _describe_run(service: KfpService, run: Any, records: RunRecords) -> dict[str, Any]:
    created = following.to_datetime(run.created_at)
    recorded, _ = records.read(run)
    facts = read_record_facts(recorded)
    return {
        "run": run.run_id,
        "run_name": run.display_name,
        "state": run.state or "PENDING",
        "started": created.isoformat(timespec="seconds") if created else "",
        "seconds": following.measure_seconds(run),
        "scheduled": bool(run.recurring_run_id),
        "macro_f1": facts["metrics"].get("macro_f1"),
        "verdict": facts["verdict"],
        "failed_at": next((step for step, record in recorded.items() if record.exit_code), ""),
        "link": service.get_run_url(run.run_id),
    }


def _format_runs(rows: list[dict[str, Any]]) -> str:
    header = ("run", "state", "started (UTC)", "took", "macro-F1", "verdict", "id and link")
    lines: list[tuple[str, ...]] = [header]
    for row in rows:
        score = f"{row['macro_f1']:.3f}" if isinstance(row["macro_f1"], float) else "-"
        took = format_duration(row["seconds"]) if row["seconds"] is not None else "-"
        started = row["started"][:16].replace("T", " ") or "-"
        verdict = row["verdict"].replace("_", " ") or "-"
        state = row["state"].lower()
        if state == "failed" and row["failed_at"]:
            state += f" at {row['failed_at']}"
        lines.append((row["run_name"], state, started, took, score, verdict, row["link"]))
    return align_columns(lines)


def align_columns(lines: list[tuple[str, ...]]) -> str:
    """Return rows of cells as lines of text, with all columns but the last padded to equal widths."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )


def _show_run(service: KfpService, run_id: str, follow: bool, as_json: bool, report: str) -> int:
    from .submit import format_headline, print_result

    run = following.get_run(service, run_id)
    if follow:
        run = following.follow(service, run_id)
    result = make_failed_result() | {
        "status": "running", "run": run_id, "run_name": run.display_name, "link": service.get_run_url(run_id),
        "state": run.state or "PENDING", "records": {},
    }  # fmt: skip
    code = EXIT_OK
    if result["state"] in following.ENDED:
        code = following.collect_result(service, run, result)
    else:
        records, _ = RunRecords(service).read(run)
        result |= read_record_facts(records) | {"records": {step: record.to_dict() for step, record in records.items()}}
    if report and (result["report"] or not follow):
        write_report(service, run, result, report)
    if follow:
        return print_result(result, as_json, code)
    states = {name: (state, seconds) for name, state, seconds in following.list_tasks(run)}
    result["tasks"] = {name: {"state": state, "seconds": seconds} for name, (state, seconds) in states.items()}
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return EXIT_OK
    took = following.measure_seconds(run)
    print(f"{run.display_name}: {result['state'].lower()}, {format_duration(took or 0)}\n{result['link']}")
    print(_format_steps(states, result["records"]))
    warning = f"warning: {result['warning']}" if result.get("warning") else ""
    for line in filter(None, (warning, format_headline(result), result.get("error"))):
        print(line)
    return EXIT_OK


def write_report(service: KfpService, run: Any, result: dict[str, Any], target: str) -> None:
    """Write a run's report to the file `target`: from KFP's artifact, else from the workspace."""
    report, kfp_error = None, ""
    try:
        pages = KfpUi(service)
        report = read_report(pages, run.run_id)
        if report is None and result["report"]:  # an unchanged run names an earlier one's: …/runs/<id>/report.html
            report = read_report(pages, result["report"].rpartition("/")[0].rpartition("/")[2])
    except MillError as error:
        kfp_error = f" ({error})"
    if report is None and result["report"]:
        try:
            report = get_store(result["report"]).read(result["report"])
        except (MillError, FileNotFoundError) as error:
            raise MillError(f"the report can't be read from here: {result['report']}: {error}{kfp_error}") from None
    if report is None:
        expected = f"a run that has made its report, as its last step does{kfp_error}"
        raise wrong("--report", expected, result["state"].lower())
    try:
        Path(target).write_bytes(report)
    except OSError as error:
        raise wrong("--report", "a file that can be written", f"{target} ({error.strerror})") from None
    print(f"wrote {target}", file=sys.stderr)


def print_log(service: KfpService, run_id: str, step: str) -> int:
    """Print the log of a step of a run; return the exit code."""
    following.get_run(service, run_id)
    log = read_log(KfpUi(service), run_id, step)
    sys.stdout.write(log if log.endswith("\n") or not log else f"{log}\n")
    return EXIT_OK


def _format_steps(states: dict[str, tuple[str, float | None]], records: dict[str, dict[str, Any]]) -> str:
    lines: list[tuple[str, ...]] = [("step", "state", "took", "result")]
    steps = [step for step in STEPS if step in {*states, *records}]
    for name in (*steps, *(task for task in states if task not in STEPS)):
        record = records.get(name, {})
        state, seconds = states.get(name, (str(record.get("state", "")), record.get("seconds")))
        took = format_duration(seconds) if seconds is not None else "-"
        cached = ", cached" if record.get("state") == "cached" != state else ""
        code = f", exit code {record['exit_code']}" if record.get("exit_code") else ""
        result = str(record.get("error") or record.get("uri") or "")
        lines.append((name, state.lower().replace("_", " ") + code + cached, took, result))
    return align_columns(lines)
