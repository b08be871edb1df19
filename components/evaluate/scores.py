"""Turn a model's logits into predictions in the evaluation's classes, and accumulate their metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.labels import MULTI, SINGLE, THRESHOLD, probabilities
from ..metrics.calibration import ProbabilityMetrics
from ..metrics.classification import ConfusionCounts, LabelCounts, Scores
from .curves import ClassifierScores, ThresholdCurves, compute_log_odds
from .inference import InputBatch
from .intervals import Intervals, compute_multi_label_intervals, compute_single_label_intervals

if TYPE_CHECKING:
    import torch

Ids = npt.NDArray[np.int64]
TOP_K = 5
"""Classes of an image that are stored, and counted for top-5."""
_IMAGE_FIELDS = (
    pa.field("content_hash", pa.uint64()),  # the first 64 bits of the image's SHA-256
    pa.field("seen", pa.bool_()),  # whether the model was trained or validated on it
)
_TOP_FIELDS = (
    pa.field("top_ids", pa.list_(pa.int32()), nullable=False),  # the highest first, at most 5
    pa.field("top_probabilities", pa.list_(pa.float32()), nullable=False),
)


class ClassAlignment(NamedTuple):
    """Two class lists matched by name: `names`, those of the dataset and then those that only the model knows;
    `model_to_names` int64, the index in `names` of each of the model's ids; `dataset_to_model` int64, the model's id of
    each of the dataset's, -1 where it has none."""

    names: tuple[str, ...]
    model_to_names: Ids
    dataset_to_model: Ids


def align_classes(dataset_classes: tuple[str, ...], model_classes: tuple[str, ...]) -> ClassAlignment:
    """Match today's class list with a model's, which may be an older one."""
    names = (*dataset_classes, *(name for name in model_classes if name not in set(dataset_classes)))
    index = {name: i for i, name in enumerate(names)}
    model_ids = {name: i for i, name in enumerate(model_classes)}
    model_to_names = np.array([index[name] for name in model_classes], np.int64)
    return ClassAlignment(
        names, model_to_names, np.array([model_ids.get(name, -1) for name in dataset_classes], np.int64)
    )


