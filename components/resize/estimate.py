"""Estimate the core-seconds of resizing, by which threads, Ray or a RayJob do it."""

from __future__ import annotations

from ..dataset.manifest import Totals

SECONDS_PER_IMAGE = 0.7e-3
"""Core-seconds for each image, whatever its size: resampling, writing, hashing."""
SECONDS_PER_BYTE = 17e-9
"""Core-seconds for each byte of an image file: reading and decoding."""
SECONDS_PER_COPIED_BYTE = 4e-9
"""Core-seconds for each byte of pixels of a shard that is written again without rows that left: reading, hashing."""
RAY_START_S = 8.0
"""Seconds that Ray takes to start on two cores (measured: 6 to 10 s with its first workers)."""


def estimate_core_seconds(totals: Totals, copies: int = 0) -> float:
    """Return the core-seconds that resizing a clean dataset takes, by its totals. `copies`: of each training image.

    It is a line through three measurements of the resize step on two cores (to 224 x 224, start-up apart):

    | images | file | measured | estimated |
    |---|---|---|---|
    | 500 x 375 | 34 kB | 1,400 to 1,700 images/s | 1,570 images/s |
    | 1600 x 1200 | 231 kB | 420 to 430 images/s | 430 images/s |
    | 4000 x 3000 | 1 MB | 119 images/s | 113 images/s |
    """
    images = totals.rows + copies * totals.by_split.get("train", 0)
    return images * (SECONDS_PER_IMAGE + SECONDS_PER_BYTE * totals.bytes / max(1, totals.rows))
