"""Report sections on the test split: the hardest classes, the worst predictions, and the images of highest loss; and
on the training images that look mislabeled, the suspects of evaluate's label review.

Images with one label have a confusion matrix; of several labels, some are missed and others predicted wrongly.
"""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import ClassScores, EvaluationExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..imaging.pictures import make_data_uri
from .charts import COUNTED_CLASSES, ConfusionMatrix, draw_confusion_matrix
from .thumbnails import Thumbnail, make_thumbnails

Counts = npt.NDArray[np.int64]
MAX_CLASSES, MAX_MISTAKES, MAX_LOSSES = 12, 24, 12
NO_LABELS = "(none)"


@dataclass(frozen=True)
class Mistake:
    """One prediction of the test split with its thumbnail; `note` says how wrong it is; `overlay`: a data URI of
    evaluate's Grad-CAM, or empty."""

    image_id: str
    label: str
    predicted: str
    note: str
    thumbnail: Thumbnail
    overlay: str = ""


def describe_test_split(evaluation: Dataset, clean: Dataset) -> dict[str, Any]:
    """Return the number of test images and of right ones, the hardest classes, the worst mistakes, and the confusion
    matrix as (SVG, classes along a cell's side), None where images have several labels."""
    if evaluation.manifest.task == MULTI:
        errors = LabelErrors.read(evaluation)
        worst, imperfect = find_hardest_multi_label(evaluation, errors)
        section: dict[str, Any] = {
            "tested": errors.images,
            "right": errors.num_right,
            "confusion": None,
            "worst": worst,
            "mistakes": make_multi_label_mistakes(evaluation, clean, errors),
        }
    else:
        confusion = ConfusionMatrix.read(evaluation)
        worst, imperfect = find_hardest_classes(evaluation, confusion)
        section = {
            "tested": int(confusion.counts.sum()),
            "right": confusion.num_right,
            "confusion": draw_confusion_matrix(confusion, evaluation.manifest.classes),
            "worst": worst,
            "mistakes": make_mistakes(evaluation, clean),
        }
    return section | {"imperfect": imperfect, "counted": len(evaluation.manifest.classes) <= COUNTED_CLASSES}


def find_hardest_classes(evaluation: Dataset, confusion: ConfusionMatrix) -> tuple[list[tuple[Any, ...]], int]:
    """Return (scores, [(other class, how often it is mistaken for it)]) of the classes with the lowest recall, and the
    number of classes with a mistake."""
    classes = evaluation.manifest.classes
    lowest, imperfect = _find_lowest(evaluation, "recall")
    rows = [(c, [(classes[other], n) for other, n in confusion.find_confusions(class_id)]) for class_id, c in lowest]
    return rows, imperfect


def find_hardest_multi_label(evaluation: Dataset, errors: LabelErrors) -> tuple[list[tuple[Any, ...]], int]:
    """Return (scores, how often it is missed, how often it is wrongly predicted) of the classes with the lowest F1, and
    the number of classes with a mistake."""
    lowest, imperfect = _find_lowest(evaluation, "f1")
    return [(c, int(errors.missed[n]), int(errors.extra[n])) for n, c in lowest], imperfect


def _find_lowest(evaluation: Dataset, metric: str) -> tuple[list[tuple[int, ClassScores]], int]:
    """Return (id, scores) of the `MAX_CLASSES` with the lowest scores, and the number of classes below 1."""
    ids = {name: class_id for class_id, name in enumerate(evaluation.manifest.classes)}
    classes = [c for c in EvaluationExtra.of(evaluation.manifest).per_class if c.support and getattr(c, metric) < 1]
    classes.sort(key=lambda c: (getattr(c, metric), -c.support, c.name))
    return [(ids[c.name], c) for c in classes[:MAX_CLASSES]], len(classes)


