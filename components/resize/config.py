"""What can be said about resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..store.config import StepConfig, option
from ..store.resample import MODES

VERSION = 1
"""Raised when the same clean images must give other pixels."""


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(StepConfig):
    """The fixed shape, and where Ray runs."""

    PARENTS: ClassVar[tuple[str, ...]] = ("clean",)

    clean: str = option("", "URI of the clean dataset", counts=False)
    image_size: int = option(128, "height and width that the model sees, in pixels", pipeline=True, low=8, high=8192)
    resize_mode: str = option(
        "crop",
        "crop: short side to round(size x 256/224), then the centre; squash: straight to the square; letterbox: long "
        "side to the size, the rest black",
        pipeline=True,
        choices=MODES,
    )
    ray_address: str = option(
        "", "an existing Ray cluster, ray://host:10001 or host:6379 (default: Ray in this process)", counts=False
    )
    resize_workers: int = option(0, "CPU cores for Ray in this process (default: all)", counts=False, low=0, high=1024)
