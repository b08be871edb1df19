"""Mean and spread of every channel of the training images, from sums that are exact.

Whole numbers add up to the same in any order, so the result depends on no worker and no retry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.images import Pixels
from ..store.model_presets import mean_and_std as mean_and_std

Histogram = npt.NDArray[np.int64]

STD_FLOOR = 1 / 255
"""One level: a channel that is the same everywhere must not divide by zero."""
UNKNOWN = (0.5, 0.5)
"""Mean and spread where there is no training image: values from -1 to 1."""
COUNTED_EXACTLY = 2**24
"""Pixels in one cv2.calcHist, which counts in float32."""


@dataclass(frozen=True)
class Sums:
    """Of `count` pixels: for each channel the sum of the values (0 to 255) and of their squares."""

    count: int = 0
    values: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()

    @classmethod
    def of(cls, histogram: Histogram) -> Sums:
        """The sums by int64 [C, 256], how often each value occurs in each channel."""
        levels = np.arange(256, dtype=np.int64)
        return cls(
            int(histogram[0].sum()),
            tuple(int(total) for total in histogram @ levels),
            tuple(int(total) for total in histogram @ levels**2),
        )

    def __add__(self, other: Sums) -> Sums:
        if not self.count or not other.count:
            return self if self.count else other
        values = tuple(a + b for a, b in zip(self.values, other.values, strict=True))
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return Sums(self.count + other.count, values, squares)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Sums:
        return cls(record["count"], tuple(record["values"]), tuple(record["squares"]))

    def mean_std(self, channel: int) -> tuple[float, float]:
        """Mean and standard deviation of one channel, in [0, 1], to six digits."""
        if not self.count:
            return UNKNOWN
        total, squares = self.values[channel], self.squares[channel]
        variance = (self.count * squares - total**2) / self.count**2  # of whole numbers, so nothing cancels out
        mean, std = total / self.count / 255, math.sqrt(variance) / 255
        return round(mean, 6), round(max(std, STD_FLOOR), 6)


def add_histogram(total: Histogram, pixels: Pixels) -> None:
    """Count the values of uint8 [H, W, C] into int64 [C, 256]."""
    import cv2

    rows = max(1, COUNTED_EXACTLY // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        part = pixels[top : top + rows]
        for channel in range(pixels.shape[2]):
            counts = cv2.calcHist([part], [channel], None, [256], [0, 256])
            total[channel] += counts.reshape(-1).astype(np.int64)


def needs_sums(normalization: str, color: str, edges: tuple[str, ...]) -> bool:
    """Some channel is normalized by the training images' own mean and spread."""
    return not mean_and_std(normalization, color)[0] or bool(edges)


def normalization_of(normalization: str, color: str, channels: int, sums: Sums) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel: the named ones where they are wanted and known, else by `sums`."""
    mean, std = mean_and_std(normalization, color)
    own = [sums.mean_std(channel) for channel in range(len(mean), channels)]
    return [*mean, *(one for one, _ in own)], [*std, *(one for _, one in own)]