def make_mistakes(evaluation: Dataset, clean: Dataset) -> list[Mistake]:
    """Return the wrong predictions with the highest confidence."""
    rows = find_surest_mistakes(evaluation, MAX_MISTAKES)
    thumbnails = _make_test_thumbnails(clean, [image_id for _, image_id, _, _ in rows])
    names, overlays = evaluation.manifest.classes, _read_overlays(evaluation)
    return [
        Mistake(
            image_id, names[label], names[predicted], f"{100 * confidence:.1f}% sure", thumbnails[image_id],
            overlays.get(image_id, ""),
        )
        for confidence, image_id, label, predicted in rows
    ]  # fmt: skip


def _read_overlays(evaluation: Dataset) -> dict[str, str]:
    """Return evaluate's Grad-CAM overlays as data URIs by image_id; earlier releases wrote none."""
    tables = read_columns(evaluation, "grad_cam", ["image_id", "overlay"])
    return {row["image_id"]: make_data_uri("jpeg", row["overlay"]) for table in tables for row in table.to_pylist()}


def find_surest_mistakes(evaluation: Dataset, limit: int) -> list[tuple[float, str, int, int]]:
    """Return (confidence, image_id, label_id, predicted_id) of the surest wrong rows, with `limit` in memory."""
    surest: list[tuple[float, str, int, int]] = []
    for table in read_columns(evaluation, "data", ["image_id", "label_id", "predicted_id", "confidence"]):
        labels, predicted, confidence = (
            table.column(name).to_numpy() for name in ("label_id", "predicted_id", "confidence")
        )
        wrong = np.flatnonzero(labels != predicted)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")[:limit]]
        for row in wrong.tolist():
            image_id = table.column("image_id")[row].as_py()
            surest.append((float(confidence[row]), image_id, int(labels[row]), int(predicted[row])))
        surest = heapq.nsmallest(limit, surest, key=lambda mistake: (-mistake[0], mistake[1]))
    return surest


@dataclass
class LabelErrors:
    """Errors of predictions of several labels: `num_right`, images with every label right and no other; `missed` and
    `extra`, int64 [classes], images on which each class is missed and wrongly predicted; `worst`, rows as (number of
    wrong labels, image_id, label_ids, predicted_ids)."""

    missed: Counts
    extra: Counts
    num_right: int = 0
    images: int = 0
    worst: list[tuple[int, str, list[int], list[int]]] = field(default_factory=list)

    @classmethod
    def read(cls, evaluation: Dataset, limit: int = MAX_MISTAKES) -> LabelErrors:
        """Count the predictions, a row group at a time; keeps `limit` of the worst rows, those with the most wrong
        labels, and among equals with the highest confidence."""
        classes = len(evaluation.manifest.classes)
        errors = cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64))
        worst: list[tuple[int, float, str, list[int], list[int]]] = []
        for table in read_columns(evaluation, "data", ["image_id", "label_ids", "predicted_ids", "confidence"]):
            errors.images += table.num_rows
            for row in table.to_pylist():
                labels, predicted = set(row["label_ids"]), set(row["predicted_ids"])
                if labels == predicted:
                    errors.num_right += 1
                    continue
                errors.missed[list(labels - predicted)] += 1
                errors.extra[list(predicted - labels)] += 1
                ids = row["label_ids"], row["predicted_ids"]
                worst.append((len(labels ^ predicted), row["confidence"], row["image_id"], *ids))
            worst = heapq.nsmallest(limit, worst, key=lambda mistake: (-mistake[0], -mistake[1], mistake[2]))
        errors.worst = [(wrong, image_id, labels, predicted) for wrong, _, image_id, labels, predicted in worst]
        return errors


def make_multi_label_mistakes(evaluation: Dataset, clean: Dataset, errors: LabelErrors) -> list[Mistake]:
    """Return the predictions with the most wrong labels."""
    thumbnails = _make_test_thumbnails(clean, [image_id for _, image_id, _, _ in errors.worst])
    names = evaluation.manifest.classes
    return [
        Mistake(
            image_id, _join_names(names, labels), _join_names(names, predicted),
            f"{wrong} label{'s' if wrong > 1 else ''} wrong", thumbnails[image_id],
        )
        for wrong, image_id, labels, predicted in errors.worst
    ]  # fmt: skip


