"""Estimate how long cleaning takes, by which a cluster chooses between the step's own pod and a RayJob.

The estimate is a line through three measurements of core-seconds (photographs as JPEG, all measures, one thread,
medians of three on a busy machine), from which it differs by up to 30%. Pixel operations and other formats take longer.

| images | file | measured | estimated |
|---|---|---|---|
| 500 x 375 | 39 kB | 1.7 ms | 1.9 ms |
| 1600 x 1200 | 272 kB | 10.2 ms | 12.6 ms |
| 4000 x 3000 | 1 MB | 64 ms | 46.5 ms |
"""

from __future__ import annotations

SECONDS_PER_IMAGE = 0.1e-3
"""Core-seconds for each image, whatever its size."""
SECONDS_PER_BYTE = 46e-9
"""Core-seconds for each byte of an image file: reading, decoding, measuring, writing."""


def estimate_core_seconds(images: int, size: int) -> float:
    """Return the core-seconds that it takes to clean so many images of `size` bytes together, with all measures."""
    return images * SECONDS_PER_IMAGE + size * SECONDS_PER_BYTE
