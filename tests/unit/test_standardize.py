"""Standardization of one image: order of operations, unchanged bytes, and encoding of changed pixels."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import photos
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from imagemill.components.clean.config import REASONS, CleanConfig
from imagemill.components.imaging.decoder import ImageRejected, convert_color, decode
from imagemill.components.imaging.headers import FORMATS
from imagemill.components.imaging.region import (
    blur_background,
    decode_background_mask,
    fill_background,
    find_content_window,
)
from imagemill.components.imaging.standardize import (
    StandardizedImage,
    binarize,
    denoise,
    encode_image,
    equalize,
    standardize,
)
from imagemill.components.storage.errors import UserError

HEAD = [{"name": "cat", "xmin": 54.0, "ymin": 36.0, "xmax": 319.0, "ymax": 235.0}]
"""Of Abyssinian_101, of 450 x 313 pixels."""
ONE_CHANNEL = ("gray", "red", "green", "blue")
EVERY_OPERATION = CleanConfig(
    background="blur", roi="union", roi_margin=0.1, trim="on", color="green", denoise="median", equalize="clahe",
    binarize="adaptive",
)  # fmt: skip


def make_config(**options: Any) -> CleanConfig:
    clean_config = CleanConfig(**options)
    clean_config.check()
    return clean_config


def load_pixels(data: bytes) -> Any:
    """Return uint8 [H, W] or [H, W, 3] as Pillow decodes it, without applying EXIF's orientation."""
    return np.asarray(Image.open(io.BytesIO(data)))


