"""RandAugment, operation by operation, against torchvision's own; what is drawn, how often, and that it is said."""

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
THEIRS: Any = RandAugment(interpolation=InterpolationMode.BILINEAR)


def picture(height: int, width: int, channels: int = 3) -> Any:
    """uint8 [H, W, C], pale, and not contiguous: as a view of a larger one is."""
    return (photos.made(3, width + 8, height + 5) // 2 + 60)[2 : height + 2, 3 : width + 3, :channels]


def torchvisions(pixels: Any, name: str, value: float) -> Any:
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    done = THEIRS._apply_image_or_video_transform(
        image, name, value, interpolation=InterpolationMode.BILINEAR, fill=THEIRS._fill
    )
    return done.numpy().transpose(1, 2, 0)


def test_the_operations_are_torchvisions() -> None:
    space = RandAugment._AUGMENTATION_SPACE
    assert set(OPERATIONS) == set(space) and len(OPERATIONS) == 14
    for name, (values, signed) in space.items():
        assert signed == (name in SIGNED)
        for height, width in SHAPES:
            theirs: Any = values(BINS, height, width)
            for magnitude in range(BINS):
                expected = 0.0 if theirs is None else float(theirs[magnitude])
                assert operation_value(name, magnitude, height, width) == expected, (name, magnitude)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_torchvisions(name: str, channels: int) -> None:
    changed = 0
    for height, width in SHAPES[:2]:
        pixels = picture(height, width, channels)
        for magnitude in (0, 9, 15, 30):
            for sign in (1, -1) if name in SIGNED else (1,):
                value = sign * operation_value(name, magnitude, height, width)
                found = apply_operations(pixels, [Operation(name, value)])
                np.testing.assert_array_equal(found, torchvisions(pixels, name, value))
                assert found.dtype == np.uint8 and found.shape == pixels.shape
                changed += not np.array_equal(found, pixels)
    assert (changed > 0) == (name != "Identity" and (name, channels) != ("Color", 1))


def test_operations_are_applied_in_their_order() -> None:
    pixels = picture(50, 60)
    one, other = Operation("Rotate", 20.0), Operation("Solarize", 0.4)
    expected = torchvisions(torchvisions(pixels, "Rotate", 20.0), "Solarize", 0.4)
    np.testing.assert_array_equal(apply_operations(pixels, [one, other]), expected)
    assert not np.array_equal(apply_operations(pixels, [other, one]), expected)


def test_every_operation_is_as_likely_and_every_sign() -> None:
    random = np.random.default_rng(5)
    drawn = [one for _ in range(7000) for one in sample_operations(random, 2, 9, 64, 80)]
    counts = Counter(one.name for one in drawn)
    assert set(counts) == set(OPERATIONS)
    # 14,000 draws: 1,000 of each, with a standard deviation of 30.5.
    assert all(abs(count - 1000) < 5 * 30.5 for count in counts.values()), counts
    for name in SIGNED:
        values = Counter(one.value for one in drawn if one.name == name)
        size = operation_value(name, 9, 64, 80)
        assert set(values) == {size, -size} and abs(values[size] / counts[name] - 0.5) < 0.08
    assert all(one.value >= 0 for one in drawn if one.name not in SIGNED)
    firsts = Counter((a.name, b.name) for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert len(firsts) == 14 * 14  # one says nothing of the other


def test_the_same_generator_draws_the_same() -> None:
    pixels = picture(64, 64)
    runs = [rand_augment(pixels, np.random.default_rng(seed), 3, 12) for seed in (1, 1, 2)]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][0], apply_operations(pixels, runs[0][1]))
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_nothing_to_do_returns_the_same_array() -> None:
    pixels = picture(20, 20)
    assert apply_operations(pixels, []) is pixels and apply_operations(pixels, [Operation("Identity")]) is pixels


def test_what_was_drawn_can_be_written_down() -> None:
    assert Operation("Equalize").to_record() == {"name": "Equalize"}
    assert Operation("Rotate", -9.0).to_record() == {"name": "Rotate", "value": -9.0}
