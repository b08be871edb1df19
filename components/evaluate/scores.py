"""What a model's logits are worth: predictions by the evaluation's classes, the loss, and the metrics in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.labels import MULTI, SINGLE, THRESHOLD, probabilities, summed_loss
from ..store.metrics import LabelCounts, Scores, confusion, per_class, summary
from .inputs import InputBatch

if TYPE_CHECKING:
    import torch

Ids = npt.NDArray[np.int64]


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
    is not the images', there is no loss, because the model was never trained for such targets."""

    SCHEMA: ClassVar[pa.Schema]
    TASK: ClassVar[str]

    classes: Alignment
    task: str
    loss: float = 0.0
    counted: int = 0
    """Images that have a loss."""

    @abstractmethod
    def add(self, logits: torch.Tensor, batch: InputBatch) -> list[dict[str, Any]]:
        """The rows of a batch, from the model's logits float [B, its classes]."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The metrics of all batches so far."""

    @abstractmethod
    def per_class(self) -> Scores:
        """Those of each class of `classes.names`."""

    def _mean_loss(self) -> dict[str, float]:
        return {"loss": self.loss / max(1, self.counted)} if self.task == self.TASK else {}


@dataclass
class SingleScorer(Scorer):
    """One label an image: the class with the highest probability is the prediction."""

    TASK = SINGLE
    SCHEMA = pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("label_id", pa.int32(), nullable=False),
            pa.field("predicted_id", pa.int32(), nullable=False),  # both by the evaluation's classes
            pa.field("confidence", pa.float32(), nullable=False),
        ]
    )
    labels: list[Ids] = field(default_factory=list)
    predicted: list[Ids] = field(default_factory=list)

    def add(self, logits: torch.Tensor, batch: InputBatch) -> list[dict[str, Any]]:
        confidence, own = (v.cpu().numpy() for v in probabilities(logits, self.task).max(1))
        predicted = self.classes.to_ours[own]
        if self.task == self.TASK:
            self._add_loss(logits, self.classes.to_models[batch.labels])
        self.labels.append(batch.labels.astype(np.int64))
        self.predicted.append(predicted)
        columns = (batch.ids, batch.labels.tolist(), predicted.tolist(), confidence.tolist())
        return [dict(zip(self.SCHEMA.names, row, strict=True)) for row in zip(*columns, strict=True)]

    def _add_loss(self, logits: torch.Tensor, target: Ids) -> None:
        import torch

        known = torch.from_numpy(target >= 0).to(logits.device)  # a class that the model has never seen has no loss
        wanted = torch.from_numpy(target).to(logits.device)[known]
        self.loss += summed_loss(logits[known], wanted)
        self.counted += len(wanted)

    def metrics(self) -> dict[str, float]:
        return summary(self._matrix()) | self._mean_loss()

    def per_class(self) -> Scores:
        return per_class(self._matrix())

    def _matrix(self) -> npt.NDArray[np.int64]:
        return confusion(np.concatenate(self.labels), np.concatenate(self.predicted), len(self.classes.names))


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
        ]
    )
    counts: LabelCounts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = LabelCounts(len(self.classes.names))

    def add(self, logits: torch.Tensor, batch: InputBatch) -> list[dict[str, Any]]:
        own = probabilities(logits, self.task).cpu().numpy()
        score = np.zeros((len(own), len(self.classes.names)), np.float32)  # of what the model doesn't know: 0
        score[:, self.classes.to_ours] = own
        highest = self.classes.to_ours[own.argmax(1)]
        labels = np.zeros(score.shape, np.uint8)
        labels[:, : batch.labels.shape[1]] = batch.labels
        if self.task == self.TASK:
            predicted = score >= THRESHOLD
            self._add_loss(logits, labels[:, self.classes.to_ours])
        else:
            predicted = np.arange(score.shape[1]) == highest[:, None]
        self.counts.add(labels, predicted, highest)
        return [
            {
                "image_id": batch.ids[row],
                "label_ids": np.flatnonzero(labels[row]).tolist(),
                "predicted_ids": np.flatnonzero(predicted[row]).tolist(),
                "probabilities": score[row, predicted[row]].tolist(),
                "top_id": int(highest[row]),
                "confidence": float(score[row, highest[row]]),
            }
            for row in range(len(labels))
        ]

    def _add_loss(self, logits: torch.Tensor, targets: npt.NDArray[np.uint8]) -> None:
        import torch

        self.loss += summed_loss(logits, torch.from_numpy(targets).to(logits.device))
        self.counted += len(targets)

    def metrics(self) -> dict[str, float]:
        return self.counts.summary() | self._mean_loss()

    def per_class(self) -> Scores:
        return self.counts.per_class()


def scorer(images: str, model: str, classes: Alignment) -> Scorer:
    """The scorer for images of one task and a model of perhaps another."""
    return MultiScorer(classes, model) if images == MULTI else SingleScorer(classes, model)
