"""Geometry compared with Pillow and torchvision, from 1 x 1 to sources too long for a plain resize."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import photos
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from imagemill.components.imaging.decoder import Decoded
from imagemill.components.imaging.geometry import Geometry, decode_and_resize, resample, resize_image
from imagemill.components.imaging.pixel_options import MODES

SIZES = [(1, 1), (3, 200), (200, 3), (2, 3), (7, 7), (50, 49), (51, 128), (128, 128), (224, 224), (256, 256),
         (257, 255), (333, 500), (500, 375), (640, 481), (146, 146), (1, 90)]  # fmt: skip

LONG_SIZES = [(700, 20), (20, 700), (999, 13), (13, 1001), (2, 400), (1, 300), (65, 2), (4001, 250), (4003, 249)]


def make_noise(width: int, height: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Return uint8 [H, W, C] of blocks, gradients and some noise."""
    random = np.random.default_rng([width, height])
    y, x = np.mgrid[0:height, 0:width]
    base = (x * 5 + y * 3) % 256 * 0.6 + (x // 9 + y // 7) % 2 * 60
    return np.clip(base[:, :, None] + random.integers(0, 40, (height, width, channels)), 0, 255).astype(np.uint8)


def make_decoded(pixels: npt.NDArray[np.uint8]) -> Decoded:
    return Decoded(pixels, pixels.shape[1], pixels.shape[0], "PNG")


def resize_by_torchvision(pixels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """torchvision's Resize(short side) and CenterCrop on a Pillow image, where Pillow resizes."""
    image: Any = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resized = tv.resize(image, [round(size * 256 / 224)], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(tv.center_crop(resized, [size, size])).reshape(size, size, pixels.shape[2])


@pytest.mark.parametrize("size", [8, 97, 128])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_matches_torchvisions_evaluation_transform(width: int, height: int, size: int) -> None:
    for channels, color in ((3, "rgb"), (1, "gray")):
        source = make_noise(width, height, channels)
        output = resize_image(make_decoded(source), Geometry(size, "crop", color))
        assert output.shape == (size, size, channels) and output.dtype == np.uint8 and output.flags.c_contiguous
        assert photos.max_difference(output, resize_by_torchvision(source, size)) <= 1


@given(st.integers(1, 120), st.integers(1, 120), st.integers(8, 64))
@settings(max_examples=60, deadline=None)
def test_crop_matches_torchvision_at_any_size(width: int, height: int, size: int) -> None:
    """The kernels keep their weights with other precisions: seldom a pixel of noise differs by 2, most by 0."""
    source = make_noise(width, height)
    output, expected = resize_image(make_decoded(source), Geometry(size)), resize_by_torchvision(source, size)
    assert photos.max_difference(output, expected) <= 2 and np.abs(output.astype(int) - expected).mean() < 0.3


def test_crop_matches_torchvision_on_tensors() -> None:
    source = make_noise(301, 223)
    tensor = tv.resize(torch.from_numpy(source).permute(2, 0, 1), [146], antialias=True)
    expected = tv.center_crop(tensor, [128, 128]).permute(1, 2, 0).numpy()
    assert photos.max_difference(resize_image(make_decoded(source), Geometry(128)), expected) <= 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_squash_matches_pillows_resize(width: int, height: int) -> None:
    source = make_noise(width, height)
    expected = np.asarray(Image.fromarray(source).resize((64, 64), Image.Resampling.BILINEAR))
    assert photos.max_difference(resize_image(make_decoded(source), Geometry(64, "squash")), expected) <= 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_letterbox_holds_the_whole_picture_on_black(width: int, height: int) -> None:
    source = make_noise(width, height)
    geometry = Geometry(64, "letterbox")
    output = resize_image(make_decoded(source), geometry)
    w, h = geometry.scaled(width, height)
    assert max(w, h) == 64 and abs(w * height - h * width) <= max(width, height) * 64
    top, left = (64 - h) // 2, (64 - w) // 2
    expected = np.asarray(Image.fromarray(source).resize((w, h), Image.Resampling.BILINEAR))
    assert photos.max_difference(output[top : top + h, left : left + w], expected) <= 1
    rest = output.copy()
    rest[top : top + h, left : left + w] = 0
    assert not rest.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_output_has_the_shape_of_the_geometry(mode: str, color: str) -> None:
    geometry = Geometry(32, mode, color)
    assert decode_and_resize(photos.saved(make_noise(90, 40), "JPEG"), geometry).shape == geometry.shape


@pytest.mark.parametrize("mode", MODES)
def test_scaled_decode_is_accurate(mode: str) -> None:
    smooth = np.asarray(Image.fromarray(make_noise(40, 30)).resize((1600, 1200), Image.Resampling.BICUBIC))
    data = photos.saved(smooth, "JPEG", quality=95)
    full = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    output, exact = decode_and_resize(data, Geometry(96, mode)), resize_image(make_decoded(full), Geometry(96, mode))
    assert np.abs(output.astype(int) - exact).mean() < 0.5


def test_memory_of_a_very_long_picture_is_limited() -> None:
    """1 x 60,000 pixels with a short side of 146 would be 3.8 GB before the crop: in a process that can't have it."""
    code = (
        "import resource, numpy as np, torch\n"
        "from imagemill.components.imaging.decoder import Decoded\n"
        "from imagemill.components.imaging.geometry import Geometry, resize_image\n"
        "torch.set_num_threads(1)\n"
        "resize_image(Decoded(np.zeros((300, 400, 3), np.uint8), 400, 300, 'PNG'), Geometry(128))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)\n"
        "print(resize_image(Decoded(np.zeros((1, 60_000, 3), np.uint8), 60_000, 1, 'PNG'), Geometry(128)).shape)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout == "(128, 128, 3)\n", process.stderr


@pytest.mark.parametrize(("width", "height"), LONG_SIZES)
def test_long_pictures_are_cropped_like_others(width: int, height: int) -> None:
    source = make_noise(width, height)
    output, expected = resize_image(make_decoded(source), Geometry(32)), resize_by_torchvision(source, 32)
    assert photos.max_difference(output, expected) <= 1 and np.abs(output.astype(int) - expected).mean() < 0.05


def test_resample_to_the_same_size_changes_nothing() -> None:
    source = make_noise(20, 10)
    np.testing.assert_array_equal(resample(source, 20, 10), source)


def test_a_flat_picture_stays_flat() -> None:
    for value in (0, 1, 127, 255):
        source = np.full((57, 91, 3), value, np.uint8)
        assert (resize_image(make_decoded(source), Geometry(40)) == value).all()
