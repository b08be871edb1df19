"""RandAugment compared with torchvision's, operation by operation; frequencies and records of sampled operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import photos
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, RandAugment

from imagemill.components.imaging.rand_augment import (
    BINS,
    OPERATIONS,
    SIGNED,
    Operation,
    apply_operations,
    operation_value,
    rand_augment,
    sample_operations,
)

SHAPES = [(64, 64), (41, 90), (224, 224)]
RAND_AUGMENT: Any = RandAugment(interpolation=InterpolationMode.BILINEAR)


def make_picture(height: int, width: int, channels: int = 3) -> Any:
    """Return uint8 [H, W, C], pale, and not contiguous, as a view of a larger image is."""
    return (photos.made(3, width + 8, height + 5) // 2 + 60)[2 : height + 2, 3 : width + 3, :channels]


def apply_by_torchvision(pixels: Any, name: str, value: float) -> Any:
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    output = RAND_AUGMENT._apply_image_or_video_transform(
        image, name, value, interpolation=InterpolationMode.BILINEAR, fill=RAND_AUGMENT._fill
    )
    return output.numpy().transpose(1, 2, 0)


def test_magnitudes_match_torchvision() -> None:
    space = RandAugment._AUGMENTATION_SPACE
    assert set(OPERATIONS) == set(space) and len(OPERATIONS) == 14
    for name, (values, signed) in space.items():
        assert signed == (name in SIGNED)
        for height, width in SHAPES:
            magnitudes: Any = values(BINS, height, width)
            for magnitude in range(BINS):
                expected = 0.0 if magnitudes is None else float(magnitudes[magnitude])
                assert operation_value(name, magnitude, height, width) == expected, (name, magnitude)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_match_torchvision(name: str, channels: int) -> None:
    num_changed = 0
    for height, width in SHAPES[:2]:
        pixels = make_picture(height, width, channels)
        for magnitude in (0, 9, 15, 30):
            for sign in (1, -1) if name in SIGNED else (1,):
                value = sign * operation_value(name, magnitude, height, width)
                output = apply_operations(pixels, [Operation(name, value)])
                np.testing.assert_array_equal(output, apply_by_torchvision(pixels, name, value))
                assert output.dtype == np.uint8 and output.shape == pixels.shape
                num_changed += not np.array_equal(output, pixels)
    assert (num_changed > 0) == (name != "Identity" and (name, channels) != ("Color", 1))


def test_operations_are_applied_in_order() -> None:
    pixels = make_picture(50, 60)
    rotate, solarize = Operation("Rotate", 20.0), Operation("Solarize", 0.4)
    expected = apply_by_torchvision(apply_by_torchvision(pixels, "Rotate", 20.0), "Solarize", 0.4)
    np.testing.assert_array_equal(apply_operations(pixels, [rotate, solarize]), expected)
    assert not np.array_equal(apply_operations(pixels, [solarize, rotate]), expected)


def test_operations_and_signs_are_uniformly_sampled() -> None:
    random = np.random.default_rng(5)
    operations = [operation for _ in range(7000) for operation in sample_operations(random, 2, 9, 64, 80)]
    counts = Counter(operation.name for operation in operations)
    assert set(counts) == set(OPERATIONS)
    # 14,000 draws: 1,000 of each, with a standard deviation of 30.5.
    assert all(abs(count - 1000) < 5 * 30.5 for count in counts.values()), counts
    for name in SIGNED:
        values = Counter(operation.value for operation in operations if operation.name == name)
        size = operation_value(name, 9, 64, 80)
        assert set(values) == {size, -size} and abs(values[size] / counts[name] - 0.5) < 0.08
    assert all(operation.value >= 0 for operation in operations if operation.name not in SIGNED)
    pairs = Counter((a.name, b.name) for a, b in zip(operations[::2], operations[1::2], strict=True))
    assert len(pairs) == 14 * 14  # they are independent


def test_sampling_depends_on_the_generator_only() -> None:
    pixels = make_picture(64, 64)
    runs = [rand_augment(pixels, np.random.default_rng(seed), 3, 12) for seed in (1, 1, 2)]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][0], apply_operations(pixels, runs[0][1]))
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_identity_returns_the_same_array() -> None:
    pixels = make_picture(20, 20)
    assert apply_operations(pixels, []) is pixels and apply_operations(pixels, [Operation("Identity")]) is pixels


def test_operation_is_recorded() -> None:
    assert Operation("Equalize").to_record() == {"name": "Equalize"}
    assert Operation("Rotate", -9.0).to_record() == {"name": "Rotate", "value": -9.0}
