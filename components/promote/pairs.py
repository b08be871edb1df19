"""Pair two models' predictions for the same test images.

Images that either model was trained or validated on are excluded, and so are images of classes that the champion does
not know: it could only be wrong on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.kinds import EvaluationExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..storage.errors import DatasetError

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
OTHER = -1
"""The id of a class that is not among those compared."""


class Assignments(NamedTuple):
    """Pairs of an image and a class that it has or is predicted to have: `images` and `classes`, int64 [assignments],
    each pair once. One pair for each image where images have one label."""

    images: Ids
    classes: Ids

    def select(self, is_kept: Mask) -> Assignments:
        """Return those of the images in `is_kept` [all images], renumbered, without `OTHER`."""
        index = np.cumsum(is_kept) - 1
        is_selected = is_kept[self.images] & (self.classes != OTHER)
        return Assignments(index[self.images[is_selected]], self.classes[is_selected])

    def select_first_classes(self, classes: int) -> Assignments:
        """Return those with a class id below `classes`."""
        is_selected = self.classes < classes
        return Assignments(self.images[is_selected], self.classes[is_selected])

    def find_in(self, others: Assignments, classes: int) -> Mask:
        """Return whether each pair is also among `others`, [assignments]; ids are below `classes`."""
        keys, other_keys = (pairs.images * max(1, classes) + pairs.classes for pairs in (self, others))
        return np.isin(keys, other_keys)


@dataclass(frozen=True)
class Predictions:
    """Predictions for all test images, in the order of their ids: of one model, or of the models of several folds."""

    image_ids: pa.ChunkedArray
    labels: Assignments
    predicted: Assignments
    is_right: Mask
    """True where the highest class is the label, or one of them."""
    confidence: Floats
    content_hashes: Hashes
    is_seen: Mask

    @classmethod
    def read(cls, evaluation: Dataset, classes: tuple[str, ...], *other_folds: Dataset) -> Predictions:
        """Read an evaluation's rows, and those of `other_folds`, which have the same classes and other images; class
        ids become indexes into `classes`."""
        is_multi = evaluation.manifest.task == MULTI
        names = ("label_ids", "predicted_ids", "top_id") if is_multi else ("label_id", "predicted_id")
        columns = ["image_id", *names, "confidence", "content_hash", "seen"]
        folds = (evaluation, *other_folds)
        table = pa.concat_tables(t for fold in folds for t in read_columns(fold, "data", columns)).sort_by("image_id")
        index = {name: number for number, name in enumerate(classes)}
        new_ids = np.array([index.get(name, OTHER) for name in evaluation.manifest.classes], np.int64)
        labels, predicted = (_read_assignments(table.column(name)) for name in names[:2])
        if is_multi:
            is_hit = table.column("top_id").to_numpy()[labels.images] == labels.classes
            is_right = np.bincount(labels.images, is_hit, table.num_rows) > 0
        else:
            is_right = labels.classes == predicted.classes
        return cls(
            image_ids=table.column("image_id"),
            labels=labels._replace(classes=new_ids[labels.classes]),
            predicted=predicted._replace(classes=new_ids[predicted.classes]),
            is_right=is_right,
            confidence=table.column("confidence").to_numpy().astype(np.float64),
            content_hashes=table.column("content_hash").to_numpy(),
            is_seen=np.asarray(table.column("seen").to_numpy(), np.bool_),
        )


def read_content_hashes(evaluation: Dataset) -> Hashes:
    """Return the content hashes of an evaluation's images, [images]."""
    parts = [table.column("content_hash").to_numpy() for table in read_columns(evaluation, "data", ["content_hash"])]
    return np.concatenate([np.empty(0, np.uint64), *parts]).astype(np.uint64)


