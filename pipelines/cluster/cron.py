"""Cron expressions: checked field by field, and converted from the user's time zone to that of Kubeflow Pipelines.

Kubeflow Pipelines reads them with robfig/cron 1.2: six fields, seconds first, days of the week from 0 to 6, and no time
zone. It reads all of them in one zone, that of its installation (CRON_SCHEDULE_TIMEZONE of the deployment
ml-pipeline-scheduledworkflow; UTC by default), which its API doesn't tell. croniter 7 would replace the iteration,
25 of these lines: it converts no time zones, and of 22 mistakes that this module refuses it accepts 8 (`L`, `mon#1`,
`fri-mon`, `22-2`, 30 February, seconds last), which KFP would refuse or never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ...components.storage.errors import UserError, wrong

_MONTHS = {"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6}
_MONTHS |= {"jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12}
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY = range(len(_FIELDS))
_ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_MAX_YEARS = 8
"""Years within which every expression that fires at all fires: 29 February is never farther."""
_MINUTES_PER_DAY = 24 * 60


@dataclass(frozen=True)
class Cron:
    """A cron expression: five fields as texts that KFP reads, and as the values that they stand for."""

    fields: tuple[str, ...]
    values: tuple[frozenset[int], ...]

    def to_kfp(self) -> str:
        """Return the expression with the seconds, which KFP wants first."""
        return " ".join(("0", *self.fields))

    def __str__(self) -> str:
        return " ".join(self.fields)

    def fires_on(self, day: datetime) -> bool:
        """Return whether it fires on a day; where day of month and of week are restricted, either is enough."""
        in_month = day.day in self.values[_DAY]
        in_week = (day.weekday() + 1) % 7 in self.values[_WEEKDAY]
        is_starred = any(part[0] in "*?" for index in (_DAY, _WEEKDAY) for part in self.fields[index].split(","))
        return day.month in self.values[_MONTH] and (in_month and in_week if is_starred else in_month or in_week)

    def iterate_times(self, timezone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """Yield the times after `after` at which it fires, read in a time zone."""
        start = after.astimezone(timezone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        for days in range(_MAX_YEARS * 366):
            day = start + timedelta(days=days)
            if not self.fires_on(day):
                continue
            for hour in sorted(self.values[_HOUR]):
                for minute in sorted(self.values[_MINUTE]):
                    time = day.replace(hour=hour, minute=minute, tzinfo=timezone)
                    if time > after:
                        yield time


def parse_cron(text: str, flag: str = "--cron") -> Cron:
    """Parse the expression of a flag, or of a file's field; UserError names the part that is wrong."""
    words = _ALIASES.get(text.strip().lower(), text).split()
    if words and "TZ=" in words[0].upper():
        raise wrong(flag, f"five fields; the time zone goes into {flag.replace('cron', 'timezone')}", text)
    if len(words) != len(_FIELDS):
        raise wrong(flag, "five fields: minute, hour, day of the month, month, day of the week, such as "
                    "\"0 3 * * 1\" for Mondays at 3 o'clock", text)  # fmt: skip
    values = tuple(_parse_field(word, index, flag) for index, word in enumerate(words))
    weekdays = frozenset(day % 7 for day in values[_WEEKDAY])  # Sunday is 0 and 7
    weekday = words[_WEEKDAY] if 7 not in values[_WEEKDAY] else _format_values(weekdays)
    cron = Cron((*words[:_WEEKDAY], weekday), (*values[:_WEEKDAY], weekdays))
    if next(cron.iterate_times(ZoneInfo("UTC"), datetime.now(UTC)), None) is None:
        raise wrong(flag, "a day that comes", text)
    return cron


