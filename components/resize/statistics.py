"""Mean and standard deviation of every channel of the training images, from exact integer sums.

Integers add up to the same in any order, so the result depends on no worker and no retry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..imaging.decoder import Pixels
from ..models.presets import mean_and_std as mean_and_std

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
    def of(cls, sums: npt.NDArray[np.uint64], pixels: int) -> ChannelSums:
        """Return the total of the sums of images, uint64 [N, 2, C], of so many `pixels` each."""
        values, squares = sums.sum(axis=0, dtype=np.uint64).tolist()
        return cls(len(sums) * pixels, tuple(values), tuple(squares))

    def __add__(self, other: ChannelSums) -> ChannelSums:
        if not self.count or not other.count:
            return self if self.count else other
        values = tuple(a + b for a, b in zip(self.values, other.values, strict=True))
        squares = tuple(a + b for a, b in zip(self.squares, other.squares, strict=True))
        return ChannelSums(self.count + other.count, values, squares)

    def mean_std(self, channel: int) -> tuple[float, float]:
        """Return mean and standard deviation of one channel, in [0, 1], to six digits."""
        if not self.count:
            return UNKNOWN
        total, squares = self.values[channel], self.squares[channel]
        variance = (self.count * squares - total**2) / self.count**2  # of integers, so there is no cancellation
        mean, std = total / self.count / 255, math.sqrt(variance) / 255
        return round(mean, 6), round(max(std, STD_FLOOR), 6)


def sum_channels(pixels: Pixels) -> npt.NDArray[np.uint64]:
    """Return uint64 [2, C], the sums of the values and of their squares over uint8 [H, W, C], by a histogram."""
    import cv2

    levels = np.arange(256, dtype=np.uint64)
    counts = np.zeros((pixels.shape[2], 256), np.uint64)
    rows = max(1, MAX_EXACT_COUNT // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        part = pixels[top : top + rows]
        for channel in range(pixels.shape[2]):
            counts[channel] += cv2.calcHist([part], [channel], None, [256], [0, 256]).reshape(-1).astype(np.uint64)
    return np.stack([counts @ levels, counts @ levels**2])


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
