"""What the load benchmark times, ours and the limits; those of others are in load_peers.py.

A cell is opened once in a fresh process and then gives one epoch after another: pairs of images, uint8 [B, H, W, C] or
[B, C, H, W], and labels [B], as numpy arrays or torch tensors, shuffled anew in every epoch. Nothing here imports
imagemill before a cell needs it: the interpreter of a peer may have none.
"""

from __future__ import annotations

import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIZE, CLASSES, BATCH, SEED = 224, 10, 256, 7
CROP_SCALE, OPERATIONS, MAGNITUDE = 0.6, 2, 9
"""The standard augmentation: random resized crop of 0.6 to 1 of the area, flip, RandAugment 2/9."""
STAMP_TOP, STAMP_LEFT, STAMP_BLOCK = 60, 130, 10
"""Where in a photograph of 500x375 its number is written, in 4x4 blocks of black and white."""

GROUPS = ("feed", "augmented", "cold", "s3")

Epoch = Callable[[int], Iterator[tuple[Any, Any]]]


@dataclass(frozen=True)
class Place:
    """The folder with all the sets (see load_sets.py)."""

    folder: Path
    images: int

    @classmethod
    def at(cls, folder: str) -> Place:
        return cls(Path(folder), json.loads((Path(folder) / "place.json").read_text())["images"])

    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [images, 224, 224, 3], mapped."""
        return np.memmap(self.folder / "pixels.u8", np.uint8, "r", shape=(self.images, SIZE, SIZE, 3))

    def labels(self) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = np.load(self.folder / "labels.npy")
        return found


@dataclass(frozen=True)
class Cell:
    """`open(place, choice)`: `choice` is the number of workers or threads, of which `choices` are tried and the best
    is measured (one alone is taken as it is; 0: the default). `sets`: what it reads. `needs`: `module` or `module:name`
    that its interpreter must have. `group`: the table it belongs to. `lossless`: its pixels are the truth's.
    `shuffled`: its order is another in every epoch. `ours`: the one that the others of its group are compared with."""

    about: str
    open: Callable[[Place, int], Epoch]
    sets: tuple[str, ...]
    choices: tuple[int, ...] = (0,)
    group: str = "feed"
    lossless: bool = True
    shuffled: bool = True
    needs: str = "numpy"
    ours: bool = False
    epochs: int = 0
    """Cells of `cold` and `s3`: the epochs whose rates are told one by one, the first with nothing cached."""


def memmap(place: Place, _: int) -> Epoch:
    """What a user would write: rows by a random permutation into a fresh batch."""
    pixels, labels = place.pixels().reshape(place.images, -1), place.labels()

    def epoch(number: int) -> Iterator[tuple[Any, Any]]:
        order = np.random.default_rng([SEED, number]).permutation(place.images)
        for start in range(0, place.images, BATCH):
            rows = order[start : start + BATCH]
            yield pixels[rows].reshape(-1, SIZE, SIZE, 3), labels[rows]

    return epoch


def memmap_threads(place: Place, threads: int) -> Epoch:
    """The harder limit: `threads` fill a few buffers that are used again and again; a batch is valid until the next."""
    pixels, labels = place.pixels().reshape(place.images, -1), place.labels()
    buffers = [np.empty((BATCH, pixels.shape[1]), np.uint8) for _ in range(threads + 2)]

    def epoch(number: int) -> Iterator[tuple[Any, Any]]:
        order = np.random.default_rng([SEED, number]).permutation(place.images)
        parts = [order[start : start + BATCH] for start in range(0, place.images, BATCH)]
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, npt.NDArray[np.int64]]] = queue.SimpleQueue()
        todo = iter(parts)
        lock = threading.Lock()
        for index in range(len(buffers)):
            free.put(index)

        def fill() -> None:
            while True:
                with lock:
                    rows = next(todo, None)
                if rows is None:
                    return
                index = free.get()
                np.take(pixels, rows, axis=0, out=buffers[index][: len(rows)], mode="clip")
                done.put((index, rows))

        workers = [threading.Thread(target=fill, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for _ in parts:
            index, rows = done.get()
            yield buffers[index][: len(rows)].reshape(-1, SIZE, SIZE, 3), labels[rows]
            free.put(index)

    return epoch


def read_in_order(place: Place, _: int) -> Epoch:
    """The disk's own limit: the file of all pixels from its beginning to its end, into one buffer, no shuffle."""
    labels = place.labels()
    buffer = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)

    def epoch(number: int) -> Iterator[tuple[Any, Any]]:
        with (place.folder / "pixels.u8").open("rb", buffering=0) as file:
            for start in range(0, place.images, BATCH):
                rows = min(BATCH, place.images - start)
                view = memoryview(buffer[:rows]).cast("B")
                while view:
                    view = view[file.readinto(view) :]
                yield buffer[:rows], labels[start : start + rows]

    return epoch