def check_stored(result: StandardizedImage, original: bytes) -> None:
    """`data` decodes to `pixels`: exactly, or as well as a JPEG does; a new file is upright."""
    decoded = decode(result.data, "gray" if result.pixels.shape[2] == 1 else "rgb")
    assert result.pixels.dtype == np.uint8 and result.pixels.flags.c_contiguous
    assert decoded.pixels.shape == result.pixels.shape
    difference = np.abs(decoded.pixels.astype(int) - result.pixels)
    if result.data is original or decoded.format == "PNG":
        # A single channel of an original that was left as it is stands for three alike, in any color.
        assert difference.max() == 0
    else:
        assert decoded.format == "JPEG" and difference.max() <= 48 and difference.mean() <= 8
    if result.data is not original:
        assert decoded.as_stored and Image.open(io.BytesIO(result.data)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_are_unchanged_without_operations(kind: str) -> None:
    pixels = photos.made()
    for picture in (pixels, pixels[:, :, 0]):
        for exif in (photos.exif(1), photos.exif(6)):
            options = {} if kind in ("GIF", "BMP") else {"exif": exif}
            data = photos.saved(picture, kind, **options)
            for color in ("rgb", "ycbcr", "lab"):
                result = standardize(data, make_config(color=color), HEAD, b"no mask")
                assert result.data is data
                np.testing.assert_array_equal(result.pixels, decode(data).pixels)
                height, width = result.pixels.shape[:2]
                assert (result.format, result.source_width, result.source_height) == (kind, width, height)
                assert (height, width) == ((200, 152) if options and exif[0x0112] == 6 else (152, 200))


def test_bytes_are_unchanged_when_no_pixel_changes() -> None:
    pixels = photos.made()
    checkers = (np.indices((40, 60)).sum(axis=0) % 2 * 255).astype(np.uint8)
    even = np.full((8, 9, 3), 77, np.uint8)
    stretched = pixels.copy()
    stretched[0, 0], stretched[0, 1] = 0, 255
    whole = [{"name": "all", "xmin": 1, "ymin": 1, "xmax": 200, "ymax": 152}]
    keep = photos.saved(np.ones((152, 200), np.uint8))
    same: list[tuple[Any, CleanConfig, Any, Any]] = [
        (pixels, make_config(roi="largest"), None, None),
        (pixels, make_config(roi="union"), [], None),
        (pixels, make_config(roi="largest", roi_margin=2), whole, None),
        (pixels, make_config(background="fill"), None, None),
        (pixels, make_config(background="fill"), None, keep),
        (pixels, make_config(background="blur"), None, keep),
        (pixels, make_config(trim="on"), None, None),
        (pixels[:, :, 0], make_config(trim="on", color="gray"), None, None),
        (pixels[:, :, 0], make_config(background="blur", color="blue"), None, keep),
        (stretched, make_config(equalize="autocontrast"), None, None),
        (even, make_config(denoise="gaussian"), None, None),
        (even, make_config(denoise="bilateral", equalize="autocontrast"), None, None),
        (checkers, make_config(binarize="fixed"), None, None),
        (checkers, make_config(binarize="otsu", color="red"), None, None),
    ] + [(pixels[:, :, 0], make_config(color=color), None, None) for color in ONE_CHANNEL]
    for picture, options, boxes, mask in same:
        data = photos.saved(picture)
        result = standardize(data, options, boxes, mask)
        assert result.data is data, options
        check_stored(result, data)


@pytest.mark.parametrize("stem", ["Abyssinian_101", "Abyssinian_5", "Abyssinian_34"])
def test_bytes_of_real_files_are_unchanged(stem: str) -> None:
    data = photos.pet(stem)
    assert standardize(data, make_config()).data is data
    if stem == "Abyssinian_101":
        gray = photos.saved(convert_color(decode(data).pixels, "gray"), "JPEG")
        for color in ONE_CHANNEL:
            assert standardize(gray, make_config(color=color)).data is gray


def test_crop_of_a_known_photograph() -> None:
    data = photos.pet("Abyssinian_101")
    result = standardize(data, make_config(roi="largest"), HEAD)
    pixels = decode(data).pixels
    np.testing.assert_array_equal(result.pixels, pixels[35:235, 53:319])
    assert (result.format, result.source_width, result.source_height) == ("JPEG", 450, 313)
    assert result.data[:3] == b"\xff\xd8\xff" and len(result.data) < len(data)
    check_stored(result, data)
    exact = standardize(photos.saved(pixels), make_config(roi="largest"), HEAD)
    np.testing.assert_array_equal(exact.pixels, pixels[35:235, 53:319])


def test_background_of_a_known_trimap() -> None:
    data, trimap = photos.pet("Abyssinian_101"), photos.trimap("Abyssinian_101")
    pixels, labels = decode(data).pixels, load_pixels(trimap)
    result = standardize(data, make_config(background="fill", background_color="#0a7Bff"), None, trimap)
    stored = load_pixels(result.data)  # a PNG: what is stored is exact
    assert (stored[labels == 2] == (10, 123, 255)).all() and (labels == 2).sum() == 99_672
    np.testing.assert_array_equal(stored[labels != 2], pixels[labels != 2])
    np.testing.assert_array_equal(result.pixels, stored)
    blur = load_pixels(standardize(data, make_config(background="blur"), None, trimap).data)
    np.testing.assert_array_equal(blur[labels != 2], pixels[labels != 2])
    assert blur[labels == 2].std() < pixels[labels == 2].std()
    pet = standardize(data, make_config(background="fill", mask_background="1,3"), None, trimap)
    assert (load_pixels(pet.data)[labels != 2] == 128).all()


def test_fill_of_a_single_channel_is_that_channel_of_the_color() -> None:
    pixels = photos.made()
    mask = np.zeros((152, 200), np.uint8)
    mask[40:90, 60:150] = 1
    for color, level in (("red", 200), ("green", 100), ("blue", 30), ("gray", 122)):
        config = make_config(background="fill", background_color="#c8641e", color=color)
        result = standardize(photos.saved(pixels), config, None, photos.saved(mask))
        assert result.pixels.shape == (152, 200, 1) and (result.pixels[mask == 0] == level).all()
        foreground = convert_color(pixels, color)[mask == 1]
        assert photos.max_difference(result.pixels[mask == 1], foreground) <= (color == "gray")


def apply_in_order(pixels: Any, options: CleanConfig, window: tuple[int, int, int, int], mask: Any) -> Any:
    """Apply the operations in the documented order; the gray of a whole image equals the decoder's to 1 level."""
    if options.background == "fill":
        pixels = fill_background(pixels, mask, options.background_rgb())
    if options.background == "blur":
        pixels = blur_background(pixels, mask)
    if options.roi != "off":
        pixels = pixels[window[1] : window[3], window[0] : window[2]]
    if options.trim == "on":
        left, top, right, bottom = find_content_window(pixels, options.trim_tolerance)
        pixels = pixels[top:bottom, left:right]
    if options.stored_color in ONE_CHANNEL:
        pixels = convert_color(np.ascontiguousarray(pixels), options.stored_color)
    if options.denoise != "off":
        pixels = denoise(pixels, options.denoise, options.denoise_size)
    if options.equalize != "off":
        pixels = equalize(pixels, options.equalize, options.clahe_clip, options.clahe_grid)
    if options.binarize != "off":
        pixels = binarize(
            pixels, options.binarize, options.binarize_threshold, options.binarize_block, options.binarize_offset
        )
    return pixels


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "background": st.sampled_from(["off", "fill", "blur"]),
        "background_color": st.sampled_from(["black", "white", "#fe1234"]),
        "mask_background": st.sampled_from(["auto", "0", "1,2", "255"]),
        "roi": st.sampled_from(["off", "largest", "union"]),
        "roi_margin": st.sampled_from([0.0, 0.3, 4.0]),
        "trim": st.sampled_from(["off", "on"]),
        "trim_tolerance": st.integers(0, 127),
        "color": st.sampled_from(["rgb", "gray", "red", "green", "blue", "ycbcr", "lab"]),
        "denoise": st.sampled_from(["off", "gaussian", "median", "bilateral"]),
        "denoise_size": st.sampled_from([3, 5, 31]),
        "equalize": st.sampled_from(["off", "histogram", "clahe", "autocontrast"]),
        "clahe_clip": st.sampled_from([0.1, 2.0, 100.0]),
        "clahe_grid": st.sampled_from([1, 8, 64]),
        "binarize": st.sampled_from(["off", "fixed", "otsu", "adaptive"]),
        "binarize_threshold": st.integers(1, 255),
        "binarize_block": st.sampled_from([3, 11, 999]),
        "binarize_offset": st.sampled_from([-255.0, 0.0, 2.5, 255.0]),
    },
)


