"""Edge channels by their definition, in the tensors and nowhere else; mean and spread that are the tensors' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import photos
import pytest
from copied import Image, clean_of, resized, rows_of, without_ray  # noqa: F401 (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resample import make_decoded as decoded
from test_resample import make_noise as noise

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.imaging.decoder import convert_color
from imagemill.components.imaging.geometry import (
    SOBEL_SCALE,
    Geometry,
    compute_edges,
    resample,
    resize_image,
)
from imagemill.components.imaging.pixel_options import COLORS, EDGES, MODES
from imagemill.components.resize import statistics
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.statistics import STD_FLOOR, ChannelSums, compute_normalization, sum_channels
from imagemill.components.resize.statistics import mean_and_std as named
from imagemill.components.storage.errors import UserError

Pixels = npt.NDArray[np.uint8]
BOTH = ("sobel", "canny")


def gray(pixels: Any) -> Pixels:
    return np.asarray(pixels, np.uint8)[:, :, None]


def sobel_by_hand(picture: Pixels) -> npt.NDArray[np.float64]:
    """The magnitude of the two 3x3 derivatives, the outermost pixels repeated, unscaled."""
    p = np.pad(picture[:, :, 0].astype(float), 1, mode="edge")
    weights = ((0, 1), (1, 2), (2, 1))
    h, w = picture.shape[:2]
    across = sum(k * (p[i : i + h, 2 : 2 + w] - p[i : i + h, 0:w]) for i, k in weights)
    down = sum(k * (p[2 : 2 + h, i : i + w] - p[0:h, i : i + w]) for i, k in weights)
    return np.sqrt(np.asarray(across) ** 2 + np.asarray(down) ** 2)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_sobel_is_the_scaled_magnitude_of_the_gradient(width: int, height: int, seed: int) -> None:
    picture = gray(np.random.default_rng(seed).choice([0, 255, 17, 99], (height, width)))
    edges = compute_edges(picture, ("sobel",))
    assert edges.shape == (height, width, 1) and edges.dtype == np.uint8
    assert np.abs(edges[:, :, 0] - sobel_by_hand(picture) * SOBEL_SCALE).max() <= 0.5 + 1e-4


def test_sobel_fits_without_clipping() -> None:
    """The steepest patch that there is: half of it white, with a corner cut off."""
    patches = ((np.arange(2**9)[:, None] >> np.arange(9)) & 1).reshape(-1, 3, 3) * 255
    steepest = max(sobel_by_hand(gray(patch))[1, 1] for patch in patches)
    assert steepest * SOBEL_SCALE == pytest.approx(255)
    patch = next(p for p in patches if sobel_by_hand(gray(p))[1, 1] == steepest)
    assert compute_edges(gray(patch), ("sobel",))[1, 1, 0] == 255
    step = gray(np.repeat([[0, 0, 0, 255, 255, 255]], 5, 0))
    assert compute_edges(step, ("sobel",))[2, :, 0].tolist() == [0, 0, 228, 228, 0, 0]


def test_canny_equals_that_of_opencv() -> None:
    picture = gray(cv2.GaussianBlur(noise(90, 70, 1), (0, 0), 2))
    for low, high in ((100, 200), (20, 60)):
        edges = compute_edges(picture, ("canny",), low, high)[:, :, 0]
        np.testing.assert_array_equal(edges, cv2.Canny(picture, low, high))
        assert set(np.unique(edges)) <= {0, 255}
    assert compute_edges(picture, ("canny",), 20, 60).sum() > compute_edges(picture, ("canny",)).sum()


def test_edge_channels_are_in_the_configured_order() -> None:
    picture = noise(40, 30, 1)
    both = compute_edges(picture, EDGES["both"])
    for at, name in enumerate(BOTH):
        np.testing.assert_array_equal(both[:, :, at : at + 1], compute_edges(picture, (name,)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (30, 40)])
def test_a_flat_picture_has_no_edges_not_even_at_its_border(shape: tuple[int, int]) -> None:
    for level in (0, 255):
        assert not compute_edges(gray(np.full(shape, level)), BOTH).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("color", COLORS)
def test_edges_are_computed_from_the_gray_resized_image(color: str, mode: str) -> None:
    for size in ((60, 40), (333, 500), (700, 20)):
        source = decoded(noise(*size, 1 if COLORS[color] == 1 else 3))
        plain = resize_image(source, Geometry(48, mode, color))
        geometry = Geometry(48, mode, color, BOTH)
        resized_image = resize_image(source, geometry)
        assert resized_image.shape == geometry.shape == (48, 48, COLORS[color] + 2) and resized_image.flags.c_contiguous
        np.testing.assert_array_equal(resized_image[:, :, :-2], plain)
        picture = resize_image(source, Geometry(48, mode, "rgb" if COLORS[color] == 3 else color))
        width, height = geometry.scaled(*size) if mode == "letterbox" else (48, 48)
        top, left = (48 - height) // 2, (48 - width) // 2
        inside = np.ascontiguousarray(picture[top : top + height, left : left + width])
        expected = compute_edges(convert_color(inside, "gray"), BOTH)
        np.testing.assert_array_equal(resized_image[top : top + height, left : left + width, -2:], expected)
        assert expected[:, :, 0].any()


@pytest.mark.parametrize("color", ["rgb", "gray", "lab"])
def test_the_border_of_a_letterbox_is_no_edge(color: str) -> None:
    white = decoded(np.full((20, 60, 1 if color == "gray" else 3), 255, np.uint8))
    resized_image = resize_image(white, Geometry(64, "letterbox", color, BOTH))
    assert not resized_image[:, :, -2:].any()
    padded = resize_image(white, Geometry(64, "letterbox", "gray" if color == "gray" else "rgb"))
    assert compute_edges(convert_color(padded, "gray"), BOTH).any(), "of the padded picture there would be some"


def test_five_channels_are_resampled_like_one() -> None:
    source = np.concatenate([noise(90, 70), noise(70, 90, 2).transpose(1, 0, 2)], axis=2)
    resampled = resample(source, 41, 33)
    assert resampled.shape == (33, 41, 5)
    for channel in range(5):
        np.testing.assert_array_equal(
            resampled[:, :, channel : channel + 1], resample(source[:, :, channel : channel + 1].copy(), 41, 33)
        )


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match="canny_low: expected at most canny_high, 50"):
        ResizeConfig(edges="canny", canny_low=60, canny_high=50).check()


# Mean and spread.


def sum_images(images: Pixels) -> ChannelSums:
    return ChannelSums.of(np.stack([sum_channels(image) for image in images]), images[0, :, :, 0].size)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_channel_sums_do_not_depend_on_parts_and_order(channels: int, parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (10, 7, 6, channels), np.uint8)
    expected = sum_images(images)
    flat = images.reshape(-1, channels).astype(int)
    assert expected == ChannelSums(420, tuple(flat.sum(0).tolist()), tuple((flat**2).sum(0).tolist()))
    pieces = [sum_images(part) for part in np.array_split(images, min(parts, 10))]
    assert sum((pieces[i] for i in random.permutation(len(pieces))), ChannelSums()) == expected
    mean, std = compute_normalization("dataset", "rgb", channels, expected)
    np.testing.assert_allclose(mean, flat.mean(0) / 255, atol=1e-6)
    np.testing.assert_allclose(std, flat.std(0) / 255, atol=1e-6)


def test_sums_of_very_many_pixels_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what a float can count: more rows than go into one histogram, and more than int64 holds of squares."""
    image = noise(50, 40)
    expected = sum_images(image[None])
    monkeypatch.setattr(statistics, "MAX_EXACT_COUNT", 150)
    assert sum_images(image[None]) == expected
    many = ChannelSums(2**50, (2**50 * 100 + 1,), (2**50 * 10_025,))
    assert many.mean_std(0) == (round(100 / 255, 6), round(5 / 255, 6))
    total = sum([many] * 2**10, ChannelSums())
    assert total.count == 2**60 and total.mean_std(0) == many.mean_std(0)


