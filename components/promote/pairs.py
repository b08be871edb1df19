"""Pair two models' predictions for the same test images.

Images that either model was trained or validated on are excluded. All others count: a class that the champion does not
know is a loss that it has in service, and its prediction of a class that is no longer there is a mistake.
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
    is_seen: Mask

    @classmethod
    def read(cls, evaluation: Dataset, classes: tuple[str, ...], *other_folds: Dataset) -> Predictions:
        """Read an evaluation's rows, and those of `other_folds`, which have the same classes and other images; class
        ids become indexes into `classes`."""
        is_multi = evaluation.manifest.task == MULTI
        names = ("label_ids", "predicted_ids", "top_id") if is_multi else ("label_id", "predicted_id")
        columns = ["image_id", *names, "confidence", "seen"]
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
            is_seen=np.asarray(table.column("seen").to_numpy(), np.bool_),
        )


@dataclass(frozen=True)
class PairedPredictions:
    """Predictions of challenger and champion for the same `images`.

    Attributes:
        classes: today's, those that the champion knows first.
        shared: the number of these.
        removed: classes that the champion alone knows.
        labels, champion, challenger: without predictions of other classes, which are mistakes.
        is_right, confidence: (champion, challenger).
        excluded: number of images that either model has seen in training.
    """

    classes: tuple[str, ...]
    images: int
    labels: Assignments
    champion: Assignments
    challenger: Assignments
    is_right: tuple[Mask, Mask]
    confidence: tuple[Floats, Floats]
    excluded: int = 0
    shared: int = 0
    removed: tuple[str, ...] = ()

    @property
    def added(self) -> tuple[str, ...]:
        """Today's classes that the champion does not know."""
        return self.classes[self.shared :]

    @classmethod
    def read(cls, challenger: Dataset, champion: Dataset) -> PairedPredictions:
        """Read two evaluations of the same test split; DatasetError where their images differ."""
        known = EvaluationExtra.of(champion.manifest).model_classes
        # An evaluation lists today's classes, and then those that its model alone knows.
        today = [name for name in challenger.manifest.classes if name in set(champion.manifest.classes)]
        shared = tuple(name for name in today if name in set(known))
        classes = (*shared, *(name for name in today if name not in set(known)))
        challenger_rows, champion_rows = (Predictions.read(e, classes) for e in (challenger, champion))
        if not challenger_rows.image_ids.equals(champion_rows.image_ids):
            raise DatasetError(f"{challenger.uri} and {champion.uri} are of one test split, and have other images")
        is_unseen = ~(challenger_rows.is_seen | champion_rows.is_seen)
        return cls(
            classes=classes,
            images=int(is_unseen.sum()),
            labels=challenger_rows.labels.select(is_unseen),
            champion=champion_rows.predicted.select(is_unseen),
            challenger=challenger_rows.predicted.select(is_unseen),
            is_right=(champion_rows.is_right[is_unseen], challenger_rows.is_right[is_unseen]),
            confidence=(champion_rows.confidence[is_unseen], challenger_rows.confidence[is_unseen]),
            excluded=int((~is_unseen).sum()),
            shared=len(shared),
            removed=tuple(name for name in known if name not in set(today)),
        )

    def select_shared(self) -> PairedPredictions:
        """Return the predictions of the classes that the champion knows, for the images that have one of them."""
        labels, champion, challenger = (
            assignments.select_first_classes(self.shared)
            for assignments in (self.labels, self.champion, self.challenger)
        )
        is_kept = np.bincount(labels.images, minlength=self.images) > 0
        return replace(
            self,
            classes=self.classes[: self.shared],
            images=int(is_kept.sum()),
            labels=labels.select(is_kept),
            champion=champion.select(is_kept),
            challenger=challenger.select(is_kept),
            is_right=(self.is_right[0][is_kept], self.is_right[1][is_kept]),
            confidence=(self.confidence[0][is_kept], self.confidence[1][is_kept]),
        )


def _read_assignments(column: pa.ChunkedArray) -> Assignments:
    """Return the ids of a column that has one in each row, or a list."""
    if not pa.types.is_list(column.type):
        return Assignments(np.arange(len(column)), column.to_numpy().astype(np.int64))
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths(), np.int64)
    return Assignments(np.repeat(np.arange(len(lengths)), lengths), np.asarray(lists.flatten(), np.int64))
