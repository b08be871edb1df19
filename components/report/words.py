"""Numbers, counts and names as words, for pages, terminal lines and messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..step.progress import format_duration

MISSING = "\N{EN DASH}"


def format_number(value: float) -> str:
    """Format a number with about four significant digits: `24,017`, `37`, `12.30`, `0.482`."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    places = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{places}f}" if abs(value) >= 0.0005 else f"{value:.1e}"


def format_percent(part: float, whole: float = 1.0) -> str:
    """Format a share as `0.6%`; one above 0 is never `0.0%`."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f}%" if share >= 0.05 or not part else "<0.1%"


def format_score(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def format_gain(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def format_interval(interval: Iterable[float]) -> str:
    return " to ".join(f"{bound:.3f}" for bound in interval)


def format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    return f"{seconds:.1f} s" if seconds < 10 else format_duration(seconds)


def format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'unknown'} {number:,}" for name, number in counts.items()) or "none"


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: `1 class`, `1,024 classes`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def join_names(names: Iterable[str], limit: int) -> str:
    """Join up to `limit` names: `a, b, c and 4 more`."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def capitalize(sentence: str) -> str:
    """Return a sentence with its first letter as a capital, and the others as they are."""
    return sentence[:1].upper() + sentence[1:]


def replace_underscores(name: str) -> str:
    return name.replace("_", " ")
