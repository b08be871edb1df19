"""The audit as one HTML page beside the dataset, with tables, histograms and pictures.

The page refers to nothing outside itself and runs no script; everything from the source is escaped. It depends on the
dataset's content alone (no time, URI or version), so that two equal runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..dataset.manifest import Dataset, File
from ..dataset.shards import publish_bytes
from ..step.progress import format_size
from .audit import gather, sort_splits
from .audit_facts import Audit, Balance, ClassCount
from .audit_layout import format_number, format_percent, pluralize
from .audit_numbers import QUANTILES, Histogram, Scan
from .audit_pictures import Picture, find_pictures

CLASSES, CLASS_ENDS = 60, 20
"""With more than `CLASSES` classes only `CLASS_ENDS` at either end are shown."""
FEW_PAIRS, GROUPS, NAMES = 8, 8, 40
_HEIGHT, _BAR = 64, 10
"""Height of a histogram and width of its bars, in pixels of its SVG."""


FindPictures = Callable[[Sequence[str]], dict[str, Picture]]


def write_audit(dataset: Dataset, scan: Scan | None = None, find: FindPictures | None = None) -> File:
    """Publish the page of a clean dataset, which need not be committed yet; arguments as for `render`."""
    page = render(dataset, scan, find).encode("utf-8", "replace")
    return publish_bytes(dataset.uri, page, "audit-", ".html", role="report")


def render(dataset: Dataset, scan: Scan | None = None, find: FindPictures | None = None) -> str:
    """Render the page; everything is escaped but the histograms, which are made of numbers.

    Args:
        scan: numbers of the kept rows (default: read from the dataset's files).
        find: returns the pictures of images, by image_id (default: found by searching the files).
    """
    find = find or partial(find_pictures, dataset)
    return str(_load_template().render(_make_values(gather(dataset, scan), find)))


@cache
def _load_template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "num": lambda value: f"{value:,}",
        "short": format_number,
        "size": format_size,
        "histogram": _draw_histogram,
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"percent": format_percent, "plural": pluralize, "sort_splits": sort_splits}
    return environment.from_string(Path(__file__).with_name("audit.html.j2").read_text(encoding="utf-8"))


def _make_values(audit: Audit, find: FindPictures) -> dict[str, Any]:
    """Return the variables of the template: the audit, and the parts of long lists that are shown."""
    pairs = {
        "leaking": audit.near.leaking[:FEW_PAIRS],
        "conflicting": audit.near.conflicting[:FEW_PAIRS],
        "closest": audit.near.closest,
    }
    groups = audit.exact.examples[:GROUPS]
    ids = [image_id for shown in pairs.values() for pair in shown for image_id in (pair.image_id, pair.twin_id)]
    ids += [image["image_id"] for group in groups for image in group]
    ids += [image.image_id for extremes in audit.quality.extremes for image in extremes.images]
    ids += [image["image_id"] for outlier in audit.quality.outliers for image in outlier.examples]
    by_splits = audit.near.counts.get("by_splits", {})
    return {
        "audit": audit,
        "pairs": pairs,
        "groups": groups,
        "leaking": sum(count for splits, count in by_splits.items() if splits in ("train-test", "val-test")),
        "pictures": find(ids),
        "measures": {name: values for name, values in audit.quality.distributions.items() if name != "aspect_ratio"},
        "classes": _split_classes(audit.balance),
        "largest": max([entry.total for entry in audit.balance.classes] or [0]) or 1,
        "max_names": NAMES,
        "quantiles": [str(percent) for percent in QUANTILES],
        "units": {"width": "px", "height": "px", "aspect_ratio": "width : height"},
    }


def _split_classes(balance: Balance) -> list[Sequence[ClassCount]]:
    """Return all classes as one block; of more than `CLASSES`, the blocks at either end."""
    classes = balance.classes
    return [classes] if len(classes) <= CLASSES else [classes[:CLASS_ENDS], classes[-CLASS_ENDS:]]


def _draw_histogram(histogram: Histogram) -> Any:
    """Draw a histogram as inline SVG: a bar a bin, and at either end one for the values beyond."""
    from markupsafe import Markup

    counts = (histogram.below, *histogram.counts, histogram.above)
    top = max([*counts, 1])
    step = (histogram.high - histogram.low) / len(histogram.counts)
    bars = []
    for index, count in enumerate(counts):
        if not count:
            continue
        css_class, low = "end", histogram.low + (index - 1) * step
        if index == 0:
            title = f"below {format_number(histogram.low)}"
        elif index == len(counts) - 1:
            title = f"above {format_number(histogram.high)}"
        else:
            css_class, title = "bin", f"{format_number(low)} to {format_number(low + step)}"
        height = max(1.0, (_HEIGHT - 2) * count / top)
        bars.append(
            f'<rect class="{css_class}" x="{index * _BAR + 1}" y="{_HEIGHT - height:.1f}" width="{_BAR - 2}"'
            f' height="{height:.1f}"><title>{title}: {count:,}</title></rect>'
        )
    width = len(counts) * _BAR
    return Markup(
        f'<svg class="hist" viewBox="0 0 {width} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="histogram">{"".join(bars)}</svg>'
    )
