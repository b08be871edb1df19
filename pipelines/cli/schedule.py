"""`imagemill schedule`: manage a recurring run of the pipeline in Kubeflow Pipelines.

A schedule runs the newest version of the pipeline, one run at a time, and makes up for no missed start. The service
can't change a recurring run: it is replaced by a new one. No order of these two requests is safe against a machine
that dies between them, so the new one is created first: then there are two for a while, which costs work and breaks
nothing, rather than none, which nobody would notice. Ctrl-C waits for the replacement; a failed one is rolled back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ...components.step.progress import say
from ...components.storage import uri as uris
from ...components.storage.errors import EXIT_OK, MillError, UserError, wrong
from ..cluster.validation import check_cron
from ..kfp.client import KfpService, NotFoundError, add_connection_flags, build_stop_error
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
        return _print_schedules(schedules, request.pipeline, as_json)
    chosen = [schedule for schedule in schedules if schedule.display_name == name]
    if not chosen:
        names = ", ".join(sorted({schedule.display_name for schedule in schedules})) or "none"
        raise wrong("--schedule-name", f"a schedule that there is ({names})", name)
    _change_schedules(service, chosen, actions[0])
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
    with _defer_signals():
        return _replace_schedule(service, body)


def _replace_schedule(service: KfpService, body: Any) -> Any:
    """Create the schedule `body`, and delete all others of its name. After an error they are as they were."""
    existing = _find_by_name(service, body.display_name)
    if not all(_is_ours(schedule) for schedule in existing):
        raise wrong("--schedule-name", "a name that no other recurring run has", body.display_name)
    same = next((schedule for schedule in existing if _is_same(schedule, body)), None)
    if same is not None:
        say("schedule", "unchanged")
    existing_ids = {schedule.recurring_run_id for schedule in existing}

    def find_new() -> Any:
        schedules = _find_by_name(service, body.display_name)
        return next((schedule for schedule in schedules if schedule.recurring_run_id not in existing_ids), None)

    new_schedule = same or service.create(
        "making the schedule", service.client.recurring_runs.recurring_run_service_create_recurring_run, find_new,
        recurring_run=body,
    )  # fmt: skip
    old_schedules = [schedule for schedule in existing if schedule.recurring_run_id != new_schedule.recurring_run_id]
    disabled: list[Any] = []
    try:
        for schedule in old_schedules:
            disabled.append(schedule)  # at once: it may be disabled although the answer is lost
            _set_mode(service, schedule, "disable")
    except MillError as error:
        to_enable = [schedule for schedule in disabled if schedule.mode == "ENABLE"]
        raise _roll_back(service, None if same else new_schedule, to_enable, error) from None
    for schedule in old_schedules:
        try:
            _delete_if_idle(service, schedule)
        except MillError as error:  # the new schedule is made: that is what was asked for
            say("schedule", str(error))
    return new_schedule


def _is_same(schedule: Any, body: Any) -> bool:
    reference, trigger = schedule.pipeline_version_reference, schedule.trigger
    return bool(
        reference
        and reference.pipeline_id == body.pipeline_version_reference.pipeline_id
        and not reference.pipeline_version_id
        and trigger
        and trigger.cron_schedule
        and trigger.cron_schedule.cron == body.trigger.cron_schedule.cron
        and ((schedule.runtime_config.parameters if schedule.runtime_config else None) or {})
        == body.runtime_config.parameters
        and schedule.description == body.description
        and schedule.experiment_id == body.experiment_id
        and schedule.mode == body.mode
        and str(schedule.max_concurrency) == "1"
        and schedule.no_catchup
    )


def _roll_back(service: KfpService, new_schedule: Any, disabled: list[Any], error: MillError) -> MillError:
    """Enable the old schedules again and delete the new one, after an error; return the error to raise."""
    try:
        for schedule in disabled:
            _set_mode(service, schedule, "enable")
        if new_schedule is not None:
            _delete_schedule(service, new_schedule)
    except MillError as second:
        return type(error)(
            f"{error}; taking the new schedule back failed as well ({second}): there may be two of this name; the next "
            "`imagemill schedule` leaves one"
        )
    return type(error)(f"{error}; the schedule is as it was")


def _change_schedules(service: KfpService, schedules: list[Any], action: str) -> None:
    if action == "enable" and len(schedules) > 1:
        raise UserError(
            f"--enable: expected one schedule named {schedules[0].display_name}, found {len(schedules)}, left by an "
            "interrupted exchange; `imagemill schedule --cron …` leaves one"
        )
    with _defer_signals():
        for schedule in schedules:
            _set_mode(service, schedule, "disable" if action == "delete" else action)
        deleted = [action != "delete" or _delete_if_idle(service, schedule) for schedule in schedules]
    done = {"enable": "enabled", "disable": "disabled", "delete": "deleted" if all(deleted) else "disabled"}
    print(f"{schedules[0].display_name}: {done[action]}")


def _set_mode(service: KfpService, schedule: Any, action: str) -> None:
    function = getattr(service.client.recurring_runs, f"recurring_run_service_{action}_recurring_run")
    with contextlib.suppress(NotFoundError):  # deleted meanwhile by somebody else
        service.call(f"to {action} the schedule", function, recurring_run_id=schedule.recurring_run_id)


def _delete_if_idle(service: KfpService, schedule: Any) -> bool:
    """Delete a disabled schedule and return True; leave it and return False while one of its runs is active.

    In Kubernetes a recurring run owns its runs: KFP's older versions delete an active run with it (newer ones are told
    not to). A disabled schedule does no harm, and the next replacement deletes it. MillError if deleting fails.
    """
    try:
        if run := _find_active_run(service, schedule):
            say("schedule", f"{schedule.display_name} ({schedule.recurring_run_id}) is disabled, and not deleted "
                f"before its run {run} has ended")  # fmt: skip
            return False
        _delete_schedule(service, schedule)
        return True
    except MillError as error:
        name = f"{schedule.display_name} ({schedule.recurring_run_id})"
        raise type(error)(f"the schedule {name} is disabled; it could not be deleted: {error}") from None


def _find_active_run(service: KfpService, schedule: Any) -> str:
    listing = service.call(
        "looking for runs under way", service.client.runs.run_service_list_runs,
        experiment_id=schedule.experiment_id, page_size=100, sort_by="created_at desc",
    )  # fmt: skip
    runs = [run for run in listing.runs or [] if run.recurring_run_id == schedule.recurring_run_id]
    return next((str(run.run_id) for run in runs if run.state not in ENDED), "")


def _delete_schedule(service: KfpService, schedule: Any) -> None:
    with contextlib.suppress(NotFoundError):
        service.call(
            "deleting the schedule", service.client.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run_id=schedule.recurring_run_id, propagation_policy="ORPHAN",
        )  # fmt: skip


def _find_by_name(service: KfpService, name: str) -> list[Any]:
    return list(_iterate_recurring_runs(service, filter=build_filter("display_name", name)))


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


def _print_schedules(schedules: list[Any], pipeline: str, as_json: bool) -> int:
    if not schedules and not as_json:
        print(f"no schedules of {pipeline}")
    for schedule in schedules:
        print(_format_schedule(schedule, as_json))
    enabled = [schedule.display_name for schedule in schedules if schedule.mode == "ENABLE"]
    for name in sorted({name for name in enabled if enabled.count(name) > 1}):
        say("schedule", f"{name} is there twice, left by an interrupted exchange; `imagemill schedule --cron …` leaves "
            "one, --delete none")  # fmt: skip
    return EXIT_OK


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


@contextlib.contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous_handlers = {
        number: signal.signal(number, lambda signal_number, _: received.append(signal_number)) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    if received:
        raise build_stop_error("stopped, after the schedule was changed as asked")
