"""What a model's logits are worth: predictions by the evaluation's classes, and the metrics in the end.

Whatever is kept grows with the classes, not with the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.labels import MULTI, SINGLE, THRESHOLD, probabilities
from ..store.metrics import ConfusionCounts, LabelCounts, Scores
from . import intervals
from .curves import Areas, ScoreHistograms, log_odds
from .inputs import InputBatch
from .trust import Trust

if TYPE_CHECKING:
    import torch

Ids = npt.NDArray[np.int64]
TOP = 5
"""So many classes of an image are written down, and counted for top-5."""
_IMAGE_FIELDS = (
    pa.field("content_hash", pa.uint64()),  # the first 64 bits of the image's SHA-256
    pa.field("seen", pa.bool_()),  # whether the model was trained or validated on it
)
_TOP_FIELDS = (
    pa.field("top_ids", pa.list_(pa.int32()), nullable=False),  # the highest first, at most 5
    pa.field("top_probabilities", pa.list_(pa.float32()), nullable=False),
)


class Alignment(NamedTuple):
    """Two class lists matched by name: `names` is ours and then what only the model knows; `to_ours` int64 gives the
    place in it of each of the model's ids, `to_models` int64 the model's id of each of ours, -1 where it has none."""

    names: tuple[str, ...]
    to_ours: Ids
    to_models: Ids


def align(ours: tuple[str, ...], models: tuple[str, ...]) -> Alignment:
    """Match today's class list with a model's, which may be an older one."""
    names = (*ours, *(name for name in models if name not in set(ours)))
    place, own = {name: i for i, name in enumerate(names)}, {name: i for i, name in enumerate(models)}
    to_ours = np.array([place[name] for name in models], np.int64)
    return Alignment(names, to_ours, np.array([own.get(name, -1) for name in ours], np.int64))


@dataclass
class Scorer(ABC):
    """Turns batches of logits into rows of `SCHEMA`, and keeps what the metrics need. `task` is the model's: where it
    is not the images', there is no loss and no calibration, because the model was never trained for such targets.

    Probabilities, and with them the confidences, losses and orders in the rows, are those of the calibrated logits."""

    SCHEMA: ClassVar[pa.Schema]
    TASK: ClassVar[str]

    classes: Alignment
    task: str
    histograms: ScoreHistograms = field(init=False)
    trust: Trust = field(init=False)

    def __post_init__(self) -> None:
        self.histograms, self.trust = ScoreHistograms(len(self.classes.names)), Trust()

    @abstractmethod
    def add(
        self, logits: torch.Tensor, batch: InputBatch, calibrated: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a batch, from the model's logits float [B, its classes], and those divided by its temperature."""

    @abstractmethod
    def counted(self) -> dict[str, float]:
        """The metrics of what was predicted."""

    @abstractmethod
    def per_class(self) -> Scores:
        """Those of each class of `classes.names`."""

    @abstractmethod
    def said(self) -> npt.ArrayLike:
        """How many images are predicted to be of each class of `classes.names`."""

    @abstractmethod
    def intervals(self, rows: Iterable[pa.Table]) -> intervals.Intervals:
        """[low, high] of some of the metrics, 95%; `rows` are those that `add` has given, a table at a time."""

    def areas(self) -> Areas:
        return self.histograms.areas()

    def metrics(self) -> dict[str, float]:
        """The metrics of all batches so far, each in [0, 1] but the losses; what is not defined is not there."""
        found, areas = self.counted(), self.areas()
        known = {"pr_auc": areas.pr[np.isfinite(areas.pr)], "roc_auc": areas.roc[np.isfinite(areas.roc)]}
        found |= {name: float(values.mean()) for name, values in known.items() if len(values)}
        return found | self.trust.metrics()

    @property
    def trained_for_this(self) -> bool:
        return self.task == self.TASK

    def _count_scores(self, calibrated: torch.Tensor, there: npt.NDArray[np.bool_]) -> None:
        self.histograms.add(log_odds(calibrated, self.task == MULTI), self.classes.to_ours, there)

    def _top(self, p: torch.Tensor) -> dict[str, list[Any]]:
        values, own = (v.cpu().numpy() for v in p.topk(min(TOP, p.shape[1]), dim=1))
        return {"top_ids": self.classes.to_ours[own].tolist(), "top_probabilities": values.tolist()}