def make_highest_losses(
    evaluation: Dataset, clean: Dataset, shown: Collection[str], limit: int = MAX_LOSSES
) -> list[Mistake]:
    """Return the images with the highest loss, but for those with an id in `shown`."""
    is_multi = evaluation.manifest.task == MULTI
    columns = ["loss", "image_id", *(("label_ids", "predicted_ids") if is_multi else ("label_id", "predicted_id"))]
    worst: list[tuple[float, str, Any, Any]] = []
    for table in read_columns(evaluation, "data", columns):
        rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
        candidates = [row for row in rows if row[0] is not None and row[0] > 0 and row[1] not in shown]
        worst = heapq.nsmallest(limit, [*worst, *candidates], key=lambda row: (-row[0], row[1]))
    thumbnails = _make_test_thumbnails(clean, [image_id for _, image_id, _, _ in worst])
    names = evaluation.manifest.classes

    def name(ids: Any) -> str:
        return _join_names(names, ids) if is_multi else names[ids]

    return [
        Mistake(image_id, name(label), name(predicted), f"loss {loss:.2f}", thumbnails[image_id])
        for loss, image_id, label, predicted in worst
    ]


def _join_names(classes: tuple[str, ...], ids: list[int]) -> str:
    return ", ".join(classes[class_id] for class_id in ids) or NO_LABELS


def _make_test_thumbnails(clean: Dataset, image_ids: list[str]) -> dict[str, Thumbnail]:
    return make_thumbnails(clean, clean.files("data", "test") or clean.files("data"), image_ids)


MAX_SUSPECTS = 36
MAX_TABLE_ROWS = 5_000
"""Suspects in the table of the page; all are in the evaluation's file."""
_TABLE_COLUMNS = ("image_id", "label", "suggested")
_COLUMNS = [*_TABLE_COLUMNS, "rank", "probability", "suggested_probability", "loss"]


@dataclass(frozen=True)
class Suspect:
    """One training image. `suggested` is empty where its loss alone is high; `note`: the probabilities or the loss."""

    image_id: str
    label: str
    suggested: str
    note: str
    thumbnail: Thumbnail


def describe_suspects(evaluation: Dataset, clean: Dataset) -> dict[str, Any] | None:
    """Return the template's variables; None where no labels were reviewed.

    `rows` are the surest suspects, `losses` images whose loss alone is high, `listed` lines of a table (csv) of at most
    `MAX_TABLE_ROWS` suspects, which are in memory.
    """
    review = EvaluationExtra.of(evaluation.manifest).review
    if not review.images:
        return None
    suspects: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for table in read_columns(evaluation, "suspects", _COLUMNS):
        rows = table.to_pylist()
        suspects += [row for row in rows if row["rank"]][: MAX_TABLE_ROWS - len(suspects)]
        unranked = [row for row in rows if not row["rank"]]
        losses = heapq.nsmallest(MAX_LOSSES, [*losses, *unranked], key=lambda row: (-row["loss"], row["image_id"]))
    surest = suspects[:MAX_SUSPECTS]
    files = clean.files("data", "train") or clean.files("data")
    thumbnails = make_thumbnails(clean, files, [row["image_id"] for row in (*surest, *losses)])
    return {
        "images": review.images,
        "total": review.suspects,
        "why": review.not_judged or "",
        "agreement": review.agreement,
        "rows": [_make_suspect(row, thumbnails) for row in surest],
        "losses": [_make_suspect(row, thumbnails) for row in losses],
        "listed": _write_csv(suspects),
    }


def _make_suspect(row: dict[str, Any], thumbnails: dict[str, Thumbnail]) -> Suspect:
    note = f"loss {row['loss']:.2f}"
    if row["rank"]:
        note = f"{100 * row['probability']:.0f}% → {100 * row['suggested_probability']:.0f}%"
    image_id = row["image_id"]
    return Suspect(image_id, row["label"], row["suggested"] or "", note, thumbnails[image_id])


def _write_csv(rows: list[dict[str, Any]]) -> list[str]:
    """Return lines of csv with a header; empty where there are no rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_TABLE_COLUMNS, *([row[name] for name in _TABLE_COLUMNS] for row in rows)])
    return out.getvalue().splitlines() if rows else []
