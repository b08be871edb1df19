"""Cleaning on planted faults: recall and precision by reason, and of near-duplicates by what was done to the picture.

The tables are printed: `pytest -rP` shows them, and a failure does.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from planted import (
    Bed,
    Plant,
    disguised,
    flipped,
    good,
    headers,
    outcome_table,
    polyglots,
    too_large,
    truncated,
    zeroed,
)
from planted_duplicates import duplicates_table, plant_families
from planted_odd import against_the_rules, conflicts, copies, oddities, twelve_bits, unlabeled, unsupported

from imagemill.components.clean.audit import gather
from imagemill.components.clean.clean import clean
from imagemill.components.clean.config import REASONS, CleanConfig
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.raw import download
from imagemill.components.step.step import Context

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
POINTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.999)
KEPT = ("image_id", "image", "sha256", "label", "split", "width", "height", "format", "decoder_warning")


def read_rows(dataset: Dataset, role: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    return [row for table in read_columns(dataset, role, list(columns)) for row in table.to_pylist()]


@dataclass(frozen=True)
class Cleaned:
    """Datasets that download and clean made of a source."""

    raw: Dataset
    dataset: Dataset

    def kept(self, columns: tuple[str, ...] = KEPT) -> dict[str, dict[str, Any]]:
        return {row["image_id"]: row for row in read_rows(self.dataset, "data", columns)}

    def reasons(self) -> dict[str, str]:
        """Return the reason by image_id, empty for kept images; check that every raw row is there once."""
        rejected = read_rows(self.dataset, "rejected", ("image_id", "reason", "detail"))
        assert all(row["detail"] for row in rejected) and {row["reason"] for row in rejected} <= set(REASONS)
        kept_ids = [row["image_id"] for row in read_rows(self.dataset, "data", ("image_id",))]
        raw = Counter(row["image_id"] for row in read_rows(self.raw, "data", ("image_id",)))
        assert Counter(kept_ids + [row["image_id"] for row in rejected]) == raw and max(raw.values()) == 1
        totals = self.dataset.manifest.totals
        assert (totals.rows, totals.rejected) == (len(kept_ids), len(rejected))
        assert totals.by_reason == dict(Counter(row["reason"] for row in rejected))
        return dict.fromkeys(kept_ids, "") | {row["image_id"]: row["reason"] for row in rejected}


def run_download_and_clean(folder: Path, dataset: str, source: Path, **options: Any) -> Cleaned:
    """Run download and clean on the workspace `folder / "work"`."""
    workspace = Workspace.open(str(folder / "work"))
    shared = {"workspace": workspace.uri, "name": "planted"}
    download_config = DownloadConfig(dataset=dataset, source=str(source), **shared)
    raw = download(download_config, Context("download", workspace, "run", False))
    config = CleanConfig(raw=raw.uri, clean_workers=2, **shared, **options)
    cleaned = clean(config, Context("clean", workspace, "run", False))
    return Cleaned(read_dataset(raw.uri, "raw"), read_dataset(cleaned.uri, "clean"))


def check_exact(bed: Bed, folder: Path, **options: Any) -> Cleaned:
    """Every plant is rejected for its reason, or kept with its bytes, label, split and size."""
    cleaned = run_download_and_clean(folder, "csv", bed.write(folder / "source"), **options)
    table, wrong = outcome_table(bed.plants, cleaned.reasons())
    print(f"\n{len(bed.plants):,} files of {len({p.kind for p in bed.plants})} kinds\n{table}")
    assert not wrong, "\n".join([table, f"{len(wrong)} differ:", *wrong[:40]])
    kept_rows = cleaned.kept()
    for plant in bed.plants:
        if not plant.reason:
            check_kept(plant, kept_rows[plant.path])
    return cleaned


def check_kept(plant: Plant, row: dict[str, Any]) -> None:
    data = plant.data or b""
    assert row["sha256"] == hashlib.sha256(data).hexdigest(), plant.path
    assert (row["label"], row["split"]) == (plant.label, plant.split), plant.path
    if not plant.cells and plant.mask is None:  # else cropped or filled, and encoded again
        assert row["image"]["bytes"] == data, plant.path
        assert (row["width"], row["height"]) == plant.size, plant.path
    damaged = plant.kind.startswith(("truncated", "bit flips", "zeros", "polyglot"))
    assert damaged or row["decoder_warning"] is None, (plant.path, plant.kind, row["decoder_warning"])


def plant_all_faults(seed: int, points: tuple[float, ...], each: int) -> Bed:
    """Return a bed with all faults that default options detect."""
    bed = Bed(seed)
    good(bed)
    truncated(bed, points)
    flipped(bed, each)
    zeroed(bed, max(2, each // 2))
    for add_plants in (disguised, polyglots, too_large, oddities, unsupported, twelve_bits, copies, unlabeled):
        add_plants(bed)
    conflicts(bed, "keep")
    return bed


def test_recall_and_precision_are_1_for_every_reason(tmp_path: Path) -> None:
    check_exact(plant_all_faults(0, POINTS, 12), tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(1, 9))
def test_recall_and_precision_are_1_for_every_reason_at_length(tmp_path: Path, seed: int) -> None:
    points = tuple((n + seed / 9) / 60 for n in range(60))
    check_exact(plant_all_faults(seed, points, 120), tmp_path)


@pytest.mark.parametrize("policy", ["keep", "drop_all", "drop_minority"])
def test_copies_with_contradicting_labels_are_settled_by_the_policy(tmp_path: Path, policy: str) -> None:
    bed = Bed(11)
    good(bed, 12)
    groups = conflicts(bed, policy)
    copies(bed, 12)
    cleaned = check_exact(bed, tmp_path, label_conflicts=policy)
    duplicates = cleaned.dataset.manifest.extra.found["duplicates"]
    assert (duplicates["groups"], duplicates["conflicts"]) == (groups + 12, groups)
    named = [{row["image_id"] for row in group} for group in duplicates["conflict_examples"]]
    planted = {plant.path for plant in bed.plants if plant.kind == "label conflict"}
    assert len(named) == groups and set().union(*named) == planted


def test_strict_options_reject_by_their_own_reasons(tmp_path: Path) -> None:
    bed = Bed(12)
    good(bed, 22)
    options = against_the_rules(bed)
    unlabeled(bed)
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\nrare\n")
    check_exact(bed, tmp_path, class_list=str(classes), **options)


def test_headers_of_65500_pixels_a_side_cost_neither_time_nor_memory() -> None:
    """In a process that has decoded an image of each format, so that all codecs are there."""
    code = (
        "import resource, sys, time\n"
        "from imagemill.components.imaging.decoder import ImageRejected, decode\n"
        "small, bombs = eval(sys.stdin.read())\n"
        "for data in small.values(): decode(data)\n"
        "peak = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "for name, data in bombs.items():\n"
        "    started = time.process_time()\n"
        "    try: decode(data); print(name, 'kept', 0, 0)\n"
        "    except ImageRejected as error: print(name, error.reason, time.process_time() - started, peak() - before)\n"
    )
    small, bombs = headers(8, 8), headers(65_500, 65_500)
    assert max(map(len, bombs.values())) < 1_000
    process = subprocess.run(
        [sys.executable, "-c", code], input=repr((small, bombs)), capture_output=True, text=True, check=False
    )
    results = [line.split() for line in process.stdout.splitlines()]
    print("format, reason, ms, MB more at the peak")
    for name, reason, seconds, kib in results:
        print(f"{name:6}{reason:18}{float(seconds) * 1000:8.2f}{int(kib) / 1024:8.1f}")
    assert {name: reason for name, reason, *_ in results} == dict.fromkeys(bombs, "too_many_pixels"), process.stderr
    assert all(float(seconds) < 0.1 and int(kib) < 16 * 1024 for _, _, seconds, kib in results)


def read_near_duplicates(cleaned: Cleaned) -> list[dict[str, Any]]:
    columns = ("image_id", "twin_id", "distance", "split", "twin_split", "dropped")
    return read_rows(cleaned.dataset, "twins", columns)


def check_leaks(cleaned: Cleaned, twins: list[dict[str, Any]], original: dict[str, str]) -> None:
    """Check leakage=drop: images with a listed twin in test are rejected, for that reason alone, and counted."""
    sides = [(t["image_id"], t["split"], t["twin_id"], t["twin_split"]) for t in twins]
    sides += [(b, b_split, a, a_split) for a, a_split, b, b_split in sides]
    leaks = [(a, side, b) for a, side, b, other in sides if other == "test" and side != "test"]
    rejected = read_rows(cleaned.dataset, "rejected", ("image_id", "reason", "detail"))
    assert {row["image_id"] for row in rejected} == {a for a, _, _ in leaks}
    assert {row["reason"] for row in rejected} == {"near_duplicate_of_test"}
    for row in rejected:
        named = row["detail"].removeprefix("near twin of ").partition(" (test)")[0]
        assert original[named] == original[row["image_id"]], row
    leakage = cleaned.dataset.manifest.extra.found["leakage"]
    assert leakage["test_images_with_twin_in_train"] == len({b for _, side, b in leaks if side == "train"}) > 0
    assert leakage["test_images_with_twin_in_val"] == len({b for _, side, b in leaks if side == "val"})
    assert (leakage["dropped"], leakage["kept"]) == (len(rejected), 0)


def check_near_duplicates(folder: Path, number: int, seed: int) -> None:
    source, members = plant_families(folder / "source", number, seed)
    original = {member.path: member.original for member in members}
    for radius, options, limits in (
        (3, {"leakage": "drop"}, {"re-encoding": 0.99, "resizing": 0.99, "precision": 0.99}),
        (10, {"near_radius": 10, "near_duplicates": "drop", "leakage": "report"}, {"crops": 0.97, "precision": 0.99}),
    ):
        cleaned = run_download_and_clean(folder, "csv", source, **options)
        twins = read_near_duplicates(cleaned)
        assert max(t["distance"] for t in twins) <= radius
        table, shares = duplicates_table(members, {frozenset((t["image_id"], t["twin_id"])) for t in twins})
        print(f"\nradius {radius}, {number} originals\n{table}")
        assert all(shares[name] >= least for name, least in limits.items()), (
            f"radius {radius}, at least {limits}\n{table}"
        )
        reasons = cleaned.reasons()
        assert set(reasons) == set(original)
        if radius == 3:
            check_leaks(cleaned, twins, original)
        else:
            kept_twins = [t for t in twins if not reasons[t["image_id"]] and not reasons[t["twin_id"]]]
            assert all((t["split"] == "test") != (t["twin_split"] == "test") for t in kept_twins)
            assert set(reasons.values()) == {"", "near_duplicate"}


def test_near_duplicates_are_found_precisely(tmp_path: Path) -> None:
    check_near_duplicates(tmp_path, 150, 0)


@pytest.mark.proof
@pytest.mark.parametrize("seed", [1, 2])
def test_near_duplicates_of_all_photographs(tmp_path: Path, seed: int) -> None:
    check_near_duplicates(tmp_path, 337, seed)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    if not (photos.SAMPLE / "MANIFEST.csv").exists():
        pytest.skip("the shared sample of Oxford-IIIT Pet is not beside the repository")
    return run_download_and_clean(tmp_path_factory.mktemp("pets"), "pets", photos.SAMPLE)


def read_sample_manifest() -> dict[str, dict[str, str]]:
    """Return the rows of the sample's MANIFEST.csv by image_id."""
    with (photos.SAMPLE / "MANIFEST.csv").open(newline="") as file:
        return {f"images/{row['image']}.jpg": row for row in csv.DictReader(file)}


