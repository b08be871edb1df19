"""Flips are off where the training images show that mirrored ones are not known again."""

from __future__ import annotations

import numpy as np
import pytest

from imagemill.components.imaging.decoder import Pixels
from imagemill.components.train.mirror_probe import Ids, compare_mirrored


def load_digits() -> tuple[Pixels, Ids]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).astype(np.uint8)
    return pixels[..., None].repeat(3, 3), digits.target


@pytest.mark.parametrize("number", [150, 600])
def test_digits_are_not_mirrored(number: int) -> None:
    images, labels = load_digits()
    result = compare_mirrored(images[:number], labels[:number])
    assert result and result.flips_hurt and result.known > 0.85 * number and result.known_mirrored < 0.5 * number
    assert result.describe().startswith("no flips: a classifier on small pixels knows 9")


def test_what_stands_either_way_is_mirrored() -> None:
    """The digits, half of them mirrored: both halves are known alike."""
    images, labels = load_digits()
    images, labels = images[:600], labels[:600]
    images[::2] = images[::2, :, ::-1]
    result = compare_mirrored(images, labels)
    assert result and not result.flips_hurt and result.known > 0.7 * 600


def test_no_answer_leaves_flips_on() -> None:
    random = np.random.default_rng(0)
    noise, labels = random.integers(0, 256, (300, 32, 32, 3)).astype(np.uint8), np.arange(300) % 5
    result = compare_mirrored(noise, labels)
    assert result and not result.flips_hurt
    assert compare_mirrored(noise[:40], labels[:40]) is None
    assert compare_mirrored(noise, np.zeros(300, np.int64)) is None
