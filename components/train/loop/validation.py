"""Metrics and calibration of a network on validation images, which are read as stored, without augmentation;
and the out-of-distribution detector of the trained network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...dataset.labels import MULTI, THRESHOLD, probabilities, sum_loss
from ...dataset.manifest import Dataset
from ...imaging.tensors import center_crop
from ...metrics.classification import ConfusionCounts, LabelCounts
from ...models.artifact import Normalize
from ...models.blocks import evaluation_mode
from ...models.features import MAX_ROWS, Floats, HeadInputs, OodDetector
from ...step.progress import Progress
from ...step.step import Context
from ..data.batches import iter_batches
from ..data.cache import PartCache
from ..data.tensors import TensorSplit
from .distributed import Communicator

if TYPE_CHECKING:
    import torch

MAX_CALIBRATION_IMAGES = 20_000
"""Maximum number of validation images that the temperature is fitted on; memory: 4 bytes per class and image."""


@dataclass(frozen=True)
class Validator:
    """The validation of networks on the validation images of a dataset.

    Args:
        autocast: returns the autocast context of the forward pass.
        threads: of the loader; 0: one per core.
        cache: local cache of files on S3; None: the default cache.
        comm: connection to the other processes of the training, which validate together.
    """

    tensors: Dataset
    batch_size: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    threads: int = 0
    cache: PartCache | None = None
    comm: Communicator = field(default_factory=Communicator)

    @property
    def has_images(self) -> bool:
        return bool(self.tensors.manifest.totals.by_split.get("val"))

    def validate(self, network: torch.nn.Module, before_batch: Callable[[], None]) -> dict[str, float]:
        """Return `val_loss`, `val_top1` and `val_macro_f1`, the same in all processes; empty without validation images.

        Each process predicts every `world_size`-th of the batches that one would, with the main process's buffers: the
        numbers are those of one process.
        Multi-label: macro-F1 of the classes with a probability of at least 0.5, and as top-1 the share of images whose
        highest-scored class is one of their labels. `before_batch`: as in `predict`.
        """
        if not self.has_images:
            return {}
        import torch

        task, classes = self.tensors.manifest.task, len(self.tensors.manifest.classes)
        counts = LabelCounts(classes) if task == MULTI else ConfusionCounts(classes)
        self.comm.broadcast_tensors(network.buffers())
        batches = []
        for logits, labels in self.predict(network, before_batch, first=self.comm.rank, step=self.comm.world_size):
            loss = sum_loss(logits, torch.from_numpy(labels).to(self.device))
            positive = (probabilities(logits, task) >= THRESHOLD).cpu().numpy() if task == MULTI else None
            batches.append((loss, labels, positive, logits.argmax(1).cpu().numpy()))
        loss_sum, rows = 0.0, 0
        for batch in filter(None, chain.from_iterable(zip_longest(*self.comm.gather(batches)))):  # in stored order
            loss, labels, positive, highest = batch
            loss_sum += loss
            rows += len(labels)
            if isinstance(counts, LabelCounts):
                counts.add(labels, positive, highest)
            else:
                counts.add(labels, highest)
        scores = counts.summary()
        return {"val_loss": loss_sum / rows, "val_top1": scores["top1"], "val_macro_f1": scores["macro_f1"]}

    def fit_temperature(self, network: torch.nn.Module) -> float:
        """Return the temperature that calibrates the network's probabilities; 1 without validation images.

        It is fitted on the first `MAX_CALIBRATION_IMAGES`: the stored order is random, so they are a random sample.
        """
        from ...metrics import calibration

        if not self.has_images:
            return 1.0
        logits: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[Any]] = []
        for batch_logits, batch_labels in self.predict(network, lambda: None):
            logits.append(batch_logits.cpu().numpy())
            labels.append(batch_labels)
            if sum(map(len, labels)) >= MAX_CALIBRATION_IMAGES:
                break
        return calibration.fit_temperature(np.concatenate(logits), np.concatenate(labels))

    def predict(
        self,
        network: torch.nn.Module,
        before_batch: Callable[[], None],
        split: str | TensorSplit = "val",
        first: int = 0,
        step: int = 1,
    ) -> Generator[tuple[torch.Tensor, npt.NDArray[Any]], None, None]:
        """Yield logits, float32 [B, classes] on the device, and labels of batches of a split, in stored order: of the
        `first` one and every `step`-th after it.

        Labels are int64 [B], multi-label uint8 [B, classes]. The network is in evaluation mode for the duration; the
        modes of its modules are restored afterwards. `before_batch` is called before each batch, and may raise, as on a
        request to stop.
        """
        import torch

        image = self.tensors.manifest.image_spec
        normalize, size = Normalize(image, self.device), image.side
        with evaluation_mode(network), torch.inference_mode():
            for batch in iter_batches(
                self.tensors, split, self.batch_size, start=first, step=step, threads=self.threads, cache=self.cache
            ):
                before_batch()
                pixels = torch.from_numpy(np.ascontiguousarray(center_crop(batch.images, size))).to(self.device)
                with self.autocast():
                    logits = network(normalize(pixels))
                yield logits.float(), batch.labels


def fit_detector(network: torch.nn.Module, validator: Validator, rate: float, context: Context) -> OodDetector | None:
    """Return the detector, and print its threshold's rate; None for a rate of 0, or without validation images."""
    if not rate:
        return None
    if not validator.has_images:
        context.say("warning: there is no ood_score: no validation images show which distances are usual")
        return None
    rows = validator.tensors.manifest.totals.by_split
    progress = Progress("train", total=sum(min(MAX_ROWS, rows.get(split, 0)) for split in ("train", "val")))
    train, validation = (_read_features(network, validator, split, progress) for split in ("train", "val"))
    detector = OodDetector.fit(train, validation, rate)
    context.say(
        f"ood_score: the distance from {len(train):,} training images, above 1 for {detector.rate:.1%} of images like "
        f"the {len(validation):,} validation images"
    )
    if detector.rate > rate:
        context.say(f"ood_rate {rate:g} needs {round(1 / rate) - 1:,} validation images; with {len(validation):,} the "
                    f"threshold is the largest of their distances")  # fmt: skip
    return detector


def _read_features(network: torch.nn.Module, validator: Validator, split: str, progress: Progress) -> Floats:
    """Return the inputs of the head for the first `MAX_ROWS` images of a split, float32 [N, D], as predict has them."""
    parts: list[Floats] = []
    exact = replace(validator, autocast=contextlib.nullcontext)
    with HeadInputs(network) as inputs, contextlib.closing(exact.predict(network, lambda: None, split)) as predictions:
        for _, labels in predictions:
            parts.append(inputs.read().cpu().numpy())
            progress.add(len(labels), "features for ood_score")
            if sum(map(len, parts)) >= MAX_ROWS:
                break
    return np.concatenate(parts)[:MAX_ROWS]
