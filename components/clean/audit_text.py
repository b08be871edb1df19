"""The audit as text for a terminal, 100 columns wide."""

from __future__ import annotations

from collections.abc import Mapping

from ..store.progress import format_size
from .audit import split_order
from .audit_facts import Audit, Balance, Exact, Ledger, Named, Near, Outlier, Pair, Provenance, Quality, Sizes
from .audit_layout import bar, columns, fit, heading, listed, number, percent, plural, short, spark, table, wrapped
from .audit_numbers import Distribution

CLASSES, CLASS_ENDS, PAIRS, NAMES = 40, 10, 8, 8
"""With more than `CLASSES` classes only `CLASS_ENDS` at either end are shown; so many pairs, and so many names."""
_COLUMNS = ("1", "25", "50", "75", "99")
_UNITS = {
    "width": "width, px",
    "height": "height, px",
    "aspect_ratio": "width : height",
    "image_bytes": "file size, kB",
}
_WHOLE = (_UNITS["width"], _UNITS["height"])


def text(audit: Audit) -> str:
    """All sections, each under its heading."""
    sections = {
        "Ledger": _ledger(audit.ledger),
        "Classes": _balance(audit.balance),
        "Sizes": _sizes(audit.sizes),
        "Quality": _quality(audit.quality),
        "Duplicates": _duplicates(audit.exact, audit.near),
        "Leakage": _leakage(audit),
        "Provenance": _provenance(audit.provenance),
    }
    return "\n\n".join("\n".join([heading(title), *lines]) for title, lines in sections.items())


def _ledger(ledger: Ledger) -> list[str]:
    splits = " · ".join(f"{split} {ledger.by_split[split]:,}" for split in split_order(ledger.by_split))
    if ledger.rows_in is None:
        lines = [
            f"  {ledger.kept:,} kept, {ledger.rejected:,} rejected; rows in: not recorded by the version that made it"
        ]
    else:
        sign = "≠" if ledger.rows_in != ledger.kept + ledger.rejected else "="
        lines = [f"  {ledger.rows_in:,} rows in {sign} {ledger.kept:,} kept + {ledger.rejected:,} rejected"]
    lines.append(f"  kept: {splits}")
    if ledger.problems:
        lines += [line for problem in ledger.problems for line in wrapped(f"WRONG: {problem}")]
    else:
        lines.append("  ✓ it adds up, and the files have the rows that the manifest says")
    largest = max([reason.count for reason in ledger.reasons] or [1])
    for reason in ledger.reasons:
        share = bar(reason.count / largest, 24)
        of_all = percent(reason.count, ledger.kept + ledger.rejected)
        lines += ["", f"  {fit(reason.reason, 24)}{reason.count:>10,}  {of_all:>6}  {share}"]
        lines += _said(reason.examples)
        if reason.count > len(reason.examples):
            lines.append(f"    and {reason.count - len(reason.examples):,} more")
    return lines


def _said(examples: tuple[Named, ...]) -> list[str]:
    """A line each, the image's name cut before what is said of it."""
    return [f"    {(name := short(one.image_id, 44))}: {short(one.said, 94 - columns(name))}" for one in examples]


def _balance(balance: Balance) -> list[str]:
    classes = balance.classes
    lines = [f"  {plural(len(classes), 'class', 'classes')}"]
    if balance.ratio is not None:
        full = [one for one in classes if one.total]
        lines[0] += (
            f", from {full[0].total:,} images ({short(full[0].name, 24)}) to {full[-1].total:,}"
            f" ({short(full[-1].name, 24)}): {balance.ratio:,.1f} to 1"
        )
    for split, names in balance.without.items():
        if names:
            what = "no image at all" if split == "any" else f"no {split} image"
            lines += wrapped(f"{what}: {plural(len(names), 'class', 'classes')}: {listed(names, NAMES)}")
    ends = len(classes) > CLASSES
    shown = [*classes[:CLASS_ENDS], *classes[-CLASS_ENDS:]] if ends else classes
    splits = split_order(shown[0].splits) if shown else []
    largest = max([one.total for one in shown] or [1]) or 1
    rows = [["", "images", *splits, ""]]
    rows += [
        [one.name, f"{one.total:,}", *(f"{one.splits[s]:,}" for s in splits), bar(one.total / largest, 24)]
        for one in shown
    ]
    body = table(rows, "l" + "r" * (1 + len(splits)) + "l")
    if ends:
        body.insert(1 + CLASS_ENDS, f"  … {len(classes) - 2 * CLASS_ENDS:,} classes between")
    return [*lines, "", *body]


def _sizes(sizes: Sizes) -> list[str]:
    lines = _distributions({_UNITS[name]: found for name, found in sizes.distributions.items()})
    formats = ", ".join(f"{name or 'unknown'} {count:,}" for name, count in sizes.formats.items())
    lines += ["", f"  formats: {formats or 'not recorded'}", f"  decoder warnings: {sizes.warnings:,}"]
    lines += _said(sizes.warned)
    if sizes.warnings > len(sizes.warned):
        lines.append(f"    and {sizes.warnings - len(sizes.warned):,} more")
    return lines