@dataclass(frozen=True)
class NewClass:
    """A class that the challenger knows and the champion does not, with the number of its images and of those that the
    challenger recognizes."""

    name: str
    images: int
    recognized: int


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of challenger and champion for the same `images`. `classes` are those that the champion knows;
    `excluded`: number of images that either model has seen in training; `is_right`, `confidence`: (champion,
    challenger)."""

    classes: tuple[str, ...]
    images: int
    labels: Assignments
    champion: Assignments
    challenger: Assignments
    is_right: tuple[Mask, Mask]
    confidence: tuple[Floats, Floats]
    content_hashes: Hashes
    excluded: int
    new_classes: tuple[NewClass, ...]

    @classmethod
    def read(cls, challenger: Dataset, champion: Dataset) -> PairedPredictions:
        """Read two evaluations of the same test split; DatasetError where their images differ."""
        model_classes, champion_classes = (EvaluationExtra.of(e.manifest).model_classes for e in (challenger, champion))
        shared = tuple(name for name in challenger.manifest.classes if name in set(champion_classes))
        new = tuple(name for name in model_classes if name not in set(champion_classes))
        classes = (*shared, *new)
        challenger_rows, champion_rows = (Predictions.read(e, classes) for e in (challenger, champion))
        if not challenger_rows.image_ids.equals(champion_rows.image_ids):
            raise DatasetError(f"{challenger.uri} and {champion.uri} are of one test split, and have other images")
        is_unseen = ~(challenger_rows.is_seen | champion_rows.is_seen)
        is_kept = is_unseen.copy()
        if challenger.manifest.task != MULTI:
            is_kept &= (challenger_rows.labels.classes >= 0) & (challenger_rows.labels.classes < len(shared))
        labels, challenger_predicted, champion_predicted = (
            assignments.select(is_kept).select_first_classes(len(shared))
            for assignments in (challenger_rows.labels, challenger_rows.predicted, champion_rows.predicted)
        )
        return cls(
            classes=shared,
            images=int(is_kept.sum()),
            labels=labels,
            champion=champion_predicted,
            challenger=challenger_predicted,
            is_right=(champion_rows.is_right[is_kept], challenger_rows.is_right[is_kept]),
            confidence=(champion_rows.confidence[is_kept], challenger_rows.confidence[is_kept]),
            content_hashes=challenger_rows.content_hashes[is_kept],
            excluded=int((~is_unseen).sum()),
            new_classes=_count_new_classes(challenger_rows, is_unseen, new, len(shared)),
        )

    def select(self, is_kept: Mask) -> PairedPredictions:
        """Return the predictions for the images in `is_kept` [images]."""
        return replace(
            self,
            images=int(is_kept.sum()),
            labels=self.labels.select(is_kept),
            champion=self.champion.select(is_kept),
            challenger=self.challenger.select(is_kept),
            is_right=(self.is_right[0][is_kept], self.is_right[1][is_kept]),
            confidence=(self.confidence[0][is_kept], self.confidence[1][is_kept]),
            content_hashes=self.content_hashes[is_kept],
        )


def _read_assignments(column: pa.ChunkedArray) -> Assignments:
    """Return the ids of a column that has one in each row, or a list."""
    if not pa.types.is_list(column.type):
        return Assignments(np.arange(len(column)), column.to_numpy().astype(np.int64))
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths(), np.int64)
    return Assignments(np.repeat(np.arange(len(lengths)), lengths), np.asarray(lists.flatten(), np.int64))


def _count_new_classes(rows: Predictions, is_unseen: Mask, names: tuple[str, ...], first: int) -> tuple[NewClass, ...]:
    """Return the classes `names`, with ids from `first` on, that have unseen images."""
    labels, predicted = (assignments.select(is_unseen) for assignments in (rows.labels, rows.predicted))
    classes = first + len(names)
    images = np.bincount(labels.classes, minlength=classes)[first:]
    hits = np.bincount(labels.classes[labels.find_in(predicted, classes)], minlength=classes)[first:]
    return tuple(
        NewClass(name, int(number), int(recognized))
        for name, number, recognized in zip(names, images, hits, strict=True)
        if number
    )
