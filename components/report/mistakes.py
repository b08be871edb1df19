"""Sections of a run's page on single images: the hardest classes, the worst predictions, the images of highest loss,
training images that look mislabeled, and test images that are nearly the same picture as a training image.

Images with one label have a confusion matrix; of several labels, some are missed and others predicted wrongly.
"""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataset.kinds import ClassScores, EvaluationExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from .charts import MAX_CELLS, ConfusionMatrix, draw_confusion_matrix
from .page import Block, Charts, Figure, Figures, Listing, Paragraph, Table
from .pictures import Thumbnail, make_data_uri, make_thumbnails
from .words import format_percent, format_score, pluralize

MAX_CLASSES, MAX_MISTAKES, MAX_LOSSES, MAX_SUSPECTS = 12, 24, 12, 36
MAX_LISTED = 5_000
"""Suspects in the list of the page; all are in the evaluation's file."""
NO_LABELS = "(none)"


@dataclass(frozen=True)
class Prediction:
    """A prediction of the test split that is shown; `note` says how wrong it is."""

    image_id: str
    label: str
    predicted: str
    note: str


def describe_test_split(evaluation: Dataset) -> list[Block]:
    """Return the confusion matrix and the hardest classes or, of several labels, what is missed and said too much."""
    return _describe_labels(evaluation) if evaluation.manifest.task == MULTI else _describe_confusion(evaluation)


def _describe_labels(evaluation: Dataset) -> list[Block]:
    errors = LabelErrors.read(evaluation)
    text = "A class counts as predicted from a probability of 50% on. "
    text += f"{errors.num_right:,} of {errors.images:,} test images have every label right, and no other."
    rows = [
        (scores.name, format_score(scores.f1), format_percent(scores.recall), format_percent(scores.precision),
         f"{scores.support:,}", f"{errors.missed[class_id]:,}", f"{errors.extra[class_id]:,}")
        for class_id, scores in find_hardest(evaluation, "f1")
    ]  # fmt: skip
    head = ("class", "F1", "recall", "precision", "test images", "missed", "said too much")
    return [Paragraph(text, "note"), Table(rows, head, "lrrrrrr", "Hardest classes: the lowest F1 first")]


def _describe_confusion(evaluation: Dataset) -> list[Block]:
    classes, confusion = evaluation.manifest.classes, ConfusionMatrix.read(evaluation)
    text = (
        "Rows are the true classes, columns the predicted ones; blue is right, red is wrong, the stronger the larger "
    )
    text += f"the share of the row. {confusion.num_right:,} of {confusion.counts.sum():,} test images are right."
    if (side := confusion.pool(MAX_CELLS)[1]) > 1:
        text += f" A cell stands for {side} by {side} classes and shows the strongest of them."
    rows = [
        (scores.name, format_percent(scores.recall), format_percent(scores.precision), f"{scores.support:,}",
         ", ".join(f"{classes[other]} {number:,}" for other, number in confusion.find_confusions(class_id)))
        for class_id, scores in find_hardest(evaluation, "recall")
    ]  # fmt: skip
    head = ("class", "recall", "precision", "test images", "mistaken for")
    return [
        Paragraph(text, "note"),
        Charts([("", draw_confusion_matrix(confusion, classes))]),
        Table(rows, head, "lrrrl", "Hardest classes: the lowest recall first")
        if rows
        else Paragraph("Every class is recognized without a mistake."),
    ]


def find_hardest(evaluation: Dataset, metric: str) -> list[tuple[int, ClassScores]]:
    """Return (id, scores) of the `MAX_CLASSES` with the lowest scores below 1."""
    ids = {name: class_id for class_id, name in enumerate(evaluation.manifest.classes)}
    per_class = EvaluationExtra.of(evaluation.manifest).per_class
    hardest = [scores for scores in per_class if scores.support and getattr(scores, metric) < 1]
    hardest.sort(key=lambda scores: (getattr(scores, metric), -scores.support, scores.name))
    return [(ids[scores.name], scores) for scores in hardest[:MAX_CLASSES]]


@dataclass
class LabelErrors:
    """Errors of predictions of several labels: `num_right`, images with every label right and no other; `missed` and
    `extra`, [classes], images on which each class is missed and wrongly predicted."""

    missed: list[int]
    extra: list[int]
    num_right: int = 0
    images: int = 0

    @classmethod
    def read(cls, evaluation: Dataset) -> LabelErrors:
        """Count the predictions, a row group at a time."""
        number = len(evaluation.manifest.classes)
        errors = cls([0] * number, [0] * number)
        for row in _read_rows(evaluation, ["label_ids", "predicted_ids"]):
            labels, predicted = set(row["label_ids"]), set(row["predicted_ids"])
            errors.images += 1
            errors.num_right += labels == predicted
            for class_id in labels - predicted:
                errors.missed[class_id] += 1
            for class_id in predicted - labels:
                errors.extra[class_id] += 1
        return errors