@dataclass
class Scorer(ABC):
    """Accumulator of batches of logits, which it turns into rows of `SCHEMA`.

    `task` is the model's: where it is not the images' (`TASK`), there is no loss and no calibration, because the model
    was never trained for such targets. Confidences, losses and the order of classes in the rows are those of the
    calibrated logits.
    """

    SCHEMA: ClassVar[pa.Schema]
    TASK: ClassVar[str]

    classes: ClassAlignment
    task: str
    classifier_scores: ClassifierScores = field(init=False)
    probability_metrics: ProbabilityMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.classifier_scores = ClassifierScores(len(self.classes.names))
        self.probability_metrics = ProbabilityMetrics()

    @abstractmethod
    def add(
        self, logits: torch.Tensor, batch: InputBatch, calibrated: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        """Add a batch and return its rows. `logits` float [B, the model's classes]; `calibrated`: those divided by its
        temperature."""

    @abstractmethod
    def summarize_predictions(self) -> dict[str, float]:
        """Return the metrics of the predicted classes."""

    @abstractmethod
    def per_class(self) -> Scores:
        """Return the scores of each class of `classes.names`."""

    @abstractmethod
    def count_predicted(self) -> npt.ArrayLike:
        """Return the number of images predicted to have each class of `classes.names`."""

    @abstractmethod
    def compute_intervals(self, tables: Iterable[pa.Table]) -> Intervals:
        """Return [low, high], 95%, of some of the metrics; `tables` hold the rows that `add` returned."""

    def compute_metrics(self, curves: Sequence[ThresholdCurves] = ()) -> dict[str, float]:
        """Return the metrics of all batches so far, in [0, 1] but for the losses; without those that are undefined.

        `curves`: those of each class, without which there are no areas.
        """
        metrics = self.summarize_predictions()
        for name in ("pr_auc", "roc_auc"):
            defined = [area for area in (getattr(curve, name) for curve in curves) if np.isfinite(area)]
            if defined:
                metrics[name] = float(np.mean(defined))
        return metrics | self.probability_metrics.compute_metrics()

    @property
    def is_trained_for_task(self) -> bool:
        return self.task == self.TASK

    def _add_scores(self, calibrated: torch.Tensor, labels: npt.NDArray[np.bool_]) -> None:
        log_odds = compute_log_odds(calibrated, self.task == MULTI)
        self.classifier_scores.add(log_odds, self.classes.model_to_names, labels)

    def _select_top(self, p: torch.Tensor) -> dict[str, list[Any]]:
        values, ids = (v.cpu().numpy() for v in p.topk(min(TOP_K, p.shape[1]), dim=1))
        return {"top_ids": self.classes.model_to_names[ids].tolist(), "top_probabilities": values.tolist()}


@dataclass
class SingleScorer(Scorer):
    """Scorer of images with one label: the class with the highest probability is the prediction."""

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
    top_k_hits: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pairs = ConfusionCounts(len(self.classes.names))

    def add(
        self, logits: torch.Tensor, batch: InputBatch, calibrated: torch.Tensor | None = None
    ) -> list[dict[str, Any]]:
        calibrated = logits if calibrated is None else calibrated
        p = probabilities(calibrated, self.task)
        confidence, model_ids = (v.cpu().numpy() for v in p.max(1))
        predicted, target = self.classes.model_to_names[model_ids], self.classes.dataset_to_model[batch.labels]
        self.pairs.add(batch.labels, predicted)
        self._add_scores(calibrated, batch.labels[:, None] == np.arange(len(self.classes.names)))
        top = self._select_top(p)
        self.top_k_hits += int((np.array(top["top_ids"]) == batch.labels[:, None]).sum())
        label_probability = np.where(target >= 0, p.cpu().numpy()[np.arange(len(target)), target], np.nan)
        losses = np.full(len(target), np.nan)
        if self.is_trained_for_task:
            losses = self.probability_metrics.add_single(logits, calibrated, target)
        columns = {
            "image_id": batch.ids,
            "label_id": batch.labels.tolist(),
            "predicted_id": predicted.tolist(),
            "confidence": confidence.tolist(),
            "label_probability": _nan_to_none(label_probability),
            "loss": _nan_to_none(losses),
            **top,
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def summarize_predictions(self) -> dict[str, float]:
        summary, images = self.pairs.summary(), int(self.pairs.cells()[2].sum())
        if len(self.classes.model_to_names) > TOP_K:
            summary["top5"] = self.top_k_hits / images if images else 0.0
        return summary

    def per_class(self) -> Scores:
        return self.pairs.per_class()

    def count_predicted(self) -> npt.ArrayLike:
        _, predicted, counts = self.pairs.cells()
        return np.bincount(predicted, counts, self.pairs.classes)

    def compute_intervals(self, tables: Iterable[pa.Table]) -> Intervals:
        return compute_single_label_intervals(self.pairs)


@dataclass
class MultiScorer(Scorer):
    """Scorer of images with several labels: every class with a probability of at least 0.5 is predicted; of a
    single-label model the highest one. The loss is the mean over the classes that the model knows."""

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
        calibrated = logits if calibrated is None else calibrated
        p = probabilities(calibrated, self.task)
        model_scores = p.cpu().numpy()
        scores = np.zeros((len(model_scores), len(self.classes.names)), np.float32)  # 0 for what the model doesn't know
        scores[:, self.classes.model_to_names] = model_scores
        highest = self.classes.model_to_names[model_scores.argmax(1)]
        labels = np.zeros(scores.shape, np.uint8)
        labels[:, : batch.labels.shape[1]] = batch.labels
        is_label, losses = labels.astype(np.bool_), np.full(len(labels), np.nan)
        if self.is_trained_for_task:
            is_predicted = scores >= THRESHOLD
            targets = labels[:, self.classes.model_to_names]
            losses = self.probability_metrics.add_multi(logits, calibrated, targets)
        else:
            is_predicted = np.arange(scores.shape[1]) == highest[:, None]
        self.counts.add(labels, is_predicted, highest)
        self._add_scores(calibrated, is_label)
        top, nullable_losses = self._select_top(p), _nan_to_none(losses)
        return [
            {
                "image_id": batch.ids[row],
                "label_ids": np.flatnonzero(is_label[row]).tolist(),
                "predicted_ids": np.flatnonzero(is_predicted[row]).tolist(),
                "probabilities": scores[row, is_predicted[row]].tolist(),
                "top_id": int(highest[row]),
                "confidence": float(scores[row, highest[row]]),
                "label_probabilities": scores[row, is_label[row]].tolist(),
                "loss": nullable_losses[row],
                "top_ids": top["top_ids"][row],
                "top_probabilities": top["top_probabilities"][row],
            }
            for row in range(len(labels))
        ]

    def summarize_predictions(self) -> dict[str, float]:
        summary, micro = self.counts.summary(), self.classifier_scores.compute_micro_pr_auc()
        return summary | ({"micro_pr_auc": micro} if np.isfinite(micro) else {})

    def per_class(self) -> Scores:
        return self.counts.per_class()

    def count_predicted(self) -> npt.ArrayLike:
        return self.counts.predicted

    def compute_intervals(self, tables: Iterable[pa.Table]) -> Intervals:
        return compute_multi_label_intervals(self.counts, tables)


def _nan_to_none(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def make_scorer(image_task: str, model_task: str, classes: ClassAlignment) -> Scorer:
    """Return the scorer for images of one task and a model of perhaps another."""
    return MultiScorer(classes, model_task) if image_task == MULTI else SingleScorer(classes, model_task)


def has_roc_curve(scorer: Scorer, curves: Sequence[ThresholdCurves]) -> bool:
    """Return whether one ROC curve describes the scores: of two classes, with one label an image."""
    return scorer.TASK == SINGLE and len(curves) == 2 and bool(np.isfinite(curves[1].roc_auc))