def test_valid_images_of_the_real_sample_are_kept_unchanged(pets: Cleaned) -> None:
    entries, kept_rows = read_sample_manifest(), pets.kept()
    assert set(pets.reasons().items()) == {(image_id, "") for image_id in entries}, "nothing valid is rejected"
    for image_id, row in kept_rows.items():
        entry = entries[image_id]
        assert (row["width"], row["height"]) == (int(entry["width"]), int(entry["height"])), image_id
        assert row["sha256"] == hashlib.sha256(row["image"]["bytes"]).hexdigest() == entry["sha256"], image_id
        assert len(row["image"]["bytes"]) == int(entry["bytes"]), image_id
    others = {Path(i).stem: row["format"] for i, row in kept_rows.items() if row["format"] != "JPEG"}
    assert others == {"Abyssinian_34": "GIF", "Abyssinian_5": "PNG"}
    warned = {Path(i).stem for i, row in kept_rows.items() if row["decoder_warning"]}
    assert warned <= {"beagle_116", "chihuahua_121"}, warned


def test_totals_of_the_real_sample_equal_its_manifest(pets: Cleaned) -> None:
    entries, manifest = read_sample_manifest(), pets.dataset.manifest
    totals, extra = manifest.totals, manifest.extra
    assert totals.by_class == dict(sorted(Counter(entry["class"] for entry in entries.values()).items()))
    assert (totals.rows, totals.rejected, extra.rows_in) == (len(entries), 0, len(entries))
    assert totals.bytes == sum(int(entry["bytes"]) for entry in entries.values())
    official = {i: entry["official_split"].replace("none", "undeclared") for i, entry in entries.items()}
    assert pets.raw.manifest.totals.by_split == dict(sorted(Counter(official.values()).items()))
    rows = pets.kept(("image_id", "label", "split", "declared_split"))
    allowed = {"test": {"test"}, "trainval": {"train", "val"}, "undeclared": {"train", "val", "test"}}
    for image_id, row in rows.items():
        assert (row["declared_split"] or "undeclared") == official[image_id] and row["split"] in allowed[
            official[image_id]
        ]
    assert totals.by_split == dict(Counter(row["split"] for row in rows.values()))
    counted = Counter((row["split"], row["label"]) for row in rows.values())
    for split, numbers in extra.by_class_and_split.items():
        assert numbers == {name: counted[split, name] for name in totals.by_class}


