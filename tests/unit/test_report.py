"""The report, rendered from real datasets on disk: nothing is mocked, the page is parsed as a browser would."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from html_page import Page
from PIL import Image

from imagemill.components.clean.schema import CLEAN, REJECTED, clean_layout
from imagemill.components.clean.shard import write_rejected, write_rows
from imagemill.components.download.raw import RAW
from imagemill.components.promote import charts, pictures, report
from imagemill.components.promote.charts import Confusion
from imagemill.components.store.images import ImageRejected
from imagemill.components.store.manifest import Dataset, File, Manifest, Totals, commit
from imagemill.components.store.shards import Layout, ShardWriter, publish_bytes
from imagemill.components.store.workspace import Workspace

HOSTILE = "<script>alert(1)</script>.jpg"
PREDICTIONS = pa.schema(
    [("image_id", pa.string()), ("label_id", pa.int32()), ("predicted_id", pa.int32()), ("confidence", pa.float32())]
)
FIRST = {
    "verdict": "first", "reason": "macro_f1 0.8", "metric": "macro_f1", "challenger": 0.8, "champion": None,
    "min_gain": 0.005, "promoted": True,
}  # fmt: skip


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def raw_dataset(workspace: Workspace, images: dict[str, bytes | None], row_group_bytes: int = 2_000) -> Dataset:
    uri = workspace.dataset("raw", "00000000000000aa")
    with ShardWriter(uri, Layout(RAW, row_group_bytes=row_group_bytes)) as writer:
        for image_id, data in images.items():
            writer.add(dict.fromkeys(RAW.names) | {"image_id": image_id, "image": data}, len(data or b""))
        file = writer.publish("data")
    skipped = {"count": 2, "files": [{"path": "notes<b>.txt", "why": "no image by name or content"}]}
    extra = {"source": "https://example.org/pictures.zip", "dataset_name": "tiny", "skipped": skipped}
    total = sum(len(data or b"") for data in images.values())
    return commit(
        uri, Manifest("raw", "00000000000000aa", files=(file,), totals=Totals(len(images), total), extra=extra)
    )


def clean_row(number: int, image_id: str, data: bytes, label: str, split: str) -> dict[str, Any]:
    return {
        "image_id": image_id, "image": {"bytes": data, "path": image_id}, "label": label, "label_id": 0,
        "split": split, "shuffle_index": number, "width": 24, "height": 16, "sha256": str(number), "format": "JPEG",
        "image_bytes": len(data), "pixel_hash": "", "decoder_warning": None,
    }  # fmt: skip


def clean_dataset(
    workspace: Workspace, raw: Dataset, rows: list[dict[str, Any]], rejected: list[dict[str, Any]], classes: list[str]
) -> Dataset:
    uri = workspace.dataset("clean", "00000000000000bb")
    by_split = {split: [r for r in rows if r["split"] == split] for split in report.SPLITS}
    files: list[File] = [
        write_rows(uri, split, found, clean_layout(CLEAN)) for split, found in by_split.items() if found
    ]
    files += [write_rejected(uri, rejected)] if rejected else []
    counted = {s: {c: sum(r["label"] == c for r in found) for c in classes} for s, found in by_split.items()}
    totals = Totals(
        rows=len(rows), rejected=len(rejected), by_split={s: len(found) for s, found in by_split.items()},
        by_class=dict(Counter(r["label"] for r in rows)), by_reason=dict(Counter(r["reason"] for r in rejected)),
    )  # fmt: skip
    extra = {"dataset_name": "tiny", "by_class_and_split": counted, "decoder_warnings": 0}
    return commit(
        uri,
        Manifest(
            "clean", "00000000000000bb", (raw.as_parent(uri),), classes=tuple(classes), files=tuple(files),
            totals=totals, extra=extra, config={"color": "rgb", "near_duplicates": ""},
        ),
    )  # fmt: skip


def trained(workspace: Workspace, clean: Dataset, val: bool = True, epochs: int = 4) -> Dataset:
    """A model, and the tensors behind it, with a training history and no weights worth the name."""
    uri = workspace.dataset("tensors", "00000000000000cc")
    image = {"shape": [32, 32, 3], "dtype": "uint8", "encoding": "raw", "color": "rgb"}
    tensors = commit(uri, Manifest("tensors", "00000000000000cc", (clean.as_parent(uri),), image=image))
    uri = workspace.dataset("model", "00000000000000dd")
    history: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        history.append({"epoch": epoch, "train_loss": 2 / epoch, "learning_rate": 0.01 / epoch, "seconds": 1.5})
        if val:
            history[-1] |= {"val_loss": 2.2 / epoch, "val_top1": 1 - 0.5 / epoch, "val_macro_f1": 1 - 0.6 / epoch}
    extra = {
        "backbone": "small_cnn", "weights": "", "metrics": {"macro_f1": 0.85} if val else {}, "best_epoch": epochs - 1,
        "epochs": epochs, "parameters": 1_250_000, "seconds": 12.5, "history": history,
    }  # fmt: skip
    files = (publish_bytes(uri, b"weights", "model-", ".safetensors"),)
    return commit(uri, Manifest("model", "00000000000000dd", (tensors.as_parent(uri),), files=files, extra=extra))


def evaluated(
    workspace: Workspace, model: Dataset, clean: Dataset, predictions: list[dict[str, Any]], fingerprint: str = "ee"
) -> Dataset:
    classes = clean.manifest.classes
    uri = workspace.dataset("evaluation", fingerprint.rjust(16, "0"))
    with ShardWriter(uri, Layout(PREDICTIONS, row_group_rows=3)) as writer:
        for row in predictions:
            writer.add(row, 0)
        file = writer.publish("data")
    per_class = []
    for number, name in enumerate(classes):
        support = sum(p["label_id"] == number for p in predictions)
        said = sum(p["predicted_id"] == number for p in predictions)
        right = sum(p["label_id"] == p["predicted_id"] == number for p in predictions)
        precision, recall = right / max(1, said), right / max(1, support)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        per_class.append({"class": name, "precision": precision, "recall": recall, "f1": f1, "support": support})
    top1 = sum(p["label_id"] == p["predicted_id"] for p in predictions) / max(1, len(predictions))
    present = [c["f1"] for c in per_class if c["support"]]
    metrics = {"top1": top1, "macro_f1": sum(present) / max(1, len(present)), "loss": 0.4}
    return commit(
        uri,
        Manifest(
            "evaluation", fingerprint.rjust(16, "0"), (model.as_parent(uri), clean.as_parent(uri)), classes=classes,
            files=(file,), totals=Totals(len(predictions)), extra={"metrics": metrics, "per_class": per_class},
        ),
    )  # fmt: skip


@dataclass
class Mill:
    """A whole tiny run: `classes` classes with 6 images each (4 train, 1 val, 1 test), some rejects."""

    workspace: Workspace
    classes: list[str]
    rejects: bool = True
    val: bool = True

    def clean(self) -> Dataset:
        splits = ["train", "train", "train", "train", "val" if self.val else "train", "test"]
        images: dict[str, bytes | None] = {}
        rows, number = [], 0
        for class_id, label in enumerate(self.classes):
            for split in splits:
                image_id, data = f"{split}/{label}/{number}.jpg", jpeg((number % 256, 40 * class_id % 256, 90))
                images[image_id] = data
                rows.append(clean_row(number, image_id, data, label, split))
                number += 1
        rejected = self._rejected(images) if self.rejects else []
        return clean_dataset(self.workspace, raw_dataset(self.workspace, images), rows, rejected, self.classes)

    def _rejected(self, images: dict[str, bytes | None]) -> list[dict[str, Any]]:
        bad: list[tuple[str, bytes | None, str, str]] = [
            (HOSTILE, jpeg((9, 9, 9)), "duplicate_bytes", "same as <img src=x onerror=alert(2)>"),
            ("empty.png", b"", "empty_file", "0 bytes"),
            ("text.jpg", b"hello", "not_an_image", "no known image signature; begins with b'hello'"),
            ("gone.jpg", None, "missing_file", "the source names it but it is not there"),
        ]
        images.update({image_id: data for image_id, data, _, _ in bad})
        rejected = [{"image_id": i, "sha256": None, "reason": r, "detail": d} for i, _, r, d in bad]
        assert set(rejected[0]) == set(REJECTED.names)
        return rejected

    def predictions(self, clean: Dataset) -> list[dict[str, Any]]:
        """One test image a class: the first is mistaken for the second, with the highest confidence."""
        n = len(self.classes)
        ids = [f"test/{label}/{6 * number + 5}.jpg" for number, label in enumerate(clean.manifest.classes)]
        return [
            {"image_id": ids[i], "label_id": i, "predicted_id": 1 if i == 0 else i, "confidence": 0.99 - 0.5 * i / n}
            for i in range(n)
        ]

    def page(self, verdict: dict[str, Any] = FIRST, rival: bool = False) -> Page:
        clean = self.clean()
        evaluation = evaluated(
            self.workspace, trained(self.workspace, clean, self.val), clean, self.predictions(clean)
        )  # fmt: skip
        champion = None
        if rival:
            worse = [p | {"predicted_id": 0} for p in self.predictions(clean)]
            champion = evaluated(self.workspace, trained(self.workspace, clean), clean, worse, "ff")
        record = {"uri": "", "state": "cached", "seconds": 0.25, "exit_code": 0, "metrics": {}, "error": ""}
        for step in ("download", "clean"):
            self.workspace.write_step_record("run-1", step, record)
        uri = report.write_report(self.workspace, "run-1", evaluation, verdict, champion)
        assert uri == self.workspace.run_file("run-1", "report.html")
        return Page(self.workspace.store.read(uri).decode())


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(str(tmp_path / "ws"))


def test_the_ledger_adds_up(workspace: Workspace) -> None:
    text = Mill(workspace, ["cat", "dog", "owl"]).page().text
    assert "Files in the source 24" in text
    assert "skipped, no images \N{MINUS SIGN}2" in text
    assert "Raw rows" in text and "The numbers add up: 22 = 18 kept + 4 rejected" in text
    assert "train 12" in text and "val 3" in text and "test 3" in text
    assert "2 of 3 test images" in text
    assert "download" in text and "cached" in text and "0.2 s" in text


def test_hostile_names_are_text(workspace: Workspace) -> None:
    labels = ["<script>alert(3)</script>", "$x_{</svg><b onload=1>", 'a&b"\' onclick="x']
    page = Mill(workspace, labels).page(rival=True)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.html.count("<svg") == page.html.count("</svg>") == 5  # the banner's, three curves, the confusion
    assert HOSTILE in page.text and labels[0] in page.text and "same as <img src=x" in page.text
    assert "notes<b>.txt" in page.text


def test_pictures_are_captioned_with_their_files(workspace: Workspace) -> None:
    """Short below the thumbnail, whole on hover: in the gallery and at each mistake."""
    page = Mill(workspace, ["<b>cat", "dog"]).page()
    captions = [attributes["title"] for tag, attributes in page.tags if attributes.get("class") == "file"]
    assert len(captions) == 8 + 1 and "train/<b>cat/0.jpg" in captions and captions[-1] == "test/<b>cat/5.jpg"
    assert "0.jpg 1.jpg 2.jpg 3.jpg" in page.text and "99.0% sure 5.jpg" in page.text
    assert report._file("a/Holiday in the Alps 0042.jpeg") == "Holiday in t…ps 0042.jpeg"
    assert report._file("<x>/") == "<x>"


def test_the_page_stands_alone(workspace: Workspace) -> None:
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
        ("promoted", 0.7, True, "Promoted"),
        ("kept", 0.9, False, "Champion kept"),
        ("not comparable", None, False, "Not comparable"),
        ("not comparable", None, True, "Promoted all the same: not comparable."),
        ("already champion", None, False, "Already the champion"),
        ("never", 0.8, False, "Not promoted"),
        ("something new", None, False, "Something new"),
    ],
)
def test_the_verdict_is_shown(verdict: str, champion: float | None, promoted: bool, headline: str) -> None:
    found = report.gate(FIRST | {"verdict": verdict, "champion": champion, "promoted": promoted})
    assert headline in (found["headline"], found["sentence"])
    assert found["gain"] == (None if champion is None else 0.8 - champion)


def test_a_model_that_is_no_better_than_chance_is_no_good_news() -> None:
    assert report.gate(FIRST)["tone"] == "good"
    found = report.gate(FIRST, "no better than chance")
    assert (found["tone"], found["headline"]) == ("warn", "First champion")
    assert found["reason"] == "macro_f1 0.8; no better than chance"
    assert report.gate(FIRST | {"reason": found["reason"]}, "no better than chance")["reason"] == found["reason"]


def test_the_verdict_and_the_champion_are_on_the_page(workspace: Workspace) -> None:
    verdict = FIRST | {"verdict": "promoted", "champion": 0.75, "reason": "macro_f1 0.800 against 0.750"}
    text = Mill(workspace, ["cat", "dog", "owl"]).page(verdict, rival=True).text
    assert "Promoted This model is the new champion. macro_f1 0.800 against 0.750" in text
    assert "+0.050" in text and "needs +0.005" in text
    assert "Against the champion" in text and "evaluation of the champion" in text
    assert "owl 0.000 → 1.000 +1.000" in text


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
    text = Page(report.render(report.gather(workspace, "r", evaluation, FIRST, evaluation))).text
    assert "no training history" in text and "every test image is right" in text
    assert "Against the champion" not in text  # it is the champion itself


def test_the_legend_says_how_many_classes_have_no_curve(workspace: Workspace) -> None:
    mill = Mill(workspace, ["ant", "bee", "cat", "dog", "emu", "fox"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    extra = evaluation.manifest.extra
    lines = {"precision": [1.0, 0.5], "true_positive_rate": [0.0, 1.0], "pr_auc": 0.9, "roc_auc": 0.9}
    curves = {"recall": [0.0, 1.0], "false_positive_rate": [0.0, 1.0], "macro": lines}
    curves["classes"] = [{"class": name, **lines} for name in mill.classes[:5]]
    extra |= {"curves": curves, "per_class": [one | {"pr_auc": 0.9, "roc_auc": 0.9} for one in extra["per_class"]]}
    evaluation = replace(evaluation, manifest=replace(evaluation.manifest, extra=extra))
    text = Page(report.render(report.gather(workspace, "r", evaluation, FIRST, None))).text
    assert "each class against the rest; of 6 classes the 5 with the lowest PR-AUC" in text
    assert "mean of all classes ant 0.900" in text and "emu 0.900 mere guessing" in text


def test_mistakes_have_pictures_and_partners(workspace: Workspace) -> None:
    mill = Mill(workspace, ["cat", "dog", "owl"])
    clean = mill.clean()
    evaluation = evaluated(workspace, trained(workspace, clean), clean, mill.predictions(clean))
    [mistake] = report.mistakes(evaluation, clean)
    assert (mistake.truth, mistake.predicted, mistake.image_id) == ("cat", "dog", "test/cat/5.jpg")
    assert mistake.picture.src.startswith("data:image/jpeg;base64,")
    [worst] = report.worst_classes(evaluation, Confusion.of(evaluation))["rows"]
    assert worst["label"] == "cat" and worst["mistaken_for"] == [("dog", 1)]


def test_rejects_show_what_decodes_and_say_why_not(workspace: Workspace) -> None:
    clean = Mill(workspace, ["cat", "dog"]).clean()
    raw = Dataset(clean.parent_uri("raw"), report.read_dataset(clean.parent_uri("raw")).manifest, "")
    found = {row.image_id: row for _, _, rows in pictures.rejects(raw, clean) for row in rows}
    assert found[HOSTILE].picture.src
    assert {i: r.picture.why for i, r in found.items() if not r.picture.src} == {
        "empty.png": "0 bytes", "text.jpg": "not an image", "gone.jpg": "no bytes",
    }  # fmt: skip


def test_the_lookup_reads_a_bounded_number_of_row_groups(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_dataset(workspace, {f"{i}.jpg": jpeg((i, i, i)) for i in range(40)}, row_group_bytes=1)
    found = list(pictures.find_images(raw, raw.files(), {f"{i}.jpg" for i in range(40)}, "image"))
    assert [name for name, _ in found] == [f"{i}.jpg" for i in range(pictures.LOOKUP_ROW_GROUPS)]
    monkeypatch.setattr(pictures, "ID_ROW_GROUPS", 10)
    assert not list(pictures.find_images(raw, raw.files(), {"30.jpg"}, "image"))


def test_thumbnails_are_upright_and_small() -> None:
    stored = Image.new("RGB", (400, 200), (250, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", exif=exif)
    src, pixels = pictures.thumbnail(buffer.getvalue())
    shown = Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))
    assert shown.size == (64, 128) and pixels == 80_000
    with pytest.raises(ImageRejected):
        pictures.thumbnail(b"no image")


def test_shares_fill_the_places() -> None:
    assert pictures.shares({"a": 1, "b": 100, "c": 100}, 21) == {"a": 1, "b": 10, "c": 10}
    assert pictures.shares({"a": 3, "b": 2}, 60) == {"a": 3, "b": 2}
    assert pictures.shares({}, 60) == {}
    assert sum(pictures.shares({str(i): 5 for i in range(100)}, 60).values()) == 60


def test_confusion_pools_by_the_maximum() -> None:
    truth, predicted = np.array([0, 0, 3]), np.array([0, 3, 3])
    confusion = Confusion(4, truth, predicted, np.array([3, 1, 2]))
    matrix, side = confusion.pooled(2)
    assert side == 2 and matrix.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert confusion.support.tolist() == [4, 0, 0, 2] and confusion.right == 5
    assert charts.confusion_chart(confusion, ["a", "b", "c", "d"])[1] == 1
