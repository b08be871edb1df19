"""Color operations on the CPU, each against torchvision's own; their order, and what they leave alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import photos
import pytest
from augmented import apply_torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.train.augment.cpu_colors import LazyImage, apply_color_operations
from imagemill.components.train.augment.cpu_engine import CpuEngine
from imagemill.components.train.augment.params import OPERATION_IDS, OPERATIONS, AugmentParams, make_seed_params

VALUES: dict[str, list[float]] = {
    "Brightness": [0.0, 0.1, 0.5, 1, 1.27, 1.9], "Contrast": [0.0, 0.01, 0.5, 1, 1.27, 1.99],
    "Color": [0.0, 0.01, 0.3, 1, 1.27, 1.99], "Hue": [-0.5, -0.31, -0.02, 0, 0.05, 0.3, 0.5], "Grayscale": [0],
    "Posterize": [0, 1, 2, 5, 7, 8], "Solarize": [0, 77.3, 100.5, 128, 255], "Invert": [0], "AutoContrast": [0],
    "Equalize": [0], "Sharpness": [0.0, 0.01, 0.5, 1, 1.27, 1.99], "Blur": [0.1, 0.5, 1, 2], "Jpeg": [30, 61, 90],
}  # fmt: skip
LARGEST = {"Color": 1, "Hue": 1, "Sharpness": 1, "Blur": 1}
"""Of 255, in any pixel; all others are exact."""
MEAN = {"Color": 0.5, "Hue": 0.001, "Sharpness": 0.5, "Blur": 0.3}


def pictures() -> dict[str, Any]:
    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (64, 71, 1)).astype(np.uint8)
    return {
        "photo": photos.made(3, 96, 80) // 2 + 60,
        "noise": random.integers(0, 256, (64, 71, 3)).astype(np.uint8),
        "gray": np.repeat(gray, 3, 2),
        "one channel": gray,
        "flat": np.full((20, 20, 3), (200, 30, 90), np.uint8),
    }


def apply_ours(pixels: Any, *operations: tuple[str, float], seed: int = 7) -> Any:
    canvas = LazyImage(pixels.copy(), np.empty_like(pixels), seed)
    return apply_color_operations(
        canvas, [OPERATION_IDS[name] for name, _ in operations], [value for _, value in operations]
    )


@pytest.mark.parametrize("name", VALUES)
def test_operations_equal_those_of_torchvision(name: str) -> None:
    changed = 0
    for kind, pixels in pictures().items():
        for value in VALUES[name]:
            value = float(np.float32(value))
            pixels_, expected = apply_ours(pixels, (name, value)), apply_torchvision(pixels, name, value)
            assert pixels_.shape == pixels.shape and pixels_.dtype == np.uint8
            difference = np.abs(pixels_.astype(int) - expected)
            assert difference.max() <= LARGEST.get(name, 0), (kind, value, difference.max())
            assert difference.mean() <= MEAN.get(name, 0), (kind, value, difference.mean())
            changed += not np.array_equal(pixels_, pixels)
    assert changed


def test_every_operation_is_compared_but_noise() -> None:
    assert {*VALUES, "None", "Noise"} == set(OPERATIONS)


FOLDED = {"Brightness": [0.1, 0.5, 1.27, 1.9], "Contrast": [0.5, 1.27, 1.99], "Grayscale": [0], "Posterize": [4, 5, 7],
          "Solarize": [0, 77.3, 128, 255], "Invert": [0], "AutoContrast": [0], "Equalize": [0]}  # fmt: skip
"""None that makes one gray of everything: of that the last bit of its mean would decide."""


@given(st.lists(st.tuples(st.sampled_from(sorted(FOLDED)), st.integers(0, 3)),
                max_size=5), st.sampled_from(["photo", "one channel"]))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_tables_that_follow_one_another_are_done_in_their_order(steps: list[tuple[str, int]], kind: str) -> None:
    """Tables that are combined give the pixels of operations applied one after the other."""
    pixels = expected = pictures()[kind]
    operations = [(name, float(np.float32(FOLDED[name][at % len(FOLDED[name])]))) for name, at in steps]
    for name, value in operations:
        expected = apply_torchvision(expected, name, value)
    np.testing.assert_array_equal(apply_ours(pixels, *operations), expected)


def test_noise_has_its_standard_deviation_and_depends_on_the_seed_only() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    noise = apply_ours(gray, ("Noise", 12.0)).astype(int) - 128
    assert abs(noise.mean()) < 0.3 and abs(noise.std() - 12) < 0.3
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda seed: apply_ours(gray, ("Noise", 12.0), seed=seed), [7, 8] * 8))
    assert all(np.array_equal(image, images[0]) for image in images[::2])
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0].astype(int) - 128, noise)
    white = apply_ours(np.full((40, 40, 1), 250, np.uint8), ("Noise", 25.0))
    assert white.max() == 255 and white.min() > 100  # nothing runs over


def drawn(count: int, size: int, operations: list[str], values: list[float]) -> AugmentParams:
    numbers = np.tile(np.array([OPERATION_IDS[name] for name in operations], np.int8), (count, 1))
    return replace(
        make_seed_params(0, 0, 0, count),
        operations=numbers,
        values=np.tile(np.float32(values), (count, 1)),
    )


@pytest.mark.parametrize("name", [*VALUES, "Noise"])
def test_edge_channels_are_not_augmented(name: str) -> None:
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (2, 32, 32, 5)).astype(np.uint8)
    before = images.copy()
    params = drawn(2, 32, [name, "Invert"], [VALUES.get(name, [9.0])[-1], 0])
    augmented_images = CpuEngine(32, 3, np.zeros(5, np.uint8))(images, params)
    np.testing.assert_array_equal(augmented_images[..., 3:], images[..., 3:])
    without_edges = CpuEngine(32, 3, np.zeros(3, np.uint8))(np.ascontiguousarray(images[..., :3]), params)
    np.testing.assert_array_equal(augmented_images[..., :3], without_edges)
    np.testing.assert_array_equal(images, before)
    gray = CpuEngine(32, 1, np.zeros(2, np.uint8))(np.ascontiguousarray(images[..., :2]), params)
    np.testing.assert_array_equal(gray[..., 1], images[..., 1])


def test_box_is_erased_last_and_nothing_outside_of_it() -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    erase = np.array([[4, 2, 5, 7], [0, 0, 0, 9], [20, 20, 4, 4]], np.int32)
    erased = CpuEngine(24, 3, np.array([10, 20, 30], np.uint8))(
        images, replace(drawn(3, 24, ["Invert"], [0]), erase=erase)
    )
    assert (erased[0, 4:9, 2:9] == (10, 20, 30)).all() and (erased[2, 20:, 20:] == (10, 20, 30)).all()
    np.testing.assert_array_equal(erased[1], 255 - images[1])
    outside = np.ones((24, 24), bool)
    outside[4:9, 2:9] = False
    np.testing.assert_array_equal(erased[0][outside], 255 - images[0][outside])
