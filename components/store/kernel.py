"""The resample: uint8 [H, W, C] to another size, antialiased, and only the part of it that is wanted.

Bilinear, bicubic and lanczos by torch's native uint8 kernels, equal to Pillow's filters to ±1, seldom ±2; area by
OpenCV. A filter's reach grows with the reduction, so that every pixel of the source has its share.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import wrong
from .images import Pixels

if TYPE_CHECKING:
    import torch

REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
"""How far a filter reaches to either side, in pixels of the target where that is smaller than the source."""
KERNEL_CHANNELS = 4
"""What torch's uint8 kernel and OpenCV take at a time; with more torch falls back on one that is five times slower."""


NUDGE = 1 + 1e-12
"""torch rounds source x factor down to whole pixels: 255.99… must be 256."""


class Size(NamedTuple):
    """Of a full image in pixels, and by what it was divided when it was decoded."""

    width: int
    height: int
    divisor: int


class Window(NamedTuple):
    """A square of `size` pixels at (top, left) of a resampled picture."""

    top: int
    left: int
    size: int


def resample(
    pixels: Pixels,
    width: int,
    height: int,
    interpolation: str = "bilinear",
    window: Window | None = None,
    full: Size | None = None,
) -> Pixels:
    """uint8 [H, W, C] resampled to width x height, or the window of that alone: the same pixels (seldom ±1).

    `full`: of a scaled decode the full image's size and the divisor. 375 rows halved are 188, of which the last is
    only half there: taken for whole it would shift everything.
    """
    full = full or Size(pixels.shape[1], pixels.shape[0], 1)
    if (full.width, full.height) == (width, height) and full.divisor == 1:
        found = pixels
    elif pixels.shape[2] > KERNEL_CHANNELS:
        parts = np.split(pixels, range(KERNEL_CHANNELS, pixels.shape[2], KERNEL_CHANNELS), axis=2)
        made = [resample(np.ascontiguousarray(part), width, height, interpolation, window, full) for part in parts]
        return np.concatenate(made, axis=2)
    elif interpolation == "area":
        found = _area(pixels, width, height)
    else:
        return _torch(pixels, width, height, interpolation, window, full)
    if window is None:
        return found
    return found[window.top : window.top + window.size, window.left : window.left + window.size]


def _torch(pixels: Pixels, width: int, height: int, interpolation: str, window: Window | None, full: Size) -> Pixels:
    import torch
    from torch.nn.functional import interpolate

    top, left, rows, columns = (window.top, window.left, window.size, window.size) if window else (0, 0, height, width)
    reach, divisor = REACH[interpolation], full.divisor
    down = _needed(full.height, divisor, height, top, rows, reach)
    across = _needed(full.width, divisor, width, left, columns, reach)
    part = pixels[down.first : down.end, across.first : across.end]
    source = _channels_last(part)
    if part.shape == pixels.shape and divisor == 1:  # the sizes themselves are exact
        size: dict[str, Any] = {"size": (height, width)}
    else:
        size = {"scale_factor": (height * divisor / full.height * NUDGE, width * divisor / full.width * NUDGE)}
    try:
        made = interpolate(source, mode=interpolation, antialias=True, **size)
    except (ValueError, NotImplementedError) as error:
        raise wrong("interpolation", f"one that torch {torch.__version__} has", interpolation) from error
    found: Pixels = made[0, : pixels.shape[2]].permute(1, 2, 0).numpy()
    return found[down.skipped : down.skipped + rows, across.skipped : across.skipped + columns]


def _channels_last(pixels: Pixels) -> torch.Tensor:
    """uint8 [H, W, C] → uint8 [1, C, H, W], of which nothing is copied where C is 3; one channel three times.

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


class Needed(NamedTuple):
    """Source pixels `first` to `end` of one axis; of what is made of them the first `skipped` are not wanted."""

    first: int
    end: int
    skipped: int


@lru_cache(65536)
def _needed(full: int, divisor: int, target: int, start: int, length: int, reach: int) -> Needed:
    """What of an axis of `full` pixels, decoded at 1 / `divisor`, makes `length` of `target` pixels from `start` on.

    Beyond the end the filter does not reach, so what lies there is cut off. At the beginning only a whole number of
    source pixels that is also a whole number of target pixels can be cut, or all weights would shift.
    """
    there = -(-full // divisor)
    if length == target:
        return Needed(0, there, 0)
    reach = math.ceil(reach * max(1.0, target * divisor / full))
    end = min(there, math.ceil((start + length + reach) * full / (divisor * target)) + 1)
    step = divisor * target // math.gcd(full, divisor * target)
    cut = max(0, (start - reach) // step * step)
    first = cut * full // (divisor * target)
    if (end - first) * target * divisor // full == end - first and target * divisor != full:
        return Needed(0, there, start)  # torch takes equal lengths for nothing to do
    return Needed(first, end, start - cut)


def resample_long(
    pixels: Pixels, width: int, height: int, interpolation: str, window: Window, full: Size | None = None
) -> Pixels:
    """The window of a picture so long that what lies before it would not fit into memory; by Pillow."""
    from PIL import Image

    box_filter = {
        "area": Image.Resampling.BOX,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    chosen = box_filter.get(interpolation, Image.Resampling.BILINEAR)
    full = full or Size(pixels.shape[1], pixels.shape[0], 1)
    across, down = full.width / full.divisor / width, full.height / full.divisor / height
    top, left, size = window
    source = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    # One pass after the other, in the order in which a plain resize makes them: each rounds to 8 bits.
    for shape, box in (
        ((size, source.height), (left * across, 0, (left + size) * across, source.height)),
        ((size, size), (0, top * down, size, (top + size) * down)),
    ):
        source = source.resize(shape, chosen, box)
    return np.array(source).reshape(size, size, -1)


def _area(pixels: Pixels, width: int, height: int) -> Pixels:
    """OpenCV's INTER_AREA: the mean of the area; where the picture grows, linear."""
    import cv2

    found = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(found.reshape(height, width, pixels.shape[2]), np.uint8)
