"""Audit of clean datasets on disk: expected facts, the page, and the text for a terminal."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from audited import HOSTILE, dataset_uri, hostile_dataset, rows_of
from cleaned import NONE_FOUND, Row, draft, picture, reject, twin
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.clean.audit import gather
from imagemill.components.clean.audit_numbers import BINS, QUANTILES, Scan, describe_distribution
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import MEASURES
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.report import terminal, words
from imagemill.components.report.audit import describe, list_pictured, make_page, write_leakage
from imagemill.components.report.page import render
from imagemill.components.report.pictures import make_thumbnails


def make_html(dataset: Dataset) -> str:
    audit = gather(dataset)
    return render(make_page(audit, make_thumbnails(dataset, list_pictured(audit))))


def make_text(dataset: Dataset) -> str:
    return "\n".join(terminal.format_sections(describe(gather(dataset))))


def test_distribution_of_0_to_100() -> None:
    distribution = describe_distribution(np.arange(101, dtype=np.int32))
    assert distribution and (distribution.count, distribution.minimum, distribution.maximum) == (101, 0, 100)
    assert distribution.quantiles == {str(q): float(q) for q in QUANTILES}
    assert distribution.bins == tuple(np.histogram(np.arange(1, 100), BINS, (1, 99))[0].tolist())
    single = describe_distribution(np.full(7, 0.25, np.float32))
    assert single and single.bins == (7,)
    no_numbers = (None, np.empty(0), np.array([np.nan, np.inf], np.float32))
    assert [describe_distribution(values) for values in no_numbers] == [None] * 3


def test_extremes_are_those_of_all_row_groups_in_the_order_of_the_rows_where_equal(tmp_path: Path) -> None:
    values = [5, 3, 9, 3, 1, 9, 7, 3, 8, 9, 2, float("nan"), 9, 1, 4]
    dataset = draft(dataset_uri(tmp_path), rows_of(15, brightness=values.__getitem__), row_group_rows=4)
    scan = Scan.of(dataset)
    files = [pq.read_table(dataset.locate_part(part)) for part in dataset.manifest.parts]
    stored = [v for t in files for v in t.column("brightness").to_pylist()]
    for largest in (False, True):
        order = sorted((v if not largest else -v, n) for n, v in enumerate(stored) if v == v)
        for number in (1, 3, 5, 14, 40):
            assert scan.find_extremes("brightness", number, largest) == [n for _, n in order[:number]]
    ids = [i for t in files for i in t.column("image_id").to_pylist()]
    assert {n: info.image_id for n, info in scan.read_infos(range(15)).items()} == dict(enumerate(ids))


def test_the_facts_are_golden(tmp_path: Path) -> None:
    rows = rows_of(12, brightness=lambda n: n / 12, sharpness=lambda n: 100 - n, entropy=lambda n: (n - 5) ** 2)
    rows[2].warning, rows[7].warning = "extraneous bytes", "premature end"
    rows[3].data = picture("3", (90, 30))
    rejected = [reject(f"r{n}", "corrupt", f"broken {n}") for n in range(7)] + [reject("s", "empty_file")]
    facts = gather(draft(dataset_uri(tmp_path), rows, rejected, classes=("cat", "cow", "dog")))
    ledger, measured = facts.ledger, facts.measured
    assert (ledger.rows_in, ledger.kept, ledger.rejected, ledger.problems) == (20, 12, 8, ())
    assert [(r.name, r.count) for r in ledger.reasons] == [("corrupt", 7), ("empty_file", 1)]
    examples = [(example.image_id, example.note) for example in ledger.reasons[0].examples]
    assert examples == [(f"r{n}", f"broken {n}") for n in range(5)]
    assert list(facts.balance.classes.items()) == [
        ("cat", {"train": 6, "val": 0, "test": 0}), ("dog", {"train": 3, "val": 0, "test": 3}),
        ("cow", {"train": 0, "val": 0, "test": 0}),
    ]  # fmt: skip
    assert (measured.sizes["width"].minimum, measured.sizes["width"].maximum) == (40, 90)
    assert measured.sizes["aspect_ratio"].maximum == 3.0 and measured.formats == {"JPEG": 12}
    assert [(n.image_id, n.note) for n in measured.warned.examples] == [
        ("02", "extraneous bytes"), ("07", "premature end"),
    ]  # fmt: skip
    assert list(measured.measures) == [name for name in MEASURES if name != "aspect_ratio"]
    extremes = {group.name: [image.image_id for image in group.examples] for group in measured.extremes}
    assert extremes == {
        "darkest": ["00", "01", "02", "03", "04"], "brightest": ["11", "10", "09", "08", "07"],
        "blurriest": ["11", "10", "09", "08", "07"], "lowest entropy": ["05", "04", "06", "03", "07"],
    }  # fmt: skip
    darkest = measured.extremes[0].examples[3]
    assert (darkest.label, darkest.split, darkest.note) == ("dog", "test", "brightness 0.250")
    assert (measured.outlier_threshold, measured.outlier_policy, measured.outliers) == (6.0, "report", ())
    assert facts.provenance.settings == {} and facts.provenance.fingerprint == "0123456789abcdef"
    json.dumps(dataclasses.asdict(facts), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": 11}, "20 rows in, but 11 kept and 8 rejected"),
        ({"rejected": 7}, "the manifest says kept 12, rejected 7, the files have kept 12, rejected 8"),
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
    assert any(problem in message for message in gather(inconsistent).ledger.problems)
    assert "WRONG: " in make_text(inconsistent) and "✓" in make_text(dataset)


def test_near_duplicates_are_listed_with_labels_splits_and_dropped_images(tmp_path: Path) -> None:
    pairs = [twin(f"{n:02d}", f"{n + 1:02d}", distance=(n * 7) % 30, difference=0.5 - n / 100) for n in range(30)]
    pairs[8] |= {"label": "cat", "twin_label": "dog", "dropped": "08"}
    pairs[9] |= {"split": "val", "twin_split": "test", "dropped": "both"}
    findings = copy.deepcopy(NONE_FOUND)
    findings["near_duplicates"] |= {"pairs": 30, "by_splits": {"val-test": 1}, "complete": False, "conflicts": 1}
    dataset = draft(dataset_uri(tmp_path), rows_of(8), twins=pairs, found=findings)
    found = gather(dataset).duplicates
    expected = sorted(pairs, key=lambda p: (p["distance"], p["difference"]))
    assert [p.image_id for p in found.closest] == [p["image_id"] for p in expected[:20]]
    assert [(p.image_id, p.twin_label) for p in found.conflicting] == [("08", "dog")]
    assert [(p.image_id, p.split) for p in found.leaking] == [("09", "val")]
    page = Page(make_html(dataset))
    assert "Pairs with one side in test: 1 of 1" in page.text and "both dropped" in page.text
    assert "cat · train = dog · train" in page.text and "first dropped" in page.text and "largest groups" in page.text


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
    assert write_leakage(gather(draft(dataset_uri(tmp_path), rows, found=findings)).duplicates) == sentence


def test_settings_are_those_that_differ(tmp_path: Path) -> None:
    dataset = draft(dataset_uri(tmp_path), rows_of(8), config=CleanConfig.resolve(preset="ocr", near_radius=5))
    dataset.manifest.config["abandoned"] = "yes"
    assert gather(dataset).provenance.settings == {
        "abandoned": {"value": "yes", "default": None}, "color": {"value": "gray", "default": "rgb"},
        "equalize": {"value": "autocontrast", "default": "off"}, "near_radius": {"value": 5, "default": 3},
    }  # fmt: skip
    assert "near radius" not in (text := make_text(dataset)) and "near_radius  5 default 3" in text


def test_what_was_not_looked_for_is_reported(tmp_path: Path) -> None:
    rows = rows_of(8)
    for row in rows:
        row.measures = None
    findings = {name: NONE_FOUND[name] for name in ("duplicates", "outliers")}
    findings["duplicates"] = findings["duplicates"] | {"declared_test_images_in_declared_train": 2}
    text = make_text(draft(dataset_uri(tmp_path), rows, found=findings, config=CleanConfig(measures=False)))
    assert "Not measured: measures is off." in text and "Near-duplicates: not looked for: measures is off." in text
    assert "2 test images have an exact copy" in text and "Nothing was rejected." in text
    off = draft(dataset_uri(tmp_path), rows_of(8), found=findings, config=CleanConfig(near_duplicates="off"))
    assert gather(off).duplicates.why_not == "not looked for: near_duplicates is off"


# The page and the text.


def test_page_escapes_names_loads_nothing_and_depends_on_the_content_alone(tmp_path: Path) -> None:
    dataset = hostile_dataset(tmp_path)
    html = make_html(dataset)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "u"}
    assert "onerror" not in str([attributes.keys() for _, attributes in page.tags])
    for text in ("<img src=x onerror=alert(1)>", "<b>warned</b>", "copy<u>", "<i>why</i>"):
        assert text in page.text
    assert HOSTILE in page.values("alt", "title")
    links = page.values("src", "href", "srcset", "action")
    assert links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert str(tmp_path) not in html and html == make_html(hostile_dataset(tmp_path))


def test_lines_fit_the_terminal_and_hold_no_control_characters(tmp_path: Path) -> None:
    text = make_text(hostile_dataset(tmp_path))
    lines = text.split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if terminal.count_columns(line) > terminal.WIDTH] == []
    assert "… 30 classes between" in text and "second dropped" in " ".join(text.split())
    assert "<b>warned</b>\\x07" in text


def test_a_huge_list_of_classes_is_shown_by_its_ends(tmp_path: Path) -> None:
    names = tuple(f"class-{n:05d}" for n in range(3_000))
    rows = [Row(f"{n}", names[n % 5 if n else 7], "train") for n in range(40)]
    dataset = draft(dataset_uri(tmp_path), rows, classes=names)
    text, html = make_text(dataset), make_html(dataset)
    assert len(text.split("\n")) < 160 and "… 2,970 classes between" in text and "and 2,974 more" in text
    assert "… 2,970 classes between" in html and html.count("class-0") < 200


@given(st.text(max_size=40), st.integers(1, 30), st.booleans())
def test_fitted_text_has_its_width_and_nothing_that_a_terminal_obeys(text: str, width: int, right: bool) -> None:
    fitted = terminal.fit(text, width, right)
    assert terminal.count_columns(fitted) == width and fitted.isprintable()
    if terminal.count_columns(terminal.escape_unprintable(text)) <= width:
        assert fitted.strip(" ") == terminal.escape_unprintable(text).strip(" ")


def test_the_layout_is_golden() -> None:
    assert terminal.shorten("photos/cats/2021/january/IMG_0001.jpg", 20) == "photos/ca…G_0001.jpg"
    assert terminal.escape_unprintable("a\x1b[0m\n\u202eb") == "a\\x1b[0m\\n\\u202eb"
    assert [terminal.draw_bar(share, 4) for share in (0, 1e-9, 0.25, 0.53, 2)] == ["", "▏", "█", "██▏", "████"]
    assert terminal.draw_sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█"
    numbers = (0, 3, 24017, 1234.56, 350.25, 12.346, 0.48249, 0.000123, -2.5)
    assert [words.format_number(n) for n in numbers] == [
        "0", "3", "24,017", "1,235", "350.2", "12.35", "0.482", "1.2e-04", "-2.500",
    ]  # fmt: skip
    assert [words.format_percent(*p) for p in ((0, 10), (1, 100_000), (1, 3), (0, 0))] == [
        "0.0%", "<0.1%", "33.3%", "0.0%",
    ]  # fmt: skip
    assert words.join_names("abcde", 2) == "a, b and 3 more" and words.join_names("ab", 2) == "a, b"
    assert terminal.format_table([["a", "1"], ["bcd", "23"]], "lr") == ["  a     1", "  bcd  23"]
