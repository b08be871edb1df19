"""`imagemill schedule`: manage a recurring run of the pipeline in Kubeflow Pipelines.

A schedule runs the newest version of the pipeline, one run at a time, and makes up for no missed start. The service
can't change a recurring run: it is replaced by a new one, which is created first. If that is interrupted there are two,
which costs work and breaks nothing, until the next call leaves one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from ...components.step.progress import say
from ...components.storage import uri as uris
from ...components.storage.errors import EXIT_OK, wrong
from ..cluster.validation import check_cron
from ..kfp.client import KfpService, NotFoundError, add_connection_flags
from ..kfp.following import ENDED
from ..kfp.uploads import build_filter, ensure_experiment, ensure_version, find_pipeline
from .submit import SubmitRequest, add_package_flags

HELP = "train again and again: a recurring run in Kubeflow Pipelines"
_ABOUT = """Compiles and uploads the pipeline as its newest version and makes a recurring run of it, which replaces
the one of the same name: never two runs of it at a time, no catching up on missed starts, always the pipeline's newest
version. Without --cron: --list, --disable, --enable or --delete what there is."""
_DESCRIPTION_PREFIX = "imagemill: "
"""Prefix of the description of the recurring runs that imagemill created, and may replace."""


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser, str], None]) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("schedule", help=HELP, description=_ABOUT)
    parser.add_argument("--cron", default="", metavar="CRON", help="minute, hour, day of the month, month, day of the "
                        'week: "0 3 * * 1" is Mondays at 3 o\'clock, in the time zone of KFP\'s server, which is UTC '
                        "unless its CRON_SCHEDULE_TIMEZONE is another")  # fmt: skip
    parser.add_argument(
        "--schedule-name", default="", metavar="NAME", help="(default: the pipeline's name, and --name)"
    )
    parser.add_argument("--list", action="store_true", help="print the schedules of the pipeline")
    parser.add_argument("--disable", action="store_true", help="stop starting runs; with --cron: make it stopped")
    parser.add_argument("--enable", action="store_true", help="start runs again")
    parser.add_argument("--delete", action="store_true", help="delete it; its runs stay")
    parser.add_argument("--json", action="store_true", help="print one line of JSON a schedule")
    add_package_flags(parser)
    add_connection_flags(parser)
    add_parameters(
        parser, "What is given here is given to each run of the schedule; the package's defaults stay as they are."
    )


def run(flags: dict[str, Any]) -> int:
    """Run the command with the parsed flags; return the exit code."""
    actions = [name for name in ("list", "disable", "enable", "delete") if flags.pop(name)]
    text, as_json, name = flags.pop("cron"), flags.pop("json"), flags.pop("schedule_name")
    if len(actions) > 1 or (text and actions not in ([], ["disable"])) or not (text or actions):
        raise wrong("schedule", "--cron, or one of --list, --disable, --enable and --delete",
                    ", ".join(f"--{word}" for word in (["cron"] if text else []) + actions) or "none")  # fmt: skip
    if text:
        check_cron("--cron", text)
    request = SubmitRequest(flags)
    name = name or f"{request.pipeline}-{request.name}"
    if text:
        print(_format_schedule(_create_schedule(request, name, text, enabled=not actions), as_json))
        return EXIT_OK
    service = KfpService(request.connection)
    schedules = _list_schedules(service, find_pipeline(service, request.pipeline))
    if actions == ["list"]:
        if not schedules and not as_json:
            print(f"no schedules of {request.pipeline}")
        for schedule in schedules:
            print(_format_schedule(schedule, as_json))
        return EXIT_OK
    chosen = [schedule for schedule in schedules if schedule.display_name == name]
    if not chosen:
        names = ", ".join(sorted({schedule.display_name for schedule in schedules})) or "none"
        raise wrong("--schedule-name", f"a schedule that there is ({names})", name)
    if actions == ["enable"]:
        _set_mode(service, chosen[0], "enable")  # the newest: an interrupted replacement may have left more
        print(f"{name}: enabled")
        return EXIT_OK
    for schedule in chosen:
        _set_mode(service, schedule, "disable")
    deleted = [_delete_if_idle(service, schedule) for schedule in chosen] if actions == ["delete"] else [False]
    print(f"{name}: {'deleted' if all(deleted) else 'disabled'}")
    return EXIT_OK


def _create_schedule(request: SubmitRequest, name: str, cron: str, *, enabled: bool) -> Any:
    from kfp_server_api import (
        V2beta1CronSchedule,
        V2beta1PipelineVersionReference,
        V2beta1RecurringRun,
        V2beta1RuntimeConfig,
        V2beta1Trigger,
    )

    kfp_cron = cron if cron.startswith("@") else f"0 {cron}"  # KFP's first field is the seconds
    package, arguments = request.package()
    service = KfpService(request.connection)
    version = ensure_version(service, request.pipeline, package, newest=True)
    say("schedule", f"pipeline {request.pipeline}, its {'new' if version.is_new else 'newest'} version "
        f"{version.display_name}")  # fmt: skip
    body = V2beta1RecurringRun(
        display_name=name,
        description=f"{_DESCRIPTION_PREFIX}{cron}",
        experiment_id=ensure_experiment(service, request.experiment),
        # no version: the newest
        pipeline_version_reference=V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id),
        runtime_config=V2beta1RuntimeConfig(parameters=arguments),
        trigger=V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=kfp_cron)),
        mode="ENABLE" if enabled else "DISABLE",
        max_concurrency="1",
        no_catchup=True,
    )
    old_schedules = list(_iterate_recurring_runs(service, filter=build_filter("display_name", name)))
    if not all(_is_ours(schedule) for schedule in old_schedules):
        raise wrong("--schedule-name", "a name that no other recurring run has", name)
    old_ids = {schedule.recurring_run_id for schedule in old_schedules}

    def find_new() -> Any:
        same_name = _iterate_recurring_runs(service, filter=build_filter("display_name", name))
        return next((schedule for schedule in same_name if schedule.recurring_run_id not in old_ids), None)

    create = service.client.recurring_runs.recurring_run_service_create_recurring_run
    new_schedule = service.create("making the schedule", create, find_new, recurring_run=body)
    for schedule in old_schedules:
        _set_mode(service, schedule, "disable")
        _delete_if_idle(service, schedule)
    return new_schedule


def _set_mode(service: KfpService, schedule: Any, action: str) -> None:
    function = getattr(service.client.recurring_runs, f"recurring_run_service_{action}_recurring_run")
    with contextlib.suppress(NotFoundError):  # deleted meanwhile by somebody else
        service.call(f"to {action} the schedule", function, recurring_run_id=schedule.recurring_run_id)


def _delete_if_idle(service: KfpService, schedule: Any) -> bool:
    """Delete a disabled schedule and return True; leave it and return False while one of its runs is active.

    In Kubernetes a recurring run owns its runs: KFP's older versions delete an active run with it (newer ones are told
    not to). A disabled schedule does no harm, and the next replacement deletes it.
    """
    listing = service.call(
        "looking for runs under way", service.client.runs.run_service_list_runs,
        experiment_id=schedule.experiment_id, page_size=100, sort_by="created_at desc",
    )  # fmt: skip
    runs = [run for run in listing.runs or [] if run.recurring_run_id == schedule.recurring_run_id]
    if run := next((run.run_id for run in runs if run.state not in ENDED), ""):
        say("schedule", f"{schedule.display_name} ({schedule.recurring_run_id}) is disabled, and not deleted before "
            f"its run {run} has ended")  # fmt: skip
        return False
    with contextlib.suppress(NotFoundError):
        service.call(
            "deleting the schedule", service.client.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run_id=schedule.recurring_run_id, propagation_policy="ORPHAN",
        )  # fmt: skip
    return True


def _list_schedules(service: KfpService, pipeline: str) -> list[Any]:
    """Return the schedules of a pipeline that imagemill created, the newest first."""
    return [
        schedule for schedule in _iterate_recurring_runs(service, sort_by="created_at desc")
        if pipeline and _is_ours(schedule)
        and schedule.pipeline_version_reference and schedule.pipeline_version_reference.pipeline_id == pipeline
    ]  # fmt: skip


def _is_ours(schedule: Any) -> bool:
    return (schedule.description or "").startswith(_DESCRIPTION_PREFIX)


def _iterate_recurring_runs(service: KfpService, **arguments: Any) -> Iterator[Any]:
    function = service.client.recurring_runs.recurring_run_service_list_recurring_runs
    for page in service.iterate_pages("listing the schedules", function, **arguments):
        yield from page.recurring_runs or []


def _format_schedule(schedule: Any, as_json: bool) -> str:
    kfp_cron = schedule.trigger.cron_schedule.cron if schedule.trigger and schedule.trigger.cron_schedule else ""
    facts = {
        "schedule": schedule.recurring_run_id,
        "name": schedule.display_name,
        "cron": (schedule.description or "").removeprefix(_DESCRIPTION_PREFIX),
        "kfp_cron": kfp_cron,
        "enabled": schedule.mode == "ENABLE",
        "parameters": {
            key: uris.redact(value) if isinstance(value, str) else value
            for key, value in ((schedule.runtime_config.parameters if schedule.runtime_config else None) or {}).items()
        },
    }
    if as_json:
        return json.dumps(facts, ensure_ascii=False)
    return f"{facts['name']}: {facts['cron']}, {'enabled' if facts['enabled'] else 'disabled'} ({facts['schedule']})"
