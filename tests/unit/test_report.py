"""Report rendered from real datasets on disk and parsed as HTML."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import photos
import pytest
from html_page import Page
from PIL import Image
from reported import FIRST, HOSTILE, Mill, evaluated, jpeg, raw_dataset, trained

from imagemill.components.dataset.kinds import Baseline, ClassCurves, MacroCurves, ScoreCurves
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.decoder import ImageRejected
from imagemill.components.imaging.pictures import encode_picture
from imagemill.components.promote import charts, mistakes, report, thumbnails
from imagemill.components.promote.charts import ConfusionMatrix


def test_the_ledger_adds_up(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog", "owl"]).page().text
    assert "Files in the source 24" in text
    assert "skipped, no images \N{MINUS SIGN}2" in text
    assert "Raw rows" in text and "The numbers add up: 22 = 18 kept + 4 rejected" in text
    assert "train 12" in text and "val 3" in text and "test 3" in text
    assert "2 of 3 test images" in text
    assert "download" in text and "cached" in text and "0.2 s" in text


def test_hostile_names_are_escaped(workspace: Workspace) -> None:
    labels = ["<script>alert(3)</script>", "$x_{</svg><b onload=1>", 'a&b"\' onclick="x']
    page = Mill(workspace, labels).page(rival=True)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.html.count("<svg") == page.html.count("</svg>") == 5  # the banner's, three curves, the confusion
    assert HOSTILE in page.text and labels[0] in page.text and "same as <img src=x" in page.text
    assert "notes<b>.txt" in page.text


def test_thumbnails_have_captions_with_their_files(workspace: Workspace) -> None:
    """Short below the thumbnail, whole on hover: in the gallery and at each mistake."""
    page = Mill(workspace, ["<b>cat", "dog"]).page()
    captions = [attributes["title"] for tag, attributes in page.tags if attributes.get("class") == "file"]
    assert len(captions) == 8 + 1 and "train/<b>cat/0.jpg" in captions and captions[-1] == "test/<b>cat/5.jpg"
    assert "0.jpg 1.jpg 2.jpg 3.jpg" in page.text and "99.0% sure 5.jpg" in page.text
    assert report._format_file_name("a/Holiday in the Alps 0042.jpeg") == "Holiday in t…ps 0042.jpeg"
    assert report._format_file_name("<x>/") == "<x>"


def test_page_loads_nothing_external(workspace: Workspace) -> None:
    page = Mill(workspace, ["cat", "dog"]).page()
    for value in page.values("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
        assert value.startswith(("data:image/", "#")), value[:80]
    assert "url(http" not in page.html and "@import" not in page.html
    assert "https://example.org/pictures.zip" in page.text  # the source is named, but no link
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy and "default-src 'none'" in policy


@pytest.mark.parametrize(
    ("verdict", "champion", "promoted", "headline"),
    [
        ("better", 0.7, True, "Promoted"),
        ("better", 0.7, False, "Not promoted"),
        ("not_worse", 0.81, True, "Promoted"),
        ("not_better", 0.79, False, "Champion kept"),
        ("worse", 0.9, False, "Champion kept"),
        ("worse", 0.9, True, "Promoted"),
        ("refused", 0.7, False, "Champion kept"),
        ("not_comparable", None, False, "Not comparable"),
        ("no_better_than_chance", None, False, "No champion"),
        ("no_better_than_chance", None, True, "Promoted"),
        ("already_champion", None, False, "Already the champion"),
        ("rolled_back", None, False, "Not promoted"),
        ("something_new", None, False, "Something new"),
    ],
)
def test_the_verdict_is_shown(verdict: str, champion: float | None, promoted: bool, headline: str) -> None:
    description = report.describe_verdict(FIRST | {"verdict": verdict, "champion": champion, "promoted": promoted})
    assert description["headline"] == headline
    assert description["gain"] == (None if champion is None else 0.8 - champion)


def test_model_no_better_than_chance_is_a_warning() -> None:
    assert report.describe_verdict(FIRST)["css_class"] == "good"
    description = report.describe_verdict(FIRST, "no better than chance")
    assert (description["css_class"], description["headline"]) == ("warn", "First champion")
    assert (description["sentence"], description["evidence"]) == ("Macro_f1 0.8.", "No better than chance")
    repeated = report.describe_verdict(
        FIRST | {"reason": "macro_f1 0.8; no better than chance"}, "no better than chance"
    )
    assert repeated["evidence"] == description["evidence"]


def test_the_verdict_and_the_champion_are_on_the_page(workspace: Workspace) -> None:
    reason = "promoted: 5.0 points better on 9 test images; trained on 8% more images; macro-F1 0.800 against 0.750"
    verdict = FIRST | {"verdict": "better", "champion": 0.75, "reason": reason}
    text = Mill(workspace, ["cat", "dog", "owl"]).page(verdict, rival=True).text
    assert "Promoted Promoted: 5.0 points better on 9 test images. Trained on 8% more images; macro-F1 0.800" in text
    assert "+0.050" in text
    assert "Against the champion" in text and "evaluation of the champion" in text
    assert re.search(r"top-1 [\d.]+ against [\d.]+", text) and re.search(
        r"balanced accuracy [\d.]+ against [\d.]+", text
    )
    assert "owl 0.000 → 1.000 +1.000" in text


def test_a_model_below_its_baseline_says_so_first(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog"])
    assert "Below the baseline" not in mill.page().text
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean), "98")
    facts = report.gather_facts(workspace, "r", evaluation, FIRST, None)
    baseline = Baseline("logistic regression on 16x16 pixels", 8, {"top1": 0.9, "macro_f1": 0.875}, why="the model <b>")
    text = Page(report.render_page(facts | {"baseline": baseline})).text
    assert text.index("Below the baseline The model <b>.") < text.index("First champion", text.index("Below"))
    assert "· baseline 0.875" in text


def test_classes_without_test_images_are_named(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog", "<i>owl"])
    assert "no test image" not in mill.page().text
    clean = mill.clean()
    few = [row for row in mill.predictions(clean) if row["label_id"] < 2]
    evaluation = evaluated(workspace, trained(workspace, clean), clean, few, "99")
    text = Page(report.render_page(report.gather_facts(workspace, "r", evaluation, FIRST, None))).text
    assert "1 class has no test image, and no part in means over classes: <i>owl" in text
    assert "Macro-F1 of 2 of 3 classes" in text


def test_without_val_images_or_champion(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog"], val=False).page().text
    assert "no validation curves" in text and "Learning rate" in text and "Validation score" not in text
    assert "marks the epoch that was kept, 3" in text and "Against the champion" not in text


def test_without_rejects(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog"], rejects=False).page().text
    assert "None: every raw image was kept." in text and "12 = 12 kept + 0 rejected" in text


def test_many_classes(workspace: Workspace) -> None:
    page = Mill(workspace, [f"class {i:03d}" for i in range(60)]).page(rival=True)
    assert "Of 60 classes the 15 largest and the 15 smallest." in page.text
    assert "30 classes between" in page.text
    assert "48 training images of 240, from 48 of 60 classes" in page.text
    assert len(page.html) < 3_000_000


def test_without_history_and_without_mistakes(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog"])
    clean = mill.clean()
    right = [p | {"predicted_id": p["label_id"]} for p in mill.predictions(clean)]
    evaluation = evaluated(workspace, trained(workspace, clean, epochs=0), clean, right)
    text = Page(report.render_page(report.gather_facts(workspace, "r", evaluation, FIRST, evaluation))).text
    assert "no training history" in text and "every test image is right" in text
    assert "Against the champion" not in text  # it is the champion itself


def test_legend_counts_classes_without_a_curve(workspace: Workspace) -> None:
    mill = Mill(workspace, ["ant", "bee", "cat", "dog", "emu", "fox"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    extra = evaluation.manifest.extra
    lines = ([1.0, 0.5], [0.0, 1.0])
    classes = [ClassCurves(name, 0.9, 0.9, *lines) for name in mill.classes[:5]]
    curves = ScoreCurves([0.0, 1.0], [0.0, 1.0], MacroCurves(*lines), classes)
    extra = replace(
        extra, curves=curves, per_class=[replace(scores, pr_auc=0.9, roc_auc=0.9) for scores in extra.per_class]
    )
    evaluation = replace(evaluation, manifest=replace(evaluation.manifest, extra=extra))
    text = Page(report.render_page(report.gather_facts(workspace, "r", evaluation, FIRST, None))).text
    assert "each class against the rest; of 6 classes the 5 with the lowest PR-AUC" in text
    assert "mean of all classes ant 0.900" in text and "emu 0.900 mere guessing" in text


def test_mistakes_have_thumbnails_and_confused_classes(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog", "owl"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    [mistake] = mistakes.make_mistakes(evaluation, clean)
    assert (mistake.label, mistake.predicted, mistake.image_id) == ("cat", "dog", "test/cat/5.jpg")
    assert mistake.thumbnail.src.startswith("data:image/jpeg;base64,")
    [(worst, mistaken_for)], _ = mistakes.find_hardest_classes(evaluation, ConfusionMatrix.read(evaluation))
    assert worst.name == "cat" and mistaken_for == [("dog", 1)]


def test_rejects_show_a_thumbnail_or_the_reason(workspace: Workspace) -> None:
    clean = Mill(workspace, ["cat", "dog"]).clean()
    raw = Dataset(clean.parent_uri("raw"), report.read_dataset(clean.parent_uri("raw")).manifest, "")
    rejects = {row.image_id: row for _, _, rows in thumbnails.read_rejects(raw, clean) for row in rows}
    assert rejects[HOSTILE].thumbnail.src
    assert {i: r.thumbnail.problem for i, r in rejects.items() if not r.thumbnail.src} == {
        "empty.png": "0 bytes", "text.jpg": "not an image", "gone.jpg": "no bytes",
    }  # fmt: skip


def test_lookup_reads_a_limited_number_of_row_groups(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_dataset(workspace, {f"{i}.jpg": jpeg((i, i, i)) for i in range(40)}, row_group_bytes=1)
    images = thumbnails.make_thumbnails(raw, raw.files(), [f"{i}.jpg" for i in range(40)], "image")
    shown = {f"{i}.jpg" for i in range(thumbnails.LOOKUP_ROW_GROUPS)}
    assert {name for name, thumbnail in images.items() if thumbnail.src} == shown
    monkeypatch.setattr(thumbnails, "ID_ROW_GROUPS", 10)
    assert not thumbnails.make_thumbnails(raw, raw.files(), ["30.jpg"], "image")["30.jpg"].src


def test_thumbnails_are_upright_and_small() -> None:
    stored = Image.new("RGB", (400, 200), (250, 10, 10))
    data = photos.saved(stored, "JPEG", exif=photos.exif(6))
    src, pixels = encode_picture(data, thumbnails.THUMBNAIL_SIDE, thumbnails.THUMBNAIL_QUALITY)
    shown = Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))
    assert shown.size == (64, 128) and pixels == 80_000
    with pytest.raises(ImageRejected):
        encode_picture(b"no image", thumbnails.THUMBNAIL_SIDE, thumbnails.THUMBNAIL_QUALITY)


def test_thumbnails_are_divided_evenly_among_classes() -> None:
    assert thumbnails.divide_evenly({"a": 1, "b": 100, "c": 100}, 21) == {"a": 1, "b": 10, "c": 10}
    assert thumbnails.divide_evenly({"a": 3, "b": 2}, 60) == {"a": 3, "b": 2}
    assert thumbnails.divide_evenly({}, 60) == {}
    assert sum(thumbnails.divide_evenly({str(i): 5 for i in range(100)}, 60).values()) == 60


def test_confusion_matrix_is_pooled_by_the_maximum() -> None:
    truth, predicted = np.array([0, 0, 3]), np.array([0, 3, 3])
    confusion = ConfusionMatrix(4, truth, predicted, np.array([3, 1, 2]))
    matrix, side = confusion.pool(2)
    assert side == 2 and matrix.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert confusion.support.tolist() == [4, 0, 0, 2] and confusion.num_right == 5
    assert charts.draw_confusion_matrix(confusion, ["a", "b", "c", "d"])[1] == 1
