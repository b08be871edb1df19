"""Resampling: uint8 [H, W, C] to another size, antialiased, and only the square that is asked for.

Bilinear, bicubic and lanczos by torch's native uint8 kernels, equal to Pillow's filters to ±1, seldom ±2; area by
OpenCV. A filter's support grows with the reduction, so that every pixel of the source has its share.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ..storage.errors import wrong
from .decoder import Pixels

if TYPE_CHECKING:
    import torch

FILTER_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
"""Pixels of the target, where that is smaller than the source, that a filter reaches to either side."""
PILLOW_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
KERNEL_CHANNELS = 4
"""Channels that torch's uint8 kernel and OpenCV take at a time; with more torch's is five times slower."""
ROUNDING_GUARD = 1 + 1e-12
"""torch rounds source x factor down to whole pixels: 255.99… must be 256."""


class SourceSize(NamedTuple):
    """Size of a full image in pixels, and the number by which it was divided when it was decoded."""

    width: int
    height: int
    divisor: int


class CropSquare(NamedTuple):
    """A square of `size` pixels at (top, left) of a resampled picture."""

    top: int
    left: int
    size: int


def resample(
    pixels: Pixels,
    width: int,
    height: int,
    interpolation: str = "bilinear",
    square: CropSquare | None = None,
    full: SourceSize | None = None,
) -> Pixels:
    """Resample uint8 [H, W, C] to width x height, or only `square` of that: the same pixels (seldom ±1).

    `full`: of a scaled decode the full image's size and the divisor. 375 rows halved are 188, of which the last is
    only half there: counted as a complete one it would shift everything.
    """
    full = full or SourceSize(pixels.shape[1], pixels.shape[0], 1)
    if (full.width, full.height) == (width, height) and full.divisor == 1:
        resampled = pixels
    elif pixels.shape[2] > KERNEL_CHANNELS:
        groups = np.split(pixels, range(KERNEL_CHANNELS, pixels.shape[2], KERNEL_CHANNELS), axis=2)
        parts = [resample(np.ascontiguousarray(group), width, height, interpolation, square, full) for group in groups]
        return np.concatenate(parts, axis=2)
    elif interpolation == "area":
        resampled = _resample_area(pixels, width, height)
    else:
        return _resample_torch(pixels, width, height, interpolation, square, full)
    if square is None:
        return resampled
    return resampled[square.top : square.top + square.size, square.left : square.left + square.size]


def _resample_torch(
    pixels: Pixels, width: int, height: int, interpolation: str, square: CropSquare | None, full: SourceSize
) -> Pixels:
    import torch
    from torch.nn.functional import interpolate

    top, left, rows, columns = (square.top, square.left, square.size, square.size) if square else (0, 0, height, width)
    support, divisor = FILTER_SUPPORT[interpolation], full.divisor
    down = _source_range(full.height, divisor, height, top, rows, support)
    across = _source_range(full.width, divisor, width, left, columns, support)
    part = pixels[down.first : down.end, across.first : across.end]
    source = _channels_last(part)
    if part.shape == pixels.shape and divisor == 1:  # the sizes themselves are exact
        size: dict[str, Any] = {"size": (height, width)}
    else:
        size = {
            "scale_factor": (
                height * divisor / full.height * ROUNDING_GUARD,
                width * divisor / full.width * ROUNDING_GUARD,
            )
        }
    try:
        batch = interpolate(source, mode=interpolation, antialias=True, **size)
    except (ValueError, NotImplementedError) as error:
        raise wrong("interpolation", f"one that torch {torch.__version__} has", interpolation) from error
    resampled: Pixels = batch[0, : pixels.shape[2]].permute(1, 2, 0).numpy()
    return resampled[down.skipped : down.skipped + rows, across.skipped : across.skipped + columns]


def _channels_last(pixels: Pixels) -> torch.Tensor:
    """View uint8 [H, W, C] as uint8 [1, C, H, W]; nothing is copied where C is 3, one channel is repeated three times.

    With three channels side by side torch resamples in place; anything else it first spreads to four channels, and
    back again: half of its time. It knows the form by the strides, of the batch's one image too, which a plain
    view leaves wrong (`torch.Tensor.is_contiguous(memory_format=channels_last)`).
    """
    import cv2
    import torch

    if pixels.shape[2] == 1:
        pixels = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    height, width, channels = pixels.shape
    if pixels.strides[1:] != (channels, 1) or pixels.strides[0] < width * channels:
        pixels = np.ascontiguousarray(pixels)
    row = pixels.strides[0]
    return torch.from_numpy(pixels).as_strided((1, channels, height, width), (row * height, 1, row, channels))


class SourceRange(NamedTuple):
    """Source pixels `first` to `end` of one axis; the first `skipped` of the resampled pixels are discarded."""

    first: int
    end: int
    skipped: int


@lru_cache(65536)
def _source_range(full: int, divisor: int, target: int, start: int, length: int, support: int) -> SourceRange:
    """Return the range of an axis of `full` pixels, decoded at 1 / `divisor`, that `length` of `target` pixels from
    `start` on are resampled from.

    Beyond the end the filter does not reach, so what lies there is cut off. At the beginning only a whole number of
    source pixels that is also a whole number of target pixels can be cut, or all weights would shift.
    """
    decoded = -(-full // divisor)
    if length == target:
        return SourceRange(0, decoded, 0)
    support = math.ceil(support * max(1.0, target * divisor / full))
    end = min(decoded, math.ceil((start + length + support) * full / (divisor * target)) + 1)
    step = divisor * target // math.gcd(full, divisor * target)
    cut = max(0, (start - support) // step * step)
    first = cut * full // (divisor * target)
    if (end - first) * target * divisor // full == end - first and target * divisor != full:
        return SourceRange(0, decoded, start)  # torch takes equal lengths for nothing to do
    return SourceRange(first, end, start - cut)


def resample_long(
    pixels: Pixels, width: int, height: int, interpolation: str, square: CropSquare, full: SourceSize | None = None
) -> Pixels:
    """Resample `square` of a picture so elongated that a resample of all of it would not fit into memory; by Pillow."""
    full = full or SourceSize(pixels.shape[1], pixels.shape[0], 1)
    across, down = full.width / full.divisor / width, full.height / full.divisor / height
    top, left, size = square
    source = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    # One pass after the other, in the order in which a plain resize makes them: each rounds to 8 bits.
    for shape, box in (
        ((size, source.height), (left * across, 0, (left + size) * across, source.height)),
        ((size, size), (0, top * down, size, (top + size) * down)),
    ):
        source = source.resize(shape, PILLOW_FILTERS[interpolation], box)
    return np.array(source).reshape(size, size, -1)


def _resample_area(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resample with OpenCV's INTER_AREA: the mean of the area; where the picture grows, linear."""
    import cv2

    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized.reshape(height, width, pixels.shape[2]), np.uint8)