def test_audit_of_the_real_sample_equals_its_manifest(pets: Cleaned) -> None:
    entries, audit = list(read_sample_manifest().values()), gather(pets.dataset)
    assert (audit.ledger.rows_in, audit.ledger.kept, audit.ledger.rejected) == (len(entries), len(entries), 0)
    assert audit.ledger.problems == () and audit.ledger.reasons == ()
    assert {name: sum(splits.values()) for name, splits in audit.balance.classes.items()} == dict(
        Counter(entry["class"] for entry in entries)
    )
    for measure, column in (("width", "width"), ("height", "height"), ("image_bytes", "bytes")):
        values, distribution = np.array([int(entry[column]) for entry in entries]), audit.measured.sizes[measure]
        assert (distribution.minimum, distribution.quantiles["50"], distribution.maximum) == (
            values.min(),
            np.median(values),
            values.max(),
        )
    assert audit.measured.formats == {"JPEG": len(entries) - 2, "GIF": 1, "PNG": 1}
    assert audit.measured.warned.count == len(audit.measured.warned.examples) <= 2


def test_findings_on_the_real_sample(pets: Cleaned) -> None:
    """Photographs of one animal on one day are alike; what is listed is printed for the eye, and there is little."""
    findings = pets.dataset.manifest.extra.found
    twins = read_near_duplicates(pets) if pets.dataset.files("twins") else []
    print({name: {k: v for k, v in values.items() if "examples" not in k} for name, values in findings.items()})
    for twin in twins:
        print(twin)
    assert findings["duplicates"]["groups"] == findings["leakage"]["dropped"] == 0
    assert len(twins) == findings["near_duplicates"]["pairs"] < 10
