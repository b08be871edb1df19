"""Plain text that people read in a terminal: aligned columns, small bars, and nothing that a terminal would obey.

Image ids and labels come from strangers, so control characters are shown as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

WIDTH = 100
_BLOCKS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def plain(text: str) -> str:
    """`text` with everything that is not printable (line breaks, escapes, marks of direction) as `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def columns(text: str) -> int:
    """How many columns of a terminal it takes: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def short(text: str, width: int) -> str:
    """`text` in at most `width` columns, cut in its middle: paths differ at their ends."""
    text = plain(text)
    if columns(text) <= width:
        return text
    head, tail = "", ""
    for number in range(len(text)):
        longer = (head + text[len(head)], tail) if number % 2 else (head, text[-len(tail) - 1] + tail)
        if columns("".join(longer)) > width - 1:
            break
        head, tail = longer
    return f"{head}…{tail}"


def fit(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` columns."""
    text = short(text, width)
    space = " " * (width - columns(text))
    return space + text if right else text + space


def bar(share: float, width: int) -> str:
    """A bar of up to `width` columns, to an eighth of one; what is not nothing is seen."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()


def spark(counts: Sequence[int]) -> str:
    """A histogram as one line, a character a bin; a space where there is nothing."""
    top = max([*counts, 1])
    return "".join(_LEVELS[min(7, 8 * n // (top + 1))] if n else " " for n in counts)


def number(value: float) -> str:
    """At most six digits' worth: `24,017`, `37`, `12.3`, `0.482`."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    places = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{places}f}" if abs(value) >= 0.0005 else f"{value:.1e}"


def percent(part: float, whole: float) -> str:
    """`0.6%`; what is not nothing is not `0.0%`."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f}%" if share >= 0.05 or not part else "<0.1%"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Iterable[str], most: int, width: int = 40) -> str:
    """`a, b, c and 4 more`."""
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(short(name, width) for name in every[:most]) + more


def heading(title: str) -> str:
    return f"── {title} " + "─" * (WIDTH - 4 - columns(title))


def table(rows: Sequence[Sequence[str]], aligned: str, indent: int = 2) -> list[str]:
    """Lines of aligned columns; `aligned` says how, a letter a column: `l` or `r`. Where a line would be wider than
    `WIDTH` its widest columns are cut."""
    widths = [max((columns(plain(row[i])) for row in rows), default=0) for i in range(len(aligned))]
    room = WIDTH - indent - 2 * (len(aligned) - 1)
    while sum(widths) > room:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return [
        (" " * indent + "  ".join(fit(row[i], widths[i], aligned[i] == "r") for i in range(len(aligned)))).rstrip()
        for row in rows
    ]


def wrapped(text: str, indent: int = 2) -> list[str]:
    """A sentence in lines of at most `WIDTH` columns."""
    lines = [" " * indent]
    for word in plain(text).split(" "):
        if columns(lines[-1]) + columns(word) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
