"""The audit of a clean dataset as a page with pictures, and as text.

It depends on the dataset's content alone (no time, URI or version), so that two equal runs write the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..step.progress import format_size
from .audit_facts import Audit, Balance, Distribution, Duplicates, Example, Group, Ledger, Measured, Pair, Provenance
from .page import (
    Bar,
    Bins,
    Block,
    Figure,
    Figures,
    Page,
    Paragraph,
    Row,
    Section,
    Styled,
    Table,
    take_ends,
)
from .pictures import Thumbnail
from .words import (
    MISSING,
    capitalize,
    format_counts,
    format_number,
    format_percent,
    join_names,
    pluralize,
    replace_underscores,
)

PAIRS, GROUPS, NAMES = 8, 8, 20
SPLITS = ("train", "val", "test")
QUANTILES = ("1", "25", "50", "75", "99")
_UNITS = {"width": "width, px", "height": "height, px", "aspect_ratio": "width : height", "image_bytes": "file size"}

Thumbnails = Mapping[str, Thumbnail]


def make_page(audit: Audit, thumbnails: Thumbnails) -> Page:
    """Return the page. `thumbnails` are by image_id (`list_pictured`)."""
    ledger, near = audit.ledger, audit.duplicates.near
    tiles = [
        ("Kept", f"{ledger.kept:,}", f"of {ledger.rows_in:,} rows in"),
        ("Rejected", f"{ledger.rejected:,}", pluralize(len(ledger.reasons), "reason")),
        ("Classes", f"{len(audit.balance.classes):,}", ""),
        ("Near-duplicates", f"{near['pairs']:,}" if near else MISSING, "pairs"),
        ("Leaking pairs", f"{count_leaking_pairs(near):,}" if near else MISSING, "one side in test"),
    ]
    subtitle = f"Audit of the cleaned dataset {audit.provenance.fingerprint}"
    return Page(audit.name or "dataset", subtitle, describe(audit, thumbnails), tiles=tiles)


def list_pictured(audit: Audit) -> list[str]:
    """Return the ids of the images that the page shows."""
    duplicates = audit.duplicates
    pairs = [*duplicates.leaking[:PAIRS], *duplicates.conflicting[:PAIRS], *duplicates.closest]
    ids = [image_id for pair in pairs for image_id in (pair.image_id, pair.twin_id)]
    ids += [image_id for group in duplicates.conflicts[:GROUPS] for image_id, _ in group]
    groups = (*audit.measured.extremes, *audit.measured.outliers)
    return ids + [example.image_id for group in groups for example in group.examples]


def describe(audit: Audit, thumbnails: Thumbnails | None = None) -> list[Section]:
    """Return the sections."""
    shown = thumbnails or {}
    return [
        Section("ledger", "Ledger", _describe_ledger(audit.ledger)),
        Section("classes", "Classes", describe_balance(audit.balance)),
        Section("sizes", "Sizes", _describe_sizes(audit.measured)),
        Section("quality", "Quality", _describe_quality(audit.measured, shown)),
        Section("duplicates", "Duplicates", _describe_duplicates(audit.duplicates, shown)),
        Section("leakage", "Leakage", _describe_leakage(audit.duplicates, shown)),
        Section("provenance", "Provenance", _describe_provenance(audit.provenance)),
    ]


def _describe_ledger(ledger: Ledger) -> list[Block]:
    sign = "≠" if ledger.rows_in != ledger.kept + ledger.rejected else "="
    sum_ = f"{ledger.rows_in:,} rows in {sign} {ledger.kept:,} kept + {ledger.rejected:,} rejected"
    blocks: list[Block] = [Paragraph(f"WRONG: {problem}", "bad") for problem in ledger.problems]
    if not blocks:
        blocks.append(Paragraph(f"✓ {sum_}, and the files have the rows that the manifest says."))
    splits = " · ".join(f"{split} {ledger.by_split[split]:,}" for split in SPLITS if split in ledger.by_split)
    blocks.append(Paragraph(f"Kept: {splits}", "note"))
    if not ledger.reasons:
        return [*blocks, Paragraph("Nothing was rejected.", "note")]
    blocks.append(make_reason_table({group.name: group.count for group in ledger.reasons}, ledger.rows_in))
    examples = [(group.name, example.image_id, example.note) for group in ledger.reasons for example in group.examples]
    return [*blocks, Table(examples, ("reason", "image", "why"), title="Examples", is_folded=True)]


def make_reason_table(by_reason: Mapping[str, int], rows_in: int) -> Table:
    """Return the table of rejects by reason."""
    largest = max(by_reason.values(), default=1)
    rows: list[Row] = [
        (replace_underscores(reason), f"{number:,}", format_percent(number, rows_in), Bar(((number / largest, "bad"),)))
        for reason, number in sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table(rows, ("rejected for", "images", "share", ""), "lrrl")


def describe_balance(balance: Balance) -> list[Block]:
    """Return the images of each class by split, and the classes that lack some."""
    totals = {name: sum(splits.values()) for name, splits in balance.classes.items()}
    blocks: list[Block] = [Paragraph(f"Since the last run: {change}.") for change in balance.changes]
    without = {"image at all": [name for name, total in totals.items() if not total]}
    for split in SPLITS:
        without[f"{split} image"] = [name for name, n in balance.classes.items() if totals[name] and not n.get(split)]
    for problem, names in without.items():
        if names:
            classes = f"{pluralize(len(names), 'class', 'classes')}: {join_names(names, NAMES)}"
            blocks.append(Paragraph(f"No {problem} of {classes}.", "bad"))
    largest = max(totals.values(), default=0) or 1
    rows: list[Row] = [
        (name, f"{totals[name]:,}", *(f"{by_split.get(split, 0):,}" for split in SPLITS),
         Bar(tuple((by_split.get(split, 0) / largest, split) for split in SPLITS)))
        for name, by_split in balance.classes.items()
    ]  # fmt: skip
    head = (pluralize(len(rows), "class", "classes"), "images", *SPLITS, "")
    return [*blocks, Table(take_ends(rows, "classes"), head, "lrrrrl")]


def _describe_sizes(measured: Measured) -> list[Block]:
    blocks: list[Block] = [_make_distribution_table(measured.sizes)]
    blocks.append(Paragraph(f"Formats: {format_counts(measured.formats)}"))
    warned = measured.warned
    blocks.append(Paragraph(f"Decoder warnings: {warned.count:,}{_describe_more(warned)}"))
    if warned.examples:
        blocks.append(Table([(example.image_id, example.note) for example in warned.examples]))
    return blocks


def _describe_more(group: Group) -> str:
    shown = len(group.examples)
    return f", {shown} of them shown" if group.count > shown else ""


def _make_distribution_table(distributions: Mapping[str, Distribution]) -> Table:
    head = ("", "least", *("median" if q == "50" else f"{q}%" for q in QUANTILES), "most", "1% to 99%")
    rows: list[Row] = []
    for name, distribution in distributions.items():
        values = [distribution.minimum, *(distribution.quantiles[q] for q in QUANTILES), distribution.maximum]
        cells = [
            format_size(value) if name == "image_bytes"
            else format_number(round(value) if name in ("width", "height") else value)
            for value in values
        ]  # fmt: skip
        rows.append((_UNITS.get(name, replace_underscores(name)), *cells, Bins(distribution.bins)))
    return Table(rows, head, "l" + "r" * (len(QUANTILES) + 2) + "l")


def _describe_quality(measured: Measured, thumbnails: Thumbnails) -> list[Block]:
    if not measured.measures:
        return [Paragraph("Not measured: measures is off.", "note")]
    blocks: list[Block] = [_make_distribution_table(measured.measures)]
    blocks += [_show_examples(group, capitalize(group.name), thumbnails) for group in measured.extremes]
    rule = "dropped" if measured.outlier_policy == "drop" else "kept, reported only"
    if measured.outlier_threshold:
        rule = f"more than {measured.outlier_threshold:g} robust spreads from the median; {rule}"
    for group in measured.outliers:
        title = f"Outliers in {replace_underscores(group.name)}: {group.count:,}{_describe_more(group)} ({rule})"
        blocks.append(_show_examples(group, title, thumbnails))
    return blocks if measured.outliers else [*blocks, Paragraph("Outliers: none")]


def _show_examples(group: Group, title: str, thumbnails: Thumbnails) -> Figures:
    return Figures([_show_example(example, thumbnails) for example in group.examples], title)


def _show_example(example: Example, thumbnails: Thumbnails) -> Figure:
    lines = tuple(filter(None, (example.split, example.note)))
    return Figure((_find(example.image_id, thumbnails),), example.label, lines)


def _find(image_id: str, thumbnails: Thumbnails) -> Thumbnail:
    return thumbnails.get(image_id) or Thumbnail(image_id)


def _describe_duplicates(duplicates: Duplicates, thumbnails: Thumbnails) -> list[Block]:
    exact, near = duplicates.exact, duplicates.near
    text = f"{pluralize(exact['copies'], 'exact copy', 'exact copies')} rejected in "
    text += f"{pluralize(exact['groups'], 'group')} of equal pixels"
    text += f", of which {exact['conflicts']:,} with different labels." if exact["conflicts"] else "."
    blocks: list[Block] = [Paragraph(text)]
    if duplicates.conflicts:
        groups = [
            Figure((_find(group[0][0], thumbnails),), "", tuple(f"{label}: {image_id}" for image_id, label in group))
            for group in duplicates.conflicts[:GROUPS]
        ]
        title = f"Equal pixels, different labels: {len(groups)} of {exact['conflicts']:,}"
        blocks.append(Figures(groups, title))
    if not near:
        return [*blocks, Paragraph(f"Near-duplicates: {duplicates.why_not}.", "note")]
    text = f"Near-duplicates (within {near['radius']} of 64 bits, verified): {pluralize(near['pairs'], 'pair')} of "
    text += f"{pluralize(near['images'], 'image')}, {near['dropped']:,} dropped within a split"
    text += f". Pairs by split: {format_counts(near['by_splits'])}." if near["by_splits"] else "."
    blocks.append(Paragraph(text))
    if not near["complete"]:
        blocks.append(
            Paragraph("There were too many candidates: the largest groups of look-alikes are left out.", "bad")
        )
    pairs = duplicates.conflicting[:PAIRS]
    blocks += _show_pairs(
        pairs, f"Near-duplicates with different labels: {len(pairs)} of {near['conflicts']:,}", thumbnails
    )
    pairs = duplicates.closest
    return blocks + _show_pairs(pairs, f"The closest near-duplicates: {len(pairs)} of {near['pairs']:,}", thumbnails)


def _show_pairs(pairs: tuple[Pair, ...], title: str, thumbnails: Thumbnails) -> list[Block]:
    return [Figures([_show_pair(pair, thumbnails) for pair in pairs], title)] if pairs else []


def _show_pair(pair: Pair, thumbnails: Thumbnails) -> Figure:
    sides = [f"{pair.label} · {pair.split}", f"{pair.twin_label} · {pair.twin_split}"]
    dropped = {"": "both kept", "both": "both dropped", pair.image_id: "first dropped", pair.twin_id: "second dropped"}
    return Figure(
        (_find(pair.image_id, thumbnails), _find(pair.twin_id, thumbnails)),
        sides[0] if sides[0] == sides[1] else " = ".join(sides),
        (f"{pluralize(pair.distance, 'bit')} apart, differ by {format_number(pair.difference)}", dropped[pair.dropped]),
    )


def count_leaking_pairs(near: Mapping[str, Any]) -> int:
    """Return the number of pairs of near-duplicates of which one image is in test and the other is not."""
    by_splits = near.get("by_splits", {})
    return sum(by_splits.get(splits, 0) for splits in ("train-test", "val-test"))


def _describe_leakage(duplicates: Duplicates, thumbnails: Thumbnails) -> list[Block]:
    blocks: list[Block] = [Paragraph(write_leakage(duplicates))]
    if duplicates.declared:
        blocks.append(
            Paragraph(
                f"Kept images by the split that the source declares: {format_counts(duplicates.declared)}.", "note"
            )
        )
    pairs = duplicates.leaking[:PAIRS]
    title = f"Pairs with one side in test: {len(pairs)} of {count_leaking_pairs(duplicates.near):,}"
    return blocks + _show_pairs(pairs, title, thumbnails)


def write_leakage(duplicates: Duplicates) -> str:
    """Return the sentence on test images that have duplicates in train or val, and what was done about them."""
    leaks = duplicates.leakage
    copies = leaks["declared_test_images_in_declared_train"]
    if duplicates.why_not:
        return (
            f"Near-duplicates between the splits: {duplicates.why_not}; under the splits that the source declares "
            f"{_count_test_images(copies)} an exact copy in train."
        )
    num_duplicates = leaks["declared_test_images_with_twin_in_declared_train"]
    text = "The source declares no test split"
    if duplicates.declared.get("test") or num_duplicates or copies:
        text = (
            f"Under the splits that the source declares {_count_test_images(num_duplicates)} a near-duplicate in train"
        )
        text += f", and {copies or 'none'} {'is' if copies < 2 else 'are'} there as an exact copy"
    train, val = leaks["test_images_with_twin_in_train"], leaks["test_images_with_twin_in_val"]
    dropped, kept = leaks["dropped"], leaks["kept"]
    if not train + val + dropped + kept:
        return f"{text}; in the splits used here no test image has a near-duplicate in train or val."
    text += f"; in the splits used here {_count_test_images(train)} a near-duplicate in train and {val:,} in val,"
    text += f" and of those near-duplicates {dropped:,} {'was' if dropped == 1 else 'were'} dropped and {kept:,} kept"
    return f"{text} (leakage: {leaks['policy']}{'; drop would drop them' if kept else ''})."


def _count_test_images(number: int) -> str:
    return "no test image has" if not number else "1 test image has" if number == 1 else f"{number:,} test images have"


def _describe_provenance(provenance: Provenance) -> list[Block]:
    rows: list[Row] = [
        ("fingerprint", provenance.fingerprint),
        ("made from", ", ".join(provenance.parents) or "nothing"),
        ("images", f"{format_size(provenance.bytes)}, color {provenance.color}, {provenance.task}-label"),
    ]
    for name, setting in provenance.settings.items():
        default = "no such setting now" if setting["default"] is None else f"default {setting['default']}"
        rows.append((name, Styled(str(setting["value"]), note=default)))
    return [Table(rows if provenance.settings else [*rows, ("settings", "all at their defaults")])]