def _distributions(found: Mapping[str, Distribution]) -> list[str]:
    """A line each: ends, quantiles, and a histogram between the 1st and the 99th percentile."""
    rows = [
        ["", "least", *(f"{percent}%" if percent != "50" else "median" for percent in _COLUMNS), "most", "1% to 99%"]
    ]
    for name, one in found.items():
        values = [one.minimum, *(one.quantiles[percent] for percent in _COLUMNS), one.maximum]
        if name in _WHOLE:
            values = [round(value) for value in values]
        elif name == _UNITS["image_bytes"]:
            values = [value / 1000 for value in values]
        rows.append([name, *map(number, values), spark(one.histogram.counts)])
    return table(rows, "l" + "r" * 7 + "l")


def _quality(quality: Quality) -> list[str]:
    lines = [f"  {quality.note}"] if quality.note else _distributions(
        {name.replace("_", " "): found for name, found in quality.distributions.items() if name != "aspect_ratio"}
    )  # fmt: skip
    if quality.outliers:
        action = "dropped" if quality.policy == "drop" else "kept, reported only"
        limit = f" (score above {quality.threshold:g}; {action})" if quality.threshold else ""
        lines += ["", f"  outliers{limit}"]
        lines += [line for one in quality.outliers for line in _outlier(one)]
    elif quality.distributions:
        lines += ["", "  outliers: none"]
    for extremes in quality.extremes:
        lines += ["", f"  {extremes.title}"]
        lines += table([[i.image_id, i.label, i.split, number(i.value)] for i in extremes.images], "lllr", 4)
    return lines


def _outlier(one: Outlier) -> list[str]:
    lines = [f"    {fit(one.measure.replace('_', ' '), 16)}{one.count:>8,}   median {number(one.median)}"]
    rows = [[e["image_id"], number(e["value"]), "score", f"{e['score']:,.1f}"] for e in one.examples]
    lines += table(rows, "lrlr", 6)
    return [*lines, f"      and {one.count - len(rows):,} more"] if one.count > len(rows) else lines


def _duplicates(exact: Exact, near: Near) -> list[str]:
    groups = "" if exact.groups is None else f" in {plural(exact.groups, 'group')}"
    lines = [f"  exact: {plural(exact.copies, 'copy', 'copies')} rejected{groups} of equal pixels"]
    if exact.conflicts:
        lines.append(f"  with different labels: {plural(exact.conflicts, 'group')} of equal pixels")
        for group in exact.examples[:PAIRS]:
            lines += wrapped(" = ".join(f"{short(i['image_id'], 40)} ({short(i['label'], 24)})" for i in group), 4)
        if exact.conflicts > PAIRS:
            lines.append(f"    and {exact.conflicts - len(exact.examples[:PAIRS]):,} more")
    if not near.found:
        return [*lines, f"  near: {near.note}"]
    found = near.found
    between = ", ".join(f"{splits} {count:,}" for splits, count in found["by_splits"].items())
    lines.append(
        f"  near (within {found['radius']} of 64 bits, verified): {plural(found['pairs'], 'pair')} of"
        f" {plural(found['images'], 'image')}, {found['dropped']:,} dropped within a split"
    )
    lines += [f"  pairs by split: {between}"] if between else []
    lines += wrapped(near.note) if near.note else []
    lines += _pairs(near.conflicting, "different labels", found["conflicts"])
    return lines + _pairs(near.closest, "the closest", found["pairs"])


def _leakage(audit: Audit) -> list[str]:
    between = audit.near.found.get("by_splits", {})
    total = sum(count for splits, count in between.items() if splits in ("train-test", "val-test"))
    return wrapped(audit.leakage.sentence) + _pairs(audit.near.leaking, "one side in test", total)


def _pairs(pairs: tuple[Pair, ...], title: str, total: int) -> list[str]:
    if not pairs:
        return []
    rows = [["", "split", "label", "bits", "differs", ""]]
    for pair in pairs[:PAIRS]:
        rows.append(
            [
                pair.image_id,
                pair.split,
                pair.label,
                f"{pair.distance}",
                number(pair.difference),
                pair.went(),
            ]
        )
        rows.append([f"= {pair.twin_id}", pair.twin_split, pair.twin_label, "", "", ""])
    lines = ["", f"  {title}", *table(rows, "lllrrl", 4)]
    more = total - len(pairs[:PAIRS])
    return [*lines, f"    and {more:,} more"] if more > 0 else lines


def _provenance(provenance: Provenance) -> list[str]:
    rows = [
        ["fingerprint", provenance.fingerprint],
        ["parents", ", ".join(provenance.parents) or "none"],
        ["made", f"{provenance.created or 'not recorded'} by imagemill {provenance.code_version or '(unknown)'}"],
        [
            "images",
            f"{format_size(provenance.bytes)}, colour {provenance.color or 'not recorded'}, {provenance.task}-label",
        ],
        ["settings", "all at their defaults" if not provenance.settings else "different from the defaults:"],
    ]
    settings = [
        [name, str(one["value"]), "no such setting now" if one["default"] is None else f"default {one['default']}"]
        for name, one in provenance.settings.items()
    ]
    return table(rows, "ll") + table(settings, "lll", 4)
