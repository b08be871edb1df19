"""Image operations compared with reference implementations in numpy or Pillow, on photographs and tiny images."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import cv2
import numpy as np
import photos
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from imagemill.components.imaging.decoder import convert_color
from imagemill.components.imaging.standardize import BILATERAL_SIGMA, binarize, denoise, equalize

PICTURES = [(name, channels) for name in photos.NAMES for channels in (1, 3)]
SMALL = arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])))


def make_picture(name: str, channels: int) -> photos.Pixels:
    return photos.photo(name) if channels == 3 else convert_color(photos.photo(name), "gray")


def iterate_shifts(pixels: Any, radius: int, mode: Literal["edge", "reflect"]) -> Any:
    """Yield (dy, dx) of each position in the window and the image shifted there."""
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((radius, radius), (radius, radius), (0, 0)), mode)
    for dy, dx in itertools.product(range(2 * radius + 1), repeat=2):
        yield dy - radius, dx - radius, wide[dy : dy + height, dx : dx + width]


@pytest.mark.parametrize(("name", "channels"), PICTURES)
@pytest.mark.parametrize(("size", "weights"), [(3, [1, 2, 1]), (5, [1, 4, 6, 4, 1]), (11, None)])
def test_gaussian_is_a_weighted_mean(name: str, channels: int, size: int, weights: list[float] | None) -> None:
    pixels, radius = make_picture(name, channels), size // 2
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    line = weights or [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
    expected = sum(
        line[dy + radius] * line[dx + radius] * moved
        for dy, dx, moved in iterate_shifts(pixels.astype(float), radius, "reflect")
    )
    assert photos.max_difference(denoise(pixels, "gaussian", size), np.rint(expected / sum(line) ** 2)) <= 1


@pytest.mark.parametrize(("name", "channels"), PICTURES)
@pytest.mark.parametrize("size", [3, 5])
def test_median_is_the_median(name: str, channels: int, size: int) -> None:
    pixels = make_picture(name, channels)
    expected = np.median([moved for _, _, moved in iterate_shifts(pixels, size // 2, "edge")], axis=0)
    assert photos.max_difference(denoise(pixels, "median", size), expected) == 0


@pytest.mark.parametrize(("name", "channels"), PICTURES)
@pytest.mark.parametrize("size", [3, 7])
def test_bilateral_weighs_by_distance_and_color(name: str, channels: int, size: int) -> None:
    pixels, radius = make_picture(name, channels), size // 2
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8
    total, weight = np.zeros(pixels.shape), np.zeros((*pixels.shape[:2], 1))
    for dy, dx, moved in iterate_shifts(pixels.astype(float), radius, "reflect"):
        if math.hypot(dy, dx) <= radius:
            difference = np.abs(moved - pixels).sum(axis=2, keepdims=True)
            share = np.exp(-(dy**2 + dx**2) / (2 * sigma**2) - difference**2 / (2 * BILATERAL_SIGMA**2))
            total, weight = total + share * moved, weight + share
    assert photos.max_difference(denoise(pixels, "bilateral", size), np.rint(total / weight)) <= 1


def test_denoisers_remove_noise_and_only_the_gaussian_blurs_edges() -> None:
    clean = np.full((64, 64, 1), 60, np.uint8)
    clean[:, 32:] = 200
    noisy = np.clip(clean + np.random.default_rng(1).normal(0, 8, clean.shape), 0, 255).astype(np.uint8)
    for kind in ("gaussian", "median", "bilateral"):
        denoised = denoise(noisy, kind, 5).astype(int)
        assert denoised[:, 8:24].std() < 0.7 * noisy[:, 8:24].std()
        step = denoised[:, 32].mean() - denoised[:, 31].mean()
        assert (step < 80) if kind == "gaussian" else (step > 120)


def equalize_by_definition(gray: Any) -> Any:
    """Map levels by rank: the darkest to 0, the others by the share of pixels that are as dark."""
    counts = np.bincount(gray.ravel(), minlength=256)
    until = counts.cumsum()
    first = until[np.flatnonzero(counts)[0]]
    return np.rint((until - first) * 255 / (gray.size - first))[gray]


@pytest.mark.parametrize("name", photos.NAMES)
def test_histogram_equalization_of_gray(name: str) -> None:
    gray = make_picture(name, 1)
    assert photos.max_difference(equalize(gray, "histogram", 2, 8), equalize_by_definition(gray)) <= 1


@pytest.mark.parametrize("name", photos.NAMES)
def test_histogram_equalization_of_colors_changes_lightness(name: str) -> None:
    pixels, gray = make_picture(name, 3), make_picture(name, 1)
    # Cr and Cb are multiples of R - Y and B - Y: where they stay, all channels change by what Y does.
    expected = np.clip(pixels + (equalize_by_definition(gray) - gray), 0, 255)
    assert photos.max_difference(equalize(pixels, "histogram", 2, 8), expected) <= 3


def clahe_by_definition(gray: Any, clip: float, grid: int) -> Any:
    """Zuiderveld's CLAHE as in OpenCV: the excess over the limit is spread over all levels; maps are interpolated."""
    height, width = gray.shape[0] // grid, gray.shape[1] // grid
    limit = max(1, int(clip * height * width / 256))
    maps = np.zeros((grid, grid, 256))
    for y, x in itertools.product(range(grid), repeat=2):
        tile = gray[y * height : (y + 1) * height, x * width : (x + 1) * width]
        counts = np.bincount(tile.ravel(), minlength=256)
        excess = int(np.maximum(counts - limit, 0).sum())
        counts = np.minimum(counts, limit) + excess // 256
        if rest := excess % 256:
            counts[:: max(1, 256 // rest)][:rest] += 1
        maps[y, x] = np.clip(np.rint(counts.cumsum() * 255 / tile.size), 0, 255)
    (y0, y1, down), (x0, x1, across) = (
        (np.clip(np.floor(at), 0, grid - 1).astype(int), np.clip(np.floor(at) + 1, 0, grid - 1).astype(int), at % 1)
        for at in ((np.arange(side * grid) / side - 0.5) for side in (height, width))
    )
    levels, across, down = gray[:, :, 0], across[None, :], down[:, None]
    top, bottom = (
        maps[y[:, None], x0[None, :], levels] * (1 - across) + maps[y[:, None], x1[None, :], levels] * across
        for y in (y0, y1)
    )
    return np.rint(top * (1 - down) + bottom * down)[:, :, None]


@pytest.mark.parametrize("name", photos.NAMES)
@pytest.mark.parametrize(("clip", "grid"), [(2.0, 8), (40.0, 2)])
def test_clahe_of_gray(name: str, clip: float, grid: int) -> None:
    gray = make_picture(name, 1)
    gray = gray[: gray.shape[0] // grid * grid, : gray.shape[1] // grid * grid]
    assert photos.max_difference(equalize(gray, "clahe", clip, grid), clahe_by_definition(gray, clip, grid)) <= 1


@pytest.mark.parametrize("name", photos.NAMES)
def test_clahe_of_colors_is_that_of_lab_lightness(name: str) -> None:
    pixels = make_picture(name, 3)
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(3.0, (4, 4)).apply(np.ascontiguousarray(lab[:, :, 0]))
    assert photos.max_difference(equalize(pixels, "clahe", 3.0, 4), cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)) == 0


@pytest.mark.parametrize(("name", "channels"), PICTURES)
def test_autocontrast_matches_pillow(name: str, channels: int) -> None:
    faint = (make_picture(name, channels) // 3 + 60).astype(np.uint8)
    for pixels in (make_picture(name, channels), faint):
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        expected = np.asarray(ImageOps.autocontrast(image, cutoff=0, preserve_tone=True)).reshape(pixels.shape)
        assert photos.max_difference(equalize(pixels, "autocontrast", 2, 8), expected) == 0
    stretched = equalize(convert_color(faint, "gray"), "autocontrast", 2, 8)
    assert stretched.min() == 0 and stretched.max() >= 254  # Pillow rounds down


@given(SMALL)
def test_autocontrast_of_any_image_matches_pillow(pixels: photos.Pixels) -> None:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    expected = np.asarray(ImageOps.autocontrast(image, cutoff=0, preserve_tone=True)).reshape(pixels.shape)
    np.testing.assert_array_equal(equalize(pixels, "autocontrast", 2, 8), expected)


@pytest.mark.parametrize("name", photos.NAMES)
@pytest.mark.parametrize("threshold", [1, 100, 128, 255])
def test_fixed_binarization(name: str, threshold: int) -> None:
    expected = np.where(make_picture(name, 1) >= threshold, 255, 0)
    for channels in (1, 3):
        np.testing.assert_array_equal(binarize(make_picture(name, channels), "fixed", threshold, 11, 2), expected)


def compute_otsu_threshold(gray: Any) -> int:
    """Return the level whose two sides have the largest variance between them."""
    counts = np.bincount(gray.ravel(), minlength=256).astype(float)
    levels, total = np.arange(256), counts.sum()
    variances = []
    for level in range(255):
        below, above = counts[: level + 1].sum(), counts[level + 1 :].sum()
        if not below or not above:
            variances.append(0.0)
            continue
        means = (counts * levels)[: level + 1].sum() / below, (counts * levels)[level + 1 :].sum() / above
        variances.append(below * above / total**2 * (means[0] - means[1]) ** 2)
    return int(np.argmax(variances))


@pytest.mark.parametrize("name", photos.NAMES)
def test_otsu_threshold_matches_opencv_and_its_definition(name: str) -> None:
    gray = make_picture(name, 1)
    threshold, expected = cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    output = binarize(gray, "otsu", 128, 11, 2)
    np.testing.assert_array_equal(output[:, :, 0], expected.reshape(gray.shape[:2]))
    np.testing.assert_array_equal(output > 0, gray > threshold)
    assert int(threshold) == compute_otsu_threshold(gray)
    assert 0 < (output > 0).mean() < 1
    np.testing.assert_array_equal(binarize(make_picture(name, 3), "otsu", 128, 11, 2), output)


@pytest.mark.parametrize("name", photos.NAMES)
@pytest.mark.parametrize(("block", "offset"), [(3, 0.0), (11, 2.0), (11, -3.5), (99, 10.0), (999, 2.0)])
def test_adaptive_binarization(name: str, block: int, offset: float) -> None:
    gray, radius = make_picture(name, 1), block // 2
    wide = np.pad(gray[:, :, 0], radius, "edge").astype(np.int64)
    sums = np.pad(wide.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    mean = (sums[block:, block:] - sums[:-block, block:] - sums[block:, :-block] + sums[:-block, :-block]) / block**2
    is_white, margin = binarize(gray, "adaptive", 128, block, offset)[:, :, 0] > 0, gray[:, :, 0] - (mean - offset)
    is_clear = np.abs(margin) > 0.5001  # the mean is rounded
    assert is_clear.mean() > 0.3
    np.testing.assert_array_equal(is_white[is_clear], margin[is_clear] > 0)


OPERATIONS = (
    [("denoise", (kind, size)) for kind in ("gaussian", "median", "bilateral") for size in (3, 31)]
    + [("equalize", (kind, 2.0, grid)) for kind in ("histogram", "clahe", "autocontrast") for grid in (1, 8, 64)]
    + [("binarize", (kind, 128, block, 2.5)) for kind in ("fixed", "otsu", "adaptive") for block in (3, 99)]
)


def check_all(pixels: photos.Pixels) -> None:
    before = pixels.copy()
    for name, arguments in OPERATIONS:
        operation: Any = {"denoise": denoise, "equalize": equalize, "binarize": binarize}[name]
        output = operation(pixels, *arguments)
        channels = 1 if name == "binarize" else pixels.shape[2]
        assert output.shape == (*pixels.shape[:2], channels) and output.dtype == np.uint8 and output.flags.c_contiguous
        assert name != "binarize" or set(np.unique(output)) <= {0, 255}
        np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(1, 40_000, 3), (40_000, 1, 1), (3, 1, 3)])
def test_long_and_thin_images(shape: tuple[int, int, int]) -> None:
    check_all(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))


def test_uniform_image_stays_uniform() -> None:
    for level, channels in itertools.product((0, 77, 255), (1, 3)):
        even = np.full((9, 7, channels), level, np.uint8)
        for kind in ("gaussian", "median", "bilateral"):
            np.testing.assert_array_equal(denoise(even, kind, 3), even)
        for kind in ("histogram", "clahe", "autocontrast"):
            assert len(np.unique(equalize(even, kind, 2, 8))) == 1
        np.testing.assert_array_equal(equalize(even, "autocontrast", 2, 8), even)


def test_an_unknown_kind_is_an_error() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"denoise: expected gaussian, .* found 'mean'"):
        denoise(pixels, "mean", 3)
    with pytest.raises(ValueError, match=r"equalize: expected histogram, .* found 'linear'"):
        equalize(pixels, "linear", 2.0, 8)
    with pytest.raises(ValueError, match=r"binarize: expected fixed, .* found 'mean'"):
        binarize(pixels, "mean", 128, 11, 2.0)
