"""Geometry on the CPU: one image moved by its matrix, by the cheapest way that gives its pixels.

Whole pixels are copied and mirrored. A box of whole pixels is resized: bilinear, and antialiased where it shrinks
(torchvision's RandomResizedCrop; beyond the box its edge is repeated). Anything else is one warp, bilinear and black
outside of the image; what would shrink by more than `REDUCED` is reduced first, for a warp looks at four pixels only.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.images import Pixels
from ..store.resample import resample

REDUCED = 1.3
"""Input pixels to one of the output."""
_CLOSE = 1e-6
"""Pixels: what rounding leaves of a whole number."""
_KERNEL = 4
"""Channels that OpenCV warps at a time; three take it twice as long as four."""
_memory = threading.local()


def warp(image: Pixels, matrix: npt.NDArray[np.float64], out: Pixels) -> None:
    """uint8 [H, W, C] into `out`, uint8 [S, S, C], contiguous. `matrix` [3, 3] as in drawn.py."""
    size = out.shape[0]
    (a, b, x), (c, d, y), (p, q, _) = matrix.tolist()
    if not (p or q or abs(b) > _CLOSE or abs(c) > _CLOSE):
        # A mirrored box is filled as it stands, and mirrored in place: OpenCV's mirror is fast, numpy's is not.
        box = (min(y, y + d * size), min(x, x + a * size), abs(d) * size, abs(a) * size)
        top, left, height, width = (round(one) for one in box)
        if all(abs(one - whole) < _CLOSE for one, whole in zip(box, (top, left, height, width), strict=True)):
            if height == width == size:
                _copied(image, top, left, out)
                return _mirrored(out, a < 0, d < 0)
            if top >= 0 and left >= 0 and top + height <= image.shape[0] and left + width <= image.shape[1]:
                _resized(image[top : top + height, left : left + width], out)
                return _mirrored(out, a < 0, d < 0)
    return _warped(image, matrix, out)


def _copied(image: Pixels, top: int, left: int, out: Pixels) -> None:
    size, (height, width) = len(out), image.shape[:2]
    if top >= 0 and left >= 0 and top + size <= height and left + size <= width:
        out[...] = image[top : top + size, left : left + size]
        return
    out[...] = 0
    first, end = max(0, -top), min(size, height - top)
    start, stop = max(0, -left), min(size, width - left)
    if first < end and start < stop:
        out[first:end, start:stop] = image[top + first : top + end, left + start : left + stop]


def _mirrored(out: Pixels, across: bool, down: bool) -> None:
    import cv2

    if across or down:
        cv2.flip(_flat(out), -1 if across and down else 1 if across else 0, dst=_flat(out))


def _resized(part: Pixels, out: Pixels) -> None:
    import cv2

    size = len(out)
    if max(part.shape[:2]) > size:
        out[...] = resample(_writable(part), size, size)
    else:
        cv2.resize(part, (size, size), dst=_flat(out), interpolation=cv2.INTER_LINEAR)


def _warped(image: Pixels, matrix: npt.NDArray[np.float64], out: Pixels) -> None:
    import cv2

    size, channels = len(out), image.shape[2]
    image, matrix = _reduced(image, matrix, size)
    (a, b, x), (c, d, y), (p, q, w) = matrix.tolist()
    # OpenCV's coordinates are those of the centres of pixels: half a pixel less on both sides.
    w += (p + q) / 2
    across, down = x + (a + b) / 2 - w / 2, y + (c + d) / 2 - w / 2
    centres = np.array([[a - p / 2, b - q / 2, across], [c - p / 2, d - q / 2, down], [p, q, w]])
    flags: dict[str, Any] = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}

    def move(pixels: Pixels, to: Pixels) -> None:
        if p or q:
            cv2.warpPerspective(pixels, centres, (size, size), dst=to, **flags)
        else:
            cv2.warpAffine(pixels, centres[:2] / w, (size, size), dst=to, **flags)

    if channels == 3:
        source, moved = _kept("source", image.shape[0], image.shape[1]), _kept("moved", size, size)
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=source)
        move(source, moved)
        cv2.cvtColor(moved, cv2.COLOR_RGBA2RGB, dst=out)
    elif channels <= _KERNEL:
        move(image, _flat(out))
    else:
        for first in range(0, channels, _KERNEL):
            part = np.ascontiguousarray(image[:, :, first : first + _KERNEL])
            moved = np.empty((size, size, part.shape[2]), np.uint8)
            move(part, _flat(moved))
            out[:, :, first : first + _KERNEL] = moved


def _reduced(image: Pixels, matrix: npt.NDArray[np.float64], size: int) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """The part of an image that is wanted, antialiased to about the size at which it is wanted, and its matrix.

    By how much, is said by the derivative at the centre: its rows for the two axes, made to agree with its
    determinant, for a shear that keeps areas loses nothing.
    """
    (a, b, x), (c, d, y), (p, q, w) = matrix.tolist()
    if p or q:
        w += (p + q) * size / 2
        x, y = (x + (a + b) * size / 2) / w, (y + (c + d) * size / 2) / w
        a, b, c, d = a - x * p, b - x * q, c - y * p, d - y * q
    across, down = math.hypot(a, b) / w, math.hypot(c, d) / w
    agreed = math.sqrt(abs(a * d - b * c) / max(w * w * across * down, 1e-12))
    across, down = max(1.0, across * agreed), max(1.0, down * agreed)
    if max(across, down) <= REDUCED:
        return image, matrix
    corners = matrix @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]], np.float64)
    if (corners[2] <= 0).any():
        return image, matrix
    xs, ys = corners[:2] / corners[2]
    left, right = _span(xs, image.shape[1], across)
    top, bottom = _span(ys, image.shape[0], down)
    if left >= right or top >= bottom:
        return image, matrix
    width, height = max(1, round((right - left) / across)), max(1, round((bottom - top) / down))
    part = np.ascontiguousarray(resample(_writable(image[top:bottom, left:right]), width, height))
    share = np.diag([width / (right - left), height / (bottom - top), 1.0])
    return part, share @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float64) @ matrix


def _span(values: npt.NDArray[np.float64], end: int, step: float) -> tuple[int, int]:
    """Pixels of an axis that a warp needs, with what its filter reaches beyond."""
    reach = 3 * step
    return max(0, math.floor(values.min() - reach)), min(end, math.ceil(values.max() + reach))


def _writable(pixels: Pixels) -> Pixels:
    """torch warns of memory that it must not write into, also where it only reads."""
    return pixels if pixels.flags.writeable else pixels.copy()


def _flat(pixels: Pixels) -> Pixels:
    """One channel without its axis: OpenCV gives it back so, and writes into nothing else."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _kept(name: str, height: int, width: int) -> Pixels:
    """Memory of this thread's for four channels, kept from image to image."""
    found: Pixels | None = getattr(_memory, name, None)
    if found is None or found.shape[:2] != (height, width):
        found = np.empty((height, width, _KERNEL), np.uint8)
        setattr(_memory, name, found)
    return found
