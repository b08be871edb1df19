"""Sentences and the table of drift: what has changed since the data that the champion was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..dataset.workspace import Workspace
from ..metrics.drift import ALL, LEVEL, NEW, WARNING, Change, Comparison
from .changes import describe_class_changes
from .page import Block, Paragraph, Row, Styled, Table
from .words import MISSING, format_number, format_percent, pluralize, replace_underscores

_DIRECTIONS = {
    "width": ("narrower", "wider"),
    "height": ("lower", "higher"),
    "aspect_ratio": ("more upright", "more oblong"),
    "bytes_per_pixel": ("more compressed", "less compressed"),
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "richer in contrast"),
    "sharpness": ("less sharp", "sharper"),
    "entropy": ("plainer", "busier"),
    "colorfulness": ("less colorful", "more colorful"),
}
"""A lower and a higher median of each measure, in words."""
NOTED_SHIFT, NOTED_SPREAD = 0.1, 1.25
"""In quartile distances: from this change of the median on, and else of the distance itself, it is put into words."""
MAX_NAMED, NAMED_CLASSES = 4, 2


def describe_comparison(comparison: Comparison, promotion: int) -> Iterator[str]:
    """Yield the terminal's lines: new images, changed classes, drift, and what could not be compared."""
    yield f"{_describe_rows(comparison)} since the data of the champion (promotion {promotion})"
    yield from (changes := describe_changed_classes(comparison))
    if comparison.changed_options:
        yield f"warning: {_describe_options(comparison)}"
    drift = comparison.drift
    for scope in (ALL, NEW):
        lines = [describe_change(change) for change in drift if change.scope == scope]
        more = f" and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
        if lines:
            yield f"warning: drift of {_name_scope(scope, comparison)}: {' · '.join(lines[:MAX_NAMED])}{more}"
    if not drift:
        other = "other " if changes else ""
        yield f"no {other}drift: nothing has changed by a distance above {WARNING:g} and more than chance gives"


def _describe_rows(comparison: Comparison) -> str:
    parts = [f"{comparison.added:,} of {comparison.rows:,} images are new"]
    parts += [f"{comparison.removed:,} are gone"] if comparison.removed else []
    return ", ".join(parts + ([f"{comparison.relabeled:,} have another label"] if comparison.relabeled else []))


def _describe_options(comparison: Comparison) -> str:
    options = ", ".join(f"{name} {then} then, {now} now" for name, (then, now) in comparison.changed_options.items())
    left_out = f"; {' and '.join(comparison.left_out)} are not compared" if comparison.left_out else ""
    return f"clean had other options then ({options}){left_out}"


def describe_changed_classes(comparison: Comparison) -> list[str]:
    """Return a sentence for each class that is new, gone or renamed since the champion's data."""
    return describe_class_changes(comparison.class_changes, comparison.images, comparison.earlier_images)


def list_drift(changes: Sequence[Change], comparison: Comparison) -> list[str]:
    """Return a line for each change, with the images that it is of."""
    return [f"{_name_scope(change.scope, comparison)}: {describe_change(change)}" for change in changes]


def _name_scope(scope: str, comparison: Comparison) -> str:
    return f"the {comparison.added:,} new images" if scope == NEW else f"all {comparison.rows:,} images"


def describe_change(change: Change) -> str:
    """Return a change in words: `brightness darker: median 0.487 to 0.192 (distance 0.87)`."""
    name = replace_underscores(change.name)
    if change.classes:
        pairs = zip(change.classes, change.then, change.now, strict=True)
        named = [f"{label} {format_percent(then)} to {format_percent(now)}" for label, then, now in pairs]
        name += f": {', '.join(named[:NAMED_CLASSES])}"
    elif change.then:
        name += f" {_name_direction(change)}: median {format_number(change.then[1])} to {format_number(change.now[1])}"
    return f"{name} (distance {change.distance:.2f})"


def _name_direction(change: Change) -> str:
    (low, median, high), (low_now, median_now, high_now) = change.then, change.now
    spread, spread_now = high - low, high_now - low_now
    if abs(median_now - median) > NOTED_SHIFT * max(spread, spread_now):
        return _DIRECTIONS[change.name][median_now > median]
    if spread_now > NOTED_SPREAD * spread:
        return "more varied"
    return "less varied" if spread > NOTED_SPREAD * spread_now else "of another distribution"


def describe_drift(workspace: Workspace, run: str, name: str) -> list[Block]:
    """Return the section; empty where neither clean nor evaluate compared anything in this run."""
    comparisons: list[Comparison] = []
    lines: list[str] = []
    promotion = 0
    for step, prefix in (("clean", "drift"), ("evaluate", "feature_drift")):
        record = workspace.step_record(run, step)
        metrics = record.metrics if record else {}
        key = metrics.get(f"{prefix}_comparison")
        if key and (stored := workspace.drift(name, key)):
            comparisons.append(Comparison.from_dict(stored, key))
            lines += metrics[prefix]
            promotion = metrics[f"{prefix}_promotion"]
    if not comparisons:
        return []
    first = comparisons[0]
    images = pluralize(first.reference_rows, "image")
    text = f"Against the {images} that the champion of before (promotion {promotion}) was trained on: "
    blocks: list[Block] = [Paragraph(f"{text}{_describe_rows(first)}.")]
    if first.changed_options:
        blocks.append(Paragraph(f"{_describe_options(first)}.", "note"))
    blocks += [Paragraph(line, "bad") for line in lines] or [Paragraph("No drift.", "good")]
    changes = {(change.name, change.scope): change for comparison in comparisons for change in comparison.changes}
    names = dict.fromkeys(change.name for comparison in comparisons for change in comparison.changes)
    rows: list[Row] = [
        (
            replace_underscores(row_name),
            *_make_cells(changes.get((row_name, ALL))),
            *_make_cells(changes.get((row_name, NEW)))[1:],
        )
        for row_name in names
    ]
    text = "The distance of two distributions is 0 where they are equal, and 1 where they have nothing in common. Red: "
    text += f"above {WARNING:g}, and more than chance gives any of these numbers in {LEVEL:.0%} of comparisons."
    blocks.append(Paragraph(text, "note"))
    head = ("", "then", "now", "distance", "of the new images", "distance")
    return [*blocks, Table(rows, head, "lrrrrr")]


def _make_cells(change: Change | None) -> tuple[str | Styled, str | Styled, str | Styled]:
    """Return the cells of then, now and the distance: medians, or the share of the class that changed most."""
    if change is None:
        return MISSING, MISSING, MISSING
    distance = Styled(f"{change.distance:.2f}", "bad" if change.is_drift else "")
    if change.classes:
        then, now = format_percent(change.then[0]), format_percent(change.now[0])
        return Styled(then, note=change.classes[0]), Styled(now, note=change.classes[0]), distance
    if change.then:
        return format_number(change.then[1]), format_number(change.now[1]), distance
    return MISSING, MISSING, distance
