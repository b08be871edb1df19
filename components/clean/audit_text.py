"""The audit as text for a terminal, 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping

from ..step.progress import format_size
from .audit import sort_splits
from .audit_facts import (
    Audit,
    Balance,
    ExactDuplicates,
    ImageNote,
    Ledger,
    NearDuplicates,
    Outlier,
    Pair,
    Provenance,
    Quality,
    Sizes,
)
from .audit_layout import (
    count_columns,
    draw_bar,
    draw_sparkline,
    fit,
    format_heading,
    format_number,
    format_percent,
    format_table,
    join_names,
    pluralize,
    shorten,
    wrap_text,
)
from .audit_numbers import Distribution

CLASSES, CLASS_ENDS, PAIRS, NAMES = 40, 10, 8, 8
"""With more than `CLASSES` classes only `CLASS_ENDS` at either end are shown; at most `PAIRS` pairs, `NAMES` names."""
_QUANTILES = ("1", "25", "50", "75", "99")
_UNITS = {
    "width": "width, px",
    "height": "height, px",
    "aspect_ratio": "width : height",
    "image_bytes": "file size, kB",
}
_INTEGER_UNITS = (_UNITS["width"], _UNITS["height"])


def format_audit(audit: Audit) -> str:
    """Format all sections, each under its heading."""
    sections = {
        "Ledger": _format_ledger(audit.ledger),
        "Classes": _format_balance(audit.balance),
        "Sizes": _format_sizes(audit.sizes),
        "Quality": _format_quality(audit.quality),
        "Duplicates": _format_duplicates(audit.exact, audit.near),
        "Leakage": _format_leakage(audit),
        "Provenance": _format_provenance(audit.provenance),
    }
    return "\n\n".join("\n".join([format_heading(title), *lines]) for title, lines in sections.items())


def _format_ledger(ledger: Ledger) -> list[str]:
    splits = " · ".join(f"{split} {ledger.by_split[split]:,}" for split in sort_splits(ledger.by_split))
    sign = "≠" if ledger.rows_in != ledger.kept + ledger.rejected else "="
    lines = [f"  {ledger.rows_in:,} rows in {sign} {ledger.kept:,} kept + {ledger.rejected:,} rejected"]
    lines.append(f"  kept: {splits}")
    if ledger.problems:
        lines += [line for problem in ledger.problems for line in wrap_text(f"WRONG: {problem}")]
    else:
        lines.append("  ✓ it adds up, and the files have the rows that the manifest says")
    largest = max([reason.count for reason in ledger.reasons] or [1])
    for reason in ledger.reasons:
        share = draw_bar(reason.count / largest, 24)
        of_all = format_percent(reason.count, ledger.kept + ledger.rejected)
        lines += ["", f"  {fit(reason.reason, 24)}{reason.count:>10,}  {of_all:>6}  {share}"]
        lines += _format_notes(reason.examples)
        if reason.count > len(reason.examples):
            lines.append(f"    and {reason.count - len(reason.examples):,} more")
    return lines


def _format_notes(notes: tuple[ImageNote, ...]) -> list[str]:
    """Format a line per note, the image's name shortened first."""
    return [
        f"    {(name := shorten(note.image_id, 44))}: {shorten(note.sentence, 94 - count_columns(name))}"
        for note in notes
    ]


def _format_balance(balance: Balance) -> list[str]:
    classes = balance.classes
    lines = [f"  {pluralize(len(classes), 'class', 'classes')}"]
    if balance.ratio is not None:
        full = [entry for entry in classes if entry.total]
        lines[0] += (
            f", from {full[0].total:,} images ({shorten(full[0].name, 24)}) to {full[-1].total:,}"
            f" ({shorten(full[-1].name, 24)}): {balance.ratio:,.1f} to 1"
        )
    lines += [line for change in balance.changes for line in wrap_text(f"since the last run: {change}")]
    for split, names in balance.without.items():
        if names:
            problem = "no image at all" if split == "any" else f"no {split} image"
            lines += wrap_text(f"{problem}: {pluralize(len(names), 'class', 'classes')}: {join_names(names, NAMES)}")
    ends = len(classes) > CLASSES
    shown = [*classes[:CLASS_ENDS], *classes[-CLASS_ENDS:]] if ends else classes
    splits = sort_splits(shown[0].splits) if shown else []
    largest = max([entry.total for entry in shown] or [1]) or 1
    rows = [["", "images", *splits, ""]]
    rows += [
        [entry.name, f"{entry.total:,}", *(f"{entry.splits[s]:,}" for s in splits), draw_bar(entry.total / largest, 24)]
        for entry in shown
    ]
    table = format_table(rows, "l" + "r" * (1 + len(splits)) + "l")
    if ends:
        table.insert(1 + CLASS_ENDS, f"  … {len(classes) - 2 * CLASS_ENDS:,} classes between")
    return [*lines, "", *table]


def _format_sizes(sizes: Sizes) -> list[str]:
    lines = _format_distributions({_UNITS[name]: values for name, values in sizes.distributions.items()})
    formats = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in sizes.formats.items())
    lines += ["", f"  formats: {formats}", f"  decoder warnings: {sizes.warnings:,}"]
    lines += _format_notes(sizes.warned)
    if sizes.warnings > len(sizes.warned):
        lines.append(f"    and {sizes.warnings - len(sizes.warned):,} more")
    return lines