@settings(deadline=None)
@given(OPTIONS)
def test_operations_are_applied_in_the_documented_order(options: dict[str, Any]) -> None:
    """Lossless and without gray (whose rounding is the decoder's), everything is equal to the last level."""
    color = options.get("color", "rgb")
    options["color"] = {"gray": "red", "ycbcr": "rgb", "lab": "rgb"}.get(color, color)
    if options.get("binarize", "off") != "off" and options["color"] == "rgb":
        options["color"] = "green"
    inside = np.pad(photos.made(5, 60, 45), ((3, 6), (9, 2), (0, 0)), constant_values=250)
    mask = np.zeros(inside.shape[:2], np.uint8)
    mask[10:40, 15:50], mask[12:18, 20:25] = 1, 2
    chosen = make_config(**options)
    box = {"name": "", "xmin": 6, "ymin": 3, "xmax": 64, "ymax": 50}
    window = (5, 2, 64, 50)
    if chosen.roi_margin:
        window = (0, 0, 71, 54)
    if chosen.roi_margin == 0.3:
        assume(chosen.roi == "off")
    values = {"auto": (0,), "0": (0,), "1,2": (1, 2), "255": (255,)}[chosen.mask_background]
    behind = np.isin(mask, values).astype(np.uint8)
    result = standardize(photos.saved(inside), chosen, [box], photos.saved(mask))
    np.testing.assert_array_equal(result.pixels, apply_in_order(inside, chosen, window, behind))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    OPTIONS, st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.sampled_from(FORMATS),
    st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from(["none", "good", "flat", "small", "broken"]),
    st.lists(st.tuples(*[st.integers(-3, 16)] * 4), max_size=3),
)  # fmt: skip
def test_any_options_on_any_image_succeed_or_reject(
    options: dict[str, Any], width: int, height: int, channels: int, kind: str, orientation: int, seed: int,
    mask_kind: str, sides: list[tuple[int, ...]],
) -> None:  # fmt: skip
    """An image that decodes to its pixels, or a rejection with a known reason; never a crash."""
    try:
        chosen = make_config(**options)
    except UserError:  # black and white have no Lab
        assume(False)
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (height, width, channels)), np.ones((4, 4, 1))).astype(np.uint8)
    if seed % 3 == 0:
        pixels[: len(pixels) // 2] = 200
    exif = {} if kind in ("GIF", "BMP") else {"exif": photos.exif(orientation)}
    data = photos.saved(pixels, kind, **exif)
    upright = decode(data).pixels.shape[:2]
    masks = {"good": rng.integers(0, 4, upright), "flat": np.zeros(upright), "small": np.zeros((1, 1))}
    mask = photos.saved(masks[mask_kind].astype(np.uint8)) if mask_kind in masks else None
    boxes = [dict(zip(("xmin", "ymin", "xmax", "ymax"), four, strict=True)) for four in sides]
    arguments = (data, chosen, boxes or None, b"\x89PNG" if mask_kind == "broken" else mask)
    try:
        result = standardize(*arguments)
    except ImageRejected as error:
        assert error.reason in REASONS
        assert error.reason in ({"bad_box"} if chosen.roi != "off" and boxes else set()) | (
            {"bad_mask"} if chosen.background != "off" and mask_kind != "none" else set()
        )
        return
    assert (result.source_height, result.source_width) == upright and result.format == kind
    expected = 1 if chosen.stored_color in ONE_CHANNEL else 3
    assert result.pixels.shape[2] == expected
    check_stored(result, data)
    repeated = standardize(*arguments)
    assert repeated.data == result.data and np.array_equal(repeated.pixels, result.pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_sources_are_stored_lossless(channels: int) -> None:
    pixels = photos.made()
    picture = pixels if channels == 3 else pixels[:, :, 0]
    sources: list[tuple[str, dict[str, Any], str]] = [
        ("JPEG", {}, "JPEG"), ("PNG", {}, "PNG"), ("BMP", {}, "PNG"), ("TIFF", {}, "PNG"), ("GIF", {}, "PNG"),
        ("WEBP", {}, "JPEG"), ("WEBP", {"lossless": True}, "PNG"),
        ("WEBP", {"lossless": True, "exif": photos.exif(1), "icc_profile": bytes(777)}, "PNG"),
        ("WEBP", {"exif": photos.exif(1)}, "JPEG"),
        ("WEBP", {"lossless": True, "save_all": True, "append_images": [Image.new("RGB", (200, 152))]}, "PNG"),
        ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (200, 152))]}, "JPEG"),
    ]  # fmt: skip
    for kind, options, stored in sources:
        data = photos.saved(picture, kind, **options)
        result = standardize(data, make_config(denoise="median"))
        assert Image.open(io.BytesIO(result.data)).format == stored, (kind, options)
        check_stored(result, data)
        binary = standardize(data, make_config(binarize="otsu"))
        assert Image.open(io.BytesIO(binary.data)).format == "PNG"
        assert set(np.unique(load_pixels(binary.data))) == {0, 255} and load_pixels(binary.data).ndim == 2
        check_stored(binary, data)