def test_a_channel_that_never_changes_does_not_divide_by_zero() -> None:
    sums = sum_images(np.full((3, 4, 4, 2), 51, np.uint8))
    assert compute_normalization("dataset", "gray", 2, sums) == ([0.2, 0.2], [round(STD_FLOOR, 6)] * 2)
    assert compute_normalization("dataset", "gray", 2, ChannelSums())[1] == [0.5, 0.5]


def test_imagenet_normalization_is_used_for_its_own_channels() -> None:
    sums = sum_images(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 5), np.uint8))
    own = [sums.mean_std(channel) for channel in range(5)]
    for color in ("rgb", "gray"):
        mean, std = named("imagenet", color)
        num_known = len(mean)
        normalization = compute_normalization("imagenet", color, 5, sums)
        assert normalization == (mean + [m for m, _ in own[num_known:]], std + [s for _, s in own[num_known:]])
    for color in ("ycbcr", "lab", "red"):
        assert compute_normalization("imagenet", color, 5, sums) == compute_normalization("dataset", "rgb", 5, sums)


# From the clean dataset to the tensors and to what evaluate makes.


def clean_dataset(folder: Path, color: str, images_by_split: dict[str, int]) -> Dataset:
    """JPEG, PNG and turned pictures of two classes."""
    images = []
    for split, count in images_by_split.items():
        for n in range(count):
            kind, exif = "PNG" if n % 4 == 3 else "JPEG", photos.exif(6 if n % 3 == 0 else 1)
            images.append(Image(n, split, data=photos.saved(noise(40 + 5 * n, 60 - n), kind, exif=exif)))
    return clean_of(folder, images, color)


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("color", "edges", "normalization"),
    [("rgb", "off", "dataset"), ("lab", "off", None), ("rgb", "both", None), ("gray", "sobel", "dataset")],
)
def test_mean_and_std_are_those_of_the_training_tensors(
    tmp_path: Path, color: str, edges: str, normalization: str | None
) -> None:
    clean = clean_dataset(tmp_path, color, {"train": 12, "val": 3, "test": 2})
    tensors = resized(clean, edges=edges, **({"normalization": normalization} if normalization else {}))
    flat = np.stack([row["image"] for row in rows_of(tensors)]).reshape(-1, tensors.manifest.image.shape[2]) / 255
    num_known = len(named("imagenet", color)[0]) if normalization is None else 0
    mean, std = tensors.manifest.image.mean, tensors.manifest.image.std
    np.testing.assert_allclose(mean[num_known:], flat.mean(0)[num_known:], atol=1e-6)
    np.testing.assert_allclose(std[num_known:], flat.std(0)[num_known:], atol=1e-6)
    if num_known:
        assert ([*mean[:num_known]], [*std[:num_known]]) == named("imagenet", color)


@pytest.mark.usefixtures("without_ray")
def test_a_plain_manifest_holds_imagenets_numbers(tmp_path: Path) -> None:
    tensors = resized(clean_dataset(tmp_path, "rgb", {"train": 3}))
    image = tensors.manifest.image
    assert ([*image.mean], [*image.std]) == named("imagenet", "rgb")
