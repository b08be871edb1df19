"""Pixels: each standardization against its definition, each geometry against torchvision on Pillow images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import layout
import numpy as np
import numpy.typing as npt
import pictures
import pytest
from commands import Workspace
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as tv

Array = npt.NDArray[Any]
COLOR_LAB = cv2.COLOR_RGB2LAB
SIDES = [(150, 110), (110, 150), (200, 90), (96, 96)]
BOX = (20, 30, 79, 89)
"""xmin, ymin, xmax, ymax as in Pascal VOC: the first pixel is 1, the last one is inside."""


@dataclass(frozen=True)
class Source:
    """Lossless pictures, each with a box and a mask, in a raw dataset."""

    workspace: Workspace
    raw: str
    pixels: dict[str, pictures.Pixels]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("pixels")
    images, rows = {}, []
    for number in range(8):
        width, height = SIDES[number % 4]
        name = f"{number}.png"
        pixels = pictures.smooth_pixels(number, width, height)
        if number < 4:  # a narrow range, so that contrast can be stretched
            pixels = (pixels // 2 + 40).astype(np.uint8)
        border = 255 if number % 2 else 0
        if number >= 6:  # a uniform border to be trimmed
            pixels = np.pad(pixels, ((9, 4), (6, 11), (0, 0)), constant_values=border)
        images[name] = pixels
        pictures.write(folder / name, pictures.encode(pixels))
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[10:60, 15:70] = 255
        pictures.write(folder / f"mask{number}.png", pictures.encode(mask))
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, BOX), strict=True))
        rows.append({"path": name, "label": ("cat", "dog")[number % 2], "split": ("train", "val", "test")[number % 3],
                     "mask": f"mask{number}.png", **box})  # fmt: skip
    workspace = Workspace(str(folder / "work"))
    return Source(workspace, workspace.download("csv", pictures.write_table(folder / "t.csv", rows)), images)


def clean_pixels(source: Source, *options: str) -> dict[str, Array]:
    """Return the stored pixels of each image, [H, W] or [H, W, 3]."""
    rows = layout.kept_images(source.workspace.clean(source.raw, *options))
    assert len(rows) == len(source.pixels)
    images = {image_id: pictures.decode(row["bytes"]) for image_id, row in rows.items()}
    return {image_id: np.asarray(image) for image_id, image in images.items()}


def as_gray(pixels: Array) -> Array:
    """ITU-R 601 luma, as Pillow's mode L."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def equalize_lightness(pixels: Array, to_space: int, to_rgb: int, change: Callable[[Array], Array]) -> Array:
    channels = list(cv2.split(cv2.cvtColor(pixels, to_space)))
    channels[0] = change(channels[0])
    return cv2.cvtColor(cv2.merge(channels), to_rgb)


def equalize_histogram(pixels: Array) -> Array:
    return equalize_lightness(pixels, cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB, cv2.equalizeHist)


def equalize_clahe(pixels: Array) -> Array:
    clahe = cv2.createCLAHE(2.0, (8, 8))
    return equalize_lightness(pixels, cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, clahe.apply)


def binarize_otsu(pixels: Array) -> Array:
    return cv2.threshold(as_gray(pixels), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]


def binarize_adaptively(pixels: Array) -> Array:
    """White above the rounded mean of 11 x 11 pixels, less 2."""
    gray = as_gray(pixels).astype(float)
    return np.where(gray > np.rint(cv2.blur(gray, (11, 11), borderType=cv2.BORDER_REPLICATE)) - 2, 255, 0)


