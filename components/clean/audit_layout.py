"""Formatting of plain text for a terminal: aligned columns, bars, numbers.

Image ids and labels are untrusted, so control characters are shown as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

WIDTH = 100
_BLOCKS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def escape_unprintable(text: str) -> str:
    """Return `text` with all unprintable characters (line breaks, escapes, marks of direction) as `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def count_columns(text: str) -> int:
    """Return the number of terminal columns of `text`: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """Return `text` in at most `width` columns, cut in its middle because paths differ at their ends."""
    text = escape_unprintable(text)
    if count_columns(text) <= width:
        return text
    head, tail = "", ""
    for number in range(len(text)):
        longer = (head + text[len(head)], tail) if number % 2 else (head, text[-len(tail) - 1] + tail)
        if count_columns("".join(longer)) > width - 1:
            break
        head, tail = longer
    return f"{head}…{tail}"


def fit(text: str, width: int, right: bool = False) -> str:
    """Return `text` in exactly `width` columns, cut or padded."""
    text = shorten(text, width)
    space = " " * (width - count_columns(text))
    return space + text if right else text + space


def draw_bar(share: float, width: int) -> str:
    """Draw a bar of up to `width` columns, to an eighth of one; a share above 0 is always visible."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def draw_sparkline(counts: Sequence[int]) -> str:
    """Draw a histogram as one line, a character a bin; a space for an empty one."""
    top = max([*counts, 1])
    return "".join(_LEVELS[min(7, 8 * n // (top + 1))] if n else " " for n in counts)


def format_number(value: float) -> str:
    """Format a number with about four significant digits: `24,017`, `37`, `12.30`, `0.482`."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    places = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{places}f}" if abs(value) >= 0.0005 else f"{value:.1e}"


def format_percent(part: float, whole: float) -> str:
    """Format a share as `0.6%`; one above 0 is never `0.0%`."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f}%" if share >= 0.05 or not part else "<0.1%"


def pluralize(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: `1 class`, `1,024 classes`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def join_names(names: Iterable[str], limit: int, width: int = 40) -> str:
    """Join up to `limit` names, each of at most `width` columns: `a, b, c and 4 more`."""
    names = list(names)
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(shorten(name, width) for name in names[:limit]) + more


def format_heading(title: str) -> str:
    """Format a title as a rule of `WIDTH` columns."""
    return f"── {title} " + "─" * (WIDTH - 4 - count_columns(title))


def format_table(rows: Sequence[Sequence[str]], alignment: str, indent: int = 2) -> list[str]:
    """Format rows of cells as lines of aligned columns (`alignment`: a letter per column, `l` or `r`); the widest
    columns are cut so that lines are at most `WIDTH` wide."""
    widths = [
        max((count_columns(escape_unprintable(row[i])) for row in rows), default=0) for i in range(len(alignment))
    ]
    room = WIDTH - indent - 2 * (len(alignment) - 1)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return [
        (" " * indent + "  ".join(fit(row[i], widths[i], alignment[i] == "r") for i in range(len(alignment)))).rstrip()
        for row in rows
    ]


def wrap_text(text: str, indent: int = 2) -> list[str]:
    """Wrap a sentence into lines of at most `WIDTH` columns."""
    lines = [" " * indent]
    for word in escape_unprintable(text).split(" "):
        if count_columns(lines[-1]) + count_columns(word) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