def _read_rows(evaluation: Dataset, columns: list[str]) -> Iterable[dict[str, Any]]:
    return (row for table in read_columns(evaluation, "data", columns) for row in table.to_pylist())


def describe_mistakes(evaluation: Dataset, clean: Dataset) -> list[Block]:
    """Return the surest mistakes with evaluate's Grad-CAM, and the highest losses of the others."""
    is_multi = evaluation.manifest.task == MULTI
    mistakes = find_label_mistakes(evaluation) if is_multi else find_surest_mistakes(evaluation)
    losses = find_highest_losses(evaluation, {mistake.image_id for mistake in mistakes})
    thumbnails = make_thumbnails(clean, [shown.image_id for shown in (*mistakes, *losses)], "test")
    overlays = {
        row["image_id"]: Thumbnail("", make_data_uri(row["overlay"]))
        for table in read_columns(evaluation, "grad_cam", ["image_id", "overlay"])
        for row in table.to_pylist()
    }

    def show(shown: Prediction) -> Figure:
        pictures = (thumbnails[shown.image_id], *([overlays[shown.image_id]] if shown.image_id in overlays else []))
        return Figure(pictures, shown.label, (f"→ {shown.predicted}", shown.note))

    blocks: list[Block] = []
    if mistakes:
        order = "the most wrong labels" if is_multi else "the most confident"
        note = f"{order.capitalize()} first: true class → predicted class."
        if overlays:
            note += (
                " Beside a picture, in color: the places that spoke for the predicted class (Grad-CAM), red the most."
            )
        blocks.append(Figures([show(mistake) for mistake in mistakes], note=note))
    else:
        blocks.append(Paragraph("None: every test image is right."))
    if losses:
        title = "Highest losses" + (" of the others" if mistakes else "")
        blocks.append(Figures([show(loss) for loss in losses], title))
    return blocks


def find_surest_mistakes(evaluation: Dataset) -> list[Prediction]:
    """Return the wrong predictions with the highest confidence, with `MAX_MISTAKES` of a row group in memory."""
    surest: list[tuple[float, str, int, int]] = []
    for table in read_columns(evaluation, "data", ["image_id", "label_id", "predicted_id", "confidence"]):
        labels, predicted, confidence = (
            table.column(name).to_numpy() for name in ("label_id", "predicted_id", "confidence")
        )
        wrong = np.flatnonzero(labels != predicted)
        wrong = wrong[np.argsort(-confidence[wrong], kind="stable")[:MAX_MISTAKES]]
        for row in wrong.tolist():
            image_id = table.column("image_id")[row].as_py()
            surest.append((float(confidence[row]), image_id, int(labels[row]), int(predicted[row])))
        surest = heapq.nsmallest(MAX_MISTAKES, surest, key=lambda mistake: (-mistake[0], mistake[1]))
    names = evaluation.manifest.classes
    return [
        Prediction(image_id, names[label], names[predicted], f"{100 * confidence:.1f}% sure")
        for confidence, image_id, label, predicted in surest
    ]


def find_label_mistakes(evaluation: Dataset) -> list[Prediction]:
    """Return the predictions with the most wrong labels, among equals those with the highest confidence."""
    rows = _read_rows(evaluation, ["label_ids", "predicted_ids", "confidence", "image_id"])
    counted = ((len({*row["label_ids"]} ^ {*row["predicted_ids"]}), row) for row in rows)
    worst = heapq.nsmallest(
        MAX_MISTAKES,
        ((number, row) for number, row in counted if number),
        key=lambda entry: (-entry[0], -entry[1]["confidence"], entry[1]["image_id"]),
    )
    return [_make_prediction(evaluation, row, f"{pluralize(number, 'label')} wrong") for number, row in worst]


def find_highest_losses(evaluation: Dataset, shown: Collection[str]) -> list[Prediction]:
    """Return the images with the highest loss, but for those with an id in `shown`."""
    is_multi = evaluation.manifest.task == MULTI
    rows = _read_rows(
        evaluation,
        ["loss", "image_id", *(("label_ids", "predicted_ids") if is_multi else ("label_id", "predicted_id"))],
    )
    others = (row for row in rows if row["loss"] and row["loss"] > 0 and row["image_id"] not in shown)
    worst = heapq.nsmallest(MAX_LOSSES, others, key=lambda row: (-row["loss"], row["image_id"]))
    return [_make_prediction(evaluation, row, f"loss {row['loss']:.2f}") for row in worst]


def _make_prediction(evaluation: Dataset, row: dict[str, Any], note: str) -> Prediction:
    names = evaluation.manifest.classes
    if evaluation.manifest.task != MULTI:
        return Prediction(row["image_id"], names[row["label_id"]], names[row["predicted_id"]], note)
    labels, predicted = (
        ", ".join(names[class_id] for class_id in row[column]) or NO_LABELS for column in ("label_ids", "predicted_ids")
    )
    return Prediction(row["image_id"], labels, predicted, note)