def median_of_nine(pixels: Array) -> Array:
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "edge")
    return np.median([wide[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def crop_box(pixels: Array) -> Array:
    xmin, ymin, xmax, ymax = BOX
    return pixels[ymin - 1 : ymax, xmin - 1 : xmax]


def trim_border(pixels: Array) -> Array:
    """Cut rows and columns off that are as the corner is, as far as 12 levels go."""
    different = (np.abs(pixels.astype(int) - pixels[0, 0]) > 12).any(axis=2)
    rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fill_outside_mask(pixels: Array) -> Array:
    mask = np.zeros(pixels.shape[:2], bool)
    mask[10:60, 15:70] = True
    return np.where(mask[:, :, None], pixels, np.array([255, 0, 0], np.uint8))


DEFINITIONS: dict[str, tuple[list[str], Callable[[Array], Array], float]] = {
    "nothing": ([], lambda pixels: pixels, 0),
    "gray": (["--color", "gray"], as_gray, 1),
    "red": (["--color", "red"], lambda pixels: pixels[:, :, 0], 0),
    "green": (["--color", "green"], lambda pixels: pixels[:, :, 1], 0),
    "blue": (["--color", "blue"], lambda pixels: pixels[:, :, 2], 0),
    "gaussian": (
        ["--denoise", "gaussian", "--denoise-size", "5"],
        lambda pixels: cv2.sepFilter2D(pixels.astype(float), -1, *[np.array([1, 4, 6, 4, 1]) / 16] * 2), 1,
    ),
    "median": (["--denoise", "median", "--denoise-size", "3"], median_of_nine, 0),
    "bilateral": (
        ["--denoise", "bilateral", "--denoise-size", "5"],
        lambda pixels: cv2.bilateralFilter(pixels, 5, 50.0, 0.3 * ((5 - 1) / 2 - 1) + 0.8), 1,
    ),
    "autocontrast": (
        ["--equalize", "autocontrast"],
        lambda pixels: np.asarray(ImageOps.autocontrast(Image.fromarray(pixels), preserve_tone=True)), 1,
    ),
    "histogram": (["--equalize", "histogram"], equalize_histogram, 1),
    "clahe": (["--equalize", "clahe"], equalize_clahe, 1),
    "fixed": (
        ["--color", "gray", "--binarize", "fixed", "--binarize-threshold", "100"],
        lambda pixels: np.where(as_gray(pixels) >= 100, 255, 0), 0,
    ),
    "otsu": (["--color", "gray", "--binarize", "otsu"], binarize_otsu, 0),
    "adaptive": (["--color", "gray", "--binarize", "adaptive"], binarize_adaptively, 0),
    "region of interest": (["--roi", "largest"], crop_box, 0),
    "trim": (["--trim", "on"], trim_border, 0),
    "background": (["--background", "fill", "--background-color", "#ff0000"], fill_outside_mask, 0),
}  # fmt: skip
"""By name: clean's options, the definition, and by how many levels of 255 pixels may differ."""


@pytest.mark.parametrize("name", DEFINITIONS)
def test_standardization_is_its_definition(name: str, source: Source) -> None:
    options, define, tolerance = DEFINITIONS[name]
    for image_id, stored in clean_pixels(source, *options).items():
        expected = define(source.pixels[image_id])
        assert stored.shape == expected.shape, image_id
        difference = np.abs(stored.astype(float) - np.rint(expected.astype(float)))
        # A level on the threshold, or one that is rounded, may tip by how luma is rounded.
        assert (difference > tolerance).mean() < 0.001, f"{image_id}: up to {difference.max()}"


def test_blurred_background_keeps_the_foreground(source: Source) -> None:
    for image_id, stored in clean_pixels(source, "--background", "blur").items():
        pixels = source.pixels[image_id]
        assert (stored[20:50, 25:60] == pixels[20:50, 25:60]).all()
        assert (
            np.abs(np.diff(stored[70:, 75:].astype(int), axis=1)).mean()
            < 0.8 * np.abs(np.diff(pixels[70:, 75:].astype(int), axis=1)).mean()
        )


# Geometry: what a model is given.


@pytest.fixture(scope="module")
def clean(source: Source) -> str:
    return source.workspace.clean(source.raw)


def tensors_of(source: Source, clean: str, *options: str) -> dict[str, Array]:
    tensors = source.workspace.resize(clean, *options)
    return {image_id: rows[0]["pixels"] for image_id, rows in layout.tensor_images(tensors).items()}


def crop_by_torchvision(pixels: Array, short: int, size: int, interpolation: tv.InterpolationMode) -> Array:
    resized = tv.resize(Image.fromarray(pixels), [short], interpolation=interpolation, antialias=True)
    return np.asarray(tv.center_crop(resized, [size]))


@pytest.mark.parametrize(
    ("options", "short", "size", "interpolation"),
    [
        (["--image-size", "64"], 73, 64, tv.InterpolationMode.BILINEAR),
        (["--image-size", "64", "--resize-size", "64"], 64, 64, tv.InterpolationMode.BILINEAR),
        (["--image-size", "48", "--interpolation", "bicubic"], 55, 48, tv.InterpolationMode.BICUBIC),
        (["--image-size", "128"], 146, 128, tv.InterpolationMode.BILINEAR),
    ],
)
def test_crop_is_torchvisions_resize_and_center_crop(
    options: list[str], short: int, size: int, interpolation: tv.InterpolationMode, source: Source, clean: str
) -> None:
    for image_id, stored in tensors_of(source, clean, *options).items():
        expected = crop_by_torchvision(source.pixels[image_id], short, size, interpolation)
        assert stored.shape == (size, size, 3)
        difference = np.abs(stored.astype(int) - expected)
        assert difference.mean() < 0.3 and difference.max() <= 2, image_id


def test_jpeg_photographs_are_as_pillow_decodes_and_torchvision_resizes_them(tmp_path: Path) -> None:
    """Also where a large JPEG is decoded at a part of its size: within 0.3 levels in the mean."""
    rows, expected = [], {}
    for number, (width, height) in enumerate([(500, 375), (375, 500), (1200, 900), (640, 480)]):
        data = pictures.encode(pictures.smooth_pixels(50 + number, width, height), "JPEG", quality=92)
        pictures.write(tmp_path / f"{number}.jpg", data)
        rows.append(
            {"path": f"{number}.jpg", "label": "ab"[number % 2], "split": ("train", "train", "val", "test")[number]}
        )
        decoded = np.asarray(pictures.decode(data).convert("RGB"))
        expected[f"{number}.jpg"] = crop_by_torchvision(decoded, 73, 64, tv.InterpolationMode.BILINEAR)
    workspace = Workspace(str(tmp_path / "work"))
    clean = workspace.clean(workspace.download("csv", pictures.write_table(tmp_path / "t.csv", rows)))
    tensors = layout.tensor_images(workspace.resize(clean, "--image-size", "64"))
    for image_id, rows_of_image in tensors.items():
        assert np.abs(rows_of_image[0]["pixels"].astype(int) - expected[image_id]).mean() < 0.6, image_id


def test_squash_is_a_plain_resize(source: Source, clean: str) -> None:
    for image_id, stored in tensors_of(source, clean, "--image-size", "64", "--resize-mode", "squash").items():
        expected = np.asarray(tv.resize(Image.fromarray(source.pixels[image_id]), [64, 64], antialias=True))
        assert np.abs(stored.astype(int) - expected).max() <= 2, image_id


def test_letterbox_shows_the_whole_picture_on_black(source: Source, clean: str) -> None:
    for image_id, stored in tensors_of(source, clean, "--image-size", "64", "--resize-mode", "letterbox").items():
        height, width = source.pixels[image_id].shape[:2]
        scale = 64 / max(height, width)
        inner = [max(1, round(height * scale)), max(1, round(width * scale))]
        top, left = (64 - inner[0]) // 2, (64 - inner[1]) // 2
        expected = np.zeros((64, 64, 3), int)
        resized = tv.resize(Image.fromarray(source.pixels[image_id]), inner, antialias=True)
        expected[top : top + inner[0], left : left + inner[1]] = np.asarray(resized)
        # Where a side is odd, the black may be one pixel wider on either side.
        assert np.abs(stored.astype(int) - expected).mean() < 6, image_id
        assert stored[0, 0].sum() == 0 or height == width


def test_store_size_keeps_a_margin_whose_center_is_the_models_input(source: Source, clean: str) -> None:
    plain = tensors_of(source, clean, "--image-size", "56", "--resize-size", "64")
    for image_id, stored in tensors_of(
        source, clean, "--image-size", "56", "--resize-size", "64", "--store-size", "64"
    ).items():
        assert stored.shape == (64, 64, 3)
        assert (stored[4:60, 4:60] == plain[image_id]).all()


@pytest.mark.parametrize("color", ["ycbcr", "lab"])
def test_color_space_is_converted_after_the_resize(color: str, source: Source, clean: str) -> None:
    plain = tensors_of(source, clean, "--image-size", "32")
    converted = tensors_of(source, source.workspace.clean(source.raw, "--color", color), "--image-size", "32")
    for image_id, stored in converted.items():
        image = Image.fromarray(plain[image_id])
        expected = np.asarray(image.convert("YCbCr")) if color == "ycbcr" else cv2.cvtColor(plain[image_id], COLOR_LAB)
        assert np.abs(stored.astype(int) - expected).max() <= 2, image_id


def test_edges_are_channels_behind_the_colors(source: Source, clean: str) -> None:
    """Of the resized picture's luma: Sobel's magnitude by the root of 20, so that it fits a byte, and Canny's edges."""
    plain = tensors_of(source, clean, "--image-size", "32")
    for image_id, stored in tensors_of(source, clean, "--image-size", "32", "--edges", "both").items():
        assert (stored[:, :, :3] == plain[image_id]).all()
        gray = cv2.cvtColor(plain[image_id], cv2.COLOR_RGB2GRAY)
        gradient = (cv2.Sobel(gray, cv2.CV_64F, dx, 1 - dx, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0))
        assert np.abs(stored[:, :, 3] - np.hypot(*gradient) / np.sqrt(20)).max() <= 1, image_id
        assert (stored[:, :, 4] == cv2.Canny(gray, 100, 200)).all(), image_id


def test_normalization_of_the_dataset_is_that_of_the_training_pixels(source: Source, clean: str) -> None:
    tensors = source.workspace.resize(clean, "--image-size", "32", "--normalization", "dataset")
    train = np.stack(
        [row["pixels"] for rows in layout.tensor_images(tensors).values() for row in rows if row["split"] == "train"]
    )
    mean, std = layout.normalization(tensors)
    np.testing.assert_allclose(mean, train.reshape(-1, 3).mean(axis=0) / 255, atol=1e-4)
    np.testing.assert_allclose(std, train.reshape(-1, 3).std(axis=0) / 255, atol=1e-4)


@pytest.mark.parametrize(("executor", "copies"), [("ray", 2), ("processes", 1)])
def test_copies_follow_training_images_alone(executor: str, copies: int, source: Source, clean: str) -> None:
    """Another number of copies for each executor, since which one makes them changes nothing."""
    options = ["--image-size", "32", "--copies", str(copies)]
    tensors = source.workspace.resize(clean, *options, "--executor", executor)
    images = layout.tensor_images(tensors)
    plain = tensors_of(source, clean, "--image-size", "32")
    for image_id, rows in images.items():
        assert len(rows) == (1 + copies if rows[0]["split"] == "train" else 1)
        assert (rows[0]["pixels"] == plain[image_id]).all()
        assert all(row["label_id"] == rows[0]["label_id"] for row in rows)
