"""What others load images with, each as its own documentation says and at its best number of worker processes.

`python load_peers.py FOLDER` writes the set for LitData, in an interpreter that has it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from load_cells import BATCH, CROP_SCALE, MAGNITUDE, OPERATIONS, SEED, SIZE, WORKERS, Cell, Epoch, Place

BUFFER = 1000
"""Images that WebDataset shuffles among, beside its shards: the value of its documentation."""


def _each(loader: Any) -> Epoch:
    return lambda number: ((images, labels) for images, labels in loader)


def _loader(dataset: Any, workers: int, **more: Any) -> Any:
    from torch.utils.data import DataLoader

    more = {"batch_size": BATCH, "shuffle": True} | more
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **more)


def _tensor(image: Any) -> Any:
    """A Pillow image as a uint8 tensor [H, W, C]: cheaper than PILToTensor, which also moves the axes."""
    import torch

    return torch.from_numpy(np.array(image))


def _pillow(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def _transform(ready: bool, augmented: bool, tensors: bool) -> Callable[[Any], Any]:
    """torchvision v2's, on Pillow images or on tensors; of `ready` images nothing is resized."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if augmented:
        crop = v2.RandomResizedCrop(SIZE, scale=(CROP_SCALE, 1), antialias=True)
        steps = [crop, v2.RandomHorizontalFlip(), v2.RandAugment(OPERATIONS, MAGNITUDE)]
    elif not ready:
        steps = [v2.Resize(SIZE * 256 // 224, antialias=True), v2.CenterCrop(SIZE)]
    return v2.Compose([*steps, *([] if tensors else [_tensor])] or [v2.Identity()])


def image_folder(kind: str, augmented: bool = False, tensors: bool = False) -> Callable[[Place, int], Epoch]:
    """torchvision's ImageFolder and a DataLoader; `tensors`: torchvision's own decoder instead of Pillow's."""

    def opened(place: Place, workers: int) -> Epoch:
        from torchvision.datasets import ImageFolder
        from torchvision.datasets.folder import default_loader
        from torchvision.io import ImageReadMode, decode_image

        transform = _transform(kind != "photos", augmented, tensors)
        load = (lambda path: decode_image(path, ImageReadMode.RGB)) if tensors else default_loader
        return _each(_loader(ImageFolder(str(place.folder / kind), transform, loader=load), workers))

    return opened


def webdataset(ending: str, augmented: bool = False) -> Callable[[Place, int], Epoch]:
    """Shards in random order, then a shuffle of BUFFER images, batched in the workers."""

    def opened(place: Place, workers: int) -> Epoch:
        import torch
        import webdataset as wds
        from torch.utils.data import default_collate

        if ending == "npy":
            decode: Callable[[bytes], Any] = lambda data: torch.from_numpy(np.load(io.BytesIO(data)))  # noqa: E731
        else:
            transform = _transform(True, augmented, False)
            decode = lambda data: transform(_pillow(data))  # noqa: E731
        shards = sorted(str(path) for path in (place.folder / f"tar-{ending}").glob("*.tar"))
        dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(BUFFER, initial=BUFFER)
        dataset = dataset.to_tuple(ending, "cls").map_tuple(decode, int).batched(BATCH, collation_fn=default_collate)
        options = {"persistent_workers": True} if workers else {}
        return _each(wds.WebLoader(dataset, batch_size=None, num_workers=workers, **options))

    return opened


def litdata(place: Place, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(place.folder / "litdata"), shuffle=True, seed=SEED)
    options = {"persistent_workers": True} if workers else {}
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, shuffle=True, **options)
    return lambda number: ((one["image"], one["label"]) for one in loader)


def make_litdata(place: Place) -> None:
    """Its optimized form: tensors of uint8 [H, W, C], in chunks of 64 MB."""
    import litdata as library

    library.optimize(
        fn=_Sample(place), inputs=list(range(place.images)), output_dir=str(place.folder / "litdata"), num_workers=1,
        chunk_bytes="64MB",
    )  # fmt: skip


def lance(place: Place, workers: int) -> Epoch:
    """Batches of random rows by `take`, which reads in threads of its own."""
    import lance as library

    dataset = library.dataset(str(place.folder / "lance"))

    def iter_batches(number: int) -> Iterator[tuple[Any, Any]]:
        order = np.random.default_rng([SEED, number]).permutation(place.images)
        for start in range(0, len(order), BATCH):
            table = dataset.take(np.sort(order[start : start + BATCH]).tolist())
            image = table.column("image").combine_chunks()
            yield image.flatten().to_numpy().reshape(-1, SIZE, SIZE, 3), table.column("label").to_numpy()

    return iter_batches


class _Sample:
    def __init__(self, place: Place) -> None:
        self._place = place

    def __call__(self, number: int) -> dict[str, Any]:
        import torch

        image = torch.from_numpy(np.array(self._place.pixels()[number]))
        return {"image": image, "label": int(self._place.labels()[number])}


def hf(form: str, kind: str) -> Callable[[Place, int], Epoch]:
    """Hugging Face datasets over mapped Arrow, as `kind` numpy or torch, a whole batch of random rows at a time. (Its
    iterable form makes every image a list of Python's numbers first: some 30 images/s.)"""

    def opened(place: Place, workers: int) -> Epoch:
        from torch.utils.data import BatchSampler, RandomSampler

        dataset = _arrow(place, form).with_format(kind, dtype=_uint8(kind))
        batches = BatchSampler(RandomSampler(dataset), BATCH, drop_last=False)
        loader = _loader(dataset, workers, sampler=batches, batch_size=None, shuffle=None, collate_fn=_whole)
        return lambda number: ((one["image"].reshape(-1, SIZE, SIZE, 3), one["label"]) for one in loader)

    return opened


def _arrow(place: Place, form: str) -> Any:
    import datasets

    return datasets.Dataset.from_file(str(place.folder / f"arrow-{form}" / "data.arrow"))


def _uint8(kind: str) -> Any:
    """Without it the library makes int64 of every integer."""
    import torch

    return torch.uint8 if kind == "torch" else np.uint8


def _whole(batch: Any) -> Any:
    return batch


def _cell(about: str, opened: Callable[[Place, int], Epoch], reads: str, needs: str, **more: Any) -> Cell:
    return Cell(about, opened, (reads,), WORKERS, needs=needs, **more)


_LOSSY = {"lossless": False}
_AUGMENTED = {"lossless": False, "group": "augmented"}
CELLS: dict[str, Cell] = {
    "imagefolder": _cell(
        "ImageFolder of 500x375 JPEGs, Resize + CenterCrop", image_folder("photos"), "photos", "torchvision", **_LOSSY
    ),
    "imagefolder_tensors": _cell(
        "the same with torchvision's decoder", image_folder("photos", tensors=True), "photos", "torchvision", **_LOSSY
    ),
    "imagefolder_jpg": _cell("ImageFolder of ready JPEGs", image_folder("jpg"), "jpg", "torchvision", **_LOSSY),
    "imagefolder_png": _cell("ImageFolder of ready PNGs", image_folder("png"), "png", "torchvision"),
    "webdataset_jpg": _cell("WebDataset of ready JPEGs", webdataset("jpg"), "tar-jpg", "webdataset", **_LOSSY),
    "webdataset_npy": _cell("WebDataset of raw pixels (.npy)", webdataset("npy"), "tar-npy", "webdataset"),
    "litdata": _cell("LitData of raw pixels", litdata, "litdata", "litdata"),
    "lance": Cell("Lance, random rows by take", lance, ("lance",), (0,), needs="lance"),
    "hf": _cell("HF datasets, FixedSizeList, as numpy", hf("fixed", "numpy"), "arrow-fixed", "datasets"),
    "hf_torch": _cell("the same, as torch", hf("fixed", "torch"), "arrow-fixed", "datasets"),
    "hf_array3d": _cell("HF datasets, Array3D, as numpy", hf("array3d", "numpy"), "arrow-array3d", "datasets"),
    "imagefolder_augmented": _cell(
        "ImageFolder of 500x375 JPEGs + torchvision v2", image_folder("photos", True), "photos", "torchvision",
        **_AUGMENTED,
    ),
    "imagefolder_tensors_augmented": _cell(
        "the same with torchvision's decoder, on tensors", image_folder("photos", True, True), "photos", "torchvision",
        **_AUGMENTED,
    ),
    "imagefolder_jpg_augmented": _cell(
        "ImageFolder of ready JPEGs + torchvision v2", image_folder("jpg", True), "jpg", "torchvision", **_AUGMENTED
    ),
    "webdataset_jpg_augmented": _cell(
        "WebDataset of ready JPEGs + torchvision v2", webdataset("jpg", True), "tar-jpg", "webdataset", **_AUGMENTED
    ),
}  # fmt: skip

if __name__ == "__main__":
    make_litdata(Place.at(sys.argv[1]))
