"""Training batches on the device: read, augmented, normalized and mixed.

A batch is a function of (seed, epoch, number) alone, so that a training can be resumed at any of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ...dataset.kinds import ImageSpec
from ...dataset.manifest import Dataset
from ...models.artifact import Normalize
from ...storage.parallel import cores
from ..augment.augmentation import Augmentation, Mixing
from ..config import TrainConfig
from ..data.batches import Batch, count_train_batches, iter_batches
from ..data.cache import PartCache
from ..data.prefetcher import DevicePrefetcher
from .distributed import Communicator
from .losses import Weights

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingBatch:
    """This rank's share of a batch, on the device.

    Attributes:
        images: float [B, C, S, S], normalized and mixed.
        targets: int64 [B], or float [B, classes] where images were mixed or have several labels.
        number: of the batch in its epoch.
        total: images of the batch on all ranks.
        is_last: whether it is the last of the epoch.
        domain_images: float [T, C, S, S] of the target domain (`domain_adversary.py`); None without one.
    """

    images: torch.Tensor
    targets: torch.Tensor
    number: int
    total: int
    is_last: bool
    domain_images: torch.Tensor | None = None


class TrainingBatches:
    """The batches of the training split of a tensors dataset.

    Args:
        image: by which images are augmented and normalized.
        sampling_weights: of each class, float64 [classes]; None to read every image once.
    """

    def __init__(
        self, tensors: Dataset, config: TrainConfig, image: ImageSpec, device: torch.device, comm: Communicator,
        sampling_weights: Weights | None = None,
    ) -> None:  # fmt: skip
        self.tensors, self.config, self.device, self.comm = tensors, config, device, comm
        self.normalize = Normalize(image, device)
        self.augmentation = Augmentation(config, image)
        self.mixing = Mixing(config, len(tensors.manifest.classes), tensors.manifest.task)
        self.sampling_weights = sampling_weights
        self.threads = config.load_threads or max(1, cores() // comm.world_size)
        is_remote = tensors.uri.startswith("s3://")
        self.cache = PartCache.create(config.cache_dir, config.cache_bytes) if is_remote else None
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return count_train_batches(self.tensors, "train", self.config.batch_size, self.comm.world_size)

    def iter_epoch(self, epoch: int, start: int = 0) -> Generator[TrainingBatch]:
        """Yield the batches of an epoch from number `start` on. `wait_seconds` grows by the time that the caller waits
        for the loader."""
        loaded = iter_batches(
            self.tensors, "train", self.config.batch_size, self.config.seed, epoch, start=start,
            rank=self.comm.rank, ranks=self.comm.world_size, threads=self.threads, cache=self.cache,
            balance=self.sampling_weights, pin=self.device.type == "cuda",
            transform=lambda batch: self._augment(batch, epoch),
        )  # fmt: skip
        prefetcher = DevicePrefetcher(loaded, self.device)
        try:
            for (images, labels, batch), is_last in _mark_last(prefetcher):
                self.wait_seconds, prefetcher.wait_seconds = self.wait_seconds + prefetcher.wait_seconds, 0.0
                mixed, targets = self.mixing(self.normalize(images), labels, epoch, batch.number, batch.first)
                yield TrainingBatch(mixed, targets, batch.number, batch.total, is_last)
        finally:
            prefetcher.close()

    def _augment(self, batch: Batch, epoch: int) -> Batch:
        """Sample the augmentation of this rank's share of a batch, and apply it.

        Runs in the loader's threads. Parameters are made for the batch of all ranks, so that they do not depend on
        the number of ranks.
        """
        share = slice(batch.first, batch.first + len(batch.labels))
        params = self.augmentation.make_params(epoch, batch.number, batch.total).select_rows(share)
        return replace(batch, images=self.augmentation.apply(batch.images, params))


def _mark_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item, and whether it is the last."""
    iterator = iter(items)
    try:
        item = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield item, False
        item = following
    yield item, True
