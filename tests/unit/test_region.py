"""Boxes, masks and borders: known pixels of known photographs, plain reference implementations, and bad annotations."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import photos
import pytest
from encoded import png_chunk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from imagemill.components.imaging.decoder import ImageRejected, decode
from imagemill.components.imaging.region import (
    BLUR_SHARE,
    blur_background,
    crop,
    decode_background_mask,
    fill_background,
    find_box_window,
    find_content_window,
)


def make_boxes(*sides: Sequence[float | None]) -> list[dict[str, Any]]:
    return [dict(zip(("name", "xmin", "ymin", "xmax", "ymax"), ("head", *four), strict=True)) for four in sides]


BENGAL = make_boxes((49, 125, 111, 168), (397, 103, 451, 132))
"""The two of Bengal_105, of 500 x 466 pixels."""


@pytest.mark.parametrize(
    ("choice", "margin", "window"),
    [
        ("largest", 0, (48, 124, 111, 168)),
        ("union", 0, (48, 102, 451, 168)),
        ("largest", 0.1, (41, 119, 118, 173)),  # 63 x 44 pixels: 6.3 and 4.4 more, rounded outwards
        ("union", 0.25, (0, 85, 500, 185)),
        ("largest", 10, (0, 0, 500, 466)),
    ],
)
def test_windows_of_a_known_photographs_boxes(choice: str, margin: float, window: tuple[int, ...]) -> None:
    assert find_box_window(BENGAL, choice, margin, 500, 466) == window


def test_largest_box_has_the_largest_area_in_the_image() -> None:
    wide, square, tall = (1, 1, 40, 2), (5, 5, 14, 14), (3, 1, 4, 30)
    assert find_box_window(make_boxes(wide, square, tall), "largest", 0, 40, 30) == (4, 4, 14, 14)
    outside = (30, 20, 300, 200)  # 11 x 11 pixels of it are in the image
    assert find_box_window(make_boxes(square, outside), "largest", 0, 40, 30) == (29, 19, 40, 30)
    assert find_box_window(make_boxes(square, (32, 22, 300, 200)), "largest", 0, 40, 30) == (4, 4, 14, 14)


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((1, 1, 40, 30), (0, 0, 40, 30)),  # the whole image
        ((0, 0, 99, 99), (0, 0, 40, 30)),
        ((-1e30, 5, 1e30, 5), (0, 4, 40, 5)),
        ((float("-inf"), 1, float("inf"), 2), (0, 0, 40, 2)),
        ((40, 30, 40, 30), (39, 29, 40, 30)),  # its last pixel
        ((40.5, 1, 90, 2), (39, 0, 40, 2)),  # half of a column is in it
        ((2.5, 3.5, 4.25, 6.75), (1, 2, 5, 7)),
        ((11.00001, 11, 19.99999, 20), (10, 10, 20, 20)),
        ((11.000001, 11, 20.000001, 20), (10, 10, 20, 20)),  # float32's last digit is no pixel
    ],
)
def test_boxes_are_clipped_and_rounded_outwards(box: tuple[float, ...], window: tuple[int, ...]) -> None:
    assert find_box_window(make_boxes(box), "largest", 0, 40, 30) == window
    assert find_box_window(make_boxes(box), "union", 0, 40, 30) == window


NO_AREA = [
    (41, 1, 60, 9), (1, 31, 9, 40), (-9, 1, 0, 9), (20, 5, 10, 9), (5, 20, 9, 10), (0, 0, 0, 0), (41, 1, 41, 9),
    (float("nan"), 1, 9, 9), (1, 1, 9, None), (41.0, 1, 41.0, 2),
]  # fmt: skip


@pytest.mark.parametrize("box", NO_AREA)
def test_box_without_area_in_the_image_is_rejected(box: tuple[float, ...]) -> None:
    for choice in ("largest", "union"):
        with pytest.raises(ImageRejected, match="40 x 30") as caught:
            find_box_window(make_boxes(box, box), choice, 0.5, 40, 30)
        assert caught.value.reason == "bad_box"
        # Beside a good one it does not count.
        assert find_box_window(make_boxes(box, (3, 4, 10, 12)), choice, 0, 40, 30) == (2, 3, 10, 12)


@given(
    st.lists(st.tuples(*[st.floats(-50, 100, width=32)] * 4), min_size=1, max_size=4),
    st.sampled_from(["largest", "union"]), st.floats(0, 10), st.integers(1, 60), st.integers(1, 60),
)  # fmt: skip
def test_window_covers_its_boxes_within_the_image(
    sides: list[tuple[float, ...]], choice: str, margin: float, width: int, height: int
) -> None:
    """In whole pixels: a pixel that a box covers by more than a hundredth is in the window of the union."""
    covered = [
        (x, y)
        for left, top, right, bottom in sides
        if right - max(left - 1, 0) > 0.03 and bottom - max(top - 1, 0) > 0.03
        for x in range(width)
        for y in range(height)
        if min(right, x + 1) - max(left - 1, x) > 0.02 and min(bottom, y + 1) - max(top - 1, y) > 0.02
    ]
    try:
        left, top, right, bottom = find_box_window(make_boxes(*sides), choice, margin, width, height)
    except ImageRejected as error:
        assert error.reason == "bad_box" and not covered
        return
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if choice == "union":
        assert all(left <= x < right and top <= y < bottom for x, y in covered)


def trim_by_definition(pixels: Any, tolerance: int) -> tuple[int, int, int, int]:
    def between(lines: list[Any]) -> tuple[int, int]:
        def border(lines: list[Any]) -> int:
            middle = sorted(range(len(lines[0])), key=lambda i: int(lines[0][i]))[len(lines[0]) // 2]
            level = int(lines[0][middle])
            number = 0
            while number < len(lines) and all(abs(int(v) - level) <= tolerance for v in lines[number]):
                number += 1
            return number

        first, last = border(lines), len(lines) - border(lines[::-1])
        return (first, last) if first < last and len(lines[0]) > 1 else (0, len(lines))

    top, bottom = between([row[:, 0] for row in pixels])
    left, right = between([pixels[top:bottom, x, 0] for x in range(pixels.shape[1])])
    return left, top, right, bottom


GRAY_SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(1))


@given(arrays.arrays(np.uint8, GRAY_SHAPES, elements=st.sampled_from([10, 12, 14, 90])), st.integers(0, 4))
def test_trimming_follows_its_definition(gray: photos.Pixels, tolerance: int) -> None:
    expected = trim_by_definition(gray, tolerance)
    assert find_content_window(gray, tolerance) == expected
    assert find_content_window(np.repeat(gray, 3, axis=2), tolerance) == expected


def test_borders_of_different_colors_are_trimmed() -> None:
    inside = photos.made(3, 60, 40)
    inside[:, :2], inside[:, -2:] = [[[200, 0, 0]]], [[[0, 0, 200]]]  # two even columns of other colors a side
    inside[::2, :2] = 90
    picture = np.concatenate([np.full((9, 60, 3), 255, np.uint8), inside, np.full((5, 60, 3), 0, np.uint8)])
    assert find_content_window(picture, 12) == (0, 9, 58, 49)


@pytest.mark.parametrize(("step", "window"), [(12, (0, 5, 20, 15)), (13, (0, 0, 20, 15))])
def test_the_tolerance_is_inclusive(step: int, window: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (15, 20, 1)).astype(np.uint8)
    pixels[:5] = 100
    pixels[2, 7], pixels[4, 9] = 100 + step, 100 - step
    assert find_content_window(pixels, 12)[1:] == window[1:] or step == 13
    assert find_content_window(pixels, 12)[1] == (5 if step == 12 else 2)


def test_uniform_image_is_not_trimmed() -> None:
    even = np.full((20, 30, 3), 200, np.uint8)
    halves = even.copy()
    halves[:8] = 10
    for pixels in (even, halves, halves.transpose(1, 0, 2), even[:1, :1], even[:1], even[:, :1]):
        height, width = pixels.shape[:2]
        assert find_content_window(pixels, 12) == (0, 0, width, height)
        assert crop(pixels, (0, 0, width, height)) is pixels


def encode_png(values: Any, **options: Any) -> bytes:
    return photos.saved(np.asarray(values), **options)


def encode_gray_png(values: Any, depth: int, declared: tuple[int, int] | None = None) -> bytes:
    """Return a gray PNG of 1, 2, 4 or 8 bits; Pillow can't write gray of 2 or 4."""
    height, width = values.shape
    bits = np.unpackbits(values.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", *(declared or (width, height)), depth, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks.items())


VALUES = np.array([[1, 2, 3, 3], [2, 2, 1, 0], [0, 1, 2, 3]])


def encode_palette_png(values: Any) -> bytes:
    image = Image.fromarray(values.astype(np.uint8), "L").convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([250, 10, 10, 0, 0, 0, 90, 0, 200, 2, 2, 2])
    return photos.saved(image, bits=2)


@pytest.mark.parametrize(
    "mask",
    [encode_png(VALUES.astype(np.uint8)), encode_png(VALUES.astype(np.uint16)), encode_palette_png(VALUES)]
    + [encode_gray_png(VALUES, depth) for depth in (2, 4, 8)],
)
def test_mask_values_are_the_stored_ones(mask: bytes) -> None:
    for values in ((0,), (2,), (1, 3), (0, 1, 2)):
        np.testing.assert_array_equal(decode_background_mask(mask, values, b"", 4, 3), np.isin(VALUES, values))
    np.testing.assert_array_equal(decode_background_mask(mask, (), b"", 4, 3), VALUES == 0)


def test_a_mask_of_one_bit_holds_0_and_1() -> None:
    for mask in (encode_gray_png(VALUES > 1, 1), encode_png(VALUES > 1)):
        np.testing.assert_array_equal(decode_background_mask(mask, (), b"", 4, 3), VALUES <= 1)
        np.testing.assert_array_equal(decode_background_mask(mask, (1,), b"", 4, 3), VALUES > 1)
        assert not decode_background_mask(mask, (255,), b"", 4, 3).any()


def test_auto_detects_a_trimap() -> None:
    trimap = np.where(VALUES == 0, 3, VALUES).astype(np.uint8)
    np.testing.assert_array_equal(decode_background_mask(encode_png(trimap), (), b"", 4, 3), trimap == 2)
    assert not decode_background_mask(encode_png(np.full((3, 4), 1, np.uint8)), (), b"", 4, 3).any()
    fourth = trimap.copy()
    fourth[0, 0] = 4
    assert not decode_background_mask(encode_png(fourth), (), b"", 4, 3).any()
    deep = np.where(VALUES == 0, 258, 0).astype(np.uint16)  # 258 is 2 in its lower byte
    np.testing.assert_array_equal(decode_background_mask(encode_png(deep), (), b"", 4, 3), VALUES != 0)


def read_mask_error(mask: bytes, data: bytes = b"", width: int = 4, height: int = 3) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode_background_mask(mask, (), data, width, height)
    assert caught.value.reason == "bad_mask"
    return caught.value.detail


def test_unusable_masks_are_rejected() -> None:
    good = encode_png(VALUES.astype(np.uint8))
    gif, flipped = encode_png(VALUES.astype(np.uint8), kind="GIF"), good[:45] + bytes([good[45] ^ 255]) + good[46:]
    assert all("no PNG" in read_mask_error(mask) for mask in (b"", b"mask", good[:-20], flipped, gif))
    assert read_mask_error(good, width=5) == "4 x 3 pixels, the image has 5 x 3"
    assert read_mask_error(good, width=3, height=4) == "4 x 3 pixels, the image has 3 x 4"
    assert read_mask_error(encode_png(np.zeros((3, 4, 3), np.uint8))) == "mode RGB, expected a single channel"
    assert read_mask_error(encode_png(np.zeros((3, 4), np.uint8))) == "every pixel is background (values 0)"
    assert read_mask_error(encode_png(np.full((3, 4), 2, np.uint8))) == "every pixel is background (values 2)"


def test_a_mask_that_declares_another_size_is_not_decoded() -> None:
    error = read_mask_error(encode_gray_png(VALUES, 8, (2**30, 2**30)))
    assert error == f"{2**30} x {2**30} pixels, the image has 4 x 3"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_is_rotated_with_its_image(orientation: int) -> None:
    exif, stored = photos.exif(orientation), np.zeros((3, 4), np.uint8)
    stored[0, 0], stored[0, 1], stored[2, 3] = 10, 20, 30
    for kind in ("PNG", "JPEG", "TIFF"):
        data = photos.saved(stored, kind, exif=exif)
        if orientation < 5:  # its size says nothing: the mask is upright
            np.testing.assert_array_equal(decode_background_mask(encode_png(stored), (), data, 4, 3), stored == 0)
            assert "the image has 3 x 4" in read_mask_error(encode_png(stored), data, width=3, height=4)
        else:
            upright = decode(photos.saved(stored, exif=exif), "gray").pixels[:, :, 0]
            assert upright.shape == (4, 3)
            np.testing.assert_array_equal(decode_background_mask(encode_png(stored), (), data, 3, 4), upright == 0)
            np.testing.assert_array_equal(decode_background_mask(encode_png(upright), (), data, 3, 4), upright == 0)


@pytest.mark.parametrize("name", photos.NAMES)
def test_fill_changes_only_the_background(name: str) -> None:
    pixels = photos.photo(name)
    behind = (np.hypot(*np.mgrid[: pixels.shape[0], : pixels.shape[1]]) > 90).astype(np.uint8)
    before = pixels.copy()
    for channels, color in ((3, (1, 200, 3)), (1, (7,))):
        output = fill_background(pixels[:, :, :channels], behind, color)
        assert (output[behind == 1] == color).all() and output.flags.c_contiguous
        np.testing.assert_array_equal(output[behind == 0], pixels[:, :, :channels][behind == 0])
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("name", photos.NAMES)
def test_blurred_background_is_the_mean_of_nearby_background(name: str) -> None:
    pixels = photos.photo(name)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    disc = (np.hypot(x - width / 2, y - height / 2) > min(height, width) / 3).astype(np.uint8)
    specks = np.random.default_rng(0).random((height, width)) < 0.02
    sigma = min(height, width) * BLUR_SHARE
    for behind in (disc, specks.astype(np.uint8)):
        output = blur_background(pixels, behind)
        weight = cv2.GaussianBlur(behind.astype(float), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)[:, :, None]
        total = cv2.GaussianBlur(
            pixels * behind[:, :, None].astype(float), (0, 0), sigma, borderType=cv2.BORDER_CONSTANT
        )
        difference = np.abs(output - total / np.maximum(weight, 1e-9))[behind == 1]
        assert difference.mean() < 0.5 and difference.max() < 4
        np.testing.assert_array_equal(output[behind == 0], pixels[behind == 0])
        assert blur_background(pixels[:, :, :1], behind).shape == (height, width, 1)
        np.testing.assert_array_equal(blur_background(pixels[:, :, :1], behind), output[:, :, :1])


def test_foreground_does_not_enter_the_blur() -> None:
    pixels = np.full((400, 600, 3), (20, 60, 200), np.uint8)
    behind = np.ones((400, 600), np.uint8)
    behind[100:300, 150:450] = 0
    pixels[behind == 0] = (255, 0, 0)
    np.testing.assert_array_equal(blur_background(pixels, behind), pixels)
    behind[200, 300] = 1  # alone, far from all others
    pixels[200, 300] = (20, 60, 200)
    np.testing.assert_array_equal(blur_background(pixels, behind), pixels)