def describe_suspects(evaluation: Dataset, clean: Dataset) -> list[Block]:
    """Return the training images that look mislabeled, the surest first, and the others with a high loss; empty where
    no labels were reviewed."""
    extra = EvaluationExtra.of(evaluation.manifest)
    review, wrong = extra.review, 1 - extra.metrics["top1"]
    if not review.images:
        return []
    columns = ["image_id", "label", "suggested", "rank", "probability", "suggested_probability", "loss"]
    suspects: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for table in read_columns(evaluation, "suspects", columns):
        rows = table.to_pylist()
        suspects += [row for row in rows if row["rank"]][: MAX_LISTED - len(suspects)]
        unranked = [row for row in rows if not row["rank"]]
        losses = heapq.nsmallest(MAX_LOSSES, [*losses, *unranked], key=lambda row: (-row["loss"], row["image_id"]))
    surest = suspects[:MAX_SUSPECTS]
    thumbnails = make_thumbnails(clean, [row["image_id"] for row in (*surest, *losses)], "train")
    blocks: list[Block] = []
    if review.suspects and surest:
        text = f"{pluralize(review.suspects, 'training image looks', 'training images look')} mislabeled, of "
        text += f"{review.images:,}, to classifiers that never saw the label: given class → likely class, and how "
        text += (
            "probable each is, the surest first. Look at each; where the likely class is right, correct the label in "
        )
        text += "the source, or leave the image out, and run again."
        if wrong >= review.suspects / review.images:
            text += (
                f" The model is mistaken on {format_percent(wrong)} of the test images too: expect right labels among "
            )
            text += "these."
        figures = [
            Figure((thumbnails[row["image_id"]],), row["label"], (
                f"→ {row['suggested']}",
                f"{100 * row['probability']:.0f}% → {100 * row['suggested_probability']:.0f}%",
            ))
            for row in surest
        ]  # fmt: skip
        title = f"{'All' if len(suspects) == review.suspects else 'The surest'} as a table to copy (csv)"
        blocks += [Figures(figures, note=text), Listing(_write_csv(suspects), title)]
    elif review.not_judged:
        blocks.append(Paragraph(f"No wrong labels are looked for, since {review.not_judged}."))
    else:
        agreement = "" if review.agreement is None else (
            f" to classifiers that agree with {format_percent(review.agreement)} of the labels")  # fmt: skip
        blocks.append(Paragraph(f"None of {pluralize(review.images, 'training image')} looks mislabeled{agreement}."))
    if losses:
        figures = [Figure((thumbnails[row["image_id"]],), row["label"], (f"loss {row['loss']:.2f}",)) for row in losses]
        blocks.append(Figures(figures, "Highest training losses" + (" of the others" if surest else "")))
    return blocks


def _write_csv(rows: list[dict[str, Any]]) -> list[str]:
    """Return lines of csv with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("image_id", "label", "suggested")
    writer.writerows([names, *([row[name] for name in names] for row in rows)])
    return out.getvalue().splitlines()


@dataclass(frozen=True)
class NearPair:
    """A test image and the training image that is nearly the same picture, by the `cosine` of their features."""

    test_id: str
    test_label: str
    train_id: str
    train_label: str
    cosine: float


@dataclass(frozen=True)
class NearPairs:
    """The nearest pairs, of `number`; images that were compared; `expected`: pairs that chance gives."""

    number: int
    test_images: int
    train_images: int
    expected: float
    pairs: tuple[NearPair, ...]


def describe_near_pairs(near: NearPairs | None, clean: Dataset) -> list[Block]:
    """Return the section on test images that training has nearly seen; empty without any."""
    if near is None or not near.number:
        return []
    tests = make_thumbnails(clean, [pair.test_id for pair in near.pairs], "test")
    trains = make_thumbnails(clean, [pair.train_id for pair in near.pairs], "train")
    note = f"{pluralize(near.number, 'test image has', 'test images have')} (of {near.test_images:,}) a training image "
    note += (
        f"(of {near.train_images:,}) that is far nearer than its other neighbors, to the pretrained network: the same "
    )
    note += (
        "scene, object or picture. They stay, but the scores are too good by as much as such images are easier than "
    )
    note += "new ones will be. If they belong together, give them one group in the source. By chance "
    note += f"{near.expected} pairs would be listed if neighbors were random ones. Test image, training image:"
    figures = []
    for pair in near.pairs:
        labels = " = ".join(dict.fromkeys((pair.test_label, pair.train_label)))
        pictures = (tests[pair.test_id], trains[pair.train_id])
        figures.append(Figure(pictures, labels, (f"cosine {pair.cosine:.3f}",)))
    return [Figures(figures, note=note)]
