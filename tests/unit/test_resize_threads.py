"""Resize in threads or processes of this machine: used for little work, with the tensors that Ray would make."""

from __future__ import annotations

from typing import Any

import pytest

from imagemill.components.resize.config import USUAL_SIZE, ResizeConfig


@pytest.mark.parametrize(
    ("values", "recommended", "size"),
    [
        ({}, None, USUAL_SIZE),
        ({}, 64, 64),
        ({"image_size": 128}, 64, 128),
        ({"model_preset": "resnet18"}, 64, 224),
        ({"store_size": 140}, 64, USUAL_SIZE),
    ],
)
def test_image_size_defaults_to_the_recommended_one(values: dict[str, Any], recommended: int | None, size: int) -> None:
    config = ResizeConfig.from_values(values).for_images(recommended)
    assert config.image_size == size
    config.check()


def test_unset_image_size_is_not_in_the_fingerprint() -> None:
    assert ResizeConfig.from_values({}).fingerprint_values() == {}
    assert ResizeConfig.from_values({}).for_images(64).fingerprint_values() == {"image_size": 64}
