"""What can be said about resizing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..store import presets
from ..store.config import StepConfig, option
from ..store.edges import CANNY_HIGH, CANNY_LOW, EDGES
from ..store.errors import wrong
from ..store.resample import MODES, Geometry

VERSION = 1
"""Raised when the same clean images must give other pixels."""


@dataclass(frozen=True, kw_only=True)
class ResizeConfig(StepConfig):
    """The fixed shape, and where Ray runs."""

    PARENTS: ClassVar[tuple[str, ...]] = ("clean",)

    clean: str = option("", "URI of the clean dataset", counts=False)
    image_size: int = option(128, "height and width that the model sees, in pixels", pipeline=True, low=8, high=8192)
    preset: str = option("photo", presets.HELP, counts=False, pipeline=True, choices=presets.NAMES)
    resize_mode: str = option(
        "auto",
        "crop: short side to round(size x 256/224), then the centre; squash: straight to the square; letterbox: long "
        "side to the size, the rest black (default: by the preset; crop)",
        pipeline=True,
        choices=("auto", *MODES),
        by_preset=True,
    )
    edges: str = option(
        "off",
        "edges of the resized picture as channels of their own after the colour's: the magnitude of Sobel's gradient, "
        "Canny's edges, or both",
        choices=tuple(EDGES),
    )
    canny_low: int = option(CANNY_LOW, "Canny: from this gradient on an edge goes on (|gx| + |gy|)", low=0, high=2040)
    canny_high: int = option(CANNY_HIGH, "Canny: from this gradient on an edge begins", low=0, high=2040)
    normalization: str = option(
        "auto",
        "mean and spread that the model's input is normalized by: imagenet's, where it has some (rgb and gray), or "
        "those of the training images, channel by channel, as edges and all other colours have them (default: by the "
        "preset; imagenet)",
        choices=("auto", "imagenet", "dataset"),
        by_preset=True,
    )
    ray_address: str = option(
        "", "an existing Ray cluster, ray://host:10001 or host:6379 (default: Ray in this process)", counts=False
    )
    resize_workers: int = option(0, "CPU cores for Ray in this process (default: all)", counts=False, low=0, high=1024)

    def check(self) -> None:
        super().check()
        if self.canny_low > self.canny_high:
            raise wrong("canny_low", f"at most canny_high, {self.canny_high}", self.canny_low)

    def geometry(self, color: str) -> Geometry:
        """How images of that colour become tensors."""
        return Geometry(self.image_size, self.resize_mode, color, EDGES[self.edges], self.canny_low, self.canny_high)
