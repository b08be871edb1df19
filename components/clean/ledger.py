"""The manifest of a clean dataset, the checks that no row was lost, and the summary."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..dataset.kinds import CleanExtra, CleanImage, RawExtra
from ..dataset.manifest import Dataset, File, Manifest, Totals
from ..dataset.shards import READ_THREADS, read_columns
from ..imaging.choices import COLORS
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import MillError, UserError
from .kept_rows import KeptCounts
from .shard import RowRules
from .splits import SPLITS


def make_manifest(
    raw: Dataset, uri: str, rules: RowRules, files: list[File], kept: KeptCounts, findings: dict[str, Any]
) -> Manifest:
    """Make the manifest of a clean dataset."""
    classes, config = tuple(rules.labels.ids), rules.config
    draft = Dataset(uri, Manifest("clean", uris.basename(uri), files=tuple(files)), "")
    by_split, by_class_split = kept.by_split, kept.by_class_split
    reasons: Counter[str] = Counter()
    for table in read_columns(draft, "rejected", ["reason"], threads=READ_THREADS):
        reasons.update(table.column("reason").to_pylist())
    color = config.stored_color
    return Manifest(
        kind="clean",
        fingerprint=uris.basename(uri),
        parents=(raw.as_parent(uri),),
        config=config.manifest_values(),
        task="multi" if rules.labels.is_multi_label else "single",
        classes=classes,
        files=tuple(files),
        totals=Totals(
            rows=sum(by_split.values()),
            bytes=kept.bytes,
            rejected=sum(reasons.values()),
            by_split={split: by_split[split] for split in SPLITS},
            by_class={name: sum(by_class_split[split][name] for split in SPLITS) for name in classes},
            by_reason=dict(sorted(reasons.items())),
        ),
        image=CleanImage(color, COLORS[color]),
        extra=CleanExtra(
            dataset_name=raw.name,
            by_class_and_split={split: {name: by_class_split[split][name] for name in classes} for split in SPLITS},
            decoder_warnings=kept.warnings,
            rows_in=raw.manifest.totals.rows,
            found=findings,
            image_size=RawExtra.of(raw.manifest).image_size,
            epochs=RawExtra.of(raw.manifest).epochs,
        ),
    )


def check_ledger(raw: Dataset, manifest: Manifest) -> None:
    """Raise MillError unless every raw row is kept or rejected."""
    rows, totals = raw.manifest.totals.rows, manifest.totals
    if rows != totals.rows + totals.rejected:
        raise MillError(
            f"internal error: row counts do not add up: {rows} raw, {totals.rows} kept + {totals.rejected} rejected"
        )


def check_splits(manifest: Manifest) -> None:
    """Raise UserError unless there are training images of two classes, and test images."""
    totals = manifest.totals
    if not totals.rows:
        reasons = _format_counts(totals.by_reason)
        raise UserError(f"source: expected images that decode and have labels, found none; rejected: {reasons}")
    for split, hint in (("train", "val_fraction and test_fraction"), ("test", "test_fraction or the declared splits")):
        if not totals.by_split[split]:
            raise UserError(f"split: expected at least one {split} image of {totals.rows}, found none; see {hint}")
    trained = [name for name, number in CleanExtra.of(manifest).by_class_and_split["train"].items() if number]
    if len(trained) < 2:
        raise UserError(
            f"label: expected training images of at least two classes, found only {trained[0]!r} after cleaning; "
            f"rejected: {_format_counts(totals.by_reason)}"
        )


def print_summary(dataset: Dataset, context: Context) -> None:
    """Print the numbers of a clean dataset: rows, rejects, classes without images, findings."""
    totals, extra = dataset.manifest.totals, CleanExtra.of(dataset.manifest)
    context.say(
        f"{totals.rows + totals.rejected:,} rows in · {totals.rows:,} kept · {totals.rejected:,} rejected · "
        + " · ".join(f"{split} {number:,}" for split, number in totals.by_split.items())
    )
    if totals.by_reason:
        context.say(f"rejected: {_format_counts(totals.by_reason)}")
    if empty := [name for name, number in totals.by_class.items() if not number]:
        context.say(f"no image at all of: {_format_names(empty)}")
    for split, numbers in extra.by_class_and_split.items():
        if missing := [name for name, number in numbers.items() if not number and totals.by_class[name]]:
            context.say(f"no {split} image of: {_format_names(missing)}")
    _print_findings(extra.found, context)
    for page in dataset.files("report"):
        context.say(f"audit: {dataset.locate(page)}")


def _print_findings(findings: dict[str, Any], context: Context) -> None:
    """Print duplicates, leaks, label conflicts and outliers, whatever the policies did about them."""
    near, leakage = findings.get("near_duplicates"), findings.get("leakage")
    if near and near["pairs"]:
        context.say(
            f"near-duplicates: {near['pairs']:,} pairs of {near['images']:,} images, {near['dropped']:,} dropped"
        )
    if near and not near["complete"]:
        context.say("near-duplicates: there are too many candidates; the largest groups of look-alikes were left out")
    if leakage and (leakage["dropped"] or leakage["kept"]):
        context.say(
            f"leakage: {leakage['test_images_with_twin_in_train']:,} test images have a near twin in train, "
            f"{leakage['test_images_with_twin_in_val']:,} in val; of those twins {leakage['dropped']:,} dropped, "
            f"{leakage['kept']:,} kept" + (" (leakage=drop drops them)" if leakage["kept"] else "")
        )
    if leaked := findings["duplicates"]["declared_test_images_in_declared_train"]:
        context.say(f"leakage: {leaked:,} images that the source declares as test are in its training part, too")
    if conflicts := findings["duplicates"]["conflicts"] + (near["conflicts"] if near else 0):
        context.say(f"labels: {conflicts:,} groups or pairs of equal or almost equal images have different labels")
    if outliers := {name: outlier["count"] for name, outlier in findings["outliers"].items()}:
        context.say(f"outliers: {_format_counts(outliers)}")


def _format_names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items()) or "none"
