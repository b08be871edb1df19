"""Tensors as PyTorch datasets, for any training loop.

    from imagemill.components.train.data import loader

    train = loader.TensorBatches("s3://bucket/mill/tensors/0123456789abcdef", "train", batch_size=256, seed=0)
    for epoch in range(20):
        train.set_epoch(epoch)
        for images, labels in train:  # uint8 [B, C, H, W] and int64 [B]: normalize where the model runs
            ...

`TensorBatches` needs no `DataLoader`: its threads are faster than worker processes, which copy every batch.
`TensorImages` is for a plain `DataLoader`, with its samplers and `collate_fn`. `iter_batches`, which both this trainer
and `TensorBatches` use, yields NumPy arrays; batches.py has it without torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as MapDataset
from torch.utils.data import IterableDataset, get_worker_info

from ...dataset.manifest import Dataset, read_dataset
from ...storage import uri as uris
from ...storage.errors import wrong
from .batches import Batch, count_train_batches, iter_batches
from .order import count_batches
from .tensors import OpenPart, TensorSplit

__all__ = ["Batch", "TensorBatches", "TensorImages", "count_train_batches", "iter_batches"]

Pair = tuple[torch.Tensor, torch.Tensor]
MAX_OPEN_PARTS = 64


class TensorBatches(IterableDataset[Pair]):
    """Batches (images uint8 [B, C, H, W], channels last in memory; labels int64 [B], or uint8 [B, classes] where an
    image may have several) of a split of the tensors dataset at `uri`.

    Shuffled by (seed, epoch), see `set_epoch`; every pass over it starts the next epoch by itself. With a
    `DataLoader(…, batch_size=None)` of several workers each loads its share of the batches, and they come in the same
    order. Workers have copies of this object, made when a pass starts: call `set_epoch` before each, or all passes are
    of one epoch, and leave `persistent_workers` off, for those never see the new epoch.

    Args:
        shuffle: false for stored order.
        threads: of the loader; 0: one for each core, or one in a worker process.
        rank: of the `ranks` processes that share each batch.
        pin: use page-locked memory, for copies to a GPU.
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
        self.dataset = _read_tensors(uri, split)
        self.split, self.batch_size, self.shuffle, self.epoch = split, batch_size, shuffle, 0
        self._options: dict[str, Any] = {"seed": seed, "threads": threads, "rank": rank, "ranks": ranks, "pin": pin}
        self._start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next pass, and the batch with which it starts."""
        self.epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        rows = self.dataset.manifest.totals.by_split[self.split]
        return count_batches(rows, self.batch_size, self.shuffle, self._options["ranks"])

    def __iter__(self) -> Iterator[Pair]:
        worker = get_worker_info()
        options = dict(self._options)
        start, self._start = self._start, 0
        epoch, self.epoch = self.epoch, self.epoch + 1
        if worker is not None:
            start += worker.id
            options |= {"step": worker.num_workers, "threads": options["threads"] or 1}
        options |= {"start": start, "epoch": epoch if self.shuffle else -1}
        for batch in iter_batches(self.dataset, self.split, self.batch_size, **options):
            yield torch.from_numpy(batch.images).permute(0, 3, 1, 2), torch.from_numpy(batch.labels)


class TensorImages(MapDataset[Pair]):
    """Single images (uint8 [C, H, W], channels last in memory; the label int64 [], or uint8 [classes]) of a split of
    the tensors dataset at `uri`, in stored order. Maps a part when it is first read; of S3 the `MAX_OPEN_PARTS` most
    recently read, since a mapped file uses disk space even after the cache deletes it."""

    def __init__(self, uri: str, split: str) -> None:
        self.dataset = _read_tensors(uri, split)
        self._split = TensorSplit.from_dataset(self.dataset, split)
        self._parts: OrderedDict[int, OpenPart] = OrderedDict()

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Pair:
        """Return the image and its label; IndexError beyond the last."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"expected an index below {len(self)}, found {index}")
        position = int(self._split.positions[number])
        part = self._parts.pop(position, None) or self._split.open_part(position)
        self._parts[position] = part
        if uris.is_s3(self.dataset.uri) and len(self._parts) > MAX_OPEN_PARTS:
            self._parts.popitem(last=False)
        image = np.empty(self.dataset.manifest.image_spec.shape, np.uint8)
        part.copy_row(int(self._split.rows[number]), image)
        label = self._split.take_labels(np.array([number]))[0]
        return torch.from_numpy(image).permute(2, 0, 1), torch.as_tensor(label)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out mapped files: a worker process maps its own."""
        return self.__dict__ | {"_parts": OrderedDict()}


def _read_tensors(uri: str, split: str) -> Dataset:
    """Read the manifest. UserError where there are no tensors, or no such split of them."""
    dataset = read_dataset(uris.normalize(uri, "uri"), "tensors")
    splits = sorted(split for split, rows in dataset.manifest.totals.by_split.items() if rows)
    if split not in splits:
        raise wrong("split", f"one of {', '.join(splits)}", split)
    return dataset
