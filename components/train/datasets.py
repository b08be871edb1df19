"""Tensors as PyTorch datasets, for anybody's training loop.

    from imagemill.components.train import loader

    train = loader.TensorBatches("s3://bucket/mill/tensors/0123456789abcdef", "train", batch_size=256, seed=0)
    for epoch in range(20):
        train.set_epoch(epoch)
        for images, labels in train:  # uint8 [B, C, H, W] and int64 [B]: normalize where the model runs
            ...

`TensorBatches` needs no `DataLoader`: its threads are faster than worker processes, which copy every batch.
`TensorImages` is for those who want a plain `DataLoader`, with its samplers and `collate_fn`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import IterableDataset, get_worker_info

from ..store import uri as uris
from ..store.errors import wrong
from ..store.labels import MULTI, multi_hot
from ..store.manifest import Dataset, read_dataset
from . import order
from .batches import Batch, batches
from .shard import MAPPED, Shard, Split

Pair = tuple[torch.Tensor, torch.Tensor]


class TensorBatches(IterableDataset[Pair]):
    """Batches (images uint8 [B, C, H, W], channels last in memory; labels int64 [B], or uint8 [B, classes] where an
    image may have several) of a split of the tensors dataset at `uri`.

    Shuffled by (seed, epoch), see `set_epoch`; every pass over it begins the next epoch by itself. `shuffle` false: in
    stored order. `rank` of `ranks` processes that share each batch. With a `DataLoader(…, batch_size=None)` of several
    workers each makes its share of the batches, and they come in the same order. Workers have copies of this object,
    made when a pass begins: call `set_epoch` before each, or all are of one epoch, and leave `persistent_workers` off,
    for those never hear of it.
    """

    def __init__(
        self,
        uri: str,
        split: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        threads: int = 0,
        rank: int = 0,
        ranks: int = 1,
        pin: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise wrong("batch_size", "a number of at least 1", batch_size)
        self.dataset = _tensors(uri, split)
        self.split, self.batch_size, self.shuffle, self.epoch = split, batch_size, shuffle, 0
        self._options: dict[str, Any] = {"seed": seed, "threads": threads, "rank": rank, "ranks": ranks, "pin": pin}
        self._start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The epoch of the next pass, which begins with its batch `start`."""
        self.epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Batches of an epoch."""
        rows = sum(f.rows for f in self.dataset.files("data", self.split))
        return order.steps(rows, self.batch_size, self.shuffle, self._options["ranks"])

    def __iter__(self) -> Iterator[Pair]:
        worker = get_worker_info()
        share = {} if worker is None else {"every": worker.num_workers, "threads": self._options["threads"] or 1}
        first, self._start = self._start + (0 if worker is None else worker.id), 0
        epoch, self.epoch = self.epoch, self.epoch + 1
        options = self._options | share | {"start": first, "epoch": epoch if self.shuffle else -1}
        for batch in batches(self.dataset, self.split, self.batch_size, **options):
            yield _pair(batch)


class TensorImages(MapDataset[Pair]):
    """Single images (uint8 [C, H, W], channels last in memory; the label int64 [], or uint8 [classes]) of a split of
    the tensors dataset at `uri`, in stored order. Holds 16 bytes an image, and maps a file when it is first read; of
    S3 the last `MAPPED`, since a mapped file takes its place on the disk though the cache let it go."""

    def __init__(self, uri: str, split: str) -> None:
        self.dataset = _tensors(uri, split)
        self._split = Split.of(self.dataset, split)
        self._ends = list(accumulate(f.rows for f in self._split.files))
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._classes = len(self.dataset.manifest.classes) if self.dataset.manifest.task == MULTI else 0

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Pair:
        """The image and its label; IndexError beyond the last."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"expected an index below {len(self)}, found {index}")
        place = int(np.searchsorted(self._ends, number, side="right"))
        row = number - (self._ends[place - 1] if place else 0)
        shard = self._shards.pop(place, None) or self._split.open(place)
        self._shards[place] = shard
        if uris.is_s3(self.dataset.uri) and len(self._shards) > MAPPED:
            self._shards.popitem(last=False)
        image = np.empty(self.dataset.manifest.image["shape"], np.uint8)
        shard.copy(row, image)
        label = shard.labels[row]
        target = multi_hot([label.as_py()], self._classes)[0] if self._classes else np.int64(label)
        return torch.from_numpy(image).permute(2, 0, 1), torch.as_tensor(target)

    def __getstate__(self) -> dict[str, Any]:
        """Mapped files are not sent to a worker process: it maps its own."""
        return self.__dict__ | {"_shards": OrderedDict()}


def _pair(batch: Batch) -> Pair:
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2), torch.from_numpy(batch.labels)


def _tensors(uri: str, split: str) -> Dataset:
    """UserError where there are no tensors, or no such split of them."""
    dataset = read_dataset(uris.normalize(uri, "uri"), "tensors")
    splits = sorted({f.split for f in dataset.files()})
    if split not in splits:
        raise wrong("split", f"one of {', '.join(splits)}", split)
    return dataset
