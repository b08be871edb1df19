"""Tensors as batches, in an order that is a function of (seed, epoch) alone.

Row groups are shuffled as blocks; rows are shuffled within a window of several blocks, so that at most
`WINDOW` row groups (about 100 MB) are in memory, whatever the size of the dataset.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI, label_column, multi_hot
from ..store.manifest import Dataset
from ..store.shards import open_parquet, read_row_group
from ..store.tensors import images_of

WINDOW = 4
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or uint8 [B, classes] of zeros and ones where an image may have
    several; `number` is its place in the epoch."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    number: int

    def one_hot(self, classes: int) -> npt.NDArray[np.float32]:
        """The labels as float32 [B, classes], 1 at the id of every label of an image and 0 elsewhere."""
        if self.labels.ndim == 2:
            return self.labels.astype(np.float32)
        return np.eye(classes, dtype=np.float32)[self.labels]


def batches(dataset: Dataset, split: str, batch_size: int, seed: int = 0, epoch: int = -1) -> Iterator[Batch]:
    """One pass over a split. `epoch` < 0: in stored order (validation); else shuffled by (seed, epoch).

    In training a last batch of one image is left out (batch normalization can't take it).
    """
    shuffle = np.random.default_rng([seed, epoch]) if epoch >= 0 else None
    classes = len(dataset.manifest.classes) if dataset.manifest.task == MULTI else 0
    rest: tuple[Any, Any] | None = None
    number = 0
    for images, labels in _windows(dataset, split, shuffle):
        if rest is not None:
            images, labels = np.concatenate([rest[0], images]), np.concatenate([rest[1], labels])
        whole = len(labels) // batch_size * batch_size
        for start in range(0, whole, batch_size):
            end = start + batch_size
            yield Batch(images[start:end], _targets(labels[start:end], classes), number)
            number += 1
        rest = (images[whole:], labels[whole:])
    if rest is not None and len(rest[1]) > (1 if shuffle is not None and number else 0):
        yield Batch(rest[0], _targets(rest[1], classes), number)


def _targets(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[Any]:
    """Lists of ids as zeros and ones, batch by batch: with many classes a window of those would outweigh its images."""
    return multi_hot(labels.tolist(), classes) if classes else labels


def _windows(dataset: Dataset, split: str, shuffle: np.random.Generator | None) -> Iterator[Any]:
    """(images, labels) of a few row groups at a time, shuffled within; labels as `_read` gives them."""
    image, column = dataset.manifest.image, label_column(dataset.manifest.task)
    blocks = [
        (dataset.locate(file), index)
        for file in dataset.files("data", split)
        for index in _groups(dataset.locate(file))
    ]
    order = shuffle.permutation(len(blocks)) if shuffle is not None else np.arange(len(blocks))
    for start in range(0, len(blocks), WINDOW):
        read = [_read(blocks[i][0], blocks[i][1], image, column) for i in order[start : start + WINDOW]]
        images = np.concatenate([r[0] for r in read]) if len(read) > 1 else read[0][0]
        labels = np.concatenate([r[1] for r in read])
        if shuffle is not None:
            rows = shuffle.permutation(len(labels))
            images, labels = images[rows], labels[rows]
        yield images, labels


def _groups(uri: str) -> range:
    with open_parquet(uri) as parquet:
        return range(parquet.num_row_groups)


def _read(uri: str, index: int, image: dict[str, Any], label: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Images uint8 [rows, H, W, C], and labels: int64 [rows], or lists of ids as object [rows]."""
    with open_parquet(uri) as parquet:
        table = read_row_group(parquet, index, uri, ["image", label])
    column = table.column(label)
    if label != label_column(MULTI):
        return images_of(table.column("image"), image), column.to_numpy().astype(np.int64)
    lists = np.empty(len(column), object)
    for row, ids in enumerate(column.to_pylist()):  # assigned at once, lists of one length would be a matrix
        lists[row] = ids
    return images_of(table.column("image"), image), lists


def prefetch(items: Iterator[T], work: Callable[[T], U], depth: int = 3) -> Iterator[U]:
    """`work(item)` in one thread, `depth` results ahead; errors come out here, and leaving early ends the thread."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(("item", work(item))):
                    return
            put(("end", None))
        except BaseException as error:  # whatever it is, it belongs to the reader of this iterator
            put(("error", error))

    thread = threading.Thread(target=produce, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
