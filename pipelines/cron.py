"""Cron expressions as users write them, checked field by field, and carried into another time zone.

Kubeflow Pipelines reads them by robfig/cron 1.2: six fields, seconds first, days of the week from 0 to 6, and no time
zone. It reads all of them in one zone, that of its installation (CRON_SCHEDULE_TIMEZONE of the deployment
ml-pipeline-scheduledworkflow; UTC if nobody set it), which its API doesn't tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ..components.store.errors import UserError, wrong

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
_SHORT = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_YEARS = 8
"""Within so many years every expression that fires at all has fired: 29 February is never farther."""
_DAY = 24 * 60


@dataclass(frozen=True)
class Cron:
    """Five fields, as texts that KFP reads, and as the values that they stand for."""

    fields: tuple[str, ...]
    values: tuple[frozenset[int], ...]

    def for_kfp(self) -> str:
        """With the seconds that KFP wants first."""
        return " ".join(("0", *self.fields))

    def __str__(self) -> str:
        return " ".join(self.fields)

    def fires_on(self, day: datetime) -> bool:
        """By cron's rule: where both days are restricted, either is enough."""
        in_month = day.day in self.values[2]
        in_week = (day.weekday() + 1) % 7 in self.values[4]
        starred = any(part[0] in "*?" for i in (2, 4) for part in self.fields[i].split(","))
        return day.month in self.values[3] and (in_month and in_week if starred else in_month or in_week)

    def times(self, zone: ZoneInfo, after: datetime) -> Iterator[datetime]:
        """When it fires after a moment, read in a zone."""
        start = after.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        for days in range(_YEARS * 366):
            day = start + timedelta(days=days)
            if not self.fires_on(day):
                continue
            for hour in sorted(self.values[1]):
                for minute in sorted(self.values[0]):
                    time = day.replace(hour=hour, minute=minute, tzinfo=zone)
                    if time > after:
                        yield time


def parse(text: str, flag: str = "--cron") -> Cron:
    """The expression of a flag, or of a file's field; UserError names the part that is wrong."""
    words = _SHORT.get(text.strip().lower(), text).split()
    if words and "TZ=" in words[0].upper():
        raise wrong(flag, f"five fields; the time zone goes into {flag.replace('cron', 'timezone')}", text)
    if len(words) != len(_FIELDS):
        raise wrong(flag, "five fields: minute, hour, day of the month, month, day of the week, such as "
                    "\"0 3 * * 1\" for Mondays at 3 o'clock", text)  # fmt: skip
    values = tuple(_field(word, i, flag) for i, word in enumerate(words))
    week = words[4] if 7 not in values[4] else _list({day % 7 for day in values[4]})
    made = Cron((*words[:4], week), (*values[:4], frozenset(day % 7 for day in values[4])))
    if next(made.times(ZoneInfo("UTC"), datetime.now(UTC)), None) is None:
        raise wrong(flag, "a day that comes", text)
    return made


def _field(word: str, number: int, flag: str) -> frozenset[int]:
    name, low, high, names = _FIELDS[number]

    def refuse(expected: str) -> UserError:
        return wrong(f"{flag} ({name})", expected, word)

    def value(text: str) -> int:
        found = names.get(text.lower(), int(text) if re.fullmatch(r"[0-9]{1,4}", text) else -1)
        if not low <= found <= high:
            named = f" or a name such as {next(iter(names))}" if names else ""
            raise refuse(f"numbers from {low} to {high}{named}, with , - / and *")
        return found

    found: set[int] = set()
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if re.fullmatch(r"[0-9]{1,4}", step_text) else 0
        if slash and not step:
            raise refuse("after / a whole number of at least 1")
        if span == "*" or (span == "?" and number in (2, 4)):
            first, last = low, min(high, 6) if number == 4 else high
        else:
            first_text, dash, last_text = span.partition("-")
            first = value(first_text)
            last = value(last_text) if dash else (high if slash else first)
            if number == 4 and slash and not dash:
                last = 6
        if first > last:
            raise refuse("a range from the smaller to the larger; for others a list, such as 6,0,1")
        found.update(range(first, last + 1, step or 1))
    return frozenset(found)


def shifted(cron: Cron, minutes: int) -> Cron:
    """The expression that fires `minutes` later by the clock; UserError where one expression can't say that."""
    if not minutes:
        return cron
    times = {divmod(hour * 60 + minute + minutes, _DAY) for hour in cron.values[1] for minute in cron.values[0]}
    days = {day for day, _ in times}
    hours, past = {time // 60 for _, time in times}, {time % 60 for _, time in times}
    every_day = [_whole(cron, i) for i in (2, 3, 4)]
    refused = UserError(
        f"--timezone: expected an expression that can be said in the zone that KFP's server reads it in, found "
        f"{str(cron)!r}, whose days or hours fall apart there; give it in the server's zone, or run KFP in yours "
        f"(CRON_SCHEDULE_TIMEZONE) and say so by --server-timezone"
    )
    if len(hours) * len(past) != len({time for _, time in times}):
        raise refused
    if days == {0} or all(every_day):
        week = cron.fields[4]
    elif len(days) == 1 and every_day[0] and every_day[1]:
        week = _list({(day + next(iter(days))) % 7 for day in cron.values[4]})
    else:
        raise refused
    return parse(" ".join((_list(past), "*" if len(hours) == 24 else _list(hours), *cron.fields[2:4], week)))


def _whole(cron: Cron, number: int) -> bool:
    _, low, high, _ = _FIELDS[number]
    return len(cron.values[number]) == min(high, 6 if number == 4 else high) - low + 1


def _list(values: set[int]) -> str:
    return ",".join(str(value) for value in sorted(values))


def zone(name: str, flag: str) -> ZoneInfo:
    """The time zone of this name; UserError for one that there isn't."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found; not a name; a folder of the zones' database
        raise wrong(flag, "a time zone such as Europe/Berlin or UTC", name) from None


def for_server(cron: Cron, where: ZoneInfo, server: ZoneInfo, now: datetime) -> tuple[Cron, bool]:
    """(the expression in the server's zone, whether it is right all year).

    Where one of the two zones has a summer time that the other doesn't, one expression is right for a part of the
    year only: it is made for the winter, and fires an hour off by the user's clock in summer.
    """
    days = [now + timedelta(days=7 * i) for i in range(53)]
    differences = [int((_offset(server, day) - _offset(where, day)).total_seconds() // 60) for day in days]
    winter = [i for i, day in enumerate(days) if not day.astimezone(where).dst() and not day.astimezone(server).dst()]
    return shifted(cron, differences[winter[0] if winter else 0]), len(set(differences)) == 1


def _offset(where: ZoneInfo, moment: datetime) -> timedelta:
    return moment.astimezone(where).utcoffset() or timedelta()
