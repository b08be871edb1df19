"""The audit as text for a terminal, and as a page that is parsed."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
from pathlib import Path

import cleaned
import cv2
import numpy as np
import pytest
from audited import HOSTILE, dataset_uri, hostile_dataset, rows_of
from cleaned import NONE_FOUND, Row, draft, picture, reject, twin
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagemill.components.clean import audit, audit_html, audit_layout, audit_text
from imagemill.components.clean.audit_numbers import describe_distribution
from imagemill.components.clean.measures import measure
from imagemill.components.dataset.manifest import File, Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout, ShardWriter
from imagemill.components.download.raw import RAW
from imagemill.components.imaging.decoder import decode

# Text.


@given(st.text(max_size=40), st.integers(1, 30), st.booleans())
def test_fitted_text_has_its_width_and_nothing_that_a_terminal_obeys(text: str, width: int, right: bool) -> None:
    fitted = audit_layout.fit(text, width, right)
    assert audit_layout.count_columns(fitted) == width and fitted.isprintable()
    if audit_layout.count_columns(audit_layout.escape_unprintable(text)) <= width:
        assert fitted.strip(" ") == audit_layout.escape_unprintable(text).strip(" ")


def test_the_layout_is_golden() -> None:
    assert audit_layout.shorten("photos/cats/2021/january/IMG_0001.jpg", 20) == "photos/ca…G_0001.jpg"
    assert audit_layout.shorten("日本の犬の写真", 9) == "日本…写真"
    assert audit_layout.escape_unprintable("a\x1b[0m\n\u202eb") == "a\\x1b[0m\\n\\u202eb"
    assert [audit_layout.draw_bar(share, 4) for share in (0, 1e-9, 0.25, 0.5, 0.53, 1, 2)] == [
        "", "▏", "█", "██", "██▏", "████", "████",
    ]  # fmt: skip
    assert audit_layout.draw_sparkline([0, 1, 2, 4, 8]) == " ▁▂▄█" and audit_layout.draw_sparkline([0, 0]) == "  "
    numbers = (0, 3, 24017, 1234.56, 350.25, 12.346, 0.48249, 0.000123, -2.5)
    assert [audit_layout.format_number(n) for n in numbers] == [
        "0", "3", "24,017", "1,235", "350.2", "12.35", "0.482", "1.2e-04", "-2.500",
    ]  # fmt: skip
    assert [audit_layout.format_percent(*p) for p in ((0, 10), (1, 100_000), (1, 3), (3, 3), (0, 0))] == [
        "0.0%", "<0.1%", "33.3%", "100.0%", "0.0%",
    ]  # fmt: skip
    assert audit_layout.join_names("abcde", 2) == "a, b and 3 more" and audit_layout.join_names("ab", 2) == "a, b"
    assert audit_layout.format_table([["a", "1"], ["bcd", "23"]], "lr") == ["  a     1", "  bcd  23"]


def test_lines_fit_the_terminal_and_hold_no_control_characters(tmp_path: Path) -> None:
    lines = audit_text.format_audit(audit.gather(hostile_dataset(tmp_path))).split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert [line for line in lines if audit_layout.count_columns(line) > audit_layout.WIDTH] == []
    text = "\n".join(lines)
    assert "… 40 classes between" in text and "and 65 more" in text and "and 22 more" in text
    assert "largest groups" not in text and "second dropped" in text and "<b>warned</b>\\x07" in text


def test_a_huge_list_of_classes_is_shown_by_its_ends(tmp_path: Path) -> None:
    names = tuple(f"class-{n:05d}" for n in range(3_000))
    rows = [Row(f"{n}", names[n % 5 if n else 7], "train") for n in range(40)]
    dataset = draft(dataset_uri(tmp_path), rows, classes=names)
    facts = audit.gather(dataset)
    assert len(facts.balance.classes) == 3_000 and len(facts.balance.without["any"]) == 2_994
    text, page = audit_text.format_audit(facts), audit_html.render(dataset)
    assert len(text.split("\n")) < 160 and "… 2,980 classes between" in text and "and 2,986 more" in text
    assert "… 2,960 classes between" in page and page.count("class-0") < 200 and "and 2,954 more" in page


# The page.


def test_page_escapes_names_and_has_no_external_references(tmp_path: Path) -> None:
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
    assert "in the splits used here no test image has a near-duplicate" in page.text
    for text in (HOSTILE, "<img src=x onerror=alert(1)>", "<b>warned</b>", "copy<u>", "<i>why</i>"):
        assert text in page.text
    links = [v for _, a in page.tags for name, v in a.items() if name in ("src", "href", "srcset", "action") and v]
    assert links and all(link.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")) for link in links)
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_equal_datasets_give_the_same_page(tmp_path: Path) -> None:
    rejected, pairs = [reject("r", "corrupt")], [twin("00", "gone")]
    findings = copy.deepcopy(NONE_FOUND)
    findings["near_duplicates"] |= {"pairs": 1, "images": 2}
    pages = []
    for number, place in enumerate(("here", "there/further")):
        uri = str(tmp_path / place / "clean" / "0123456789abcdef")
        dataset = draft(uri, rows_of(9), rejected, pairs, findings)
        if number:  # committed, with a clock and a version, and with the page among its files
            fields = {"files": (*dataset.manifest.files, pages[0]), "code_version": "9.9", "created": "2031-01-01"}
            dataset = commit(uri, dataclasses.replace(dataset.manifest, **fields))
        pages.append(audit_html.write_audit(dataset))
        assert str(tmp_path) not in audit_html.render(dataset)
    assert pages[0] == pages[1]
    page: File = pages[0]
    assert page.role == "report" and page.uri == f"audit-{page.sha256[:16]}.html" and page.rows == 0
    assert (tmp_path / "here/clean/0123456789abcdef" / page.uri).stat().st_size == page.bytes


def test_pictures_are_of_the_images_and_those_of_dropped_ones_come_from_raw(tmp_path: Path) -> None:
    raw_uri, gray = str(tmp_path / "raw" / "aa"), picture("gone", (400, 100))
    with ShardWriter(raw_uri, Layout(RAW, row_group_rows=2)) as writer:
        for name in ("other", "another", "gone"):
            writer.add(dict.fromkeys(RAW.names) | {"image_id": name, "image": gray}, 0)
        file = writer.publish("data")
    raw = commit(raw_uri, Manifest("raw", "aa", files=(file,), totals=Totals(rows=3)))
    rows = rows_of(8, brightness=lambda n: n)
    rows[0].data = picture("00", (320, 200), "PNG")
    pairs = [twin("00", "gone", dropped="gone"), twin("lost", "01", 3)]
    findings = copy.deepcopy(NONE_FOUND)
    findings["near_duplicates"] |= {"pairs": 2, "images": 4}
    parents = (raw.as_parent(dataset_uri(tmp_path)),)
    dataset = draft(dataset_uri(tmp_path), rows, twins=pairs, found=findings, parents=parents)
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
    dataset = draft(dataset_uri(tmp_path), rows)
    monkeypatch.setattr(audit_html, "MAX_LARGE", 3)
    pictures = audit_html.find_pictures(dataset, ["01", "02", "02", "00", "03", "nobody"])
    assert {name: picture.small for name, picture in pictures.items()} == {
        "00": False, "01": True, "02": False, "03": True,
    }  # fmt: skip
    small = Image.open(io.BytesIO(base64.b64decode(pictures["01"].src.partition("base64,")[2])))
    assert (small.format, small.mode, small.size) == ("PNG", "RGB", (24, 24))
    assert np.abs(np.asarray(small).astype(int) - (200, 30, 60)).max() < 4


RED = np.full((50, 70, 3), (200, 30, 60), np.uint8)


def test_a_thumbnail_shows_the_picture() -> None:
    pixels = np.full((240, 240, 3), (20, 160, 90), np.uint8)
    pixels[:120, 120:] = (230, 40, 50)
    thumbnail = audit_html.decode_thumbnail(measure(pixels).thumbnail)
    assert thumbnail is not None and thumbnail.shape == (24, 24, 3) and thumbnail.dtype == np.uint8
    expected = cv2.resize(pixels, (24, 24), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(thumbnail.astype(int) - expected).max() < 8
    gray = audit_html.decode_thumbnail(measure(pixels[:, :, :1]).thumbnail)
    assert gray is not None and np.ptp(gray, axis=2).max() == 0 and set(np.unique(gray)) >= {20, 230}
    assert audit_html.decode_thumbnail(b"") is None and audit_html.make_thumbnail_uri(b"12345") == ""


def test_the_histogram_has_a_bar_a_bin_and_gray_ends() -> None:
    distribution = describe_distribution(np.arange(101))
    assert distribution is not None
    bars = [a for tag, a in Page(str(audit_html._draw_histogram(distribution.histogram))).tags if tag == "rect"]
    assert [b["class"] for b in bars] == ["end", *["bin"] * 20, "end"]
    heights = [float(b["height"] or 0) for b in bars]
    assert heights[0] == heights[-1] and max(heights) == heights[1] == pytest.approx(62, abs=0.1)
    constant = describe_distribution(np.full(3, 2.0))
    assert constant is not None and str(audit_html._draw_histogram(constant.histogram)).count("<rect") == 1


def test_committed_test_dataset_is_intact(tmp_path: Path) -> None:
    dataset = cleaned.cleaned(dataset_uri(tmp_path), rows_of(8), [reject("r", "corrupt")])
    assert not dataset.missing() and dataset.manifest.totals.rows == 8
