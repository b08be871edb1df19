"""Edges as channels beside the colour: what a network would have to learn first, given to it.

They are computed of the grey of the picture that the model sees, after the resample and before any padding, so
that neither the size of the original nor the border of a letterbox makes edges. At the picture's own border the
outermost pixels are repeated, which makes none there either.
"""

from __future__ import annotations

import math

import numpy as np

from .choices import CANNY_HIGH, CANNY_LOW
from .images import Pixels

SOBEL_SCALE = 1 / math.sqrt(20)
"""The magnitude is at most 255 * sqrt(20) (a step whose corner is cut by one pixel); a straight step of the full
255 levels, 1020, becomes 228."""


def edge_channels(gray: Pixels, edges: tuple[str, ...], low: int = CANNY_LOW, high: int = CANNY_HIGH) -> Pixels:
    """uint8 [H, W, 1] → uint8 [H, W, one for each of `edges`].

    `sobel`: sqrt(gx² + gy²) of the two 3x3 Sobel derivatives, scaled by `SOBEL_SCALE` so that it fits into 0 to
    255 without clipping. `canny`: 255 on the edges of Canny's detector (Canny, "A Computational Approach to Edge
    Detection", 1986; cv2.Canny with aperture 3 and the L1 norm, thresholds `low` and `high`), else 0.
    """
    flat = gray[:, :, 0]
    found = [_sobel(flat) if name == "sobel" else _canny(flat, low, high) for name in edges]
    return np.stack(found, axis=2)


def _sobel(gray: Pixels) -> Pixels:
    import cv2

    across, down = (
        cv2.Sobel(gray, cv2.CV_32F, dx, dy, ksize=3, borderType=cv2.BORDER_REPLICATE) for dx, dy in ((1, 0), (0, 1))
    )
    return np.asarray(cv2.convertScaleAbs(cv2.magnitude(across, down), alpha=SOBEL_SCALE), np.uint8)


def _canny(gray: Pixels, low: int, high: int) -> Pixels:
    import cv2

    return np.asarray(cv2.Canny(gray, low, high), np.uint8)
