"""Geometry on the CPU: matrices against torchvision's functions, what is exact, and that nothing aliases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import photos
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from imagemill.components.train.augment import matrices
from imagemill.components.train.augment.cpu_engine import CpuEngine, warp
from imagemill.components.train.augment.params import make_seed_params

SMOOTH: Any = {"interpolation": InterpolationMode.BILINEAR}


def smooth(side: int = 96, channels: int = 3) -> Any:
    """A picture with detail, but none as fine as a pixel: uint8 [side, side, channels]."""
    photographs = np.concatenate([photos.made(5, side, side), photos.made(6, side, side)], axis=2)
    return np.ascontiguousarray(photographs[:, :, :channels])


def warp_image(image: Any, matrix: Any, size: int = 0) -> Any:
    """Warp an image by a matrix."""
    size = size or len(image)
    out = np.empty((size, size, image.shape[2]), np.uint8)
    warp(image, np.asarray(matrix, np.float64).reshape(3, 3), out)
    return out


def apply_torchvision(function: Any, image: Any, *arguments: Any, **options: Any) -> Any:
    return function(torch.from_numpy(image.transpose(2, 0, 1).copy()), *arguments, **options).numpy().transpose(1, 2, 0)


def affine(angle: float = 0, x: float = 0, y: float = 0, scale: float = 1, sx: float = 0, sy: float = 0,
           center: float = 48) -> Any:  # fmt: skip
    return matrices.make_affine(*(np.array([value], np.float64) for value in (angle, x, y, scale, sx, sy, center)))


def compare_pixels(actual: Any, expected: Any) -> tuple[int, float]:
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected)
    return int(difference.max()), float(difference.mean())


@pytest.mark.parametrize(
    "parameters",
    [{"angle": 17}, {"angle": -135}, {"angle": 90}, {"scale": 1.3, "angle": 5}, {"scale": 0.8}, {"sx": 16.7},
     {"sy": -16.7}, {"sx": -44.7}, {"angle": 12, "x": 7, "y": -9, "scale": 1.1, "sx": 8, "sy": -5}],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_affine_equals_that_of_torchvision(parameters: dict[str, float], channels: int) -> None:
    """The mean difference is below 1 of 255: OpenCV weighs pixels by thirty-seconds, torch exactly."""
    image = smooth(channels=channels)
    expected = apply_torchvision(
        tv.affine, image, angle=parameters.get("angle", 0.0),
        translate=[parameters.get("x", 0), parameters.get("y", 0)],
        scale=parameters.get("scale", 1.0), shear=[parameters.get("sx", 0.0), parameters.get("sy", 0.0)], **SMOOTH,
    )  # fmt: skip
    largest, mean = compare_pixels(warp_image(image, affine(**parameters)), expected)
    assert mean < 1 and largest < 40, (largest, mean)
    shifted = affine(**parameters | {"x": parameters.get("x", 0) + 2})
    assert compare_pixels(warp_image(image, shifted), expected)[1] > 1.5


@pytest.mark.parametrize("angle", [-25.0, 9.0])
def test_shear_about_the_corner_and_rotation_are_those_of_policies(angle: float) -> None:
    image = smooth()
    sheared = apply_torchvision(tv.affine, image, 0.0, [0, 0], 1.0, [angle, 0.0], center=[0, 0], **SMOOTH)
    assert compare_pixels(warp_image(image, affine(sx=angle, center=0)), sheared)[1] < 1
    turned = apply_torchvision(tv.rotate, image, angle, **SMOOTH)
    assert compare_pixels(warp_image(image, affine(angle=-angle)), turned)[1] < 1


def test_perspective_is_torchvisions() -> None:
    image = smooth()
    corners = np.array([[[9, 4], [88, 11], [93, 80], [2, 91]]], np.float64)
    matrix = matrices.make_perspective(corners, 96)
    a, b, c, d, e, f, g, h, _ = matrix.ravel().tolist()
    expected = apply_torchvision(tv.perspective, image, None, None, coefficients=[a, b, c, d, e, f, g, h], **SMOOTH)
    assert compare_pixels(warp_image(image, matrix), expected)[1] < 1
    for corner, at in zip(corners[0], [(0, 0), (96, 0), (96, 96), (0, 96)], strict=True):
        x, y, w = matrix[0] @ [*corner, 1]
        np.testing.assert_allclose((x / w, y / w), at, atol=1e-9)


@pytest.mark.parametrize("box", [(3, 5, 60, 41), (0, 0, 96, 96), (10, 20, 70, 75), (31, 40, 33, 28)])
@pytest.mark.parametrize("size", [32, 64, 150])
def test_resized_crop_equals_that_of_torchvision(box: tuple[int, int, int, int], size: int) -> None:
    image = smooth()
    expected = apply_torchvision(tv.resized_crop, image, *box, [size, size], antialias=True, **SMOOTH)
    cropped = warp_image(image, matrices.make_crop(np.array([box]), size), size)
    largest, mean = compare_pixels(cropped, expected)
    assert largest <= 3 and mean < 0.5, (largest, mean)
    mirrored = matrices.make_crop(np.array([box]), size) @ matrices.make_flip(np.array([True]), size, 0)
    np.testing.assert_array_equal(warp_image(image, mirrored, size), cropped[:, ::-1])
    rotated = mirrored @ matrices.make_flip(np.array([True]), size, 1)
    np.testing.assert_array_equal(warp_image(image, rotated, size), cropped[::-1, ::-1])


@given(st.integers(-40, 40), st.integers(-40, 40), st.booleans(), st.booleans(), st.sampled_from([1, 3, 5]))
@settings(max_examples=40, deadline=None)
def test_flips_and_shifts_by_whole_pixels_are_exact(x: int, y: int, across: bool, down: bool, channels: int) -> None:
    image = smooth(36, channels)
    matrix = matrices.make_identity(1)
    for axis, is_flipped in enumerate((across, down)):
        matrix = matrix @ matrices.make_flip(np.array([is_flipped]), 36, axis)
    warped = warp_image(image, matrix @ affine(x=x, y=y, center=18))
    expected = image[:, ::-1] if across else image
    expected = expected[::-1] if down else expected
    np.testing.assert_array_equal(warped, apply_torchvision(tv.affine, expected, 0.0, [x, y], 1.0, [0.0, 0.0]))


def test_identity_returns_the_image_and_leaves_the_stored_one_unchanged() -> None:
    images = np.stack([smooth(40), smooth(40)[::-1]])
    before = images.copy()
    images.flags.writeable = False
    engine = CpuEngine(30, 3, np.zeros(3, np.uint8))
    plain = make_seed_params(0, 0, 0, 2)
    center, shrunk = (
        replace(plain, matrix=matrices.make_crop(np.array([box] * 2), 30)) for box in ([5, 5, 30, 30], [0, 0, 40, 40])
    )
    np.testing.assert_array_equal(engine(images, center), before[:, 5:35, 5:35])
    assert compare_pixels(engine(images, shrunk), before[:, 5:35, 5:35])[1] > 1
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("ratio", [1.5, 2.4, 4.0])
@pytest.mark.parametrize("angle", [0.0, 30.0])
def test_shrinking_does_not_alias(ratio: float, angle: float) -> None:
    """Stripes finer than a pixel of the output become an even gray; without a reduction they would beat."""
    side = 240
    stripes = np.where(np.arange(side) % 2, 255, 0).astype(np.uint8)
    image = np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (side, side, 3)))
    size = round(side / ratio)
    matrix = matrices.make_crop(np.array([[0, 0, side, side]]), size) @ affine(angle=angle, scale=0.99, center=size / 2)
    middle = warp_image(image, matrix, size)[size // 3 : -size // 3, size // 3 : -size // 3].astype(int)
    assert middle.std() < 0.2 * 127 and abs(middle.mean() - 127.5) < 4, middle.std()


def test_warp_of_a_reduced_image_has_no_offset() -> None:
    """The same matrix on a picture of half the size."""
    small = np.asarray(cv2.GaussianBlur(smooth(100), (0, 0), 2), np.uint8)
    large = np.repeat(np.repeat(small, 2, 0), 2, 1)
    turn = affine(angle=20, scale=0.95, center=50)
    half = np.diag([0.5, 0.5, 1.0]) @ matrices.make_crop(np.array([[0, 0, 200, 200]]), 100)[0]
    np.testing.assert_allclose(half, np.eye(3))
    reduced = warp_image(large, matrices.make_crop(np.array([[0, 0, 200, 200]]), 100) @ turn, 100)
    same, shifted = (compare_pixels(reduced, warp_image(small, m, 100))[1] for m in (turn, affine(x=1) @ turn))
    assert same < 1.5 < shifted
    # And of a part of it: what is not wanted is not reduced.
    corner, small_corner = (matrices.make_crop(np.array([part]), 55) for part in ([90, 10, 110, 110], [45, 5, 55, 55]))
    turn = affine(angle=8, center=27.5)
    assert compare_pixels(warp_image(large, corner @ turn, 55), warp_image(small, small_corner @ turn, 55))[1] < 1.5


def test_pixels_far_outside_are_black() -> None:
    for matrix in (affine(x=500.5), affine(angle=3, y=-400), affine(x=500), affine(scale=0.001, x=90, y=90)):
        assert warp_image(smooth(), matrix).mean() < 0.1
    center = np.broadcast_to(smooth()[48:49, 48:49], (96, 96, 3))
    assert compare_pixels(warp_image(smooth(), affine(scale=1e3)), center)[1] < 40


@given(st.lists(st.sampled_from(["turn", "shear", "shift", "mirror", "crop"]), min_size=1, max_size=5),
       st.integers(0, 2**31))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_product_of_matrices_applies_them_in_order(kinds: list[str], seed: int) -> None:
    """Points go the way of every matrix in turn."""
    random = np.random.default_rng(seed)
    makers = {
        "turn": lambda: affine(angle=random.uniform(-180, 180)), "shear": lambda: affine(sx=random.uniform(-40, 40)),
        "shift": lambda: affine(x=random.integers(-9, 9)),
        "mirror": lambda: matrices.make_flip(np.array([True]), 96, 0),
        "crop": lambda: matrices.make_crop(np.array([[5, 7, 50, 60]]), 96),
    }  # fmt: skip
    steps = [makers[kind]() for kind in kinds]
    product = matrices.make_identity(1)
    for step in steps:
        product = matrices.compose(product, step)
    point = np.array([*random.uniform(0, 96, 2), 1.0])
    expected = point
    for step in reversed(steps):
        expected = step[0] @ expected
    np.testing.assert_allclose(product[0] @ point, expected, atol=1e-6)