def _format_distributions(distributions: Mapping[str, Distribution]) -> list[str]:
    """Format a line per distribution: ends, quantiles, and a histogram between the 1st and the 99th percentile."""
    rows = [["", "least", "1%", "25%", "median", "75%", "99%", "most", "1% to 99%"]]
    for name, distribution in distributions.items():
        quantiles = [distribution.quantiles[percent] for percent in _QUANTILES]
        values = [distribution.minimum, *quantiles, distribution.maximum]
        if name in _INTEGER_UNITS:
            values = [round(value) for value in values]
        elif name == _UNITS["image_bytes"]:
            values = [value / 1000 for value in values]
        rows.append([name, *map(format_number, values), draw_sparkline(distribution.histogram.counts)])
    return format_table(rows, "l" + "r" * 7 + "l")


def _format_quality(quality: Quality) -> list[str]:
    lines = [f"  {quality.note}"] if quality.note else _format_distributions(
        {name.replace("_", " "): values for name, values in quality.distributions.items() if name != "aspect_ratio"}
    )  # fmt: skip
    if quality.outliers:
        action = "dropped" if quality.policy == "drop" else "kept, reported only"
        limit = f" (score above {quality.threshold:g}; {action})" if quality.threshold else ""
        lines += ["", f"  outliers{limit}"]
        lines += [line for outlier in quality.outliers for line in _format_outlier(outlier)]
    elif quality.distributions:
        lines += ["", "  outliers: none"]
    for extremes in quality.extremes:
        lines += ["", f"  {extremes.title}"]
        rows = [[i.image_id, i.label, i.split, format_number(i.value)] for i in extremes.images]
        lines += format_table(rows, "lllr", 4)
    return lines


def _format_outlier(outlier: Outlier) -> list[str]:
    measure = outlier.measure.replace("_", " ")
    lines = [f"    {fit(measure, 16)}{outlier.count:>8,}   median {format_number(outlier.median)}"]
    rows = [[e["image_id"], format_number(e["value"]), "score", f"{e['score']:,.1f}"] for e in outlier.examples]
    lines += format_table(rows, "lrlr", 6)
    return [*lines, f"      and {outlier.count - len(rows):,} more"] if outlier.count > len(rows) else lines


def _format_duplicates(exact: ExactDuplicates, near: NearDuplicates) -> list[str]:
    copies, groups = pluralize(exact.copies, "copy", "copies"), pluralize(exact.groups, "group")
    lines = [f"  exact: {copies} rejected in {groups} of equal pixels"]
    if exact.conflicts:
        lines.append(f"  with different labels: {pluralize(exact.conflicts, 'group')} of equal pixels")
        for group in exact.examples[:PAIRS]:
            images = (f"{shorten(image['image_id'], 40)} ({shorten(image['label'], 24)})" for image in group)
            lines += wrap_text(" = ".join(images), 4)
        if exact.conflicts > PAIRS:
            lines.append(f"    and {exact.conflicts - len(exact.examples[:PAIRS]):,} more")
    if not near.counts:
        return [*lines, f"  near: {near.note}"]
    numbers = near.counts
    by_splits = ", ".join(f"{splits} {count:,}" for splits, count in numbers["by_splits"].items())
    lines.append(
        f"  near (within {numbers['radius']} of 64 bits, verified): {pluralize(numbers['pairs'], 'pair')} of"
        f" {pluralize(numbers['images'], 'image')}, {numbers['dropped']:,} dropped within a split"
    )
    lines += [f"  pairs by split: {by_splits}"] if by_splits else []
    lines += wrap_text(near.note) if near.note else []
    lines += _format_pairs(near.conflicting, "different labels", numbers["conflicts"])
    return lines + _format_pairs(near.closest, "the closest", numbers["pairs"])


def _format_leakage(audit: Audit) -> list[str]:
    by_splits = audit.near.counts.get("by_splits", {})
    total = sum(count for splits, count in by_splits.items() if splits in ("train-test", "val-test"))
    return wrap_text(audit.leakage.sentence) + _format_pairs(audit.near.leaking, "one side in test", total)


def _format_pairs(pairs: tuple[Pair, ...], title: str, total: int) -> list[str]:
    if not pairs:
        return []
    rows = [["", "split", "label", "bits", "differs", ""]]
    for pair in pairs[:PAIRS]:
        numbers = [f"{pair.distance}", format_number(pair.difference), pair.describe_dropped()]
        rows.append([pair.image_id, pair.split, pair.label, *numbers])
        rows.append([f"= {pair.twin_id}", pair.twin_split, pair.twin_label, "", "", ""])
    lines = ["", f"  {title}", *format_table(rows, "lllrrl", 4)]
    more = total - len(pairs[:PAIRS])
    return [*lines, f"    and {more:,} more"] if more > 0 else lines


def _format_provenance(provenance: Provenance) -> list[str]:
    rows = [
        ["fingerprint", provenance.fingerprint],
        ["parents", ", ".join(provenance.parents) or "none"],
        ["made", f"{provenance.created} by imagemill {provenance.code_version}"],
        ["images", f"{format_size(provenance.bytes)}, color {provenance.color}, {provenance.task}-label"],
        ["settings", "all at their defaults" if not provenance.settings else "different from the defaults:"],
    ]
    settings = []
    for name, setting in provenance.settings.items():
        default = "no such setting now" if setting["default"] is None else f"default {setting['default']}"
        settings.append([name, str(setting["value"]), default])
    return format_table(rows, "ll") + format_table(settings, "lll", 4)
