"""Tensors stored with a margin: training crops from all of it; validation and evaluation use the center."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import augmented
import numpy as np
import photos
import pytest
import torch
from chain import clean_photos, one_core, resized
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.inference import read_test_batches
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
from imagemill.components.imaging.pixel_options import INTERPOLATIONS
from imagemill.components.imaging.tensors import center_crop, decode_column
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError
from imagemill.components.train.augment.augmentation import Augmentation
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.data.loader import iter_batches
from imagemill.components.train.loop.trainer import Trainer
from imagemill.components.train.recipes import resolve

SIZE, STORED, SHORT = 32, 40, 44


@dataclass(frozen=True)
class Chain:
    """A clean dataset and its tensors, with and without a margin."""

    workspace: Workspace
    clean: Dataset
    plain: Dataset
    stored: Dataset


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with one_core():
        workspace = Workspace.open(str(tmp_path_factory.mktemp("margin")))
        clean = clean_photos(workspace)
        sizes = {"image_size": SIZE, "resize_size": SHORT}
        yield Chain(
            workspace, clean, resized(workspace, clean, **sizes), resized(workspace, clean, store_size=STORED, **sizes)
        )


def read_pixels(dataset: Dataset, split: str) -> Pixels:
    return np.concatenate(
        [decode_column(t.column("image"), dataset.manifest.image) for t in read_rows(dataset, ["image"], split)]
    )


@given(
    sides=st.tuples(st.integers(9, 130), st.integers(9, 130)), size=st.integers(8, 40), margin=st.integers(0, 8),
    over=st.integers(0, 9), interpolation=st.sampled_from(INTERPOLATIONS), color=st.sampled_from(("rgb", "gray")),
    quality=st.sampled_from(("exact", "fast")), kind=st.sampled_from(("JPEG", "PNG")),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_center_equals_the_input_without_a_margin(
    sides: tuple[int, int], size: int, margin: int, over: int, interpolation: str, color: str, quality: str, kind: str
) -> None:
    """Over odd and even pictures, sizes, margins and short sides. A pixel off would be far more than the one level by
    which the kernel may round a tie otherwise when it computes another window."""
    data = photos.saved(photos.made(size, *sides), kind)
    stored = Geometry(
        size, color=color, resize=size + 2 * margin + over, stored=size + 2 * margin, interpolation=interpolation,
        quality=quality,
    )  # fmt: skip
    stored_pixels = decode_and_resize(data, stored)
    assert stored_pixels.shape == stored.shape == (size + 2 * margin, size + 2 * margin, 3 if color == "rgb" else 1)
    assert photos.max_difference(center_crop(stored_pixels, size), decode_and_resize(data, stored.input)) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (333, 500), (377, 1001), (640, 480)])
def test_center_of_photographs_is_equal_pixel_by_pixel(width: int, height: int, kind: str) -> None:
    data = photos.saved(photos.made(1, width, height), kind)
    for size, stored in ((32, 36), (64, 72), (65, 73), (224, 256)):
        geometry = Geometry(size, stored=stored)
        assert np.array_equal(
            center_crop(decode_and_resize(data, geometry), size), decode_and_resize(data, geometry.input)
        )


def test_stored_pixels_and_the_manifests_image(chain: Chain) -> None:
    image = chain.stored.manifest.image
    assert (image.shape, image.input_size, image.resize_size) == ((STORED, STORED, 3), SIZE, SHORT)
    assert image.side == SIZE and image.for_model().shape == (SIZE, SIZE, 3)
    assert Geometry.of(image).input == Geometry.of(chain.plain.manifest.image)
    assert chain.stored.fingerprint != chain.plain.fingerprint
    assert chain.stored.manifest.totals.bytes == 42 * STORED * STORED * 3
    for split in ("train", "val", "test"):
        stored, plain = read_pixels(chain.stored, split), read_pixels(chain.plain, split)
        assert stored.shape[1:] == (STORED, STORED, 3) and np.array_equal(center_crop(stored, SIZE), plain)


def iterate_windows(dataset: Dataset, crop_scale: float, epochs: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield (stored pixels, pixels given to training) of each image."""
    augmentation = Augmentation(augmented.config(seed=3, crop_scale=crop_scale), dataset.manifest.image)
    for epoch in range(epochs):
        for batch in iter_batches(dataset, "train", 8, 3, epoch):
            inputs = augmentation.apply(batch.images, augmentation.make_params(epoch, batch.number, len(batch.images)))
            yield from zip(batch.images, inputs, strict=True)


