"""`imagemill schedule`: the pipeline again and again, by a recurring run of Kubeflow Pipelines.

A schedule runs the newest version of the pipeline, one run at a time, and makes up for no missed start. The service
can't change a recurring run: another one takes its place. No order of these two requests is safe against a machine
that dies between them, so the new one is made first: then two run for a while, which costs work and breaks nothing,
rather than none, which nobody would notice. Ctrl-C waits for the exchange; a failed one is taken back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from ..components.store import uri as uris
from ..components.store.errors import EXIT_OK, MillError, UserError, wrong
from ..components.store.progress import say
from . import cron as crons
from .following import ENDED
from .kfp_client import NotFoundError, Service, add_flags, stopped
from .kfp_uploads import experiment, find_pipeline, named, upload
from .submit import Order, add_package_flags

HELP = "train again and again: a recurring run in Kubeflow Pipelines"
_ABOUT = """Compiles and uploads the pipeline as its newest version and makes a recurring run of it, which replaces
the one of the same name: never two runs of it at a time, no catching up on missed starts, always the pipeline's newest
version. Without --cron: --list, --disable, --enable or --delete what there is."""
_MARK = "imagemill: "
"""The description of a schedule begins so: what we made we may replace."""


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser, str], None]) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("schedule", help=HELP, description=_ABOUT)
    parser.add_argument("--cron", default="", metavar="CRON", help="minute, hour, day of the month, month, day of the "
                        'week: "0 3 * * 1" is Mondays at 3 o\'clock')  # fmt: skip
    parser.add_argument("--timezone", default="UTC", metavar="ZONE", help="the time zone of --cron (default: UTC)")
    parser.add_argument(
        "--server-timezone", default="UTC", metavar="ZONE",
        help="the zone that KFP's server reads schedules in, its CRON_SCHEDULE_TIMEZONE; its API can't tell "
        "(default: UTC)",
    )  # fmt: skip
    parser.add_argument(
        "--schedule-name", default="", metavar="NAME", help="(default: the pipeline's name, and --name)"
    )
    parser.add_argument("--list", action="store_true", help="print the schedules of the pipeline")
    parser.add_argument("--disable", action="store_true", help="stop starting runs; with --cron: make it stopped")
    parser.add_argument("--enable", action="store_true", help="start runs again")
    parser.add_argument("--delete", action="store_true", help="delete it; its runs stay")
    parser.add_argument("--json", action="store_true", help="print one line of JSON a schedule")
    add_package_flags(parser)
    add_flags(parser)
    add_parameters(
        parser, "What is given here is given to each run of the schedule; the package's defaults stay as they are."
    )


def run(found: dict[str, Any]) -> int:
    """Do what the parsed flags ask for; returns the exit code."""
    asked = [name for name in ("list", "disable", "enable", "delete") if found.pop(name)]
    text, as_json, name = found.pop("cron"), found.pop("json"), found.pop("schedule_name")
    where = crons.zone(found.pop("timezone"), "--timezone")
    server = crons.zone(found.pop("server_timezone"), "--server-timezone")
    if len(asked) > 1 or (text and asked not in ([], ["disable"])) or not (text or asked):
        raise wrong("schedule", "--cron, or one of --list, --disable, --enable and --delete",
                    ", ".join(f"--{word}" for word in (["cron"] if text else []) + asked) or "none")  # fmt: skip
    cron = crons.parse(text) if text else None
    order = Order(found)
    name = name or f"{order.pipeline}-{order.name}"
    if cron is not None:
        made = _make(order, name, cron, where, server, enabled=not asked)
        print(_line(made, as_json))
        if not as_json and not asked:
            print(f"  next: {', '.join(_shown(time) for time in islice(cron.times(where, datetime.now(UTC)), 3))}")
        return EXIT_OK
    service = Service(order.connection)
    ours = _schedules(service, find_pipeline(service, order.pipeline))
    if asked == ["list"]:
        return _list(ours, order.pipeline, as_json)
    chosen = [one for one in ours if one.display_name == name]
    if not chosen:
        there = ", ".join(sorted({one.display_name for one in ours})) or "none"
        raise wrong("--schedule-name", f"a schedule that there is ({there})", name)
    _change(service, chosen, asked[0])
    return EXIT_OK


def _make(order: Order, name: str, cron: crons.Cron, where: ZoneInfo, server: ZoneInfo, *, enabled: bool) -> Any:
    from kfp_server_api import (
        V2beta1CronSchedule,
        V2beta1PipelineVersionReference,
        V2beta1RecurringRun,
        V2beta1RuntimeConfig,
        V2beta1Trigger,
    )

    there, exact = crons.for_server(cron, where, server, datetime.now(UTC))
    if not exact:
        say("schedule", _off_in_summer(cron, there, where, server))
    package, arguments = order.package()
    service = Service(order.connection)
    version = upload(service, order.pipeline, package, newest=True)
    say("schedule", f"pipeline {order.pipeline}, its {'new' if version.is_new else 'newest'} version "
        f"{version.display_name}")  # fmt: skip
    body = V2beta1RecurringRun(
        display_name=name,
        description=f"{_MARK}{cron} ({where.key})",
        experiment_id=experiment(service, order.experiment),
        # no version: the newest
        pipeline_version_reference=V2beta1PipelineVersionReference(pipeline_id=version.pipeline_id),
        runtime_config=V2beta1RuntimeConfig(parameters=arguments),
        trigger=V2beta1Trigger(cron_schedule=V2beta1CronSchedule(cron=there.for_kfp())),
        mode="ENABLE" if enabled else "DISABLE",
        max_concurrency="1",
        no_catchup=True,
    )
    with _to_the_end():
        return _exchange(service, body)


def _off_in_summer(cron: crons.Cron, there: crons.Cron, where: ZoneInfo, server: ZoneInfo) -> str:
    return (
        f"{where.key} and {server.key}, where KFP's server is said to be, don't change to summer time together, and "
        f"KFP knows one zone: {str(cron)!r} becomes {str(there)!r} there, which is right in winter and an hour off in "
        f"summer. Exact: CRON_SCHEDULE_TIMEZONE={where.key} in KFP's deployment ml-pipeline-scheduledworkflow, and "
        f"--server-timezone {where.key}"
    )


def _exchange(service: Service, body: Any) -> Any:
    """The schedule `body`, and no other of its name enabled: either done or, after an error, as it was."""
    old = _named(service, body.display_name)
    if foreign := [one for one in old if not (one.description or "").startswith(_MARK)]:
        raise wrong("--schedule-name", "a name that no other recurring run has", foreign[0].display_name)
    same = next((one for one in old if _same(one, body)), None)
    if same is not None:
        say("schedule", "unchanged")
    before = {one.recurring_run_id for one in old}
    new = same or service.create(
        "making the schedule", service.client.recurring_runs.recurring_run_service_create_recurring_run,
        lambda: next((o for o in _named(service, body.display_name) if o.recurring_run_id not in before), None),
        recurring_run=body,
    )  # fmt: skip
    others = [one for one in old if one.recurring_run_id != new.recurring_run_id]
    halted: list[Any] = []
    try:
        for one in others:
            halted.append(one)  # at once: it may be disabled although the answer is lost
            _set(service, one, "disable")
    except MillError as error:
        raise _taken_back(service, None if same else new, [o for o in halted if o.mode == "ENABLE"], error) from None
    for one in others:
        try:
            _remove(service, one)
        except MillError as error:  # the new schedule is made: that is what was asked for
            say("schedule", str(error))
    return new


def _same(one: Any, body: Any) -> bool:
    reference, trigger = one.pipeline_version_reference, one.trigger
    return bool(
        reference
        and reference.pipeline_id == body.pipeline_version_reference.pipeline_id
        and not reference.pipeline_version_id
        and trigger
        and trigger.cron_schedule
        and trigger.cron_schedule.cron == body.trigger.cron_schedule.cron
        and ((one.runtime_config.parameters if one.runtime_config else None) or {}) == body.runtime_config.parameters
        and one.description == body.description
        and one.experiment_id == body.experiment_id
        and one.mode == body.mode
        and str(one.max_concurrency) == "1"
        and one.no_catchup
    )


def _taken_back(service: Service, new: Any, halted: list[Any], error: MillError) -> MillError:
    """After the old one could not be stopped: the new one goes, so that there is one again."""
    try:
        for one in halted:
            _set(service, one, "enable")
        if new is not None:
            _delete(service, new)
    except MillError as second:
        return type(error)(
            f"{error}; taking the new schedule back failed as well ({second}): there may be two of this name; the next "
            "`imagemill schedule` leaves one"
        )
    return type(error)(f"{error}; the schedule is as it was")


def _change(service: Service, schedules: list[Any], word: str) -> None:
    if word == "enable" and len(schedules) > 1:
        raise UserError(
            f"--enable: expected one schedule named {schedules[0].display_name}, found {len(schedules)}, left by an "
            "interrupted exchange; `imagemill schedule --cron …` leaves one"
        )
    with _to_the_end():
        for one in schedules:
            _set(service, one, "disable" if word == "delete" else word)
        gone = [word != "delete" or _remove(service, one) for one in schedules]
    done = {"enable": "enabled", "disable": "disabled", "delete": "deleted" if all(gone) else "disabled"}
    print(f"{schedules[0].display_name}: {done[word]}")


def _set(service: Service, one: Any, word: str) -> None:
    function = getattr(service.client.recurring_runs, f"recurring_run_service_{word}_recurring_run")
    with contextlib.suppress(NotFoundError):  # deleted meanwhile by somebody else
        service.call(f"to {word} the schedule", function, recurring_run_id=one.recurring_run_id)


def _remove(service: Service, one: Any) -> bool:
    """Delete a stopped schedule, unless it has a run under way; a MillError says that it could not be.

    The runs of a recurring run belong to it in Kubernetes: KFP's older versions delete a run under way with it (newer
    ones are told not to). It does no harm as it is, and the next exchange deletes it.
    """
    try:
        if run := _under_way(service, one):
            say("schedule", f"{one.display_name} ({one.recurring_run_id}) is disabled, and not deleted before its run "
                f"{run} has ended")  # fmt: skip
            return False
        _delete(service, one)
        return True
    except MillError as error:
        name = f"{one.display_name} ({one.recurring_run_id})"
        raise type(error)(f"the schedule {name} is disabled; it could not be deleted: {error}") from None


def _under_way(service: Service, one: Any) -> str:
    found = service.call(
        "looking for runs under way", service.client.runs.run_service_list_runs,
        experiment_id=one.experiment_id, page_size=100, sort_by="created_at desc",
    )  # fmt: skip
    runs = (r for r in found.runs or [] if r.recurring_run_id == one.recurring_run_id and r.state not in ENDED)
    return next((str(r.run_id) for r in runs), "")


def _delete(service: Service, one: Any) -> None:
    with contextlib.suppress(NotFoundError):
        service.call(
            "deleting the schedule", service.client.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run_id=one.recurring_run_id, propagation_policy="ORPHAN",
        )  # fmt: skip


def _named(service: Service, name: str) -> list[Any]:
    return list(_pages(service, filter=named("display_name", name)))


def _schedules(service: Service, pipeline: str) -> list[Any]:
    """Those of a pipeline that we made."""
    return [
        one for one in _pages(service, sort_by="created_at desc")
        if pipeline and (one.description or "").startswith(_MARK)
        and one.pipeline_version_reference and one.pipeline_version_reference.pipeline_id == pipeline
    ]  # fmt: skip


def _pages(service: Service, **arguments: Any) -> Iterator[Any]:
    space = {"namespace": service.namespace} if service.namespace else {}
    listing, token = service.client.recurring_runs.recurring_run_service_list_recurring_runs, ""
    while True:
        page = service.call(
            "listing the schedules", listing, page_size=100, page_token=token, **arguments, **space
        )  # fmt: skip
        yield from page.recurring_runs or []
        token = page.next_page_token or ""
        if not token:
            return


def _list(schedules: list[Any], pipeline: str, as_json: bool) -> int:
    if not schedules and not as_json:
        print(f"no schedules of {pipeline}")
    for one in schedules:
        print(_line(one, as_json))
    enabled = [one.display_name for one in schedules if one.mode == "ENABLE"]
    for name in sorted({name for name in enabled if enabled.count(name) > 1}):
        say("schedule", f"{name} is there twice, left by an interrupted exchange; `imagemill schedule --cron …` leaves "
            "one, --delete none")  # fmt: skip
    return EXIT_OK


def _line(one: Any, as_json: bool) -> str:
    server = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else ""
    about = {
        "schedule": one.recurring_run_id,
        "name": one.display_name,
        "cron": (one.description or "").removeprefix(_MARK),
        "kfp_cron": server,
        "enabled": one.mode == "ENABLE",
        "parameters": {
            key: uris.redact(value) if isinstance(value, str) else value
            for key, value in ((one.runtime_config.parameters if one.runtime_config else None) or {}).items()
        },
    }
    if as_json:
        return json.dumps(about, ensure_ascii=False)
    return f"{about['name']}: {about['cron']}, {'enabled' if about['enabled'] else 'disabled'} ({about['schedule']})"


def _shown(time: datetime) -> str:
    return f"{time:%a %Y-%m-%d %H:%M}"


@contextlib.contextmanager
def _to_the_end() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise stopped("stopped, after the schedule was changed as asked")
