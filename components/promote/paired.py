"""Pair two models' predictions for the same test images.

Images that either model was trained or validated on are left out, and so are images of classes that the champion does
not know: it could only be wrong on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.errors import DatasetError
from ..store.labels import MULTI
from ..store.manifest import Dataset
from ..store.shards import open_parquet, read_columns

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
OTHER = -1
"""The id of a class that is not among those compared."""


class Assignments(NamedTuple):
    """Which image has, or is predicted to have, which class: `images` and `classes`, int64 [assignments], each pair
    once. One for each image where images have one label."""

    images: Ids
    classes: Ids

    def select(self, kept: Mask) -> Assignments:
        """Those of some images, `kept` [all images], renumbered; none of `OTHER`."""
        number = np.cumsum(kept) - 1
        chosen = kept[self.images] & (self.classes != OTHER)
        return Assignments(number[self.images[chosen]], self.classes[chosen])


@dataclass(frozen=True)
class Predictions:
    """One model's predictions for all test images, in the order of their ids."""

    image_ids: pa.ChunkedArray
    labels: Assignments
    predicted: Assignments
    right: Mask
    """Whether the highest class is the label, or one of them."""
    confidence: Floats
    content: Hashes
    seen: Mask

    @classmethod
    def read(cls, evaluation: Dataset, classes: tuple[str, ...]) -> Predictions:
        """Read an evaluation's rows; ids become places in `classes`."""
        several = evaluation.manifest.task == MULTI
        names = ("label_ids", "predicted_ids", "top_id") if several else ("label_id", "predicted_id")
        columns = ["image_id", *names, "confidence", "content_hash", "seen"]
        table = pa.concat_tables(read_columns(evaluation, "data", columns)).sort_by("image_id")
        place = {name: number for number, name in enumerate(classes)}
        places = np.array([place.get(name, OTHER) for name in evaluation.manifest.classes], np.int64)
        labels, predicted = (_assignments(table.column(name)) for name in names[:2])
        if several:
            hit = table.column("top_id").to_numpy()[labels.images] == labels.classes
            right = np.bincount(labels.images, hit, table.num_rows) > 0
        else:
            right = labels.classes == predicted.classes
        return cls(
            image_ids=table.column("image_id"),
            labels=labels._replace(classes=places[labels.classes]),
            predicted=predicted._replace(classes=places[predicted.classes]),
            right=right,
            confidence=table.column("confidence").to_numpy().astype(np.float64),
            content=table.column("content_hash").to_numpy(),
            seen=np.asarray(table.column("seen").to_numpy(), np.bool_),
        )


def has_content(evaluation: Dataset) -> bool:
    """Whether the evaluation tells its images' content, as those of earlier releases did not."""
    for file in evaluation.files("data"):
        with open_parquet(evaluation.locate(file)) as parquet:
            return "content_hash" in parquet.schema_arrow.names
    return False


def content_of(evaluation: Dataset) -> Hashes:
    """Return the content hashes of an evaluation's images, [images]."""
    parts = [table.column("content_hash").to_numpy() for table in read_columns(evaluation, "data", ["content_hash"])]
    return np.concatenate([np.empty(0, np.uint64), *parts]).astype(np.uint64)


@dataclass(frozen=True)
class NewClass:
    """A class that the challenger knows and the champion does not: its images that count, and how many of them the
    challenger recognizes."""

    name: str
    images: int
    recognized: int


@dataclass(frozen=True)
class Pair:
    """Challenger and champion on the `images` that count. `classes` are those that the champion knows; `left_out`:
    images that either model has seen in training; `right`, `confidence`: of champion and challenger."""

    classes: tuple[str, ...]
    images: int
    labels: Assignments
    champion: Assignments
    challenger: Assignments
    right: tuple[Mask, Mask]
    confidence: tuple[Floats, Floats]
    content: Hashes
    left_out: int
    new: tuple[NewClass, ...]

    @classmethod
    def read(cls, challenger: Dataset, champion: Dataset) -> Pair:
        """Read two evaluations of the same test split; DatasetError where their images differ."""
        known = set(champion.manifest.extra["model_classes"])
        shared = tuple(name for name in challenger.manifest.classes if name in known)
        new = tuple(name for name in challenger.manifest.extra["model_classes"] if name not in known)
        classes = (*shared, *new)
        ours, theirs = (Predictions.read(evaluation, classes) for evaluation in (challenger, champion))
        if not ours.image_ids.equals(theirs.image_ids):
            raise DatasetError(f"{challenger.uri} and {champion.uri} are of one test split, and have other images")
        unseen = ~(ours.seen | theirs.seen)
        kept = unseen.copy()
        if challenger.manifest.task != MULTI:
            kept &= (ours.labels.classes >= 0) & (ours.labels.classes < len(shared))
        labels, predicted, of_champion = (
            _known(one.select(kept), len(shared)) for one in (ours.labels, ours.predicted, theirs.predicted)
        )
        return cls(
            classes=shared,
            images=int(kept.sum()),
            labels=labels,
            champion=of_champion,
            challenger=predicted,
            right=(theirs.right[kept], ours.right[kept]),
            confidence=(theirs.confidence[kept], ours.confidence[kept]),
            content=ours.content[kept],
            left_out=int((~unseen).sum()),
            new=_recognized(ours, unseen, new, len(shared)),
        )

    def select(self, kept: Mask) -> Pair:
        """The same of some of the images, `kept` [images]."""
        return Pair(
            classes=self.classes,
            images=int(kept.sum()),
            labels=self.labels.select(kept),
            champion=self.champion.select(kept),
            challenger=self.challenger.select(kept),
            right=(self.right[0][kept], self.right[1][kept]),
            confidence=(self.confidence[0][kept], self.confidence[1][kept]),
            content=self.content[kept],
            left_out=self.left_out,
            new=self.new,
        )


def _assignments(column: pa.ChunkedArray) -> Assignments:
    """The ids of a column: one a row, or a list."""
    if not pa.types.is_list(column.type):
        return Assignments(np.arange(len(column)), column.to_numpy().astype(np.int64))
    lists = column.combine_chunks()
    lengths = np.asarray(lists.value_lengths(), np.int64)
    return Assignments(np.repeat(np.arange(len(lengths)), lengths), np.asarray(lists.flatten(), np.int64))


def _known(assignments: Assignments, classes: int) -> Assignments:
    """Those of the first classes."""
    chosen = assignments.classes < classes
    return Assignments(assignments.images[chosen], assignments.classes[chosen])


def _recognized(ours: Predictions, unseen: Mask, names: tuple[str, ...], first: int) -> tuple[NewClass, ...]:
    """The classes from the id `first` on, those that have images that count."""
    labels, predicted = (one.select(unseen) for one in (ours.labels, ours.predicted))
    classes = first + len(names)
    hit = np.isin(labels.images * classes + labels.classes, predicted.images * classes + predicted.classes)
    images = np.bincount(labels.classes, minlength=classes)[first:]
    hits = np.bincount(labels.classes[hit], minlength=classes)[first:]
    return tuple(
        NewClass(name, int(number), int(recognized))
        for name, number, recognized in zip(names, images, hits, strict=True)
        if number
    )
