"""The audit of a clean dataset: the facts that a person should know, gathered from its manifest and its files.

It depends on the dataset's content alone. Only numbers are held of each image.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from ..dataset.kinds import CleanExtra
from ..dataset.manifest import Dataset, Manifest
from ..dataset.shards import READ_THREADS, read_columns
from .audit_facts import (
    Audit,
    Balance,
    ClassCount,
    ExactDuplicates,
    Extreme,
    Extremes,
    ImageNote,
    Leakage,
    Ledger,
    NearDuplicates,
    Outlier,
    Pair,
    Provenance,
    Quality,
    Reason,
    Sizes,
)
from .audit_numbers import Distribution, Scan, describe_distribution
from .config import CleanConfig
from .labels import describe_class_changes
from .schema import MEASURES
from .splits import SPLITS

REJECT_EXAMPLES, EXTREMES, OUTLIER_EXAMPLES = 5, 5, 5
PAIRS, GROUPS = 20, 20
_EXTREMES = (
    ("darkest", "brightness", False),
    ("brightest", "brightness", True),
    ("blurriest", "sharpness", False),
    ("lowest entropy", "entropy", False),
)


def gather(dataset: Dataset, scan: Scan | None = None) -> Audit:
    """Make the audit of a clean dataset. Without `scan` all columns but the images are read, a row group at a time."""
    manifest, scan = dataset.manifest, scan or Scan.of(dataset)
    return Audit(
        name=manifest.extra.dataset_name,
        ledger=make_ledger(dataset, scan),
        balance=make_balance(manifest),
        sizes=summarize_sizes(scan),
        quality=summarize_quality(manifest, scan),
        exact=summarize_exact(manifest),
        near=summarize_near(dataset),
        leakage=summarize_leakage(manifest, scan),
        provenance=summarize_provenance(manifest),
    )


def make_ledger(dataset: Dataset, scan: Scan) -> Ledger:
    """Count the rows, and compare the manifest with the files."""
    totals, rows_in = dataset.manifest.totals, CleanExtra.of(dataset.manifest).rows_in
    counted: Counter[str] = Counter()
    examples: dict[str, list[ImageNote]] = {}
    for table in read_columns(dataset, "rejected", ["image_id", "reason", "detail"], threads=READ_THREADS):
        reasons = table.column("reason").to_pylist()
        counted.update(reasons)
        for row, reason in enumerate(reasons):
            notes = examples.setdefault(reason, [])
            if len(notes) < REJECT_EXAMPLES:
                notes.append(ImageNote(table.column("image_id")[row].as_py(), table.column("detail")[row].as_py()))
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    problems = []
    if rows_in != totals.rows + totals.rejected:
        problems.append(f"{rows_in:,} rows in, but {totals.rows:,} kept and {totals.rejected:,} rejected")
    for name, expected, actual in (
        ("kept rows", totals.rows, scan.rows),
        ("rejected rows", totals.rejected, counted.total()),
        ("rows by split", {split: number for split, number in totals.by_split.items() if number}, dict(scan.by_split)),
        ("rejects by reason", totals.by_reason, dict(counted)),
    ):
        if expected != actual:
            problems.append(
                f"{name}: the manifest says {_format_counts(expected)}, the files have {_format_counts(actual)}"
            )
    return Ledger(
        rows_in, totals.rows, totals.rejected, dict(totals.by_split),
        tuple(Reason(name, number, tuple(examples[name])) for name, number in ordered), tuple(problems),
    )  # fmt: skip


def _format_counts(value: int | dict[str, int]) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(f"{name} {number:,}" for name, number in sorted(value.items())) or "none"


def make_balance(manifest: Manifest) -> Balance:
    """Count images by class and split, from the manifest."""
    extra = CleanExtra.of(manifest)
    by_split = extra.by_class_and_split
    by_class = manifest.totals.by_class
    classes = tuple(
        ClassCount(name, by_class.get(name, 0), {split: counts.get(name, 0) for split, counts in by_split.items()})
        for name in sorted(manifest.classes, key=lambda name: (-by_class.get(name, 0), name))
    )
    totals = [entry.total for entry in classes if entry.total]
    without = {"any": tuple(entry.name for entry in classes if not entry.total)}
    for split in by_split:
        without[split] = tuple(entry.name for entry in classes if entry.total and not entry.splits[split])
    changes = tuple(describe_class_changes(extra.class_changes, by_class))
    return Balance(classes, round(totals[0] / totals[-1], 2) if totals else None, without, changes)


def summarize_sizes(scan: Scan) -> Sizes:
    """Summarize sizes, formats and decoder warnings of the stored images."""
    columns = {name: scan.values.get(name) for name in ("width", "height", "aspect_ratio", "image_bytes")}
    width, height = columns["width"], columns["height"]
    if width is not None and height is not None:
        columns["aspect_ratio"] = width[height > 0] / height[height > 0]
    infos = scan.read_infos(row for row, _ in scan.warned)
    return Sizes(
        _describe_columns(columns),
        dict(sorted(scan.counted["format"].items(), key=lambda item: (-item[1], item[0]))),
        scan.warnings,
        tuple(ImageNote(infos[row].image_id, text) for row, text in scan.warned),
    )


def _describe_columns(columns: dict[str, Any]) -> dict[str, Distribution]:
    distributions = {name: describe_distribution(values) for name, values in columns.items()}
    return {name: distribution for name, distribution in distributions.items() if distribution is not None}


def summarize_quality(manifest: Manifest, scan: Scan) -> Quality:
    """Summarize the measures: distributions, the images at their ends, and the outliers that cleaning found."""
    distributions = _describe_columns({name: scan.values.get(name) for name in MEASURES})
    rows_of = {title: scan.find_extremes(measure, EXTREMES, largest) for title, measure, largest in _EXTREMES}
    infos = scan.read_infos(row for rows in rows_of.values() for row in rows)
    extremes = tuple(
        Extremes(
            title, measure,
            tuple(Extreme(*infos[row], float(f"{scan.values[measure][row]:.6g}")) for row in rows_of[title]),
        )
        for title, measure, _ in _EXTREMES
        if rows_of[title]
    )  # fmt: skip
    config = manifest.config
    outliers = tuple(
        Outlier(name, outlier["count"], outlier["median"], tuple(outlier["examples"][:OUTLIER_EXAMPLES]))
        for name, outlier in CleanExtra.of(manifest).found["outliers"].items()
    )
    note = "" if distributions else "not measured: measures is off"
    return Quality(
        distributions, extremes, outliers, config.get("outlier_threshold"), str(config.get("outliers", "")), note
    )


def summarize_exact(manifest: Manifest) -> ExactDuplicates:
    """Summarize the images with equal pixels."""
    duplicates, reasons = CleanExtra.of(manifest).found["duplicates"], manifest.totals.by_reason
    examples = tuple(tuple(group) for group in duplicates["conflict_examples"][:GROUPS])
    copies = reasons.get("duplicate_bytes", 0) + reasons.get("duplicate_pixels", 0)
    return ExactDuplicates(duplicates["groups"], copies, duplicates["conflicts"], examples)


def summarize_near(dataset: Dataset) -> NearDuplicates:
    """Summarize the near-duplicates, and select up to `PAIRS` pairs of each kind."""
    numbers = CleanExtra.of(dataset.manifest).found.get("near_duplicates")
    if numbers is None:
        return NearDuplicates({}, (), (), (), _explain_missing_near(dataset.manifest))
    closest: list[Pair] = []
    conflicting: list[Pair] = []
    leaking: list[Pair] = []
    for table in read_columns(dataset, "twins", list(Pair.__annotations__)):
        pairs = [Pair(**row) for row in table.to_pylist()]
        closest = _select_closest(closest, pairs)
        conflicting = _select_closest(conflicting, [p for p in pairs if p.label != p.twin_label])
        leaking = _select_closest(leaking, [p for p in pairs if (p.split == "test") != (p.twin_split == "test")])
    # The manifest's own examples are among the pairs.
    shown = {name: value for name, value in numbers.items() if name != "conflict_examples"}
    left_out = "there were too many candidates: the largest groups of look-alikes are left out"
    note = "" if numbers["complete"] else left_out
    return NearDuplicates(shown, tuple(closest), tuple(conflicting), tuple(leaking), note)


def _select_closest(pairs: list[Pair], more: list[Pair]) -> list[Pair]:
    return heapq.nsmallest(PAIRS, pairs + more, key=lambda p: (p.distance, p.difference, p.image_id, p.twin_id))


def _explain_missing_near(manifest: Manifest) -> str:
    return f"not looked for: {'measures' if not manifest.config.get('measures', True) else 'near_duplicates'} is off"


def summarize_leakage(manifest: Manifest, scan: Scan) -> Leakage:
    """Summarize the test images that have duplicates in train or val, and what was done about them."""
    findings = CleanExtra.of(manifest).found
    copies = findings["duplicates"]["declared_test_images_in_declared_train"]
    leaks = findings.get("leakage")
    declared = {name: number for name, number in sorted(scan.counted["declared_split"].items()) if name}
    numbers = {"declared_test_images_in_declared_train": copies} | (leaks or {})
    if leaks is not None:
        return Leakage(_describe_leakage(leaks, copies, declared), numbers, declared)
    sentence = (
        f"Near-duplicates between the splits: {_explain_missing_near(manifest)}; under the splits that the source "
        f"declares {_count_test_images(copies)} an exact copy in train."
    )
    return Leakage(sentence, numbers, declared)


def _describe_leakage(leaks: dict[str, Any], copies: int, declared: dict[str, int]) -> str:
    num_duplicates = leaks["declared_test_images_with_twin_in_declared_train"]
    text = "The source declares no test split"
    if declared.get("test") or num_duplicates or copies:
        text = (
            f"Under the splits that the source declares {_count_test_images(num_duplicates)} a near-duplicate in train,"
            f" and {_count_copies(copies)}"
        )
    train, val = leaks["test_images_with_twin_in_train"], leaks["test_images_with_twin_in_val"]
    dropped, kept = leaks["dropped"], leaks["kept"]
    if not train + val + dropped + kept:
        return f"{text}; in the splits used here no test image has a near-duplicate in train or val."
    text += f"; in the splits used here {_count_test_images(train)} a near-duplicate in train and {val:,} in val,"
    text += f" and of those near-duplicates {dropped:,} {'was' if dropped == 1 else 'were'} dropped and {kept:,} kept"
    return f"{text} (leakage: {leaks['policy']}{'; drop would drop them' if kept else ''})."


def _count_test_images(number: int) -> str:
    return "no test image has" if not number else "1 test image has" if number == 1 else f"{number:,} test images have"


def _count_copies(number: int) -> str:
    return f"{number or 'none'} is there as an exact copy" if number < 2 else f"{number:,} are there as exact copies"


def summarize_provenance(manifest: Manifest) -> Provenance:
    """Summarize the origin of the dataset: parents, settings that differ from the defaults, version."""
    defaults = CleanConfig().manifest_values()
    settings = {
        name: {"value": value, "default": defaults.get(name)}
        for name, value in sorted(manifest.config.items())
        if name not in defaults or value != defaults[name]
    }
    return Provenance(
        manifest.fingerprint, tuple(parent.uri for parent in manifest.parents), manifest.task,
        manifest.color, manifest.totals.bytes, settings,
        manifest.code_version, manifest.created,
    )  # fmt: skip


def sort_splits(splits: dict[str, int]) -> list[str]:
    """Return train, val and test in this order, then any other splits."""
    return [split for split in SPLITS if split in splits] + [split for split in splits if split not in SPLITS]
