"""Operations on the pixels of an image: denoising, contrast, black and white.

Pure functions, uint8 [H, W, 1 or 3] (RGB) to uint8 [H, W, 1 or 3], C-contiguous, of any size from 1 x 1. Where
OpenCV has the operation the definition is OpenCV's.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from PIL import Image

from .decoder import Pixels, convert_color

BILATERAL_SIGMA = 50.0
"""Levels; as in the colour examples of Tomasi and Manduchi, "Bilateral filtering for gray and color images" (1998)."""

cv2.setNumThreads(1)  # images are spread over the cores, so the threads of OpenCV would only get in their way


def denoise(pixels: Pixels, kind: str, size: int) -> Pixels:
    """Denoise each pixel from its window of `size` x `size` (odd), the image mirrored at its border (median: repeated).

    `gaussian`: its weighted mean, by OpenCV's kernel for the size (1 2 1, 1 4 6 4 1, ..., which is about a sigma of
    0.3 * ((size - 1) / 2 - 1) + 0.8 pixels).
    `median`: the median of each channel.
    `bilateral`: the mean over the disc in the window, weighted by Gaussians of that sigma in space and of
    `BILATERAL_SIGMA` in colour (colours are as far apart as their channels are in sum), so that edges stay.

    ValueError for another kind.
    """
    if kind == "gaussian":
        return _add_channel_axis(cv2.GaussianBlur(pixels, (size, size), 0))
    if kind == "median":
        return _add_channel_axis(cv2.medianBlur(pixels, size))
    if kind == "bilateral":
        return _add_channel_axis(cv2.bilateralFilter(pixels, size, BILATERAL_SIGMA, 0.3 * ((size - 1) / 2 - 1) + 0.8))
    raise ValueError(f"denoise: expected gaussian, median or bilateral, found {kind!r}")


def equalize(pixels: Pixels, kind: str, clip: float, grid: int) -> Pixels:
    """Increase the contrast, by the lightness alone where there are colors.

    `histogram`: `cv2.equalizeHist`, on Y of YCrCb. `clahe`: `cv2.createCLAHE` with the limit `clip` and
    `grid` x `grid` tiles, on L of Lab (Zuiderveld, "Contrast limited adaptive histogram equalization", 1994).
    `autocontrast`: all channels stretched alike, so that the darkest luma is 0 and the brightest 255; Pillow's
    `ImageOps.autocontrast(preserve_tone=True)`.

    ValueError for another kind.
    """
    if kind == "autocontrast":
        return _autocontrast(pixels)
    if kind == "histogram":
        equalize_channel, to_space, to_rgb = cv2.equalizeHist, cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB
    elif kind == "clahe":
        # A new one for each call: a CLAHE object can't be shared by threads.
        equalize_channel, to_space, to_rgb = (
            cv2.createCLAHE(clip, (grid, grid)).apply,
            cv2.COLOR_RGB2LAB,
            cv2.COLOR_LAB2RGB,
        )
    else:
        raise ValueError(f"equalize: expected histogram, clahe or autocontrast, found {kind!r}")
    if pixels.shape[2] == 1:
        return _add_channel_axis(equalize_channel(pixels))
    channels = list(cv2.split(cv2.cvtColor(pixels, to_space)))
    channels[0] = equalize_channel(channels[0])
    return _add_channel_axis(cv2.cvtColor(cv2.merge(channels), to_rgb))


def _autocontrast(pixels: Pixels) -> Pixels:
    # Pillow's luma and its rounding: in a narrow range, one level more or less is a visible difference.
    luma = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("L")
    low, high = (int(level) for level in luma.getextrema())  # type: ignore[arg-type]
    if high <= low:
        return pixels
    scale = 255.0 / (high - low)
    table = np.clip((np.arange(256) * scale - low * scale).astype(int), 0, 255).astype(np.uint8)
    return _add_channel_axis(cv2.LUT(pixels, table))


def binarize(pixels: Pixels, kind: str, threshold: int, block: int, offset: float) -> Pixels:
    """Convert to black (0) and white (255), uint8 [H, W, 1], by the luma where there are colours.

    `fixed`: white from the level `threshold` on. `otsu`: white above the level that separates the histogram best
    (Otsu, "A threshold selection method from gray-level histograms", 1979). `adaptive`: white above the mean of the
    window of `block` x `block` pixels (odd; beyond the border it is repeated), rounded, less `offset`.

    ValueError for another kind.
    """
    gray = convert_color(pixels, "gray")[:, :, 0]
    if kind == "fixed":
        return _add_channel_axis(cv2.threshold(gray, threshold - 1, 255, cv2.THRESH_BINARY)[1])
    if kind == "otsu":
        return _add_channel_axis(cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1])
    if kind == "adaptive":
        mean = cv2.ADAPTIVE_THRESH_MEAN_C
        return _add_channel_axis(cv2.adaptiveThreshold(gray, 255, mean, cv2.THRESH_BINARY, block, offset))
    raise ValueError(f"binarize: expected fixed, otsu or adaptive, found {kind!r}")


def _add_channel_axis(image: Any) -> Pixels:
    """Return OpenCV's uint8 [H, W] or [H, W, C] as uint8 [H, W, C], C-contiguous."""
    return np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])
