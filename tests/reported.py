"""Helpers for tests of the report: a tiny run whose datasets are on disk, and its page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import photos
import pyarrow as pa
from html_page import Page
from PIL import Image
from placed import place

from imagemill.components.clean.schema import REJECTED, make_clean_layout
from imagemill.components.dataset.index import RAW_INDEX, make_clean_index
from imagemill.components.dataset.kinds import (
    ClassScores,
    CleanExtra,
    EvaluationExtra,
    FileList,
    ImageSpec,
    ModelExtra,
    RawExtra,
)
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.records import StepRecord, Verdict
from imagemill.components.dataset.shards import Layout, ShardWriter, publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.rows import RAW
from imagemill.components.promote.comparison import compare_with_champion
from imagemill.components.report.run_page import Lineage, write_report

HOSTILE = "<script>alert(1)</script>.jpg"
PREDICTIONS = pa.schema(
    [
        ("image_id", pa.string()), ("label_id", pa.int32()), ("predicted_id", pa.int32()), ("confidence", pa.float32()),
        ("loss", pa.float32()), ("content_hash", pa.uint64()), ("seen", pa.bool_()),
    ]
)  # fmt: skip
FIRST = Verdict(verdict="first", reason="macro_f1 0.8", metric="macro_f1", challenger=0.8, promoted=True)


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> bytes:
    return photos.saved(Image.new("RGB", size, color), "JPEG")


def raw_dataset(workspace: Workspace, images: dict[str, bytes | None], row_group_bytes: int = 2_000) -> Dataset:
    uri = workspace.dataset_uri("raw", "00000000000000aa")
    rows = [{"image_id": image_id, "image": data} for image_id, data in images.items()]
    placed = place(uri, rows, Layout(RAW, row_group_bytes=row_group_bytes), RAW_INDEX)
    skipped = FileList(2, ({"path": "notes<b>.txt", "why": "no image by name or content"},))
    extra = RawExtra(source="https://example.org/pictures.zip", dataset_name="tiny", skipped=skipped)
    total = sum(len(data or b"") for data in images.values())
    return commit(uri, Manifest("raw", "00000000000000aa", totals=Totals(len(images), total), extra=extra, **placed))


def clean_row(number: int, image_id: str, data: bytes, label: str, split: str) -> dict[str, Any]:
    return {
        "image_id": image_id, "image": {"bytes": data, "path": image_id}, "label": label, "label_id": 0,
        "split": split, "shuffle_index": number, "width": 24, "height": 16, "sha256": str(number), "format": "JPEG",
        "image_bytes": len(data), "pixel_hash": "", "decoder_warning": None,
    }  # fmt: skip


def clean_dataset(
    workspace: Workspace, raw: Dataset, rows: list[dict[str, Any]], rejected: list[dict[str, Any]], classes: list[str]
) -> Dataset:
    uri = workspace.dataset_uri("clean", "00000000000000bb")
    by_split = {split: [r for r in rows if r["split"] == split] for split in ("train", "val", "test")}
    placed = place(uri, rows, make_clean_layout(), make_clean_index("single"))
    files = list(placed["files"])
    if rejected:
        with ShardWriter(uri, Layout(REJECTED)) as writer:
            for row in sorted(rejected, key=lambda row: row["image_id"]):
                writer.add(row, 0)
            files.append(writer.publish("rejected", "rejected"))
    counts = {s: {c: sum(r["label"] == c for r in split_rows) for c in classes} for s, split_rows in by_split.items()}
    totals = Totals(
        rows=len(rows), rejected=len(rejected), by_split={s: len(split_rows) for s, split_rows in by_split.items()},
        by_class=dict(Counter(r["label"] for r in rows)), by_reason=dict(Counter(r["reason"] for r in rejected)),
    )  # fmt: skip
    extra = CleanExtra(dataset_name="tiny", by_class_and_split=counts)
    return commit(
        uri,
        Manifest(
            "clean", "00000000000000bb", (raw.as_parent(uri),), classes=tuple(classes), files=tuple(files),
            parts=placed["parts"], totals=totals, extra=extra, config={"color": "rgb", "near_duplicates": ""},
        ),
    )  # fmt: skip


def trained(workspace: Workspace, clean: Dataset, val: bool = True, epochs: int = 4) -> Dataset:
    """A model, and the tensors behind it, with a training history and no weights worth the name."""
    uri = workspace.dataset_uri("tensors", "00000000000000cc")
    image = ImageSpec((32, 32, 3))
    tensors = commit(uri, Manifest("tensors", "00000000000000cc", (clean.as_parent(uri),), image=image))
    uri = workspace.dataset_uri("model", "00000000000000dd")
    history: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        history.append({"epoch": epoch, "train_loss": 2 / epoch, "learning_rate": 0.01 / epoch, "seconds": 1.5})
        if val:
            history[-1] |= {"val_loss": 2.2 / epoch, "val_top1": 1 - 0.5 / epoch, "val_macro_f1": 1 - 0.6 / epoch}
    extra = ModelExtra(
        backbone="small_cnn", metrics={"macro_f1": 0.85} if val else {}, best_epoch=max(0, epochs - 1), epochs=epochs,
        parameters=1_250_000, seconds=12.5, history=history,
    )  # fmt: skip
    files = (publish_bytes(uri, b"weights", "model-", ".safetensors"),)
    return commit(uri, Manifest("model", "00000000000000dd", (tensors.as_parent(uri),), files=files, extra=extra))


def evaluated(
    workspace: Workspace, model: Dataset, clean: Dataset, predictions: list[dict[str, Any]], fingerprint: str = "ee"
) -> Dataset:
    classes = clean.manifest.classes
    uri = workspace.dataset_uri("evaluation", fingerprint.rjust(16, "0"))
    with ShardWriter(uri, Layout(PREDICTIONS, row_group_rows=3)) as writer:
        for row in predictions:
            writer.add({"content_hash": hash(row["image_id"]) % 2**64, "seen": False} | row, 0)
        file = writer.publish("data")
    per_class = []
    for number, name in enumerate(classes):
        support = sum(p["label_id"] == number for p in predictions)
        predicted = sum(p["predicted_id"] == number for p in predictions)
        right = sum(p["label_id"] == p["predicted_id"] == number for p in predictions)
        precision, recall = right / max(1, predicted), right / max(1, support)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        per_class.append(ClassScores(name=name, precision=precision, recall=recall, f1=f1, support=support))
    top1 = sum(p["label_id"] == p["predicted_id"] for p in predictions) / max(1, len(predictions))
    present = [c.f1 for c in per_class if c.support]
    metrics = {"top1": top1, "macro_f1": sum(present) / max(1, len(present)), "loss": 0.4}
    return commit(
        uri,
        Manifest(
            "evaluation", fingerprint.rjust(16, "0"), (model.as_parent(uri), clean.as_parent(uri)), classes=classes,
            files=(file,), totals=Totals(len(predictions)),
            extra=EvaluationExtra(metrics=metrics, per_class=per_class, model_classes=list(classes)),
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
        """Make one test image a class: the first is mistaken for the second, with the highest confidence."""
        n = len(self.classes)
        ids = [f"test/{label}/{6 * number + 5}.jpg" for number, label in enumerate(clean.manifest.classes)]
        return [
            {"image_id": ids[i], "label_id": i, "predicted_id": 1 if i == 0 else i, "confidence": 0.99 - 0.5 * i / n}
            for i in range(n)
        ]

    def page(self, verdict: Verdict = FIRST, rival: bool = False) -> Page:
        clean = self.clean()
        evaluation = evaluated(
            self.workspace, trained(self.workspace, clean, self.val), clean, self.predictions(clean)
        )  # fmt: skip
        champion = None
        if rival:
            worse = [p | {"predicted_id": 0} for p in self.predictions(clean)]
            champion = evaluated(self.workspace, trained(self.workspace, clean), clean, worse, "ff")
        record = StepRecord(state="cached", seconds=0.25)
        for step in ("download", "clean"):
            self.workspace.write_step_record("run-1", step, record)
        return render(self.workspace, evaluation, verdict, champion)


def render(
    workspace: Workspace, evaluation: Dataset, verdict: Verdict = FIRST, champion: Dataset | None = None
) -> Page:
    """The report of the run `run-1`."""
    comparison = compare_with_champion(evaluation, champion) if champion else None
    uri = write_report(workspace, "run-1", "tiny", Lineage.read(evaluation), verdict, comparison)
    assert uri == workspace.run_file_uri("run-1", "report.html")
    return Page(workspace.store.read(uri).decode())
