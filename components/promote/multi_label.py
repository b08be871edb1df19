"""What the report says of a test split whose images have several labels: there no class is taken for another, some
are missed and some are said too much."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.manifest import Dataset
from ..store.shards import read_columns
from . import pictures
from .pictures import Mistake

Counts = npt.NDArray[np.int64]
NOTHING = "(none)"


@dataclass
class Review:
    """All predictions against their labels: how many images are right to the last label, how often each class was
    missed or said where it is not (int64 [classes]), and the worst rows as (wrong labels, image_id, labels, said)."""

    missed: Counts
    extra: Counts
    right: int = 0
    rows: int = 0
    worst: list[tuple[int, str, list[int], list[int]]] = field(default_factory=list)

    @classmethod
    def of(cls, evaluation: Dataset, most: int = pictures.MISTAKES_SHOWN) -> Review:
        """Counted from the predictions, a row group at a time; holds `most` of the worst rows.

        The worst have the most wrong labels, and among equals the surest highest class.
        """
        classes = len(evaluation.manifest.classes)
        review = cls(np.zeros(classes, np.int64), np.zeros(classes, np.int64))
        worst: list[tuple[int, float, str, list[int], list[int]]] = []
        for table in read_columns(evaluation, "data", ["image_id", "label_ids", "predicted_ids", "confidence"]):
            review.rows += table.num_rows
            for row in table.to_pylist():
                labels, said = set(row["label_ids"]), set(row["predicted_ids"])
                if labels == said:
                    review.right += 1
                    continue
                review.missed[list(labels - said)] += 1
                review.extra[list(said - labels)] += 1
                ids = row["label_ids"], row["predicted_ids"]
                worst.append((len(labels ^ said), row["confidence"], row["image_id"], *ids))
            worst = heapq.nsmallest(most, worst, key=lambda found: (-found[0], -found[1], found[2]))
        review.worst = [(wrong, image_id, labels, said) for wrong, _, image_id, labels, said in worst]
        return review


def worst_classes(evaluation: Dataset, review: Review, most: int) -> dict[str, Any]:
    """The classes with the lowest F1, of the `imperfect` ones: how often missed, and how often said too much."""
    ids = {name: number for number, name in enumerate(evaluation.manifest.classes)}
    present = [c for c in evaluation.manifest.extra["per_class"] if c["support"] and c["f1"] < 1]
    present.sort(key=lambda c: (c["f1"], -c["support"], c["class"]))
    rows = [
        {"label": c["class"], **{key: c[key] for key in ("precision", "recall", "f1", "support")}}
        | {"missed": int(review.missed[ids[c["class"]]]), "extra": int(review.extra[ids[c["class"]]])}
        for c in present[:most]
    ]
    return {"rows": rows, "imperfect": len(present)}


def mistakes(evaluation: Dataset, clean: Dataset, review: Review) -> list[Mistake]:
    """The worst rows with thumbnails from clean's test files."""
    files = clean.files("data", "test") or clean.files("data")
    found = pictures.look_up(clean, files, {image_id: "" for _, image_id, _, _ in review.worst})
    names = evaluation.manifest.classes

    def listed(ids: list[int]) -> str:
        return ", ".join(names[number] for number in ids) or NOTHING

    return [
        Mistake(image_id, listed(labels), listed(said), f"{wrong} label{'s' if wrong > 1 else ''} wrong", picture)
        for wrong, image_id, labels, said in review.worst
        for picture in [found.get(image_id) or pictures.Picture(image_id)]
    ]
