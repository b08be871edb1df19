"""Report rendered from real datasets on disk and parsed as HTML."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import photos
import pytest
from PIL import Image
from reported import FIRST, HOSTILE, Mill, evaluated, raw_dataset, render, trained

from imagemill.components.dataset.kinds import (
    Baseline,
    Calibration,
    ClassCurves,
    EvaluationExtra,
    MacroCurves,
    ScoreCurves,
    SliceScores,
)
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.decoder import ImageRejected
from imagemill.components.report import mistakes, pictures
from imagemill.components.report.charts import ConfusionMatrix
from imagemill.components.report.page import shorten_file_name
from imagemill.components.report.run_page import make_verdict_banner


def change(evaluation: Dataset, **fields: object) -> Dataset:
    """The evaluation with other fields in its manifest, which is not stored."""
    extra = replace(EvaluationExtra.of(evaluation.manifest), **fields)
    return replace(evaluation, manifest=replace(evaluation.manifest, extra=extra))


def test_the_ledger_adds_up(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog", "owl"]).page().text
    assert "Files in the source 24; skipped, no images 2. Kept: train 12 · val 3 · test 3." in text
    assert "The numbers add up: 22 raw rows, 18 kept and 4 rejected" in text and "2 of 3 test images" in text
    assert "download cached 0.2 s" in text and "promote this page" in text


def test_hostile_names_are_escaped_and_nothing_is_loaded(workspace: Workspace) -> None:
    labels = ["<script>alert(3)</script>", "$x_{</svg><b onload=1>", 'a&b"\' onclick="x']
    page = Mill(workspace, labels).page(rival=True)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.html.count("<svg") == page.html.count("</svg>") == 4  # three curves, the confusion
    assert HOSTILE in page.text and labels[0] in page.text and "same as <img src=x" in page.text
    assert "notes<b>.txt" in page.text and "https://example.org/pictures.zip" in page.text
    for value in page.values("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
        assert value.startswith(("data:image/", "#")), value[:80]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy and "default-src 'none'" in policy and "url(http" not in page.html and "@import" not in page.html


def test_thumbnails_have_captions_with_their_files(workspace: Workspace) -> None:
    """Short below the thumbnail, whole on hover: in the gallery and at each mistake."""
    page = Mill(workspace, ["<b>cat", "dog"]).page()
    titles = page.values("title")
    assert "train/<b>cat/0.jpg" in titles and "test/<b>cat/5.jpg" in titles
    assert "<b>cat 0.jpg" in page.text and "→ dog 99.0% sure 5.jpg" in page.text
    assert shorten_file_name("a/Holiday in the Alps 0042.jpeg") == "Holiday in t…ps 0042.jpeg"
    assert page.pictures()["train/<b>cat/0.jpg"][0].size == (24, 16)


@pytest.mark.parametrize(
    ("verdict", "champion", "promoted", "headline"),
    [
        ("better", 0.7, True, "Promoted"),
        ("better", 0.7, False, "Not promoted"),
        ("not_worse", 0.81, True, "Promoted"),
        ("not_better", 0.79, False, "Champion kept"),
        ("worse", 0.9, True, "Promoted"),
        ("refused", 0.7, False, "Champion kept"),
        ("not_comparable", None, False, "Not comparable"),
        ("no_better_than_chance", None, False, "No champion"),
        ("already_champion", 0.8, False, "Already the champion"),
        ("rolled_back", None, False, "Not promoted"),
        ("something_new", None, False, "Something new"),
    ],
)
def test_the_verdict_is_shown(verdict: str, champion: float | None, promoted: bool, headline: str) -> None:
    banner = make_verdict_banner(replace(FIRST, verdict=verdict, champion=champion, promoted=promoted))
    assert banner.title == headline and verdict.replace("_", " ") in banner.note.lower()
    assert len(banner.scores) == (3 if champion and verdict != "already_champion" else 1)


def test_model_no_better_than_chance_is_a_warning() -> None:
    assert make_verdict_banner(FIRST).tone == "good"
    banner = make_verdict_banner(FIRST, "no better than chance")
    assert (banner.tone, banner.title, banner.text) == ("warn", "First champion", "Macro_f1 0.8.")
    repeated = replace(FIRST, reason="macro_f1 0.8; no better than chance")
    assert make_verdict_banner(repeated, "no better than chance") == banner
    assert banner.note == "No better than chance (first)"


def test_the_verdict_and_the_champion_are_on_the_page(workspace: Workspace) -> None:
    reason = "promoted: 5.0 points better on 9 test images; trained on 8% more images; macro-F1 0.800 against 0.750"
    text = Mill(workspace, ["cat", "dog", "owl"]).page(
        replace(FIRST, verdict="better", champion=0.75, reason=reason), rival=True
    ).text  # fmt: skip
    assert "Promoted Promoted: 5.0 points better on 9 test images. Trained on 8% more images; macro-F1 0.800" in text
    assert (
        "+0.050" in text and "Against the champion On 3 test images: " in text and "top-1 0.667 against 0.333" in text
    )
    assert "owl 0.000 1.000 +1.000" in text


def test_weaknesses_are_said_first(workspace: Workspace) -> None:
    """A model below its baseline, and classes without test images."""
    mill = Mill(workspace, ["cat", "dog", "<i>owl"])
    clean = mill.clean()
    few = [row for row in mill.predictions(clean) if row["label_id"] < 2]
    evaluation = evaluated(workspace, trained(workspace, clean), clean, few, "99")
    baseline = Baseline("logistic regression on 16x16 pixels", 8, {"top1": 0.9, "macro_f1": 0.875}, why="the model <b>")
    text = render(workspace, change(evaluation, baseline=baseline)).text
    assert text.index("Below the baseline The model <b>.") < text.index("Macro_f1 0.8.") and "baseline 0.875" in text
    assert "1 class has no test image, and no part in means over classes: <i>owl" in text
    assert "Macro-F1 of 2 of 3 classes" in text and "No test image of 1 class" not in text


def test_scores_with_intervals_calibration_curves_and_slices(workspace: Workspace) -> None:
    mill = Mill(workspace, ["ant", "bee", "cat", "dog", "emu", "fox"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    lines = ([1.0, 0.5], [0.0, 1.0])
    curves = [ClassCurves(name, 0.9, 0.9, *lines) for name in mill.classes[:5]]
    points = [{"images": 3.0, "confidence": 0.9, "accuracy": 0.8}]
    per_class = [replace(c, pr_auc=0.9, roc_auc=0.9) for c in EvaluationExtra.of(evaluation.manifest).per_class]
    page = render(workspace, change(
        evaluation, per_class=per_class, curves=ScoreCurves([0.0, 1.0], [0.0, 1.0], MacroCurves(*lines), curves),
        calibration=Calibration(1.5, 15, points, [points[0] | {"confidence": 0.8}]), intervals={"top1": [0.5, 0.9]},
        slices=[SliceScores("brightness", "<b>dark", 2, 0.5, 0.1, 0.9, 0.4, True)],
    ))  # fmt: skip
    assert "Thresholds: each class against the rest; of 6 classes the 5 with the lowest PR-AUC" in page.text
    assert "mean of all classes" in page.html and "divided by a temperature of 1.500" in page.text
    assert "Top-1 0.833 0.500 to 0.900" in page.text and "Red: 1 slice significantly below it" in page.text
    assert "<b>dark 50.0% 10.0% to 90.0% macro-F1 0.400 2 images" in page.text
    assert page.html.count("<svg") == 3 + 1 + 1 + 2


def test_without_val_images_rejects_or_champion(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog"], val=False, rejects=False).page().text
    assert "there are no validation images: 3" in text and "Learning rate" in text and "Validation score" not in text
    assert "Against the champion" not in text and "None: every raw image was kept." in text


def test_without_history_and_without_mistakes(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog"])
    clean = mill.clean()
    right = [p | {"predicted_id": p["label_id"]} for p in mill.predictions(clean)]
    text = render(workspace, evaluated(workspace, trained(workspace, clean, epochs=0), clean, right)).text
    assert "no training history" in text and "every test image is right" in text


def test_many_classes(workspace: Workspace) -> None:
    page = Mill(workspace, [f"class {i:03d}" for i in range(60)]).page(rival=True)
    assert "… 30 classes between" in page.text and "48 training images of 240, from 48 of 60 classes" in page.text
    assert len(page.html) < 3_000_000


def test_mistakes_and_confused_classes(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog", "owl"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    assert mistakes.find_surest_mistakes(evaluation) == [
        mistakes.Prediction("test/cat/5.jpg", "cat", "dog", "99.0% sure")
    ]
    assert "cat 0.0% 0.0% 1 dog 1" in render(workspace, evaluation).text


def test_rejects_show_a_thumbnail_or_the_reason(workspace: Workspace) -> None:
    page = Mill(workspace, ["cat", "dog"]).page()
    assert page.pictures()[HOSTILE] and "empty.png" not in page.pictures()
    assert "0 bytes empty.png 0 bytes" in page.text and "not an image text.jpg no known image" in page.text
    assert "no bytes gone.jpg the source names it but it is not there" in page.text


def test_lookup_reads_a_limited_number_of_row_groups(workspace: Workspace) -> None:
    data = photos.saved(Image.new("RGB", (24, 16)), "JPEG")
    raw = raw_dataset(workspace, {f"{i}.jpg": data for i in range(60)}, row_group_bytes=1)
    images = pictures.make_thumbnails(raw, [f"{i}.jpg" for i in range(60)])
    shown = {f"{i}.jpg" for i in range(pictures.MAX_READ)}
    assert {name for name, thumbnail in images.items() if thumbnail.src} == shown


def test_thumbnails_are_upright_and_small() -> None:
    stored = Image.new("RGB", (400, 200), (250, 10, 10))
    data = photos.saved(stored, "JPEG", exif=photos.exif(6))
    src, pixels = pictures.encode_picture(data)
    shown = Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))
    assert shown.size == (80, 160) and pixels == 80_000
    with pytest.raises(ImageRejected):
        pictures.encode_picture(b"no image")


def test_confusion_matrix_is_pooled_by_the_maximum() -> None:
    truth, predicted = np.array([0, 0, 3]), np.array([0, 3, 3])
    confusion = ConfusionMatrix(4, truth, predicted, np.array([3, 1, 2]))
    matrix, side = confusion.pool(2)
    assert side == 2 and matrix.tolist() == [[0.75, 0.25], [0.0, 1.0]] and confusion.num_right == 5