def ours(encoding: str) -> Callable[[Place, int], Epoch]:
    """The loader, with so many threads (0: its default), on a dataset of one encoding."""

    def opened(place: Place, threads: int) -> Epoch:
        from imagemill.components.train.data.loader import iter_batches

        dataset = our_dataset(place, encoding)
        more = {"threads": threads} if threads else {}

        def epoch(number: int) -> Iterator[tuple[Any, Any]]:
            for batch in iter_batches(dataset, "train", BATCH, SEED, number, **more):
                yield batch.images, batch.labels

        return epoch

    return opened


def our_uri(place: Place, encoding: str) -> str:
    return str(place.folder / f"tensors-{encoding}" / "0123456789abcdef")


def our_dataset(place: Place, encoding: str) -> Any:
    from imagemill.components.dataset.manifest import read_dataset

    return read_dataset(our_uri(place, encoding), "tensors")


def ours_iterable(place: Place, threads: int) -> Epoch:
    """TensorBatches, a PyTorch IterableDataset, in a plain loop."""
    from imagemill.components.train.data.loader import TensorBatches

    dataset = TensorBatches(our_uri(place, "raw"), "train", BATCH, seed=SEED, threads=threads)

    def epoch(number: int) -> Iterator[tuple[Any, Any]]:
        dataset.set_epoch(number)
        return iter(dataset)

    return epoch


def ours_mapped(place: Place, workers: int) -> Epoch:
    """TensorImages, a map-style Dataset, in a DataLoader with worker processes."""
    from torch.utils.data import DataLoader

    from imagemill.components.train.data.loader import TensorImages

    dataset = TensorImages(our_uri(place, "raw"), "train")
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda number: iter(loader)


def ours_from_s3(encoding: str) -> Callable[[Place, int], Epoch]:
    """The loader on a dataset of the server in BENCH_S3, with a fresh cache for every process."""

    def opened(place: Place, _: int) -> Epoch:
        from imagemill.components.dataset.manifest import read_dataset
        from imagemill.components.train.data.cache import PartCache
        from imagemill.components.train.data.loader import iter_batches

        dataset = read_dataset(f"{os.environ['BENCH_S3']}/tensors-{encoding}/0123456789abcdef", "tensors")
        folder = tempfile.TemporaryDirectory(prefix="cache-", dir=place.folder)
        cache = PartCache.create(folder.name)

        def epoch(number: int) -> Iterator[tuple[Any, Any]]:
            assert folder.name, "it lives as long as the epochs"
            for batch in iter_batches(dataset, "train", BATCH, SEED, number, cache=cache):
                yield batch.images, batch.labels

        return epoch

    return opened


def s3_objects(place: Place, threads: int) -> Epoch:
    """The server's own limit: the files of raw tensors as they are, whole, `threads` at a time, and let go."""
    from imagemill.components.dataset.manifest import read_dataset
    from imagemill.components.storage.store import get_store

    dataset = read_dataset(f"{os.environ['BENCH_S3']}/tensors-raw/0123456789abcdef", "tensors")

    def epoch(number: int) -> Iterator[tuple[Any, Any]]:
        parts = dataset.parts("train")
        uris = [dataset.locate_part(part) for part in parts]
        with ThreadPoolExecutor(threads) as pool:
            sizes = [len(data) for data in pool.map(get_store(uris[0]).read, uris)]
        assert sum(sizes) == sum(part.bytes for part in parts)
        yield place.pixels(), place.labels()

    return epoch


