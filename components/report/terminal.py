"""Sections of a page as plain text for a terminal, `WIDTH` columns wide.

Image ids and labels are untrusted, so control characters are shown as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from .page import Bar, Bins, Block, Cell, Figures, Paragraph, Section, Styled, Table

WIDTH = 100
BAR_WIDTH = 20
_BLOCKS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def format_sections(sections: Sequence[Section]) -> list[str]:
    """Return the lines of the sections, each under its heading; charts are left out."""
    lines: list[str] = []
    for section in sections:
        lines += ["", format_heading(section.title)] if lines else [format_heading(section.title)]
        for block in section.blocks:
            lines += _format_block(block)
    return lines


def _format_block(block: Block) -> Iterator[str]:
    if isinstance(block, Paragraph):
        yield from wrap_text(block.text)
    elif isinstance(block, Table | Figures):
        yield from ["", *wrap_text(block.title)] if block.title else []
        if isinstance(block, Table):
            yield from format_table([block.head, *block.rows] if block.head else block.rows, block.columns)
        else:
            for figure in block.figures:
                names = " = ".join(shorten(picture.image_id, 44) for picture in figure.pictures)
                yield from wrap_text(" · ".join([names, *filter(None, [figure.title]), *figure.lines]), 4)


def format_table(rows: Sequence[Sequence[Cell]], alignment: str, indent: int = 2) -> list[str]:
    """Format rows of cells as lines of aligned columns (`alignment`: a letter per column, `l` or `r`); the widest
    columns are cut so that lines are at most `WIDTH` wide."""
    texts = [[format_cell(cell) for cell in row] for row in rows]
    columns = len(alignment)
    full = [row for row in texts if len(row) == columns]
    widths = [max((count_columns(row[i]) for row in full), default=0) for i in range(columns)]
    while sum(widths) > WIDTH - indent - 2 * (columns - 1):
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in texts:
        cells = (
            row if len(row) == 1 != columns else [fit(row[i], widths[i], alignment[i] == "r") for i in range(columns)]
        )
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def format_cell(cell: Cell) -> str:
    """Return a cell as printable text."""
    if isinstance(cell, Bar):
        return draw_bar(sum(share for share, _ in cell.parts), BAR_WIDTH)
    if isinstance(cell, Bins):
        return draw_sparkline(cell.counts)
    if isinstance(cell, Styled):
        cell = f"{cell.text} {cell.note}".rstrip()
    return escape_unprintable(cell)


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


def format_heading(title: str) -> str:
    """Format a title as a rule of `WIDTH` columns."""
    return f"── {title} " + "─" * (WIDTH - 4 - count_columns(title))


def wrap_text(text: str, indent: int = 2) -> list[str]:
    """Wrap a sentence into lines of at most `WIDTH` columns; a longer word is cut."""
    lines = [" " * indent]
    for word in escape_unprintable(text).split(" "):
        word = shorten(word, WIDTH - indent - 1)
        if count_columns(lines[-1]) + count_columns(word) > WIDTH:
            lines.append(" " * indent)
        lines[-1] += f"{word} "
    return [line.rstrip() for line in lines]
