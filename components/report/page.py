"""A page as data: sections of paragraphs, tables, pictures and charts.

A page is rendered as HTML here, and its sections as text for a terminal by `terminal.py`. The HTML refers to nothing
outside itself and runs no script. Image ids, labels and details come from the source: everything is escaped but the
charts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from markupsafe import Markup

    from .pictures import Thumbnail

MAX_ROWS, END_ROWS = 40, 15
"""Of a list with more than `MAX_ROWS` rows the first and the last `END_ROWS` are shown."""


@dataclass(frozen=True)
class Styled:
    """Text of a table cell in a `tone` (good, bad, strong), and a smaller `note` after it."""

    text: str
    tone: str = ""
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar in a table cell: (share of the cell's width, color) of each part, from `start` on, and a `mark` across."""

    parts: tuple[tuple[float, str], ...]
    start: float = 0.0
    mark: float | None = None


@dataclass(frozen=True)
class Bins:
    """A histogram in a table cell."""

    counts: tuple[int, ...]


Cell = str | Styled | Bar | Bins
Row = Sequence[Cell]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph in a `tone`: note (smaller), good, bad, or plain."""

    kind: ClassVar[str] = "paragraph"
    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `alignment` has a letter for each column, `l` or `r`. A row of one cell goes across all columns. A
    `is_folded` table opens with a click."""

    kind: ClassVar[str] = "table"
    rows: Sequence[Row]
    head: Sequence[str] = ()
    alignment: str = ""
    title: str = ""
    is_folded: bool = False

    @property
    def columns(self) -> str:
        """Return the alignment of each column, by default all to the left."""
        return self.alignment or "l" * max([len(self.head), *map(len, self.rows)])


@dataclass(frozen=True)
class Figure:
    """An image, or two side by side, with a `title` and further `lines` below."""

    pictures: tuple[Thumbnail, ...]
    title: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """A gallery."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side, as (title, SVG)."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[tuple[str, Markup]]
    title: str = ""


@dataclass(frozen=True)
class Listing:
    """Lines to copy, which open with a click."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]
    title: str


Block = Paragraph | Table | Figures | Charts | Listing


@dataclass(frozen=True)
class Section:
    """A part of a page; `name` is its anchor. A section without blocks is left out."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Banner:
    """The result at the top of a page: `tone` is good, warn or neutral; `scores` are (number, its name)."""

    tone: str
    title: str
    text: str
    note: str = ""
    scores: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """A page; `tiles` are (name, number, note)."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    banners: Sequence[Banner] = ()
    tiles: Sequence[tuple[str, str, str]] = ()


def take_ends(rows: Sequence[Row], unit: str) -> list[Row]:
    """Return the rows; of more than `MAX_ROWS`, both ends with the number of those between."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    between = f"… {len(rows) - 2 * END_ROWS:,} {unit} between"
    return [*rows[:END_ROWS], (between,), *rows[-END_ROWS:]]


def render(page: Page) -> str:
    """Return the page as HTML."""
    sections = [section for section in page.sections if section.blocks]
    return str(_load_template().render(page=page, sections=sections))


@cache
def _load_template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests |= {
        "bar": lambda cell: isinstance(cell, Bar),
        "bins": lambda cell: isinstance(cell, Bins),
        "styled": lambda cell: isinstance(cell, Styled),
    }
    environment.filters["percent"] = lambda share: f"{100 * share:.2f}%"
    environment.filters["file"] = shorten_file_name
    return environment.get_template("page.html.j2")


def shorten_file_name(image_id: str, limit: int = 25) -> str:
    """Return the file's name for two lines below a thumbnail; the beginning and the end of a long one."""
    name = image_id.rstrip("/").rpartition("/")[2]
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2) :]}"