def ours_augmented(encoding: str) -> Callable[[Place, int], Epoch]:
    """The same with the trainer's own augmentation on its CPU threads."""

    def opened(place: Place, threads: int) -> Epoch:
        from imagemill.components.train.augment.augmentation import Augmentation
        from imagemill.components.train.config import TrainConfig
        from imagemill.components.train.data.loader import iter_batches
        from imagemill.components.train.recipes import resolve

        dataset = our_dataset(place, encoding)
        values = {"tensors": dataset.uri, "workspace": str(place.folder), "seed": SEED, "recipe": "plain"}
        chosen = {"crop_scale": CROP_SCALE, "flip": "true", "policy": "randaugment", "policy_ops": OPERATIONS}
        config = resolve(TrainConfig.from_values({**values, **chosen, "policy_magnitude": MAGNITUDE}), dataset.manifest)
        augmentation = Augmentation(config, dataset.manifest.image)
        more = {"threads": threads} if threads else {}

        def epoch(number: int) -> Iterator[tuple[Any, Any]]:
            def work(batch: Any) -> tuple[Any, Any]:
                drawn = augmentation.make_params(number, batch.number, len(batch.labels))
                return augmentation.apply(batch.images, drawn), batch.labels

            yield from iter_batches(dataset, "train", BATCH, SEED, number, transform=work, **more)

        return epoch

    return opened


THREADS, WORKERS = (1, 2, 4), (0, 1, 2, 4)
LOADER, AUGMENTATION = (
    "imagemill.components.train.data.loader:iter_batches",
    "imagemill.components.train.augment.augmentation:Augmentation",
)
_RAW, _JPEG = ("tensors-raw",), ("tensors-jpeg",)
CELLS: dict[str, Cell] = {
    "memmap": Cell("numpy.memmap, rows by a random permutation: the limit", memmap, ("pixels.u8",)),
    "memmap_2": Cell("the same by 2 threads into reused buffers", memmap_threads, ("pixels.u8",), (2,)),
    "ours": Cell("iter_batches()", ours("raw"), _RAW, ours=True, needs=LOADER),
    **{
        f"ours_{threads}": Cell(f"iter_batches(threads={threads})", ours("raw"), _RAW, (threads,), needs=LOADER)
        for threads in THREADS
    },
    "ours_jpeg": Cell("iter_batches() of tensors as JPEG", ours("jpeg"), _JPEG, lossless=False, needs=LOADER),
    "ours_iterable": Cell("TensorBatches in a plain loop", ours_iterable, _RAW, needs=LOADER),
    "ours_mapped": Cell("TensorImages in a DataLoader", ours_mapped, _RAW, WORKERS, needs=LOADER),
    "ours_augmented": Cell(
        "iter_batches() of raw tensors, Augmentation on threads", ours_augmented("raw"), _RAW, group="augmented",
        lossless=False, ours=True, needs=AUGMENTATION,
    ),
    "ours_jpeg_augmented": Cell(
        "the same of tensors as JPEG", ours_augmented("jpeg"), _JPEG, group="augmented", lossless=False,
        needs=AUGMENTATION,
    ),
    "cold_read": Cell(
        "one file from beginning to end", read_in_order, ("pixels.u8",), group="cold", shuffled=False, epochs=2
    ),
    "cold_memmap": Cell("numpy.memmap by a random permutation", memmap, ("pixels.u8",), group="cold", epochs=2),
    "cold_ours": Cell("iter_batches()", ours("raw"), _RAW, group="cold", epochs=2, ours=True, needs=LOADER),
    "cold_ours_jpeg": Cell(
        "iter_batches() of JPEG", ours("jpeg"), _JPEG, group="cold", lossless=False, epochs=2, needs=LOADER
    ),
    "s3_objects": Cell(
        "the files as they are, 4 threads", s3_objects, (), (4,), group="s3", shuffled=False, epochs=2, needs=LOADER
    ),
    "s3_ours": Cell("iter_batches()", ours_from_s3("raw"), (), group="s3", epochs=2, ours=True, needs=LOADER),
    "s3_ours_jpeg": Cell(
        "iter_batches() of JPEG", ours_from_s3("jpeg"), (), group="s3", lossless=False, epochs=2, needs=LOADER
    ),
}  # fmt: skip
