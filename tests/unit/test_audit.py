"""Audit of clean datasets on disk: expected facts, and messages for missing parts."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from audited import dataset_uri, rows_of
from cleaned import NONE_FOUND, draft, picture, reject, twin
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.clean import audit, audit_html, audit_text
from imagemill.components.clean.audit_numbers import BINS, QUANTILES, Histogram, Scan, describe_distribution
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import MEASURES

# Numbers.


def test_distribution_of_0_to_100() -> None:
    values = np.arange(101, dtype=np.int32)
    distribution = describe_distribution(values)
    assert distribution and (distribution.count, distribution.minimum, distribution.maximum) == (101, 0, 100)
    assert distribution.quantiles == {str(q): float(q) for q in QUANTILES}
    histogram = distribution.histogram
    assert (histogram.low, histogram.high, histogram.below, histogram.above) == (1, 99, 1, 1)
    assert histogram.counts == tuple(np.histogram(np.arange(1, 100), 20, (1, 99))[0].tolist())
    assert len(histogram.counts) == BINS and sum(histogram.counts) == 99


def test_a_distribution_of_one_value_has_one_bin_and_that_of_none_is_none() -> None:
    distribution = describe_distribution(np.full(7, 0.25, np.float32))
    assert distribution and distribution.histogram == Histogram(0.25, 0.25, (7,), 0, 0)
    no_numbers = (None, np.empty(0), np.array([np.nan, np.inf], np.float32))
    assert [describe_distribution(values) for values in no_numbers] == [None] * 3


@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), min_size=1, max_size=200))
def test_every_number_is_in_one_bin(numbers: list[float]) -> None:
    distribution = describe_distribution(np.array(numbers, np.float32))
    finite = [n for n in numbers if n == n]
    if distribution is None:
        assert not finite
        return
    histogram = distribution.histogram
    assert distribution.count == len(finite) == sum(histogram.counts) + histogram.below + histogram.above
    assert histogram.below <= 0.02 * len(finite) + 1 and histogram.above <= 0.02 * len(finite) + 1


def test_extremes_are_those_of_all_row_groups_in_the_order_of_the_rows_where_equal(tmp_path: Path) -> None:
    values = [5, 3, 9, 3, 1, 9, 7, 3, 8, 9, 2, float("nan"), 9, 1, 4]
    dataset = draft(dataset_uri(tmp_path), rows_of(15, brightness=values.__getitem__), row_group_rows=4)
    scan = Scan.of(dataset)
    files = [pq.read_table(dataset.locate(f)) for f in dataset.files()]
    stored = [v for t in files for v in t.column("brightness").to_pylist()]
    assert scan.rows == 15 and len(stored) == 15 and scan.by_split == {"train": 12, "test": 3}
    for largest in (False, True):
        order = sorted((v if not largest else -v, n) for n, v in enumerate(stored) if v == v)
        for number in (1, 3, 5, 14, 40):
            assert scan.find_extremes("brightness", number, largest) == [n for _, n in order[:number]]
    ids = [i for t in files for i in t.column("image_id").to_pylist()]
    assert {n: info.image_id for n, info in scan.read_infos(range(15)).items()} == dict(enumerate(ids))


# Facts.


def test_the_facts_are_golden(tmp_path: Path) -> None:
    rows = rows_of(12, brightness=lambda n: n / 12, sharpness=lambda n: 100 - n, entropy=lambda n: (n - 5) ** 2)
    rows[2].warning, rows[7].warning = "extraneous bytes", "premature end"
    rows[3].data = picture("3", (90, 30))
    rejected = [reject(f"r{n}", "corrupt", f"broken {n}") for n in range(7)] + [reject("s", "empty_file")]
    facts = audit.gather(draft(dataset_uri(tmp_path), rows, rejected, classes=("cat", "cow", "dog")))
    ledger = facts.ledger
    assert (ledger.rows_in, ledger.kept, ledger.rejected, ledger.problems) == (20, 12, 8, ())
    assert [(r.reason, r.count) for r in ledger.reasons] == [("corrupt", 7), ("empty_file", 1)]
    examples = [(note.image_id, note.sentence) for note in ledger.reasons[0].examples]
    assert examples == [(f"r{n}", f"broken {n}") for n in range(5)]
    assert [(c.name, c.total, c.splits) for c in facts.balance.classes] == [
        ("cat", 6, {"train": 6, "val": 0, "test": 0}), ("dog", 6, {"train": 3, "val": 0, "test": 3}),
        ("cow", 0, {"train": 0, "val": 0, "test": 0}),
    ]  # fmt: skip
    assert facts.balance.ratio == 1.0
    assert facts.balance.without == {"any": ("cow",), "train": (), "val": ("cat", "dog"), "test": ("cat",)}
    sizes = facts.sizes
    assert (sizes.distributions["width"].minimum, sizes.distributions["width"].maximum) == (40, 90)
    assert sizes.distributions["aspect_ratio"].maximum == 3.0 and sizes.distributions["height"].maximum == 30
    assert sizes.distributions["image_bytes"].minimum == min(len(r.data or picture(r.image_id)) for r in rows)
    assert sizes.formats == {"JPEG": 12} and sizes.warnings == 2
    assert [(n.image_id, n.sentence) for n in sizes.warned] == [("02", "extraneous bytes"), ("07", "premature end")]
    assert list(facts.quality.distributions) == list(MEASURES) and facts.quality.note == ""
    extremes = {e.title: [i.image_id for i in e.images] for e in facts.quality.extremes}
    assert extremes == {
        "darkest": ["00", "01", "02", "03", "04"], "brightest": ["11", "10", "09", "08", "07"],
        "blurriest": ["11", "10", "09", "08", "07"], "lowest entropy": ["05", "04", "06", "03", "07"],
    }  # fmt: skip
    darkest = facts.quality.extremes[0].images[3]
    assert (darkest.label, darkest.split, darkest.value) == ("dog", "test", 0.25)
    assert (facts.quality.threshold, facts.quality.policy, facts.quality.outliers) == (6.0, "report", ())
    assert facts.provenance.settings == {} and facts.provenance.fingerprint == "0123456789abcdef"
    assert "no test image has a near-duplicate in train or val" in facts.leakage.sentence
    json.dumps(dataclasses.asdict(facts), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": 11}, "20 rows in, but 11 kept and 8 rejected"),
        ({"rejected": 7}, "rejected rows: the manifest says 7, the files have 8"),
        (
            {"by_split": {"train": 8, "val": 1, "test": 3}},
            "says test 3, train 8, val 1, the files have test 3, train 9",
        ),
        ({"by_reason": {"corrupt": 8}}, "rejects by reason: the manifest says corrupt 8, the files have corrupt 7, em"),
    ],
)
def test_totals_that_do_not_match_the_files_are_reported(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rejected = [reject(f"r{n}", "corrupt") for n in range(7)] + [reject("s", "empty_file")]
    dataset = draft(dataset_uri(tmp_path), rows_of(12), rejected)
    totals = dataclasses.replace(dataset.manifest.totals, **change)
    inconsistent = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, totals=totals))
    facts = audit.gather(inconsistent)
    assert any(problem in message for message in facts.ledger.problems)
    assert "it adds up" not in (text := audit_text.format_audit(facts)) and problem[:20] in text
    assert "✗" in audit_html.render(inconsistent) and "✓" in audit_html.render(dataset)


def test_closest_near_duplicates_are_listed_with_labels_splits_and_dropped_images(tmp_path: Path) -> None:
    pairs = [twin(f"{n:02d}", f"{n + 1:02d}", distance=(n * 7) % 30, difference=0.5 - n / 100) for n in range(30)]
    pairs[8] |= {"label": "cat", "twin_label": "dog", "dropped": "08"}
    pairs[9] |= {"split": "val", "twin_split": "test", "dropped": "both"}
    pairs[10] |= {"split": "test", "twin_split": "test", "dropped": "11"}
    findings = copy.deepcopy(NONE_FOUND)
    findings["near_duplicates"] |= {"pairs": 30, "by_splits": {"val-test": 1}, "complete": False, "conflicts": 1}
    near = audit.gather(draft(dataset_uri(tmp_path), rows_of(8), twins=pairs, found=findings)).near
    expected = sorted(pairs, key=lambda p: (p["distance"], p["difference"]))
    assert [p.image_id for p in near.closest] == [p["image_id"] for p in expected[:20]]
    assert [(p.image_id, p.twin_label, p.describe_dropped()) for p in near.conflicting] == [
        ("08", "dog", "first dropped")
    ]
    assert [(p.image_id, p.split, p.describe_dropped()) for p in near.leaking] == [("09", "val", "both dropped")]
    assert next(p for p in near.closest if p.image_id == "10").describe_dropped() == "second dropped"
    assert "largest groups" in near.note and "conflict_examples" not in near.counts


LEAKS = NONE_FOUND["leakage"]


@pytest.mark.parametrize(
    ("leakage", "copies", "declared", "sentence"),
    [
        ({}, 0, False, "The source declares no test split; in the splits used here no test image has a near-duplicate "
         "in train or val."),
        ({}, 0, True, "Under the splits that the source declares no test image has a near-duplicate in train, and none "
         "is there as an exact copy; in the splits used here no test image has a near-duplicate in train or val."),
        ({"declared_test_images_with_twin_in_declared_train": 2, "test_images_with_twin_in_train": 2, "kept": 3}, 1,
         True, "Under the splits that the source declares 2 test images have a near-duplicate in train, and 1 is there "
         "as an exact copy; in the splits used here 2 test images have a near-duplicate in train and 0 in val, and of "
         "those near-duplicates 0 were dropped and 3 kept (leakage: auto; drop would drop them)."),
        ({"test_images_with_twin_in_train": 1, "test_images_with_twin_in_val": 4, "dropped": 1}, 0, False,
         "The source declares no test split; in the splits used here 1 test image has a near-duplicate in train and 4 "
         "in val, and of those near-duplicates 1 was dropped and 0 kept (leakage: auto)."),
    ],
)  # fmt: skip
def test_leakage_is_one_sentence(
    tmp_path: Path, leakage: dict[str, Any], copies: int, declared: bool, sentence: str
) -> None:
    rows = rows_of(8)
    rows[3].declared = "test" if declared else None
    findings = copy.deepcopy(NONE_FOUND) | {"leakage": LEAKS | leakage}
    findings["duplicates"]["declared_test_images_in_declared_train"] = copies
    facts = audit.gather(draft(dataset_uri(tmp_path), rows, found=findings)).leakage
    assert facts.sentence == sentence and facts.declared == ({"test": 1} if declared else {})
    assert facts.counts["declared_test_images_in_declared_train"] == copies


def test_settings_are_those_that_differ(tmp_path: Path) -> None:
    config = CleanConfig.resolve(preset="ocr", near_radius=5)
    dataset = draft(dataset_uri(tmp_path), rows_of(8), config=config)
    dataset.manifest.config["abandoned"] = "yes"
    assert audit.gather(dataset).provenance.settings == {
        "abandoned": {"value": "yes", "default": None}, "color": {"value": "gray", "default": "rgb"},
        "equalize": {"value": "autocontrast", "default": "off"}, "near_radius": {"value": 5, "default": 3},
    }  # fmt: skip


# Missing pieces.


def test_measures_and_near_duplicates_that_are_off_are_reported(tmp_path: Path) -> None:
    rows = rows_of(8)
    for row in rows:
        row.measures = None
    findings = {name: NONE_FOUND[name] for name in ("duplicates", "outliers")}
    findings["duplicates"] = findings["duplicates"] | {"declared_test_images_in_declared_train": 2}
    dataset = draft(dataset_uri(tmp_path), rows, found=findings, config=CleanConfig(measures=False))
    facts = audit.gather(dataset)
    assert facts.quality.distributions == {} and facts.quality.extremes == ()
    assert facts.quality.note == "not measured: measures is off"
    assert facts.near.note == "not looked for: measures is off"
    assert facts.leakage.sentence == (
        "Near-duplicates between the splits: not looked for: measures is off; under the splits that the source "
        "declares 2 test images have an exact copy in train."
    )
    text = audit_text.format_audit(facts)
    assert "not measured: measures is off" in text and "near: not looked for" in text
    assert "Not measured: measures is off." in Page(audit_html.render(dataset)).text
    off = draft(dataset_uri(tmp_path), rows_of(8), found=findings, config=CleanConfig(near_duplicates="off"))
    assert audit.gather(off).near.note == "not looked for: near_duplicates is off"
    assert "Not measured" not in Page(audit_html.render(off)).text


def test_a_dataset_without_rejects_is_shown(tmp_path: Path) -> None:
    dataset = draft(dataset_uri(tmp_path), rows_of(4))
    assert audit.gather(dataset).ledger.reasons == () and "Nothing was rejected." in audit_html.render(dataset)
