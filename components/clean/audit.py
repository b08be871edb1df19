"""The audit: every fact about a clean dataset that a person should know, gathered from its manifest and its files.

It depends on the dataset's content alone. Nothing is held for each image but its numbers.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from ..store.manifest import Dataset, Manifest
from ..store.shards import read_columns
from .audit_facts import (
    Audit,
    Balance,
    ClassCount,
    Exact,
    Extreme,
    Extremes,
    Leakage,
    Ledger,
    Named,
    Near,
    Outlier,
    Pair,
    Provenance,
    Quality,
    Reason,
    Sizes,
)
from .audit_numbers import Distribution, Scan, describe
from .config import CleanConfig
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
_OLDER = "not recorded: an older version made this dataset"


def gather(dataset: Dataset) -> Audit:
    """The audit of a clean dataset. Reads all columns but the images, a row group at a time."""
    manifest, scan = dataset.manifest, Scan.of(dataset)
    return Audit(
        name=str(manifest.extra.get("dataset_name", "")),
        ledger=ledger(dataset, scan),
        balance=balance(manifest),
        sizes=sizes(scan),
        quality=quality(manifest, scan),
        exact=exact(manifest),
        near=near(dataset),
        leakage=leakage(manifest, scan),
        provenance=provenance(manifest),
    )


def ledger(dataset: Dataset, scan: Scan) -> Ledger:
    """The books, and whether they agree with what was counted in the files."""
    totals, extra = dataset.manifest.totals, dataset.manifest.extra
    counted: Counter[str] = Counter()
    examples: dict[str, list[Named]] = {}
    for table in read_columns(dataset, "rejected", ["image_id", "reason", "detail"]):
        reasons = table.column("reason").to_pylist()
        counted.update(reasons)
        for row, reason in enumerate(reasons):
            named = examples.setdefault(reason, [])
            if len(named) < REJECT_EXAMPLES:
                named.append(Named(table.column("image_id")[row].as_py(), table.column("detail")[row].as_py()))
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    rows_in = extra.get("rows_in")
    problems = []
    if rows_in is not None and rows_in != totals.rows + totals.rejected:
        problems.append(f"{rows_in:,} rows in, but {totals.rows:,} kept and {totals.rejected:,} rejected")
    for what, said, found in (
        ("kept rows", totals.rows, scan.rows),
        ("rejected rows", totals.rejected, counted.total()),
        ("rows by split", {k: v for k, v in totals.by_split.items() if v}, dict(scan.by_split)),
        ("rejects by reason", totals.by_reason, dict(counted)),
    ):
        if said != found:
            problems.append(f"{what}: the manifest says {_said(said)}, the files have {_said(found)}")
    return Ledger(
        rows_in, totals.rows, totals.rejected, dict(totals.by_split),
        tuple(Reason(name, number, tuple(examples[name])) for name, number in ordered), tuple(problems),
    )  # fmt: skip


def _said(value: int | dict[str, int]) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(f"{name} {number:,}" for name, number in sorted(value.items())) or "none"


def balance(manifest: Manifest) -> Balance:
    """Images by class and split, from the manifest."""
    by_split = manifest.extra.get("by_class_and_split", {})
    classes = [
        ClassCount(name, manifest.totals.by_class.get(name, 0), {s: by_split.get(s, {}).get(name, 0) for s in by_split})
        for name in manifest.classes
    ]
    classes.sort(key=lambda one: (-one.total, one.name))
    filled = [one.total for one in classes if one.total]
    without = {"any": tuple(one.name for one in classes if not one.total)}
    for split in by_split:
        without[split] = tuple(one.name for one in classes if one.total and not one.splits[split])
    return Balance(tuple(classes), round(filled[0] / filled[-1], 2) if filled else None, without)


def sizes(scan: Scan) -> Sizes:
    """How large the stored images are, and in what form."""
    width, height = scan.whole("width"), scan.whole("height")
    columns = {"width": width, "height": height}
    if width is not None and height is not None:
        columns["aspect_ratio"] = width[height > 0] / height[height > 0]
    columns["image_bytes"] = scan.whole("image_bytes")
    names = scan.names(row for row, _ in scan.warned)
    return Sizes(
        _described(columns),
        dict(sorted(scan.counted["format"].items(), key=lambda item: (-item[1], item[0]))),
        scan.warnings,
        tuple(Named(names[row].image_id, text) for row, text in scan.warned),
    )


def _described(columns: dict[str, Any]) -> dict[str, Distribution]:
    return {name: found for name, values in columns.items() if (found := describe(values)) is not None}


def quality(manifest: Manifest, scan: Scan) -> Quality:
    """The measures' distributions, the images at their ends, and the outliers that cleaning found."""
    distributions = _described({name: scan.whole(name) for name in MEASURES})
    chosen = {title: scan.extremes(measure, EXTREMES, largest) for title, measure, largest in _EXTREMES}
    names = scan.names(row for rows in chosen.values() for row in rows)
    extremes = tuple(
        Extremes(title, measure, tuple(Extreme(*names[row], _value(scan, measure, row)) for row in chosen[title]))
        for title, measure, _ in _EXTREMES
        if chosen[title]
    )
    found, config = manifest.extra.get("found", {}).get("outliers"), manifest.config
    outliers = tuple(
        Outlier(name, about["count"], about["median"], tuple(about["examples"][:OUTLIER_EXAMPLES]))
        for name, about in (found or {}).items()
    )
    note = "" if distributions else "not measured: measures is off" if "measures" in config else _OLDER
    return Quality(
        distributions, extremes, outliers, config.get("outlier_threshold"), str(config.get("outliers", "")), note
    )


