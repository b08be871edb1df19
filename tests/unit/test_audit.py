"""The audit of clean datasets that are really there: golden facts, missing pieces, the text, and the page as parsed."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import cleaned
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from cleaned import NONE_FOUND, Row, draft, picture, reject, twin
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.components.clean import audit, audit_html, audit_layout, audit_pictures, audit_text
from imagemill.components.clean.audit_numbers import BINS, QUANTILES, Scan, describe
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.measures import measure
from imagemill.components.clean.schema import MEASURES
from imagemill.components.download.raw import RAW
from imagemill.components.store.images import decode
from imagemill.components.store.manifest import Dataset, File, Manifest, Totals, commit
from imagemill.components.store.shards import Layout, ShardWriter, publish_file

HOSTILE = "<script>alert(1)</script>.jpg"


def rows_of(number: int, **measures: Any) -> list[Row]:
    """Rows `00`, `01`, …: cats and dogs in turn, every fourth in test; `measures` are functions of the number."""
    return [
        Row(f"{n:02d}", ["cat", "dog"][n % 2], "test" if n % 4 == 3 else "train",
            measures={name: float(make(n)) for name, make in measures.items()})
        for n in range(number)
    ]  # fmt: skip


def where(tmp_path: Path) -> str:
    return str(tmp_path / "clean" / "0123456789abcdef")


# Numbers.


def test_a_distribution_is_golden() -> None:
    values = np.arange(101, dtype=np.int32)
    found = describe(values)
    assert found is not None and (found.count, found.minimum, found.maximum) == (101, 0, 100)
    assert found.quantiles == {str(q): float(q) for q in QUANTILES}
    histogram = found.histogram
    assert (histogram.low, histogram.high, histogram.below, histogram.above) == (1, 99, 1, 1)
    assert histogram.counts == tuple(np.histogram(np.arange(1, 100), 20, (1, 99))[0].tolist())
    assert len(histogram.counts) == BINS and sum(histogram.counts) == 99


def test_a_distribution_of_one_value_has_one_bin_and_that_of_none_is_none() -> None:
    found = describe(np.full(7, 0.25, np.float32))
    assert found is not None and found.histogram.counts == (7,) and found.histogram.low == found.histogram.high == 0.25
    nothing = np.array([np.nan, np.inf], np.float32)
    assert describe(None) is None and describe(np.empty(0)) is None and describe(nothing) is None


@given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), min_size=1, max_size=200))
def test_every_number_is_in_one_bin(numbers: list[float]) -> None:
    found = describe(np.array(numbers, np.float32))
    known = [n for n in numbers if n == n]
    if found is None:
        assert not known
        return
    histogram = found.histogram
    assert found.count == len(known) == sum(histogram.counts) + histogram.below + histogram.above
    assert histogram.below <= 0.02 * len(known) + 1 and histogram.above <= 0.02 * len(known) + 1


def test_extremes_are_those_of_all_row_groups_in_the_order_of_the_rows_where_equal(tmp_path: Path) -> None:
    values = [5, 3, 9, 3, 1, 9, 7, 3, 8, 9, 2, float("nan"), 9, 1, 4]
    dataset = draft(where(tmp_path), rows_of(15, brightness=values.__getitem__), row_group_rows=4)
    scan = Scan.of(dataset)
    files = [pq.read_table(dataset.locate(f)) for f in dataset.files()]
    stored = [v for t in files for v in t.column("brightness").to_pylist()]
    assert scan.rows == 15 and len(stored) == 15 and scan.by_split == {"train": 12, "test": 3}
    for largest in (False, True):
        order = sorted((v if not largest else -v, n) for n, v in enumerate(stored) if v == v)
        for number in (1, 3, 5, 14, 40):
            assert scan.extremes("brightness", number, largest) == [n for _, n in order[:number]]
    ids = [i for t in files for i in t.column("image_id").to_pylist()]
    assert {n: label.image_id for n, label in scan.names(range(15)).items()} == dict(enumerate(ids))


# Facts.


def test_the_facts_are_golden(tmp_path: Path) -> None:
    rows = rows_of(12, brightness=lambda n: n / 12, sharpness=lambda n: 100 - n, entropy=lambda n: (n - 5) ** 2)
    rows[2].warning, rows[7].warning = "extraneous bytes", "premature end"
    rows[3].data = picture("3", (90, 30))
    rejected = [reject(f"r{n}", "corrupt", f"broken {n}") for n in range(7)] + [reject("s", "empty_file")]
    facts = audit.gather(draft(where(tmp_path), rows, rejected, classes=("cat", "cow", "dog")))
    ledger = facts.ledger
    assert (ledger.rows_in, ledger.kept, ledger.rejected, ledger.problems) == (20, 12, 8, ())
    assert [(r.reason, r.count) for r in ledger.reasons] == [("corrupt", 7), ("empty_file", 1)]
    assert [(e.image_id, e.said) for e in ledger.reasons[0].examples] == [(f"r{n}", f"broken {n}") for n in range(5)]
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
    assert [(n.image_id, n.said) for n in sizes.warned] == [("02", "extraneous bytes"), ("07", "premature end")]
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
    assert "no test image has a near twin in train or val" in facts.leakage.sentence
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
def test_books_that_are_wrong_are_said_to_be(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rejected = [reject(f"r{n}", "corrupt") for n in range(7)] + [reject("s", "empty_file")]
    dataset = draft(where(tmp_path), rows_of(12), rejected)
    totals = dataclasses.replace(dataset.manifest.totals, **change)
    wrong = dataclasses.replace(dataset, manifest=dataclasses.replace(dataset.manifest, totals=totals))
    facts = audit.gather(wrong)
    assert any(problem in said for said in facts.ledger.problems)
    assert "it adds up" not in (shown := audit_text.text(facts)) and problem[:20] in shown
    assert "✗" in audit_html.render(wrong) and "✓" in audit_html.render(dataset)


def test_twins_are_the_closest_of_all_with_labels_splits_and_who_went(tmp_path: Path) -> None:
    pairs = [twin(f"{n:02d}", f"{n + 1:02d}", distance=(n * 7) % 30, difference=0.5 - n / 100) for n in range(30)]
    pairs[8] |= {"label": "cat", "twin_label": "dog", "dropped": "08"}
    pairs[9] |= {"split": "val", "twin_split": "test", "dropped": "both"}
    pairs[10] |= {"split": "test", "twin_split": "test", "dropped": "11"}
    found = copy.deepcopy(NONE_FOUND)
    found["near_duplicates"] |= {"pairs": 30, "by_splits": {"val-test": 1}, "complete": False, "conflicts": 1}
    near = audit.gather(draft(where(tmp_path), rows_of(8), twins=pairs, found=found)).near
    expected = sorted(pairs, key=lambda p: (p["distance"], p["difference"]))
    assert [p.image_id for p in near.closest] == [p["image_id"] for p in expected[:20]]
    assert [(p.image_id, p.twin_label, p.went()) for p in near.conflicting] == [("08", "dog", "first dropped")]
    assert [(p.image_id, p.split, p.went()) for p in near.leaking] == [("09", "val", "both dropped")]
    assert next(p for p in near.closest if p.image_id == "10").went() == "second dropped"
    assert "largest groups" in near.note and "conflict_examples" not in near.found


LEAKS = NONE_FOUND["leakage"]


@pytest.mark.parametrize(
    ("leakage", "copies", "declared", "sentence"),
    [
        ({}, 0, False, "The source declares no test split; in the splits used here no test image has a near twin in "
         "train or val."),
        ({}, 0, True, "Under the splits that the source declares no test image has a near twin in train, and none is "
         "there as an exact copy; in the splits used here no test image has a near twin in train or val."),
        ({"declared_test_images_with_twin_in_declared_train": 2, "test_images_with_twin_in_train": 2, "kept": 3}, 1,
         True, "Under the splits that the source declares 2 test images have a near twin in train, and 1 is there as "
         "an exact copy; in the splits used here 2 test images have a near twin in train and 0 in val, and of those "
         "twins 0 were dropped and 3 kept (leakage: auto; drop would drop them)."),
        ({"test_images_with_twin_in_train": 1, "test_images_with_twin_in_val": 4, "dropped": 1}, 0, False,
         "The source declares no test split; in the splits used here 1 test image has a near twin in train and 4 in "
         "val, and of those twins 1 was dropped and 0 kept (leakage: auto)."),
    ],
)  # fmt: skip
def test_leakage_is_one_sentence(
    tmp_path: Path, leakage: dict[str, Any], copies: int, declared: bool, sentence: str
) -> None:
    rows = rows_of(8)
    rows[3].declared = "test" if declared else None
    found = copy.deepcopy(NONE_FOUND) | {"leakage": LEAKS | leakage}
    found["duplicates"]["declared_test_images_in_declared_train"] = copies
    facts = audit.gather(draft(where(tmp_path), rows, found=found)).leakage
    assert facts.sentence == sentence and facts.declared == ({"test": 1} if declared else {})
    assert facts.found["declared_test_images_in_declared_train"] == copies


def test_settings_are_those_that_differ(tmp_path: Path) -> None:
    config = CleanConfig(preset="ocr", near_radius=5)
    dataset = draft(where(tmp_path), rows_of(8), config=config)
    dataset.manifest.config["abandoned"] = "yes"
    assert audit.gather(dataset).provenance.settings == {
        "abandoned": {"value": "yes", "default": None}, "color": {"value": "gray", "default": "rgb"},
        "equalize": {"value": "autocontrast", "default": "off"}, "near_radius": {"value": 5, "default": 3},
    }  # fmt: skip


# Missing pieces.


def test_measures_and_near_duplicates_that_are_off_are_said(tmp_path: Path) -> None:
    rows = rows_of(8)
    for row in rows:
        row.measures = None
    found = {name: NONE_FOUND[name] for name in ("duplicates", "outliers")}
    found["duplicates"] = found["duplicates"] | {"declared_test_images_in_declared_train": 2}
    dataset = draft(where(tmp_path), rows, found=found, config=CleanConfig(measures=False))
    facts = audit.gather(dataset)
    assert facts.quality.distributions == {} and facts.quality.extremes == ()
    assert (
        facts.quality.note == "not measured: measures is off" and facts.near.note == "not looked for: measures is off"
    )
    assert facts.leakage.sentence == (
        "Near twins between the splits: not looked for: measures is off; under the splits that the source declares "
        "2 test images have an exact copy in train."
    )
    shown = audit_text.text(facts)
    assert "not measured: measures is off" in shown and "near: not looked for" in shown
    assert "Not measured: measures is off." in Page(audit_html.render(dataset)).text
    off = draft(where(tmp_path), rows_of(8), found=found, config=CleanConfig(near_duplicates="off"))
    assert audit.gather(off).near.note == "not looked for: near_duplicates is off"
    assert "Not measured" not in Page(audit_html.render(off)).text


def test_a_dataset_of_an_older_version_is_shown_with_what_it_has(tmp_path: Path) -> None:
    whole = draft(where(tmp_path), rows_of(8), [reject("r", "corrupt")])
    old_columns = ["image_id", "image", "label", "label_id", "split", "shuffle_index", "width", "height", "sha256",
                   "format", "image_bytes", "pixel_hash", "decoder_warning"]  # fmt: skip
    files = []
    for number, file in enumerate(whole.files()):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pq.read_table(whole.locate(file)).select(old_columns), path)
        files.append(publish_file(whole.uri, path, f"old/{file.split}/part-", "data", file.split, file.rows))
    files += whole.files("rejected")
    extra = {"dataset_name": "old", "decoder_warnings": 0}
    dataset = Dataset(
        whole.uri,
        dataclasses.replace(whole.manifest, files=tuple(files), extra=extra, config={"color": "rgb"}, image={}), "",
    )  # fmt: skip
    facts = audit.gather(dataset)
    assert facts.ledger.rows_in is None and facts.ledger.problems == () and facts.exact.groups is None
    assert facts.sizes.distributions.keys() == {"width", "height", "aspect_ratio", "image_bytes"}
    older = "not recorded: an older version made this dataset"
    assert facts.quality.note == facts.near.note == older and facts.balance.classes[0].splits == {}
    shown, page = audit_text.text(facts), Page(audit_html.render(dataset))
    assert "8 kept, 1 rejected; rows in: not recorded" in shown and shown.count(older) == 3
    assert "not recorded by the version that made this dataset" in page.text and page.text.count(older) >= 2


def test_a_dataset_without_rejects_is_shown(tmp_path: Path) -> None:
    dataset = draft(where(tmp_path), rows_of(4))
    assert audit.gather(dataset).ledger.reasons == () and "Nothing was rejected." in audit_html.render(dataset)


# Text.


@given(st.text(max_size=40), st.integers(1, 30), st.booleans())
def test_fitted_text_has_its_width_and_nothing_that_a_terminal_obeys(text: str, width: int, right: bool) -> None:
    fitted = audit_layout.fit(text, width, right)
    assert audit_layout.columns(fitted) == width and fitted.isprintable()
    if audit_layout.columns(audit_layout.plain(text)) <= width:
        assert fitted.strip(" ") == audit_layout.plain(text).strip(" ")


def test_the_layout_is_golden() -> None:
    assert audit_layout.short("photos/cats/2021/january/IMG_0001.jpg", 20) == "photos/ca…G_0001.jpg"
    assert audit_layout.short("日本の犬の写真", 9) == "日本…写真" and audit_layout.plain("a\x1b[0m\n\u202eb") == (
        "a\\x1b[0m\\n\\u202eb"
    )
    assert [audit_layout.bar(share, 4) for share in (0, 1e-9, 0.25, 0.5, 0.53, 1, 2)] == [
        "", "▏", "█", "██", "██▏", "████", "████",
    ]  # fmt: skip
    assert audit_layout.spark([0, 1, 2, 4, 8]) == " ▁▂▄█" and audit_layout.spark([0, 0]) == "  "
    numbers = (0, 3, 24017, 1234.56, 350.25, 12.346, 0.48249, 0.000123, -2.5)
    assert [audit_layout.number(n) for n in numbers] == [
        "0", "3", "24,017", "1,235", "350.2", "12.35", "0.482", "1.2e-04", "-2.500",
    ]  # fmt: skip
    assert [audit_layout.percent(*p) for p in ((0, 10), (1, 100_000), (1, 3), (3, 3), (0, 0))] == [
        "0.0%", "<0.1%", "33.3%", "100.0%", "0.0%",
    ]  # fmt: skip
    assert audit_layout.listed("abcde", 2) == "a, b and 3 more" and audit_layout.listed("ab", 2) == "a, b"
    assert audit_layout.table([["a", "1"], ["bcd", "23"]], "lr") == ["  a     1", "  bcd  23"]


def hostile_dataset(tmp_path: Path, classes: int = 60) -> Dataset:
    """Names that are long, wide, or not meant for terminals and pages; many classes."""
    long = "very/" * 40 + "long.jpg"
    names = ["\x1b[31mred\x1b[0m", "日本の犬" * 12, "<img src=x onerror=alert(1)>", "a\nb", "x" * 200]
    names += [f"class-{n:04d}" for n in range(classes - len(names))]
    rows = [Row(f"{n:04d}", name, ("train", "val", "test")[n % 3]) for n, name in enumerate(names)]
    rows += [Row(HOSTILE, names[2], "train", warning="<b>warned</b>\x07"), Row(long, names[0], "test")]
    rejected = [reject(f"\x1b]0;{n}\x07" + "y" * 150, "corrupt", "<i>why</i>" + "z" * 200) for n in range(9)]
    pairs = [twin(HOSTILE, long, 0, 0.0, label=names[2], twin_label=names[0], twin_split="test", dropped=long)]
    pairs += [twin(f"gone-{n}\x1b", "0000", 1, 0.0) for n in range(9)]
    found = copy.deepcopy(NONE_FOUND)
    group = [{"image_id": HOSTILE, "label": names[2]}, {"image_id": "copy<u>", "label": names[1]}]
    found["duplicates"] |= {"groups": 40, "conflicts": 30, "conflict_examples": [group] * 30}
    found["near_duplicates"] |= {"pairs": 10, "images": 12, "conflicts": 1, "by_splits": {"train-test": 1}}
    example = {"image_id": long, "value": 12345.678, "score": 1234.5}
    found["outliers"] = {"sharpness": {"count": 70, "median": 1.5, "examples": [example] * 20}}
    return draft(where(tmp_path), rows, rejected, pairs, found)


def test_no_line_is_wider_than_a_terminal_nor_commands_it(tmp_path: Path) -> None:
    lines = audit_text.text(audit.gather(hostile_dataset(tmp_path))).split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if audit_layout.columns(line) > audit_layout.WIDTH] == []
    shown = "\n".join(lines)
    assert "… 40 classes between" in shown and "and 65 more" in shown and "and 22 more" in shown
    assert "largest groups" not in shown and "second dropped" in shown and "<b>warned</b>\\x07" in shown


def test_a_huge_list_of_classes_is_shown_by_its_ends(tmp_path: Path) -> None:
    names = tuple(f"class-{n:05d}" for n in range(3_000))
    rows = [Row(f"{n}", names[n % 5 if n else 7], "train") for n in range(40)]
    dataset = draft(where(tmp_path), rows, classes=names)
    facts = audit.gather(dataset)
    assert len(facts.balance.classes) == 3_000 and len(facts.balance.without["any"]) == 2_994
    shown, html = audit_text.text(facts), audit_html.render(dataset)
    assert len(shown.split("\n")) < 160 and "… 2,980 classes between" in shown and "and 2,986 more" in shown
    assert "… 2,960 classes between" in html and html.count("class-0") < 200 and "and 2,954 more" in html


# The page.


def test_the_page_escapes_what_strangers_named_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    html = audit_html.render(hostile_dataset(tmp_path))
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert names & {"script", "link", "iframe", "object", "i", "u"} <= {"i"} and "onerror" not in str(
        [attributes.keys() for _, attributes in page.tags]
    )
    assert {a["class"] for tag, a in page.tags if tag == "i"} == {"b-train", "b-val", "b-test"}
    policy = next(a for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy["http-equiv"] == "Content-Security-Policy" and (policy["content"] or "").startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
    )
    assert "in the splits used here no test image has a near twin" in page.text
    for text in (HOSTILE, "<img src=x onerror=alert(1)>", "<b>warned</b>", "copy<u>", "<i>why</i>"):
        assert text in page.text
    links = [v for _, a in page.tags for name, v in a.items() if name in ("src", "href", "srcset", "action") and v]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")) for link in links)
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_equal_datasets_give_the_same_page_wherever_and_whenever(tmp_path: Path) -> None:
    rejected, pairs = [reject("r", "corrupt")], [twin("00", "gone")]
    found = copy.deepcopy(NONE_FOUND)
    found["near_duplicates"] |= {"pairs": 1, "images": 2}
    pages = []
    for number, place in enumerate(("here", "there/further")):
        uri = str(tmp_path / place / "clean" / "0123456789abcdef")
        dataset = draft(uri, rows_of(9), rejected, pairs, found)
        if number:  # committed, with a clock and a version, and with the page among its files
            more = {"files": (*dataset.manifest.files, pages[0]), "code_version": "9.9", "created": "2031-01-01"}
            dataset = commit(uri, dataclasses.replace(dataset.manifest, **more))
        pages.append(audit_html.write_audit(dataset))
        assert str(tmp_path) not in audit_html.render(dataset)
    assert pages[0] == pages[1]
    page: File = pages[0]
    assert page.role == "report" and page.uri == f"audit-{page.sha256[:16]}.html" and page.rows == 0
    assert (tmp_path / "here/clean/0123456789abcdef" / page.uri).stat().st_size == page.bytes


def test_pictures_are_of_the_images_and_those_of_dropped_ones_come_from_raw(tmp_path: Path) -> None:
    raw_uri, grey = str(tmp_path / "raw" / "aa"), picture("gone", (400, 100))
    with ShardWriter(raw_uri, Layout(RAW, row_group_rows=2)) as writer:
        for name in ("other", "another", "gone"):
            writer.add(dict.fromkeys(RAW.names) | {"image_id": name, "image": grey}, 0)
        file = writer.publish("data")
    raw = commit(raw_uri, Manifest("raw", "aa", files=(file,), totals=Totals(rows=3)))
    rows = rows_of(8, brightness=lambda n: n)
    rows[0].data = picture("00", (320, 200), "PNG")
    pairs = [twin("00", "gone", dropped="gone"), twin("lost", "01", 3)]
    found = copy.deepcopy(NONE_FOUND)
    found["near_duplicates"] |= {"pairs": 2, "images": 4}
    parents = (raw.as_parent(where(tmp_path)),)
    dataset = draft(where(tmp_path), rows, twins=pairs, found=found, parents=parents)
    page = Page(audit_html.render(dataset))
    pictures = page.pictures()
    assert pictures["00"][0].format == "JPEG" and pictures["00"][0].size == (160, 100)
    assert pictures["gone"][0].size == (160, 40) and "lost" not in pictures and "no picture kept" in page.text
    truth = np.asarray(Image.open(io.BytesIO(rows[0].data)).convert("RGB").resize((160, 100))).astype(float)
    assert np.abs(np.asarray(pictures["00"][0]).astype(float) - truth).mean() < 12
    assert page.text.count("· dropped") == 1 and "../../raw/aa" in page.text
    (tmp_path / "raw" / "aa" / "_manifest.json").unlink()
    assert "gone" not in Page(audit_html.render(dataset)).pictures()


def test_beyond_a_bound_pictures_are_the_stored_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(8)
    rows[1].data = b"bytes that are no image"
    for row in rows:
        row.thumbnail = measure(decode(picture(row.image_id)).pixels if row is not rows[1] else RED).thumbnail
    dataset = draft(where(tmp_path), rows)
    monkeypatch.setattr(audit_pictures, "LARGE", 3)
    found = audit_pictures.find_pictures(dataset, ["01", "02", "02", "00", "03", "nobody"])
    assert {name: picture.small for name, picture in found.items()} == {
        "00": False, "01": True, "02": False, "03": True,
    }  # fmt: skip
    small = Image.open(io.BytesIO(base64.b64decode(found["01"].src.partition("base64,")[2])))
    assert (small.format, small.mode, small.size) == ("PNG", "RGB", (24, 24))
    assert np.abs(np.asarray(small).astype(int) - (200, 30, 60)).max() < 4


RED = np.full((50, 70, 3), (200, 30, 60), np.uint8)


def test_a_thumbnail_shows_the_picture() -> None:
    pixels = np.full((240, 240, 3), (20, 160, 90), np.uint8)
    pixels[:120, 120:] = (230, 40, 50)
    found = audit_pictures.thumbnail_pixels(measure(pixels).thumbnail)
    assert found is not None and found.shape == (24, 24, 3) and found.dtype == np.uint8
    truth = cv2.resize(pixels, (24, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(found.astype(int) - truth).max() < 8
    grey = audit_pictures.thumbnail_pixels(measure(pixels[:, :, :1]).thumbnail)
    assert grey is not None and np.ptp(grey, axis=2).max() == 0 and set(np.unique(grey)) >= {20, 230}
    assert audit_pictures.thumbnail_pixels(b"") is None and audit_pictures.thumbnail_uri(b"12345") == ""


def test_the_histogram_has_a_bar_a_bin_and_grey_ends() -> None:
    found = describe(np.arange(101))
    assert found is not None
    bars = [a for tag, a in Page(str(audit_html._histogram(found.histogram))).tags if tag == "rect"]
    assert [b["class"] for b in bars] == ["end", *["bin"] * 20, "end"]
    heights = [float(b["height"] or 0) for b in bars]
    assert heights[0] == heights[-1] and max(heights) == heights[1] == pytest.approx(62, abs=0.1)
    one = describe(np.full(3, 2.0))
    assert one is not None and str(audit_html._histogram(one.histogram)).count("<rect") == 1


def test_the_builder_writes_what_the_step_writes(tmp_path: Path) -> None:
    dataset = cleaned.cleaned(where(tmp_path), rows_of(8), [reject("r", "corrupt")])
    assert not dataset.missing() and dataset.manifest.totals.rows == 8
