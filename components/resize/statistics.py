"""Mean and standard deviation of every channel of the training images, from exact integer sums.

Integers add up to the same in any order, so the result depends on no worker and no retry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..imaging.decoder import Pixels
from ..models.presets import mean_and_std as mean_and_std

Histogram = npt.NDArray[np.int64]

STD_FLOOR = 1 / 255
"""One level of 255: a constant channel must not divide by zero."""
UNKNOWN = (0.5, 0.5)
"""Mean and standard deviation without training images: gives values from -1 to 1."""
MAX_EXACT_COUNT = 2**24
"""Most pixels in one cv2.calcHist, which counts in float32."""


@dataclass(frozen=True)
class ChannelSums:
    """Sums of the values (0 to 255) and of their squares for each channel, over `count` pixels."""

    count: int = 0
    values: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()

    @classmethod
    def from_histogram(cls, histogram: Histogram) -> ChannelSums:
        """Return the sums of a histogram, int64 [C, 256]: the number of times that each value occurs."""
        levels = np.arange(256, dtype=np.int64)
        return cls(
            int(histogram[0].sum()),
            tuple(int(total) for total in histogram @ levels),
            tuple(int(total) for total in histogram @ levels**2),
        )

    def __add__(self, other: ChannelSums) -> ChannelSums:
        if not self.count or not other.count:
            return self if self.count else other
        values = tuple(a + b for a, b in zip(self.values, other.values, strict=True))
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return ChannelSums(self.count + other.count, values, squares)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ChannelSums:
        return cls(record["count"], tuple(record["values"]), tuple(record["squares"]))

    def mean_std(self, channel: int) -> tuple[float, float]:
        """Return mean and standard deviation of one channel, in [0, 1], to six digits."""
        if not self.count:
            return UNKNOWN
        total, squares = self.values[channel], self.squares[channel]
        variance = (self.count * squares - total**2) / self.count**2  # of integers, so there is no cancellation
        mean, std = total / self.count / 255, math.sqrt(variance) / 255
        return round(mean, 6), round(max(std, STD_FLOOR), 6)


def add_histogram(total: Histogram, pixels: Pixels) -> None:
    """Add the counts of the values of uint8 [H, W, C] to int64 [C, 256]."""
    import cv2

    rows = max(1, MAX_EXACT_COUNT // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        part = pixels[top : top + rows]
        for channel in range(pixels.shape[2]):
            counts = cv2.calcHist([part], [channel], None, [256], [0, 256])
            total[channel] += counts.reshape(-1).astype(np.int64)


def needs_sums(normalization: str, color: str, edges: tuple[str, ...]) -> bool:
    """Return whether a channel is normalized by the training images' own mean and standard deviation."""
    return not mean_and_std(normalization, color)[0] or bool(edges)


def compute_normalization(
    normalization: str, color: str, channels: int, sums: ChannelSums
) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of every channel: of the named set as far as it is known, else by `sums`."""
    mean, std = mean_and_std(normalization, color)
    pairs = [*zip(mean, std, strict=True), *(sums.mean_std(channel) for channel in range(len(mean), channels))]
    return [mean for mean, _ in pairs], [std for _, std in pairs]
