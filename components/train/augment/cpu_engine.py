"""The augmentation engine on the CPU: image by image on uint8, in the thread that calls it.

Almost all of its time is spent in OpenCV and torch on whole images, without the interpreter's lock, so it scales with
threads. The geometry of an image is applied in the cheapest way that gives its pixels. Whole pixels are copied and
flipped. A box of whole pixels is resized: bilinear, and antialiased where it shrinks (torchvision's RandomResizedCrop;
beyond the box its edge is repeated). Anything else is one warp, bilinear and black outside of the image; a reduction by
more than `ANTIALIAS_ABOVE` is resized first, for a warp reads four pixels only.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...imaging.decoder import Pixels
from ...imaging.geometry import resample
from .cpu_colors import LazyImage, apply_color_operations, drop_single_channel
from .params import AugmentParams

ANTIALIAS_ABOVE = 1.3
"""Input pixels per output pixel."""
_TOLERANCE = 1e-6
"""Pixels: the rounding error of a whole number."""
_WARP_CHANNELS = 4
"""Channels that OpenCV warps at a time; three take it twice as long as four."""
_thread_buffers = threading.local()


class CpuEngine:
    """Applies parameters to a batch: uint8 [B, H, W, C] → uint8 [B, S, S, C].

    The first `color_channels` channels are color, the others edges; `erase_value` uint8 [C] fills erased boxes.
    """

    def __init__(self, size: int, color_channels: int, erase_value: npt.NDArray[np.uint8]) -> None:
        cv2.setNumThreads(1)  # of OpenCV's own: the loader has as many threads as cores already
        self._size, self._color_channels, self._erase_value = size, color_channels, erase_value
        self._memory = threading.local()

    def __call__(self, images: Pixels, params: AugmentParams) -> Pixels:
        outputs = np.empty((len(images), self._size, self._size, images.shape[3]), np.uint8)
        has_operations = (params.operations != 0).any(axis=1).tolist()
        rows = zip(
            images, outputs, params.matrix, has_operations, params.operations, params.values, params.seeds.tolist(),
            params.erase.tolist(), strict=True,
        )  # fmt: skip
        for image, out, matrix, changes_color, operations, values, seed, (top, left, height, width) in rows:
            warp(image, matrix, out)
            if changes_color:
                self._change_colors(out, operations.tolist(), values.tolist(), seed)
            if height:
                out[top : top + height, left : left + width] = self._erase_value
        return outputs

    def _change_colors(self, image: Pixels, operations: list[int], values: list[float], seed: int) -> None:
        """Apply color operations in place; edges are left alone."""
        has_edges = image.shape[2] != self._color_channels
        colors = np.ascontiguousarray(image[:, :, : self._color_channels]) if has_edges else image
        result = apply_color_operations(LazyImage(colors, self._spare(colors.shape), seed), operations, values)
        if result is not colors or has_edges:
            image[:, :, : self._color_channels] = result
        if result is not colors:
            self._memory.spare = result

    def _spare(self, shape: tuple[int, ...]) -> Pixels:
        """Return this thread's scratch memory of that shape."""
        spare: Pixels | None = getattr(self._memory, "spare", None)
        if spare is None or spare.shape != shape:
            spare = self._memory.spare = np.empty(shape, np.uint8)
        return spare


def warp(image: Pixels, matrix: npt.NDArray[np.float64], out: Pixels) -> None:
    """Transform an image, uint8 [H, W, C], into `out`, uint8 [S, S, C], contiguous. `matrix` [3, 3] as in params.py."""
    size = out.shape[0]
    (a, b, x), (c, d, y), (p, q, _) = matrix.tolist()
    if not (p or q or abs(b) > _TOLERANCE or abs(c) > _TOLERANCE):
        # A flipped box is copied as it is, and flipped in place: OpenCV's flip is fast, numpy's is not.
        box = (min(y, y + d * size), min(x, x + a * size), abs(d) * size, abs(a) * size)
        top, left, height, width = (round(value) for value in box)
        if all(abs(value - whole) < _TOLERANCE for value, whole in zip(box, (top, left, height, width), strict=True)):
            if height == width == size:
                _copy_box(image, top, left, out)
                return _flip(out, a < 0, d < 0)
            if top >= 0 and left >= 0 and top + height <= image.shape[0] and left + width <= image.shape[1]:
                _resize(image[top : top + height, left : left + width], out)
                return _flip(out, a < 0, d < 0)
    return _warp_bilinear(image, matrix, out)


def _copy_box(image: Pixels, top: int, left: int, out: Pixels) -> None:
    """Copy the square of the output's size at that position, black outside of the image."""
    size, (height, width) = len(out), image.shape[:2]
    if top >= 0 and left >= 0 and top + size <= height and left + size <= width:
        out[...] = image[top : top + size, left : left + size]
        return
    out[...] = 0
    first_row, end_row = max(0, -top), min(size, height - top)
    first_column, end_column = max(0, -left), min(size, width - left)
    if first_row < end_row and first_column < end_column:
        box = image[top + first_row : top + end_row, left + first_column : left + end_column]
        out[first_row:end_row, first_column:end_column] = box


