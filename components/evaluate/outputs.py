"""A model's logits for the test images, as its views give them, with the time that it took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..store.errors import MillError
from ..store.manifest import Dataset
from ..store.model import ModelSpec, Normalize
from ..store.tensors import input_size
from .inputs import InputBatch, input_batches, stored_geometry, tensors_for
from .speed import Speed
from .tta import FIVE_CROPS, combined, views

if TYPE_CHECKING:
    import torch


class Outputs:
    """The network on its device, its own preprocessing, its temperature, and how its views are made (`tta`)."""

    def __init__(self, network: torch.nn.Module, spec: ModelSpec, device: torch.device, tta: str) -> None:
        self.network, self.spec, self.device, self.tta = network, spec, device, tta
        self.normalize, self.size = Normalize(spec.image, device), input_size(spec.image)
        self.temperature = float(spec.extra.get("temperature", 1.0))
        self.speed = Speed(device)

    def batches(self, model: Dataset, clean: Dataset, batch_size: int) -> Iterator[InputBatch]:
        """The test images, with what is stored around them where the views are of that."""
        around = self.tta == FIVE_CROPS
        geometry = stored_geometry(model, self.spec.geometry) if around else self.spec.geometry
        return input_batches(tensors_for(model, clean), clean, geometry, batch_size, around)

    def __call__(self, batch: InputBatch) -> tuple[torch.Tensor, InputBatch, torch.Tensor]:
        """(logits float [B, C], the batch, the same with the temperature): what a scorer takes."""
        import torch

        started = self.speed.now()
        images, found = self.normalize(torch.from_numpy(batch.images).to(self.device)), []
        first = spent = 0.0
        for view in views(images, self.size, self.tta):
            found.append(self.network(view.contiguous(memory_format=torch.channels_last)).float())
            spent = self.speed.now() - started
            first = first or spent
        self.speed.add(len(batch.ids), first, spent)
        task = self.spec.task
        logits = combined(found, task)
        if not bool(torch.isfinite(logits).all()):
            raise MillError("model: expected finite numbers of the network, found others")
        return logits, batch, combined([one / self.temperature for one in found], task)
