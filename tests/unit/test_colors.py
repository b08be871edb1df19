"""Color spaces against Pillow and OpenCV, from the decoder to the pixels that a model sees, through every step."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from copied import without_ray  # noqa: F401 (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import exif, max_difference, saved
from PIL import Image
from test_resample import make_noise as noise

from imagemill.components.imaging.decoder import ImageRejected, convert_color, decode
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
from imagemill.components.imaging.pixel_options import COLORS, MODES

Pixels = npt.NDArray[np.uint8]
CHANNELS = {"red": 0, "green": 1, "blue": 2}
BLACK = {"rgb": [0, 0, 0], "gray": [0], "ycbcr": [0, 128, 128], "lab": [0, 128, 128], "red": [0]}


def expected(rgb: Pixels, color: str) -> Pixels:
    """uint8 [H, W, C] as Pillow (YCbCr, gray) and OpenCV (Lab) define it."""
    if color in CHANNELS:
        return rgb[:, :, CHANNELS[color]][:, :, None]
    if color == "lab":
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), np.uint8)
    mode = {"rgb": "RGB", "gray": "L", "ycbcr": "YCbCr"}[color]
    return np.asarray(Image.fromarray(rgb).convert(mode), np.uint8).reshape(*rgb.shape[:2], -1)


def sources() -> dict[str, bytes]:
    rgb = noise(37, 23)
    image = Image.fromarray(rgb)
    cmyk = image.convert("CMYK")
    return {
        "PNG": saved(rgb), "BMP": saved(rgb, "BMP"), "TIFF": saved(rgb, "TIFF"), "palette": saved(image.convert("P")),
        "gray": saved(image.convert("L")), "bits": saved(image.convert("1")), "alpha": saved(image.convert("RGBA")),
        "cmyk": saved(cmyk, "TIFF"), "WEBP": saved(rgb, "WEBP", lossless=True), "GIF": saved(image, "GIF"),
        "JPEG": saved(rgb, "JPEG"), "gray JPEG": saved(image.convert("L"), "JPEG"), "ycck": saved(cmyk, "JPEG"),
        "turned": saved(rgb, "JPEG", exif=exif(6)), "turned PNG": saved(rgb, exif=exif(7)),
    }  # fmt: skip


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("kind", sources())
def test_every_format_in_every_color(kind: str, color: str) -> None:
    data = sources()[kind]
    decoded, rgb = decode(data, color), decode(data)
    assert decoded.pixels.shape == (*rgb.pixels.shape[:2], COLORS[color])
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.flags.c_contiguous
    assert (decoded.width, decoded.height, decoded.format) == (rgb.width, rgb.height, rgb.format)
    jpeg_gray = color == "gray" and rgb.format == "JPEG"  # a JPEG's gray is its own Y, not that of its clipped RGB
    allowed = 6 if jpeg_gray else 1 if color in ("ycbcr", "gray") else 0
    assert max_difference(decoded.pixels, expected(rgb.pixels, color)) <= allowed


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_conversions_are_those_of_pillow_and_opencv(seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    rgb[0, :6] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]
    for color in COLORS:
        allowed = 0 if color in ("rgb", "lab", *CHANNELS) else 1
        assert max_difference(convert_color(rgb, color), expected(rgb, color)) <= allowed


def test_known_colors() -> None:
    """Values by JFIF's and CIE's definitions: white, red and blue in the order Y, Cb, Cr and L, a, b."""
    rgb = np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 255]]], np.uint8)
    assert convert_color(rgb, "ycbcr").tolist() == [[[255, 128, 128], [76, 85, 255], [29, 255, 107]]]
    assert convert_color(rgb, "lab").tolist() == [[[255, 128, 128], [136, 208, 195], [82, 207, 20]]]
    levels = [convert_color(rgb, channel)[0, :, 0].tolist() for channel in CHANNELS]
    assert levels == [[255, 255, 0], [255, 0, 0], [255, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("color", CHANNELS)
def test_a_channel_that_was_stored_alone_is_that_channel_again(color: str, kind: str) -> None:
    rgb = decode(saved(noise(40, 30), kind)).pixels
    alone = decode(saved(rgb)).pixels[:, :, CHANNELS[color]][:, :, None]
    stored = decode(saved(alone, kind), color)
    assert stored.as_stored and stored.pixels.shape == alone.shape
    np.testing.assert_array_equal(stored.pixels, decode(saved(alone, kind), "gray").pixels)
    if kind == "PNG":
        np.testing.assert_array_equal(stored.pixels, alone)
        np.testing.assert_array_equal(stored.pixels, decode(saved(rgb), color).pixels)


def test_as_stored_holds_for_stored_channels_only() -> None:
    rgb, gray = noise(20, 10), noise(20, 10, 1)
    single_channel = {"gray", *CHANNELS}
    for kind in ("PNG", "JPEG"):
        assert {c for c in COLORS if decode(saved(rgb, kind), c).as_stored} == {"rgb"}
        assert {c for c in COLORS if decode(saved(gray, kind), c).as_stored} == single_channel
        assert {c for c in COLORS if decode(saved(gray, kind, exif=exif(3)), c).as_stored} == set()
    assert {c for c in COLORS if decode(saved(gray, "PNG", transparency=7), c).as_stored} == set()
    assert {c for c in COLORS if decode(saved(Image.fromarray(rgb).convert("P")), c).as_stored} == set()


@pytest.mark.parametrize("color", COLORS)
def test_broken_bytes_are_rejected_in_every_color(color: str) -> None:
    data = saved(noise(90, 70), "PNG")
    with pytest.raises(ImageRejected) as error:
        decode(data[: len(data) // 2], color)
    assert error.value.reason == "corrupt"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("size", [(90, 40), (333, 500), (700, 20)])
def test_color_is_converted_after_resampling(size: tuple[int, int], color: str, mode: str) -> None:
    for data in (saved(noise(*size), "JPEG", quality=95), saved(noise(*size))):
        geometry = Geometry(48, mode, color)
        resized = decode_and_resize(data, geometry)
        assert resized.shape == geometry.shape == (48, 48, COLORS[color]) and resized.flags.c_contiguous
        rgb = decode_and_resize(data, Geometry(48, mode))
        if color == "gray":  # made of the full picture, where a JPEG has it already
            continue
        assert max_difference(resized, expected(rgb, color)) <= (0 if color in ("rgb", "lab") else 1)


@pytest.mark.parametrize("color", BLACK)
def test_the_rest_of_a_letterbox_is_black_in_every_color(color: str) -> None:
    resized = decode_and_resize(saved(np.full((20, 60, 3), 255, np.uint8)), Geometry(60, "letterbox", color))
    assert resized[0, 0].tolist() == resized[59, 59].tolist() == BLACK[color]
    assert resized[30, 30].tolist() != BLACK[color]


def test_a_single_channel_is_resampled_alone() -> None:
    """A picture of which only one channel holds anything."""
    for color, at in CHANNELS.items():
        rgb = np.zeros((300, 400, 3), np.uint8)
        rgb[:, :, at] = noise(400, 300, 1)[:, :, 0]
        for other in CHANNELS:
            assert decode_and_resize(saved(rgb), Geometry(32, "crop", other)).any() == (other == color)


# Through every step.
