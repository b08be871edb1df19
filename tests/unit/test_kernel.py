"""The resample's parts: only what is wanted is computed, and it is what the whole would have been."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import exif, saved
from PIL import Image

from imagemill.components.imaging.decoder import Decoded, LenientDecoding, decode
from imagemill.components.imaging.geometry import Geometry, decode_and_resize, resize_image
from imagemill.components.imaging.headers import parse_plain_header, sniff
from imagemill.components.imaging.pixel_options import INTERPOLATIONS
from imagemill.components.imaging.resample import CropSquare, resample, resample_long

PETS = Path(__file__).parents[2] / ".." / "shared" / "data" / "pets" / "images.tar.gz"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PILLOW |= {"lanczos": Image.Resampling.LANCZOS}


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng([seed, width, height])
    return random.integers(0, 256, (height, width, channels)).astype(np.uint8)


def compare_pixels(actual: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    assert actual.shape == expected.shape
    return np.abs(actual.astype(int) - expected.astype(int))


@given(st.data(), st.sampled_from(INTERPOLATIONS), st.sampled_from([1, 3, 5]))
@settings(max_examples=150, deadline=None)
def test_resampled_window_equals_the_part_of_the_full_result(
    data: st.DataObject, interpolation: str, channels: int
) -> None:
    side = st.integers(1, 90)
    source = noise(data.draw(side), data.draw(side), channels)
    width, height = data.draw(side), data.draw(side)
    size = data.draw(st.integers(1, min(width, height)))
    window = CropSquare(data.draw(st.integers(0, height - size)), data.draw(st.integers(0, width - size)), size)
    expected = resample(source, width, height, interpolation)
    part = resample(source, width, height, interpolation, window)
    rows, columns = slice(window.top, window.top + size), slice(window.left, window.left + size)
    difference = compare_pixels(part, expected[rows, columns])
    # torch keeps the weights of what it computes in 16 bits together: those of a part may have one bit more.
    assert difference.max() <= 1
    assert interpolation == "area" or (difference > 0).mean() <= max(0.05, 1.5 / difference.size)


@pytest.mark.parametrize(
    "sizes", [(512, 384, 256, 192), (600, 400, 150, 100), (375, 500, 256, 341), (64, 64, 256, 256)]
)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_window_of_sizes_that_divide_and_that_do_not(sizes: tuple[int, int, int, int], interpolation: str) -> None:
    source = noise(*sizes[:2])
    expected = resample(source, *sizes[2:], interpolation)
    part = resample(source, *sizes[2:], interpolation, CropSquare(37, 41, 50))
    difference = compare_pixels(part, expected[37:87, 41:91])
    assert difference.max() <= 1 and difference.mean() < 0.01


@pytest.mark.parametrize("interpolation", PILLOW)
@pytest.mark.parametrize("target", [(40, 30), (33, 47), (200, 150), (97, 61)])
def test_filters_are_pillows(interpolation: str, target: tuple[int, int]) -> None:
    source = noise(97, 61)
    expected = np.asarray(Image.fromarray(source).resize(target, PILLOW[interpolation]))
    assert compare_pixels(resample(source, *target, interpolation), expected).max() <= 2


def test_area_is_the_mean_of_the_area() -> None:
    source = noise(60, 40)
    expected = source.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3))
    assert np.abs(resample(source, 15, 10, "area") - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_long_picture_is_resampled_by_the_same_filter(interpolation: str) -> None:
    source = noise(20, 400)
    expected = resample(source, 32, 640, interpolation)[300:332]
    actual = resample_long(source, 32, 640, interpolation, CropSquare(300, 0, 32))
    if interpolation == "area":  # OpenCV's is linear where the picture grows, Pillow's repeats
        assert compare_pixels(actual, expected).mean() < 40
    else:
        assert compare_pixels(actual, expected).max() <= 2


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([(32, 36), (31, 37), (32, 32), (20, 36)]))
@settings(max_examples=80, deadline=None)
def test_stored_margin_does_not_change_the_center(width: int, height: int, sizes: tuple[int, int]) -> None:
    size, stored = sizes
    decoded = Decoded(noise(width, height), width, height, "PNG")
    around = resize_image(decoded, Geometry(size, resize=38, stored=stored))
    alone = resize_image(decoded, Geometry(size, resize=38))
    edge = (stored - size) // 2
    np.testing.assert_array_equal(around[edge : edge + size, edge : edge + size], alone)


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    smooth = Image.fromarray(noise(8, 6, seed=seed)).resize((width, height), Image.Resampling.BICUBIC)
    return bytes(simplejpeg.encode_jpeg(np.asarray(smooth), 95, "RGB", "420"))


@pytest.mark.parametrize(("width", "height", "expected"), [
    (500, 375, (500, 375)), (1600, 1200, (800, 600)), (2000, 1500, (1000, 750)), (4100, 3001, (1025, 751)),
    (1025, 1021, (1025, 1021)), (1024, 1024, (512, 512)), (512, 4096, (512, 4096)), (1000, 1000, (1000, 1000)),
])  # fmt: skip
def test_a_scaled_decode_keeps_twice_the_target(width: int, height: int, expected: tuple[int, int]) -> None:
    """Only halves are used: three eighths would be slower and worse."""
    shapes: list[Any] = []
    decode_and_resize(
        jpeg(width, height), Geometry(224), lambda decoded: shapes.append(decoded.pixels.shape) or decoded
    )
    assert shapes == [(expected[1], expected[0], 3)]


def test_fast_may_decode_smaller() -> None:
    data = jpeg(1200, 900)
    exact, fast = (decode_and_resize(data, Geometry(224, quality=quality)) for quality in ("exact", "fast"))
    assert 0 < compare_pixels(fast, exact).mean() < 1.5


RGB, GRAY = Image.fromarray(noise(31, 22)), Image.fromarray(noise(31, 22, 1)[:, :, 0])
CLEAR = RGB.copy()
CLEAR.putalpha(100)
PALETTE = RGB.quantize(16)
EXIF = exif(6)
PLAIN = {
    "png": saved(RGB, "PNG"), "gray png": saved(GRAY, "PNG"), "png with dpi": saved(RGB, "PNG", dpi=(72, 72)),
    "webp": saved(RGB, "WEBP", quality=80), "bmp": saved(RGB, "BMP"),
}  # fmt: skip
OTHERS = {
    "alpha png": saved(RGB.convert("RGBA"), "PNG"), "palette png": saved(PALETTE, "PNG"),
    "transparent color": saved(RGB, "PNG", transparency=(1, 2, 3)), "turned png": saved(RGB, "PNG", exif=EXIF),
    "16 bits": saved(Image.fromarray(noise(9, 9, 1)[:, :, 0].astype(np.uint16) * 250), "PNG"),
    "lossless webp": saved(RGB, "WEBP", lossless=True), "alpha webp": saved(CLEAR, "WEBP"),
    "turned webp": saved(RGB, "WEBP", exif=EXIF), "palette bmp": saved(PALETTE, "BMP"), "gray bmp": saved(GRAY, "BMP"),
    "cut png": PLAIN["png"][:-20], "cut webp": PLAIN["webp"][:-20], "cut bmp": PLAIN["bmp"][:-20],
    "32 bits": saved(RGB.convert("RGBA"), "BMP"), "gif": saved(PALETTE, "GIF"), "tiff": saved(RGB, "TIFF"),
    "half a header": PLAIN["png"][:30], "half a bitmap": PLAIN["bmp"][:40],
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("color", ["rgb", "gray", "red", "lab"])
def test_plain_images_are_decoded_as_by_pillow(name: str, color: str) -> None:
    data = PLAIN[name]
    assert parse_plain_header(data, sniff(data)) is not None
    decoded, expected = decode(data, color, lenient=LenientDecoding()), decode(data, color)
    np.testing.assert_array_equal(decoded.pixels, expected.pixels)
    assert vars(decoded) | {"pixels": None} == vars(expected) | {"pixels": None}
    assert (decoded.width, decoded.height) == (31, 22)


@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_decoded_by_pillow(name: str) -> None:
    assert parse_plain_header(OTHERS[name], sniff(OTHERS[name])) is None


@pytest.mark.parametrize(("quality", "limit"), [("exact", 0.3), ("fast", 1.5)])
@pytest.mark.parametrize("size", [64, 128, 224])
def test_resized_photographs_equal_those_of_pillow(quality: str, limit: float, size: int) -> None:
    if not PETS.exists():
        pytest.skip(f"no photographs here: {os.path.normpath(PETS)} is missing")
    errors = []
    with tarfile.open(PETS) as tar:
        for member in [m for m in tar if m.isfile() and m.name.endswith(".jpg")][::7]:
            reader = tar.extractfile(member)
            assert reader is not None
            data = reader.read()
            image = Image.open(io.BytesIO(data)).convert("RGB")
            geometry = Geometry(size, quality=quality)
            width, height = geometry.scaled(*image.size)
            left, top = round((width - size) / 2.0), round((height - size) / 2.0)
            scaled = image.resize((width, height), Image.Resampling.BILINEAR)
            expected = np.asarray(scaled.crop((left, top, left + size, top + size)))
            errors.append(compare_pixels(decode_and_resize(data, geometry), expected).mean())
    print(f"{quality} at {size}: {np.mean(errors):.3f} of 255 in the mean, {max(errors):.3f} at most")
    assert len(errors) > 40 and np.mean(errors) < limit
