"""The audit as one HTML page beside the dataset: tables, histograms, and pictures where people look and don't read.

The page refers to nothing outside itself and runs no script; everything from the source is escaped. It is a
function of the dataset's content (no clock, no place, no version), so that two equal runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..store.manifest import Dataset, File
from ..store.progress import format_size
from ..store.shards import publish_bytes
from .audit import gather, split_order
from .audit_facts import Audit, Balance
from .audit_layout import number, percent, plural
from .audit_numbers import QUANTILES, Histogram
from .audit_pictures import find_pictures

CLASSES, CLASS_ENDS = 60, 20
"""With more than `CLASSES` classes only `CLASS_ENDS` at either end are shown."""
FEW_PAIRS, GROUPS, NAMES = 8, 8, 40
_HEIGHT, _BAR = 64, 10
"""Of a histogram, in pixels of its SVG."""


def write_audit(dataset: Dataset) -> File:
    """Publish the page of a clean dataset, which need not be committed yet, below its URI."""
    return publish_bytes(dataset.uri, render(dataset).encode("utf-8", "replace"), "audit-", ".html", role="report")


def render(dataset: Dataset) -> str:
    """The page, everything escaped but the histograms, which are made of numbers."""
    return str(_template().render(_shown(gather(dataset), dataset)))


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "num": lambda value: f"{value:,}",
        "short": number,
        "size": format_size,
        "histogram": _histogram,
        "words": lambda name: name.replace("_", " "),
    }
    page.globals |= {"percent": percent, "plural": plural, "split_order": split_order}
    return page.from_string(Path(__file__).with_name("audit.html.j2").read_text(encoding="utf-8"))


def _shown(audit: Audit, dataset: Dataset) -> dict[str, Any]:
    """What the template shows: the audit, and of what is long its share."""
    pairs = {
        "leaking": audit.near.leaking[:FEW_PAIRS],
        "conflicting": audit.near.conflicting[:FEW_PAIRS],
        "closest": audit.near.closest,
    }
    groups = audit.exact.examples[:GROUPS]
    ids = [id_ for few in pairs.values() for pair in few for id_ in (pair.image_id, pair.twin_id)]
    ids += [one["image_id"] for group in groups for one in group]
    ids += [one.image_id for extremes in audit.quality.extremes for one in extremes.images]
    ids += [one["image_id"] for outlier in audit.quality.outliers for one in outlier.examples]
    between = audit.near.found.get("by_splits", {})
    return {
        "audit": audit,
        "pairs": pairs,
        "groups": groups,
        "leaking": sum(count for splits, count in between.items() if splits in ("train-test", "val-test")),
        "pictures": find_pictures(dataset, ids),
        "measures": {name: found for name, found in audit.quality.distributions.items() if name != "aspect_ratio"},
        "classes": _ends(audit.balance),
        "largest": max([one.total for one in audit.balance.classes] or [0]) or 1,
        "most_names": NAMES,
        "quantiles": [str(percent) for percent in QUANTILES],
        "units": {"width": "px", "height": "px", "aspect_ratio": "width : height"},
    }


def _ends(balance: Balance) -> list[Sequence[Any]]:
    """All classes as one block; of more than `CLASSES`, those at either end."""
    every = balance.classes
    return [every] if len(every) <= CLASSES else [every[:CLASS_ENDS], every[-CLASS_ENDS:]]


def _histogram(found: Histogram) -> Any:
    """Inline SVG: a bar a bin, and at either end one for what lies beyond."""
    from markupsafe import Markup

    counts = (found.below, *found.counts, found.above)
    top = max([*counts, 1])
    step = (found.high - found.low) / len(found.counts)
    bars = []
    for place, count in enumerate(counts):
        if not count:
            continue
        kind, low = "end", found.low + (place - 1) * step
        if place == 0:
            where = f"below {number(found.low)}"
        elif place == len(counts) - 1:
            where = f"above {number(found.high)}"
        else:
            kind, where = "bin", f"{number(low)} to {number(low + step)}"
        tall = max(1.0, (_HEIGHT - 2) * count / top)
        bars.append(
            f'<rect class="{kind}" x="{place * _BAR + 1}" y="{_HEIGHT - tall:.1f}" width="{_BAR - 2}"'
            f' height="{tall:.1f}"><title>{where}: {count:,}</title></rect>'
        )
    wide = len(counts) * _BAR
    return Markup(
        f'<svg class="hist" viewBox="0 0 {wide} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="histogram">{"".join(bars)}</svg>'
    )