def _parse_field(word: str, number: int, flag: str) -> frozenset[int]:
    name, low, high, names = _FIELDS[number]

    def refuse(expected: str) -> UserError:
        return wrong(f"{flag} ({name})", expected, word)

    def parse_value(text: str) -> int:
        value = names.get(text.lower(), int(text) if re.fullmatch(r"[0-9]{1,4}", text) else -1)
        if not low <= value <= high:
            names_hint = f" or a name such as {next(iter(names))}" if names else ""
            raise refuse(f"numbers from {low} to {high}{names_hint}, with , - / and *")
        return value

    values: set[int] = set()
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if re.fullmatch(r"[0-9]{1,4}", step_text) else 0
        if slash and not step:
            raise refuse("after / a whole number of at least 1")
        if span == "*" or (span == "?" and number in (_DAY, _WEEKDAY)):
            first, last = low, min(high, 6) if number == _WEEKDAY else high
        else:
            first_text, dash, last_text = span.partition("-")
            first = parse_value(first_text)
            last = parse_value(last_text) if dash else (high if slash else first)
            if number == _WEEKDAY and slash and not dash:
                last = 6
        if first > last:
            raise refuse("a range from the smaller to the larger; for others a list, such as 6,0,1")
        values.update(range(first, last + 1, step or 1))
    return frozenset(values)


def shift_cron(cron: Cron, minutes: int) -> Cron:
    """Return the expression that fires `minutes` later by the clock; UserError where no single one does."""
    if not minutes:
        return cron
    times = {
        divmod(hour * 60 + minute + minutes, _MINUTES_PER_DAY)
        for hour in cron.values[_HOUR]
        for minute in cron.values[_MINUTE]
    }
    days = {day for day, _ in times}
    hours, minutes_of_hour = {time // 60 for _, time in times}, {time % 60 for _, time in times}
    any_day, any_month, any_weekday = (_is_unrestricted(cron, number) for number in (_DAY, _MONTH, _WEEKDAY))
    error = UserError(
        f"--timezone: expected an expression that can be said in the zone that KFP's server reads it in, found "
        f"{str(cron)!r}, whose days or hours fall apart there; give it in the server's zone, or run KFP in yours "
        f"(CRON_SCHEDULE_TIMEZONE) and say so by --server-timezone"
    )
    if len(hours) * len(minutes_of_hour) != len({time for _, time in times}):
        raise error
    if days == {0} or (any_day and any_month and any_weekday):
        weekday = cron.fields[_WEEKDAY]
    elif len(days) == 1 and any_day and any_month:
        weekday = _format_values({(day + next(iter(days))) % 7 for day in cron.values[_WEEKDAY]})
    else:
        raise error
    hour = "*" if len(hours) == 24 else _format_values(hours)
    return parse_cron(" ".join((_format_values(minutes_of_hour), hour, *cron.fields[_DAY:_WEEKDAY], weekday)))


def _is_unrestricted(cron: Cron, number: int) -> bool:
    _, low, high, _ = _FIELDS[number]
    return len(cron.values[number]) == min(high, 6 if number == _WEEKDAY else high) - low + 1


def _format_values(values: Iterable[int]) -> str:
    return ",".join(str(value) for value in sorted(values))


def load_timezone(name: str, flag: str) -> ZoneInfo:
    """Return the time zone of this name; UserError for one that does not exist."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; not a name; a folder of the zones' database
        raise wrong(flag, "a time zone such as Europe/Berlin or UTC", name) from None


def convert_to_server_timezone(cron: Cron, timezone: ZoneInfo, server: ZoneInfo, now: datetime) -> tuple[Cron, bool]:
    """Return the expression in the server's time zone, and whether it is right all year.

    Where one of the two zones has a daylight saving time that the other doesn't, one expression is right for a part of
    the year only: it is made for the winter, and fires an hour off by the user's clock in summer.
    """
    days = [now + timedelta(days=7 * index) for index in range(53)]
    differences = [
        int((_get_utc_offset(server, day) - _get_utc_offset(timezone, day)).total_seconds() // 60) for day in days
    ]
    winter_weeks = [
        index
        for index, day in enumerate(days)
        if not day.astimezone(timezone).dst() and not day.astimezone(server).dst()
    ]
    return shift_cron(cron, differences[winter_weeks[0] if winter_weeks else 0]), len(set(differences)) == 1


def _get_utc_offset(timezone: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(timezone).utcoffset() or timedelta()