def test_training_without_random_crops_uses_every_window(chain: Chain) -> None:
    offsets_seen = set()
    for stored, window in iterate_windows(chain.stored, 1, 24):
        assert window.shape == (SIZE, SIZE, 3)
        views = np.lib.stride_tricks.sliding_window_view(stored, (SIZE, SIZE), (0, 1)).transpose(0, 1, 3, 4, 2)
        positions = np.argwhere((views == window).all((2, 3, 4)))
        assert len(positions) == 1
        offsets_seen.add((int(positions[0][0]), int(positions[0][1])))
    offsets = range(STORED - SIZE + 1)
    assert len(offsets_seen) == len(offsets) ** 2  # 24 epochs of 24 images for 81 windows


def test_random_crops_include_the_margin() -> None:
    """A margin of another brightness shows in the crops, more of it than the filter alone would carry in."""
    image = np.zeros((1, STORED, STORED, 3), np.uint8)
    image[0, : (STORED - SIZE) // 2] = 255
    augmentation = Augmentation(augmented.config(crop_scale=0.6), augmented.image(STORED, SIZE))
    shares = [float((augmentation.apply(image, augmentation.make_params(0, n, 1)) > 200).mean()) for n in range(60)]
    assert max(shares) > 0.09 and min(shares) == 0


def test_training_without_a_margin_and_crops_uses_the_image(chain: Chain) -> None:
    assert all(np.array_equal(stored, window) for stored, window in iterate_windows(chain.plain, 1, 1))


def validate(chain: Chain, dataset: Dataset) -> dict[str, float]:
    torch.manual_seed(0)
    spec = ModelSpec("squeezenet1_1", ("cat", "dog"), dataset.manifest.image.for_model())
    config = TrainConfig(backbone="squeezenet1_1", weights="", device="cpu")
    context = Context("train", chain.workspace, "r", False)
    network = build_network(spec)
    trainer = Trainer(network, dataset, resolve(config, dataset.manifest), torch.device("cpu"), dataset.uri, context)
    return trainer.validator.validate(network, lambda: None)


def test_validation_uses_the_center(chain: Chain) -> None:
    stored, plain = validate(chain, chain.stored), validate(chain, chain.plain)
    assert stored == plain and stored["val_loss"] > 0


def read_inputs(tensors: Dataset | None, clean: Dataset, geometry: Geometry) -> dict[str, Pixels]:
    batches = read_test_batches(tensors, clean, geometry, 4)
    return {name: image for batch in batches for name, image in zip(batch.ids, batch.images, strict=True)}


def test_evaluation_uses_the_center_of_tensors_and_of_clean(chain: Chain) -> None:
    geometry = Geometry.of(chain.plain.manifest.image)
    expected = read_inputs(chain.plain, chain.clean, geometry)
    assert len(expected) == 9
    for tensors in (chain.stored, None):
        images = read_inputs(tensors, chain.clean, geometry)
        assert images.keys() == expected.keys()
        assert all(np.array_equal(images[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"store_size": 31}, r"store_size: expected 32 \(image_size\) to 37 \(resize_size\)"),
        ({"store_size": 38}, r"store_size: expected 32 \(image_size\) to 37 \(resize_size\)"),
        ({"store_size": 35}, "store_size: expected as even or odd as image_size, 32"),
        ({"store_size": 40, "resize_size": 39}, r"store_size: expected 32 \(image_size\) to 39"),
        ({"store_size": 34, "resize_mode": "squash"}, "store_size: expected none, since resize_mode squash"),
        ({"store_size": 34, "edges": "sobel"}, "store_size: expected none with edges"),
    ],
)
def test_invalid_store_size_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        ResizeConfig.from_values({"image_size": 32} | options)
    ResizeConfig.from_values({"image_size": 32, "store_size": 36})
    ResizeConfig.from_values({"image_size": 224, "store_size": 256})
