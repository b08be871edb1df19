"""Cron expressions: every field checked, KFP's six fields, other time zones, summer time."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cluster.cron import convert_to_server_timezone, load_timezone, parse_cron, shift_cron

UTC_ZONE, BERLIN, TOKYO, DELHI = (ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "Asia/Tokyo", "Asia/Kolkata"))
NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)


def test_kfp_gets_the_seconds_first() -> None:
    assert parse_cron("0 3 * * 1").to_kfp() == "0 0 3 * * 1"


@pytest.mark.parametrize(
    ("text", "kfp"),
    [
        ("*/15 8-18 * * mon-fri", "0 */15 8-18 * * mon-fri"),
        ("0 3 * * 7", "0 0 3 * * 0"),  # KFP's days end with 6
        ("0 3 * * 5-7", "0 0 3 * * 0,5,6"),
        ("0 3 ? JAN,jul *", "0 0 3 ? JAN,jul *"),
        ("@weekly", "0 0 0 * * 0"),
    ],
)
def test_common_cron_expressions_are_converted_to_kfp(text: str, kfp: str) -> None:
    assert parse_cron(text).to_kfp() == kfp


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("60 3 * * 1", "minute"),
        ("0 24 * * 1", "hour"),
        ("0 3 0 * *", "day of the month"),
        ("0 3 * 13 *", "month"),
        ("0 3 * * 8", "day of the week"),
        ("0 3 * * mo", "day of the week"),
        ("*/0 3 * * 1", "minute"),
        ("0 3-1 * * 1", "hour"),
        ("0 3 L * *", "day of the month"),
        ("0, 3 * * 1", "minute"),
        ("? 3 * * 1", "minute"),
        ("-1 3 * * 1", "minute"),
        ("0 0x3 * * 1", "hour"),
    ],
)
def test_the_wrong_field_is_named(text: str, field: str) -> None:
    with pytest.raises(UserError, match=rf"--cron \({field}\): expected .*, found"):
        parse_cron(text)


@pytest.mark.parametrize(
    "text", ["", "0 3 * *", "0 0 3 * * 1", "CRON_TZ=UTC 0 3 * * 1", "tz=UTC 0 3 * * 1", "0 3 30 2 *"]
)
def test_invalid_expressions_are_rejected(text: str) -> None:
    with pytest.raises(UserError, match="--cron: expected"):
        parse_cron(text)


def test_times_are_read_in_the_zone() -> None:
    times = list(islice(parse_cron("30 2 * * *").iterate_times(BERLIN, NOW), 2))
    assert [time.isoformat() for time in times] == ["2026-11-22T02:30:00+01:00", "2026-11-23T02:30:00+01:00"]


def test_either_day_is_enough_where_both_are_restricted() -> None:
    days = [time.day for time in islice(parse_cron("0 0 1 * mon").iterate_times(UTC_ZONE, NOW), 4)]
    assert days == [23, 30, 1, 7]
    both = [time.day for time in islice(parse_cron("0 0 */2 * mon").iterate_times(UTC_ZONE, NOW), 2)]
    assert both == [23, 7]  # a star with a step is a star: both must hold, in robfig/cron as in cron


def test_fixed_time_zone_is_converted_to_that_of_the_server() -> None:
    converted, exact = convert_to_server_timezone(parse_cron("0 3 * * 1"), TOKYO, UTC_ZONE, NOW)
    assert (str(converted), exact) == ("0 18 * * 0", True)
    converted, exact = convert_to_server_timezone(parse_cron("0 9-10 * * *"), DELHI, UTC_ZONE, NOW)
    assert (str(converted), exact) == ("30 3,4 * * *", True)
    assert str(convert_to_server_timezone(parse_cron("*/5 * * * *"), TOKYO, UTC_ZONE, NOW)[0]).split()[1:] == ["*"] * 4


@pytest.mark.parametrize("text", ["0 3 * * 1", "15 9-11 * * *", "0 12 1 * *", "0 23 * * sat", "0 0-23/6 * * *"])
@pytest.mark.parametrize("timezone", [TOKYO, DELHI, ZoneInfo("America/Bogota")])
def test_the_servers_expression_fires_when_the_users_does(text: str, timezone: ZoneInfo) -> None:
    converted, _ = convert_to_server_timezone(parse_cron(text), timezone, UTC_ZONE, NOW)
    expected = [time.timestamp() for time in islice(parse_cron(text).iterate_times(timezone, NOW), 60)]
    actual = [time.timestamp() for time in islice(converted.iterate_times(UTC_ZONE, NOW), 60)]
    assert expected == actual


@pytest.mark.parametrize("text", ["0 3 1 * *", "0 3,12 * * 1", "0 3 * jan *"])
def test_expressions_that_cannot_be_converted_are_rejected(text: str) -> None:
    with pytest.raises(UserError, match="--server-timezone"):
        convert_to_server_timezone(parse_cron(text), TOKYO, UTC_ZONE, NOW)


def test_half_hours_that_are_no_product_are_refused() -> None:
    with pytest.raises(UserError, match="fall apart"):
        shift_cron(parse_cron("0,45 3 * * *"), 30)


@pytest.mark.parametrize("month", [1, 7])
def test_inexact_conversion_with_summer_time_is_reported(month: int) -> None:
    now = datetime(2026, month, 15, tzinfo=UTC)
    assert [str(value) for value in convert_to_server_timezone(parse_cron("0 3 * * 1"), BERLIN, UTC_ZONE, now)] == [
        "0 2 * * 1",
        "False",
    ]
    same = convert_to_server_timezone(parse_cron("0 3 * * 1"), BERLIN, ZoneInfo("Europe/Paris"), now)
    assert [str(value) for value in same] == ["0 3 * * 1", "True"]


@pytest.mark.parametrize("name", ["Berlin", "", "../etc/passwd", "/etc/localtime", "Europe"])
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--timezone: expected a time zone"):
        load_timezone(name, "--timezone")