def _flip(image: Pixels, horizontal: bool, vertical: bool) -> None:
    if horizontal or vertical:
        pixels = drop_single_channel(image)
        cv2.flip(pixels, -1 if horizontal and vertical else 1 if horizontal else 0, dst=pixels)


def _resize(image: Pixels, out: Pixels) -> None:
    size = len(out)
    if max(image.shape[:2]) > size:
        out[...] = resample(_make_writable(image), size, size)
    else:
        cv2.resize(image, (size, size), dst=drop_single_channel(out), interpolation=cv2.INTER_LINEAR)


def _warp_bilinear(image: Pixels, matrix: npt.NDArray[np.float64], out: Pixels) -> None:
    size, channels = len(out), image.shape[2]
    image, matrix = _reduce(image, matrix, size)
    (a, b, x), (c, d, y), (p, q, w) = matrix.tolist()
    # OpenCV's coordinates are those of pixel centers: half a pixel less on both sides.
    w += (p + q) / 2
    shift_x, shift_y = x + (a + b) / 2 - w / 2, y + (c + d) / 2 - w / 2
    cv_matrix = np.array([[a - p / 2, b - q / 2, shift_x], [c - p / 2, d - q / 2, shift_y], [p, q, w]])
    flags: dict[str, Any] = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP}

    def cv_warp(source: Pixels, target: Pixels) -> None:
        if p or q:
            cv2.warpPerspective(source, cv_matrix, (size, size), dst=target, **flags)
        else:
            cv2.warpAffine(source, cv_matrix[:2] / w, (size, size), dst=target, **flags)

    if channels == 3:
        source = _thread_buffer("source", image.shape[0], image.shape[1])
        target = _thread_buffer("target", size, size)
        cv2.cvtColor(image, cv2.COLOR_RGB2RGBA, dst=source)
        cv_warp(source, target)
        cv2.cvtColor(target, cv2.COLOR_RGBA2RGB, dst=out)
    elif channels <= _WARP_CHANNELS:
        cv_warp(image, drop_single_channel(out))
    else:
        for first in range(0, channels, _WARP_CHANNELS):
            source = np.ascontiguousarray(image[:, :, first : first + _WARP_CHANNELS])
            target = np.empty((size, size, source.shape[2]), np.uint8)
            cv_warp(source, drop_single_channel(target))
            out[:, :, first : first + _WARP_CHANNELS] = target


def _reduce(image: Pixels, matrix: npt.NDArray[np.float64], size: int) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """Resize the part of an image that the output shows, antialiased, to about its size in the output; return it with
    its matrix.

    The factors are the lengths of the rows of the derivative at the center, scaled so that their product is its
    determinant, for a shear that keeps areas loses nothing.
    """
    (a, b, x), (c, d, y), (p, q, w) = matrix.tolist()
    if p or q:
        w += (p + q) * size / 2
        x, y = (x + (a + b) * size / 2) / w, (y + (c + d) * size / 2) / w
        a, b, c, d = a - x * p, b - x * q, c - y * p, d - y * q
    factor_x, factor_y = math.hypot(a, b) / w, math.hypot(c, d) / w
    correction = math.sqrt(abs(a * d - b * c) / max(w * w * factor_x * factor_y, 1e-12))
    factor_x, factor_y = max(1.0, factor_x * correction), max(1.0, factor_y * correction)
    if max(factor_x, factor_y) <= ANTIALIAS_ABOVE:
        return image, matrix
    corners = matrix @ np.array([[0, size, 0, size], [0, 0, size, size], [1, 1, 1, 1]], np.float64)
    if (corners[2] <= 0).any():
        return image, matrix
    xs, ys = corners[:2] / corners[2]
    left, right = _find_span(xs, image.shape[1], factor_x)
    top, bottom = _find_span(ys, image.shape[0], factor_y)
    if left >= right or top >= bottom:
        return image, matrix
    width, height = max(1, round((right - left) / factor_x)), max(1, round((bottom - top) / factor_y))
    reduced = np.ascontiguousarray(resample(_make_writable(image[top:bottom, left:right]), width, height))
    scale = np.diag([width / (right - left), height / (bottom - top), 1.0])
    return reduced, scale @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float64) @ matrix


def _find_span(values: npt.NDArray[np.float64], end: int, factor: float) -> tuple[int, int]:
    """Return the first and the end pixel along an axis that a warp reads, with the reach of the resize's filter."""
    reach = 3 * factor
    return max(0, math.floor(values.min() - reach)), min(end, math.ceil(values.max() + reach))


def _make_writable(pixels: Pixels) -> Pixels:
    """Copy read-only memory: torch warns of it, also where it only reads."""
    return pixels if pixels.flags.writeable else pixels.copy()


def _thread_buffer(name: str, height: int, width: int) -> Pixels:
    """Return memory of this thread for four channels, kept from image to image."""
    buffer: Pixels | None = getattr(_thread_buffers, name, None)
    if buffer is None or buffer.shape[:2] != (height, width):
        buffer = np.empty((height, width, _WARP_CHANNELS), np.uint8)
        setattr(_thread_buffers, name, buffer)
    return buffer