@dataclass
class SingleScorer(Scorer):
    """One label an image: the class with the highest probability is the prediction."""

    TASK = SINGLE
    SCHEMA = pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("label_id", pa.int32(), nullable=False),
            pa.field("predicted_id", pa.int32(), nullable=False),  # all by the evaluation's classes
            pa.field("confidence", pa.float32(), nullable=False),
            pa.field("label_probability", pa.float32()),  # of `label_id`; null for a class that the model doesn't know
            pa.field("loss", pa.float32()),  # its negative logarithm; null also for a model of several labels
            *_TOP_FIELDS,
            *_IMAGE_FIELDS,
        ]
    )
    pairs: ConfusionCounts = field(init=False)
    in_top: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pairs = ConfusionCounts(len(self.classes.names))

    def add(
        self, logits: torch.Tensor, batch: InputBatch, calibrated: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        sharp = logits if calibrated is None else calibrated
        p = probabilities(sharp, self.task)
        confidence, own = (v.cpu().numpy() for v in p.max(1))
        predicted, target = self.classes.to_ours[own], self.classes.to_models[batch.labels]
        self.pairs.add(batch.labels, predicted)
        self._count_scores(sharp, batch.labels[:, None] == np.arange(len(self.classes.names)))
        top = self._top(p)
        self.in_top += int((np.array(top["top_ids"]) == batch.labels[:, None]).sum())
        known = target >= 0
        of_label = np.where(known, p.cpu().numpy()[np.arange(len(target)), target], np.nan)
        losses = np.full(len(target), np.nan)
        if self.trained_for_this:
            losses = self.trust.add_single(logits, sharp, target)
        columns = {"image_id": batch.ids, "label_id": batch.labels.tolist(), "predicted_id": predicted.tolist()}
        columns |= {
            "confidence": confidence.tolist(),
            "label_probability": _or_null(of_label),
            "loss": _or_null(losses),
        }
        columns |= top
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def counted(self) -> dict[str, float]:
        found, images = self.pairs.summary(), int(self.pairs.cells()[2].sum())
        if len(self.classes.to_ours) > TOP:
            found["top5"] = self.in_top / images if images else 0.0
        return found

    def per_class(self) -> Scores:
        return self.pairs.per_class()

    def said(self) -> npt.ArrayLike:
        _, predicted, counts = self.pairs.cells()
        return np.bincount(predicted, counts, self.pairs.classes)

    def intervals(self, rows: Iterable[pa.Table]) -> intervals.Intervals:
        return intervals.of_pairs(self.pairs)


@dataclass
class MultiScorer(Scorer):
    """Several labels an image: every class with a probability of at least 0.5 is predicted; of a single-label model
    the highest one. The loss is the mean over the classes that the model knows, whether or not we have them."""

    TASK = MULTI
    SCHEMA = pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("label_ids", pa.list_(pa.int32()), nullable=False),
            pa.field("predicted_ids", pa.list_(pa.int32()), nullable=False),  # all by the evaluation's classes
            pa.field("probabilities", pa.list_(pa.float32()), nullable=False),  # of the predicted ones
            pa.field("top_id", pa.int32(), nullable=False),
            pa.field("confidence", pa.float32(), nullable=False),  # the probability of `top_id`
            pa.field("label_probabilities", pa.list_(pa.float32()), nullable=False),  # of `label_ids`
            pa.field("loss", pa.float32()),  # null for a model of one label
            *_TOP_FIELDS,
            *_IMAGE_FIELDS,
        ]
    )
    counts: LabelCounts = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts = LabelCounts(len(self.classes.names))

    def add(
        self, logits: torch.Tensor, batch: InputBatch, calibrated: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        sharp = logits if calibrated is None else calibrated
        p = probabilities(sharp, self.task)
        own = p.cpu().numpy()
        score = np.zeros((len(own), len(self.classes.names)), np.float32)  # of what the model doesn't know: 0
        score[:, self.classes.to_ours] = own
        highest = self.classes.to_ours[own.argmax(1)]
        labels = np.zeros(score.shape, np.uint8)
        labels[:, : batch.labels.shape[1]] = batch.labels
        there, losses = labels.astype(np.bool_), np.full(len(labels), np.nan)
        if self.trained_for_this:
            predicted = score >= THRESHOLD
            losses = self.trust.add_multi(logits, sharp, labels[:, self.classes.to_ours])
        else:
            predicted = np.arange(score.shape[1]) == highest[:, None]
        self.counts.add(labels, predicted, highest)
        self._count_scores(sharp, there)
        top, lost = self._top(p), _or_null(losses)
        return [
            {
                "image_id": batch.ids[row],
                "label_ids": np.flatnonzero(there[row]).tolist(),
                "predicted_ids": np.flatnonzero(predicted[row]).tolist(),
                "probabilities": score[row, predicted[row]].tolist(),
                "top_id": int(highest[row]),
                "confidence": float(score[row, highest[row]]),
                "label_probabilities": score[row, there[row]].tolist(),
                "loss": lost[row],
                "top_ids": top["top_ids"][row],
                "top_probabilities": top["top_probabilities"][row],
            }
            for row in range(len(labels))
        ]

    def counted(self) -> dict[str, float]:
        found, micro = self.counts.summary(), self.histograms.micro().pr[0]
        return found | ({"micro_pr_auc": float(micro)} if np.isfinite(micro) else {})

    def per_class(self) -> Scores:
        return self.counts.per_class()

    def said(self) -> npt.ArrayLike:
        return self.counts.predicted

    def intervals(self, rows: Iterable[pa.Table]) -> intervals.Intervals:
        return intervals.of_labels(self.counts, rows)


def _or_null(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def scorer(images: str, model: str, classes: Alignment) -> Scorer:
    """The scorer for images of one task and a model of perhaps another."""
    return MultiScorer(classes, model) if images == MULTI else SingleScorer(classes, model)
