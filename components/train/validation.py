"""How good a network is on the validation images, which are taken as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI, THRESHOLD, probabilities, sum_loss
from ..store.manifest import Dataset
from ..store.metrics import LabelCounts, confusion, summary
from ..store.model import Normalize
from ..store.tensors import center_crop, input_size
from .batches import iter_batches

if TYPE_CHECKING:
    import torch

FOR_TEMPERATURE = 20_000
"""Validation images that a temperature is fitted on at most: 4 bytes a class of each are in memory."""


@dataclass(frozen=True)
class Validation:
    """The validation images of a dataset, `batch_size` at a time on a device. `autocast` makes a context."""

    tensors: Dataset
    batch_size: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    threads: int = 0
    cache: Any = None

    @property
    def there(self) -> bool:
        return bool(self.tensors.manifest.totals.by_split.get("val"))

    def __call__(self, network: torch.nn.Module, between: Callable[[], None]) -> dict[str, float]:
        """Loss, top-1 and macro-F1; nothing where there are no images. `between` is called before each batch.

        Of images with several labels: macro-F1 of the classes with a probability of at least 0.5, and as top-1 the
        share of images whose highest-scored class is one of their labels.
        """
        if not self.there:
            return {}
        import torch

        task, classes = self.tensors.manifest.task, len(self.tensors.manifest.classes)
        counts, matrix, loss, rows = LabelCounts(classes), np.zeros((classes, classes), np.int64), 0.0, 0
        for logits, labels in self.logits(network, between):
            loss += sum_loss(logits, torch.from_numpy(labels).to(self.device))
            rows += len(labels)
            highest = logits.argmax(1).cpu().numpy()
            if task == MULTI:
                counts.add(labels, (probabilities(logits, task) >= THRESHOLD).cpu().numpy(), highest)
            else:
                matrix += confusion(labels, highest, classes)
        found = counts.summary() if task == MULTI else summary(matrix)
        return {"val_loss": loss / rows, "val_top1": found["top1"], "val_macro_f1": found["macro_f1"]}

    def temperature(self, network: torch.nn.Module) -> float:
        """What makes the network's probabilities worth what they say, fitted on the first `FOR_TEMPERATURE` images
        (stored in random order); 1 where there are none."""
        from ..store.calibration import fit_temperature

        if not self.there:
            return 1.0
        logits: list[npt.NDArray[np.float32]] = []
        labels: list[npt.NDArray[Any]] = []
        for some, theirs in self.logits(network, lambda: None):
            logits.append(some.cpu().numpy())
            labels.append(theirs)
            if sum(len(part) for part in labels) >= FOR_TEMPERATURE:
                break
        return fit_temperature(np.concatenate(logits), np.concatenate(labels))

    def logits(
        self, network: torch.nn.Module, between: Callable[[], None], split: str = "val"
    ) -> Generator[tuple[torch.Tensor, npt.NDArray[Any]], None, None]:
        """(logits float32 [B, classes] on the device, labels) of each batch of a split, in stored order, by the network
        in evaluation mode. `between` is called before each batch."""
        import torch

        image = self.tensors.manifest.image
        normalize, size = Normalize(image, self.device), input_size(image)
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            with torch.inference_mode():
                for batch in iter_batches(self.tensors, split, self.batch_size, threads=self.threads, cache=self.cache):
                    between()
                    pixels = torch.from_numpy(np.ascontiguousarray(center_crop(batch.images, size))).to(self.device)
                    with self.autocast():
                        logits = network(normalize(pixels))
                    yield logits.float(), batch.labels
        finally:
            for module, training in modes.items():
                module.training = training