def _value(scan: Scan, measure: str, row: int) -> float:
    return float(f"{scan.values[measure][row]:.6g}")


def exact(manifest: Manifest) -> Exact:
    """What was found of equal pixels."""
    found, reasons = manifest.extra.get("found", {}).get("duplicates", {}), manifest.totals.by_reason
    groups = tuple(tuple(group) for group in found.get("conflict_examples", [])[:GROUPS])
    copies = reasons.get("duplicate_bytes", 0) + reasons.get("duplicate_pixels", 0)
    return Exact(found.get("groups"), copies, found.get("conflicts", 0), groups)


def near(dataset: Dataset) -> Near:
    """What was found of near twins, and the pairs that are worth a look; holds `PAIRS` of each kind at a time."""
    found = dataset.manifest.extra.get("found", {}).get("near_duplicates")
    if found is None:
        return Near({}, (), (), (), _why_not_near(dataset.manifest))
    closest: list[Pair] = []
    conflicting: list[Pair] = []
    leaking: list[Pair] = []
    for table in read_columns(dataset, "twins", list(Pair.__annotations__)):
        pairs = [Pair(**row) for row in table.to_pylist()]
        closest = _closest(closest, pairs)
        conflicting = _closest(conflicting, [p for p in pairs if p.label != p.twin_label])
        leaking = _closest(leaking, [p for p in pairs if (p.split == "test") != (p.twin_split == "test")])
    # The manifest's own examples are among the pairs.
    numbers = {name: value for name, value in found.items() if name != "conflict_examples"}
    note = "" if found["complete"] else "there were too many candidates: the largest groups of look-alikes are left out"
    return Near(numbers, tuple(closest), tuple(conflicting), tuple(leaking), note)


def _closest(best: list[Pair], more: list[Pair]) -> list[Pair]:
    return heapq.nsmallest(PAIRS, best + more, key=lambda p: (p.distance, p.difference, p.image_id, p.twin_id))


def _why_not_near(manifest: Manifest) -> str:
    if "near_duplicates" not in manifest.config:
        return _OLDER
    return f"not looked for: {'measures' if not manifest.config.get('measures', True) else 'near_duplicates'} is off"


def leakage(manifest: Manifest, scan: Scan) -> Leakage:
    """How many test images the training part gives away, and what was done about it."""
    everything = manifest.extra.get("found", {})
    copies = everything.get("duplicates", {}).get("declared_test_images_in_declared_train")
    found = everything.get("leakage")
    declared = {name: number for name, number in sorted(scan.counted["declared_split"].items()) if name}
    numbers = ({} if copies is None else {"declared_test_images_in_declared_train": copies}) | (found or {})
    if found is None:
        sentence = f"Near twins between the splits: {_why_not_near(manifest)}"
        if copies is not None:
            sentence += f"; under the splits that the source declares {_images(copies)} an exact copy in train"
        return Leakage(sentence + ".", numbers, declared)
    return Leakage(_leakage_sentence(found, copies or 0, declared), numbers, declared)


def _leakage_sentence(found: dict[str, Any], copies: int, declared: dict[str, int]) -> str:
    said = found["declared_test_images_with_twin_in_declared_train"]
    text = "The source declares no test split"
    if declared.get("test") or said or copies:
        text = f"Under the splits that the source declares {_images(said)} a near twin in train, and {_copies(copies)}"
    train, val = found["test_images_with_twin_in_train"], found["test_images_with_twin_in_val"]
    dropped, kept = found["dropped"], found["kept"]
    if not train + val + dropped + kept:
        return f"{text}; in the splits used here no test image has a near twin in train or val."
    text += f"; in the splits used here {_images(train)} a near twin in train and {val:,} in val, and of those twins"
    text += f" {dropped:,} {'was' if dropped == 1 else 'were'} dropped and {kept:,} kept"
    return f"{text} (leakage: {found['policy']}{'; drop would drop them' if kept else ''})."


def _images(number: int) -> str:
    return "no test image has" if not number else "1 test image has" if number == 1 else f"{number:,} test images have"


def _copies(number: int) -> str:
    few = ("none is there as an exact copy", "1 is there as an exact copy")
    return few[number] if number < len(few) else f"{number:,} are there as exact copies"


def provenance(manifest: Manifest) -> Provenance:
    """What it was made of and with."""
    usual = CleanConfig().manifest_values()
    settings = {
        name: {"value": value, "default": usual.get(name)}
        for name, value in sorted(manifest.config.items())
        if name not in usual or value != usual[name]
    }
    return Provenance(
        manifest.fingerprint, tuple(parent.uri for parent in manifest.parents), manifest.task,
        str(manifest.image.get("color", "")), manifest.totals.bytes, settings,
        manifest.code_version, manifest.created,
    )  # fmt: skip


def split_order(splits: dict[str, int]) -> list[str]:
    """The known splits in their order, then any others."""
    return [s for s in SPLITS if s in splits] + [s for s in splits if s not in SPLITS]
