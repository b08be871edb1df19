"""What can be said about cleaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..store.config import StepConfig, option
from ..store.errors import wrong
from ..store.images import COLORS, Limits

VERSION = 1
"""Raised when the same raw rows must give other clean rows: a mended decoder, a changed default."""

REASONS = (
    "empty_file", "missing_file", "not_an_image", "corrupt", "too_many_bytes", "too_many_pixels", "side_too_long",
    "unsupported_bands", "no_label", "duplicate_bytes", "duplicate_pixels",
)  # fmt: skip
"""The closed set of reject codes."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StepConfig):
    """Standardization, classes and splits."""

    PARENTS: ClassVar[tuple[str, ...]] = ("raw",)

    raw: str = option("", "URI of the raw dataset", counts=False)
    color: str = option(
        "rgb", "colour of the images from here on; gray keeps one channel, a third of the bytes",
        pipeline=True, choices=tuple(COLORS),
    )  # fmt: skip
    val_fraction: float = option(
        0.1, "share of the images (of trainval where the source declares that) for validation",
        pipeline=True, low=0, high=0.9,
    )  # fmt: skip
    test_fraction: float = option(
        0.1, "share of the images without a declared split for test", pipeline=True, low=0, high=0.9
    )
    class_list: str = option(
        "", "a file with one class a line, in the order of their ids (default: that of the last run under this name)",
        counts=False,
    )  # fmt: skip
    max_pixels: int = option(Limits.pixels, "an image that declares more pixels is rejected unread", low=1)
    max_side: int = option(Limits.side, "an image with a longer side (in pixels) is rejected unread", low=1)
    clean_workers: int = option(0, "threads that decode (default: the cores)", counts=False, low=0, high=1024)

    def check(self) -> None:
        super().check()
        if self.val_fraction + self.test_fraction >= 1:
            raise wrong(
                "val_fraction + test_fraction", "less than 1, so that images are left to train on",
                self.val_fraction + self.test_fraction,
            )  # fmt: skip

    def limits(self) -> Limits:
        return Limits(pixels=self.max_pixels, side=self.max_side)