def test_jpegs_are_encoded_with_quality_95_without_subsampling() -> None:
    data = photos.saved(photos.made(), "JPEG", quality=80)
    encoded = Image.open(io.BytesIO(standardize(data, make_config(denoise="gaussian")).data))
    expected = Image.open(io.BytesIO(photos.saved(photos.made(), "JPEG", quality=95, subsampling=0)))
    assert encoded.quantization == expected.quantization  # type: ignore[attr-defined]
    assert [component[1:3] for component in encoded.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    gray = Image.open(io.BytesIO(standardize(data, make_config(color="gray")).data))
    assert gray.mode == "L" and gray.quantization[0] == expected.quantization[0]  # type: ignore[attr-defined]


def test_photograph_with_a_mask_without_background_stays_a_jpeg() -> None:
    data = photos.saved(photos.made(), "JPEG")
    no_background = photos.saved(np.ones((152, 200), np.uint8))
    for mask in (no_background, None):
        result = standardize(data, make_config(background="fill", denoise="median"), None, mask)
        assert Image.open(io.BytesIO(result.data)).format == "JPEG"


def test_picture_too_long_for_a_jpeg_is_stored_as_png() -> None:
    too_long = np.tile(photos.made(0, 200, 2), (1, 328, 1))
    assert too_long.shape == (2, 65_600, 3) and encode_image(too_long[:, :65_500], exact=False)[:2] == b"\xff\xd8"
    longest = np.zeros((1, 1_000_001, 3), np.uint8)
    longest[:, 9] = 1, 2, 3
    for picture in (too_long, too_long.transpose(1, 0, 2), too_long[:, :, :1], longest, longest[:, :, :1]):
        stored = encode_image(np.ascontiguousarray(picture), exact=False)
        assert stored[:4] == b"\x89PNG"
        np.testing.assert_array_equal(load_pixels(stored).reshape(picture.shape), picture)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_rotated_picture_is_stored_upright(kind: str, orientation: int) -> None:
    data = photos.saved(photos.made(), kind, exif=photos.exif(orientation))
    upright = decode(data).pixels
    for options in ({"denoise": "median"}, {"color": "gray"}, {"color": "red"}, {"trim": "on", "binarize": "otsu"}):
        result = standardize(data, make_config(**options))
        height, width = result.pixels.shape[:2]
        assert (height, width) == (result.source_height, result.source_width) == upright.shape[:2]
        check_stored(result, data)
    denoised = standardize(data, make_config(denoise="median"))
    np.testing.assert_array_equal(denoised.pixels, denoise(upright, "median", 3))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_and_masks_of_a_rotated_picture(orientation: int) -> None:
    data = photos.saved(photos.made(), "JPEG", exif=photos.exif(orientation))
    upright = decode(data).pixels
    box = [{"name": "", "xmin": 11, "ymin": 21, "xmax": 100, "ymax": 140}]
    np.testing.assert_array_equal(standardize(data, make_config(roi="largest"), box).pixels, upright[20:140, 10:100])
    labels = np.zeros((152, 200), np.uint8)
    labels[5:60, 9:120] = 1
    mask = photos.saved(labels)
    if orientation in (1, 6, 8):
        expected = decode(photos.saved(labels, exif=photos.exif(orientation)), "gray").pixels[:, :, 0]
        filled = standardize(data, make_config(background="fill"), None, mask)
        np.testing.assert_array_equal(decode_background_mask(mask, (), data, *upright.shape[1::-1]), expected == 0)
        np.testing.assert_array_equal(filled.pixels[expected == 1], upright[expected == 1])
        assert (filled.pixels[expected == 0] == 128).all()


@pytest.mark.parametrize(
    ("options", "boxes", "mask", "reason"),
    [
        ({"roi": "largest"}, [{"name": "", "xmin": 900, "ymin": 1, "xmax": 999, "ymax": 9}], None, "bad_box"),
        ({"roi": "union"}, [{"name": "", "xmin": 9, "ymin": 9, "xmax": 2, "ymax": 2}], None, "bad_box"),
        ({"background": "fill"}, None, b"", "bad_mask"),
        ({"background": "blur"}, None, photos.saved(np.zeros((9, 9), np.uint8)), "bad_mask"),
        ({"max_pixels": 10}, None, None, "too_many_pixels"),
    ],
)
def test_rejection_reasons(options: dict[str, Any], boxes: Any, mask: bytes | None, reason: str) -> None:
    data = photos.saved(photos.made(), "JPEG")
    with pytest.raises(ImageRejected) as caught:
        standardize(data, make_config(**options), boxes, mask)
    assert caught.value.reason == reason and reason in REASONS


def test_gray_of_a_jpeg_is_its_luma() -> None:
    """A JPEG holds its luma: that is its gray, unless borders of colors are looked for first."""
    data = photos.saved(photos.made(), "JPEG")
    luma = Image.open(io.BytesIO(data))
    luma.draft("L", luma.size)
    pixels = standardize(data, make_config(color="gray")).pixels
    np.testing.assert_array_equal(pixels, decode(data, "gray").pixels)
    assert photos.max_difference(pixels[:, :, 0], np.asarray(luma)) == 0
    for options in ({"trim": "on"}, {"background": "blur"}):
        converted = standardize(data, make_config(color="gray", **options)).pixels
        np.testing.assert_array_equal(converted, convert_color(decode(data).pixels, "gray"))
        assert np.abs(converted.astype(int) - pixels).mean() < 1  # more where a color is out of range


def test_bytes_do_not_depend_on_threads() -> None:
    data = [photos.saved(photos.made(seed, 90, 70), "JPEG") for seed in range(12)]
    labels = np.zeros((70, 90), np.uint8)
    labels[9:60, 9:70] = 1
    box = [{"name": "", "xmin": 5, "ymin": 5, "xmax": 80, "ymax": 66}]

    def work(image: bytes) -> bytes:
        return standardize(image, EVERY_OPERATION, box, photos.saved(labels)).data

    expected = [work(image) for image in data]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, data * 4)) == expected * 4
    assert cv2.getNumThreads() == 1
