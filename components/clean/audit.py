"""Gather the facts of a clean dataset for its audit, from its manifest and its files.

Only numbers are held of each image.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from ..dataset.kinds import CleanExtra
from ..dataset.manifest import Dataset, Manifest
from ..dataset.shards import read_columns
from ..report.audit_facts import (
    Audit,
    Balance,
    Distribution,
    Duplicates,
    Example,
    Group,
    Ledger,
    Measured,
    Pair,
    Provenance,
)
from ..report.changes import describe_class_changes
from ..report.words import format_counts, format_number
from .audit_numbers import Scan, describe_distribution
from .config import CleanConfig
from .schema import MEASURES

EXAMPLES, PAIRS, GROUPS = 5, 20, 20
_EXTREMES = (
    ("darkest", "brightness", False),
    ("brightest", "brightness", True),
    ("blurriest", "sharpness", False),
    ("lowest entropy", "entropy", False),
)


def gather(dataset: Dataset) -> Audit:
    """Make the audit of a clean dataset; all columns but the images are read."""
    manifest, scan = dataset.manifest, Scan.of(dataset)
    return Audit(
        name=manifest.extra.dataset_name,
        ledger=_make_ledger(dataset, scan),
        balance=make_balance(manifest),
        measured=_describe_measures(manifest, scan),
        duplicates=_find_duplicates(dataset, scan),
        provenance=_describe_provenance(manifest),
    )


def _make_ledger(dataset: Dataset, scan: Scan) -> Ledger:
    """Count the rows, and compare the manifest with the files."""
    totals, rows_in = dataset.manifest.totals, CleanExtra.of(dataset.manifest).rows_in
    counted: Counter[str] = Counter()
    examples: dict[str, list[Example]] = {}
    for table in read_columns(dataset, "rejected", ["image_id", "reason", "detail"]):
        reasons = table.column("reason").to_pylist()
        counted.update(reasons)
        for row, reason in enumerate(reasons):
            if len(shown := examples.setdefault(reason, [])) < EXAMPLES:
                shown.append(Example(table.column("image_id")[row].as_py(), table.column("detail")[row].as_py()))
    problems = []
    if rows_in != totals.rows + totals.rejected:
        problems.append(f"{rows_in:,} rows in, but {totals.rows:,} kept and {totals.rejected:,} rejected")
    for name, expected, actual in (
        ("rows by split", totals.by_split, scan.by_split),
        ("rejects by reason", totals.by_reason, counted),
        ("rows", {"kept": totals.rows, "rejected": totals.rejected}, {"kept": scan.rows, "rejected": counted.total()}),
    ):
        manifest_says, files_have = ({key: counts[key] for key in sorted(counts) if counts[key]}
                                     for counts in (expected, actual))  # fmt: skip
        if manifest_says != files_have:
            sentence = f"the manifest says {format_counts(manifest_says)}, the files have {format_counts(files_have)}"
            problems.append(f"{name}: {sentence}")
    groups = (Group(reason, number, tuple(examples[reason])) for reason, number in _sort_counts(counted).items())
    return Ledger(rows_in, totals.rows, totals.rejected, dict(totals.by_split), tuple(groups), tuple(problems))


def _sort_counts(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def make_balance(manifest: Manifest) -> Balance:
    """Count images by class and split, from the manifest."""
    extra = CleanExtra.of(manifest)
    by_class, by_split = manifest.totals.by_class, extra.by_class_and_split
    ordered = _sort_counts({name: by_class.get(name, 0) for name in manifest.classes})
    classes = {name: {split: counts.get(name, 0) for split, counts in by_split.items()} for name in ordered}
    return Balance(classes, tuple(describe_class_changes(extra.class_changes, by_class)))


def _describe_measures(manifest: Manifest, scan: Scan) -> Measured:
    columns = {name: scan.values.get(name) for name in ("width", "height", "aspect_ratio", "image_bytes")}
    width, height = columns["width"], columns["height"]
    if width is not None and height is not None:
        columns["aspect_ratio"] = width[height > 0] / height[height > 0]
    rows_of = {title: scan.find_extremes(measure, EXAMPLES, largest) for title, measure, largest in _EXTREMES}
    warned = dict(scan.warned)
    infos = scan.read_infos([*warned, *(row for rows in rows_of.values() for row in rows)])

    def make_group(title: str, notes: dict[int, str], count: int = EXAMPLES) -> Group:
        examples = [Example(infos[r].image_id, note, infos[r].label, infos[r].split) for r, note in notes.items()]
        return Group(title, count, tuple(examples))

    extremes = []
    for title, measure, _ in _EXTREMES:
        notes = {row: f"{measure} {format_number(scan.values[measure][row])}" for row in rows_of[title]}
        extremes += [make_group(title, notes)] if notes else []
    outliers = []
    for name, facts in CleanExtra.of(manifest).found["outliers"].items():
        median = f"median {format_number(facts['median'])}"
        examples = [
            Example(image["image_id"], f"{format_number(image['value'])}, score {image['score']:,.1f} ({median})")
            for image in facts["examples"][:EXAMPLES]
        ]
        outliers.append(Group(name, facts["count"], tuple(examples)))
    return Measured(
        sizes=_describe_columns(columns),
        measures=_describe_columns({name: scan.values.get(name) for name in MEASURES if name != "aspect_ratio"}),
        formats=_sort_counts(scan.counted["format"]),
        warned=make_group("decoder warnings", warned, scan.warnings),
        extremes=tuple(extremes),
        outliers=tuple(outliers),
        outlier_threshold=manifest.config.get("outlier_threshold"),
        outlier_policy=str(manifest.config.get("outliers", "")),
    )


def _describe_columns(columns: dict[str, Any]) -> dict[str, Distribution]:
    distributions = {name: describe_distribution(values) for name, values in columns.items()}
    return {name: distribution for name, distribution in distributions.items() if distribution is not None}


def _find_duplicates(dataset: Dataset, scan: Scan) -> Duplicates:
    """Gather what cleaning found, and select up to `PAIRS` pairs of near-duplicates of each kind."""
    config, found, reasons = (
        dataset.manifest.config,
        CleanExtra.of(dataset.manifest).found,
        dataset.manifest.totals.by_reason,
    )
    exact, near = found["duplicates"], found.get("near_duplicates")
    closest: list[Pair] = []
    conflicting: list[Pair] = []
    leaking: list[Pair] = []
    for table in read_columns(dataset, "twins", list(Pair.__annotations__)) if near else ():
        pairs = [Pair(**row) for row in table.to_pylist()]
        closest = _select_closest(closest, pairs)
        conflicting = _select_closest(conflicting, [p for p in pairs if p.label != p.twin_label])
        leaking = _select_closest(leaking, [p for p in pairs if (p.split == "test") != (p.twin_split == "test")])
    copies = exact["declared_test_images_in_declared_train"]
    return Duplicates(
        exact={
            "groups": exact["groups"],
            "copies": reasons.get("duplicate_bytes", 0) + reasons.get("duplicate_pixels", 0),
            "conflicts": exact["conflicts"],
        },
        conflicts=tuple(
            tuple((image["image_id"], image["label"]) for image in group)
            for group in exact["conflict_examples"][:GROUPS]
        ),
        near={name: value for name, value in (near or {}).items() if name != "conflict_examples"},
        why_not=""
        if near
        else f"not looked for: {'near_duplicates' if config.get('measures', True) else 'measures'} is off",
        closest=tuple(closest),
        conflicting=tuple(conflicting),
        leaking=tuple(leaking),
        leakage={"declared_test_images_in_declared_train": copies} | found.get("leakage", {}),
        declared={name: number for name, number in sorted(scan.counted["declared_split"].items()) if name},
    )


def _select_closest(pairs: list[Pair], more: list[Pair]) -> list[Pair]:
    return heapq.nsmallest(PAIRS, pairs + more, key=lambda p: (p.distance, p.difference, p.image_id, p.twin_id))


def _describe_provenance(manifest: Manifest) -> Provenance:
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
