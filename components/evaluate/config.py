"""Configuration of the evaluate step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..step.config import StepConfig, device_option, option

VERSION = 6
"""Raised when the same model and images must give other predictions, metrics or suspects."""
TTA_VERSION = 2
"""Counts in the fingerprint where views are averaged: 2 fits a temperature on them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StepConfig):
    """Options of an evaluation, which is a function of the model, the test images, views and slices."""

    PARENTS: ClassVar[tuple[str, ...]] = ("model", "clean")

    model: str = option("", "URI of the model", in_fingerprint=False)
    clean: str = option("", "URI of the clean dataset whose test split counts", in_fingerprint=False)
    device: str = device_option()
    eval_batch_size: int = option(128, "images a batch", in_fingerprint=False, low=1, high=65_536)
    tta: str = option(
        "none",
        "test-time augmentation, the mean of the probabilities: none, flip (twice the time), five_crops (five times)",
        choices=("none", "flip", "five_crops"),
    )
    slices: str = option(
        "auto",
        "columns of the clean dataset by which results are split, separated by commas; numbers in quarters (default: "
        "size, brightness, sharpness and source, where they are there; none turns it off)",
    )
    review: str = option(
        "auto",
        "look for wrong labels among the training images by confident learning, which costs one pass over them "
        "(default: up to 200,000 images)",
        choices=("auto", "true", "false"),
    )
    cross_validate: str = option(
        "auto",
        "score the linear probe on frozen features out of fold on all images, for the report alone (default: below 400 "
        "test images)",
        choices=("auto", "true", "false"),
    )
