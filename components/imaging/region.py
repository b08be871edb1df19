"""Regions of an image: the background by a mask, the crop to annotated boxes, and uniform borders.

Pure functions; pixels are uint8 [H, W, 1 or 3].
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from .pillow_decoder import ImageRejected, Pixels, apply_orientation, read_orientation

CropBox = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom excluded, as Pillow's `Image.crop`."""
SIDES = ("xmin", "ymin", "xmax", "ymax")

BLUR_SHARE = 1 / 20
"""Sigma of the blurred background, as a share of the image's short side: shapes vanish, colors and light stay."""
BLUR_SIDE = 128
"""The blur is computed on an image reduced to this short side: that is exact enough and costs the same for all."""
_MIN_SIDE = 0.01
"""Pixels; a narrower box has no area: the rounding of its float32 coordinates is larger than that."""


def find_box_window(boxes: Sequence[Mapping[str, Any]], roi: str, margin: float, width: int, height: int) -> CropBox:
    """Return the `largest` box, or the `union` of all, with `margin` (a share of its width and height) on every side.

    Boxes are those of Pascal VOC, xmin to ymax in pixels of the upright image: the first pixel is 1, and xmax and
    ymax belong to the box, which so covers [xmin - 1, xmax) x [ymin - 1, ymax). They are cut off at the image's
    border, then compared or united, widened, rounded outwards, and cut off again. Boxes without area within the
    image don't count; ImageRejected `bad_box` when none is left.
    """
    clipped = [edges for box in boxes if (edges := _clip_box(box, width, height))]
    if not clipped:
        first = ", ".join(f"{side} {boxes[0].get(side)}" for side in SIDES)
        more = f" and {len(boxes) - 1} more" if len(boxes) > 1 else ""
        raise ImageRejected("bad_box", f"no box with an area within {width} x {height} pixels: {first}{more}")
    if roi == "largest":
        left, top, right, bottom = max(clipped, key=lambda e: (e[2] - e[0]) * (e[3] - e[1]))
    else:
        columns = list(zip(*clipped, strict=True))
        left, top, right, bottom = min(columns[0]), min(columns[1]), max(columns[2]), max(columns[3])
    dx, dy = margin * (right - left), margin * (bottom - top)
    epsilon = _MIN_SIDE / 10  # 3.0000001 is 3: a float's last digits add no row
    return (
        max(0, math.floor(left - dx + epsilon)),
        max(0, math.floor(top - dy + epsilon)),
        min(width, math.ceil(right + dx - epsilon)),
        min(height, math.ceil(bottom + dy - epsilon)),
    )


def _clip_box(box: Mapping[str, Any], width: int, height: int) -> tuple[float, float, float, float] | None:
    """Return (left, top, right, bottom) of a box within the image; None where there is no area."""
    values = [math.nan if box.get(side) is None else float(box[side]) for side in SIDES]
    if any(math.isnan(value) for value in values):
        return None
    left, right = max(0.0, values[0] - 1), min(float(width), values[2])
    top, bottom = max(0.0, values[1] - 1), min(float(height), values[3])
    return (left, top, right, bottom) if min(right - left, bottom - top) > _MIN_SIDE else None


def crop(pixels: Pixels, box: CropBox) -> Pixels:
    """Return the pixels of `box`, C-contiguous; the same array where the box is the entire image."""
    left, top, right, bottom = box
    if (right - left, bottom - top) == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def find_content_window(pixels: Pixels, tolerance: int) -> CropBox:
    """Return the box within uniform borders: first rows at the top and bottom are cut off, then columns of the rest.

    A side's border is the run of outermost lines of which every pixel is, in each channel, within `tolerance` levels
    of the outermost line's median. Where that would leave nothing (an even image, or two even halves), nothing
    is cut in that direction.
    """
    top, bottom = _trim(pixels, tolerance)
    left, right = _trim(pixels[top:bottom].transpose(1, 0, 2), tolerance)
    return left, top, right, bottom


def _trim(lines: Pixels, tolerance: int) -> tuple[int, int]:
    """Return the range of the lines [N, M, C] between the borders: first and last, the last excluded."""
    if lines.shape[1] == 1:  # a single pixel is always even
        return 0, len(lines)
    first = _count_uniform_lines(lines, tolerance)
    last = len(lines) - (_count_uniform_lines(lines[::-1], tolerance) if first < len(lines) else 0)
    return (first, last) if first < last else (0, len(lines))


def _count_uniform_lines(lines: Pixels, tolerance: int) -> int:
    """Return the number of lines from the first on that are within `tolerance` of the median of the first."""
    median = np.sort(lines[0], axis=0)[lines.shape[1] // 2].astype(int)
    low, high = tuple((median - tolerance).tolist()), tuple((median + tolerance).tolist())
    done, step = 0, 1
    while done < len(lines):
        block = np.ascontiguousarray(lines[done : done + step])
        fits = cv2.inRange(block, low, high).reshape(block.shape[:2]).min(axis=1) > 0
        if not fits.all():
            return done + int(fits.argmin())
        done, step = done + step, 2 * step
    return len(lines)


def decode_background_mask(mask: bytes, values: Sequence[int], data: bytes, width: int, height: int) -> Pixels:
    """Decode a PNG mask to uint8 [H, W], 1 where the image's background is and 0 elsewhere.

    The mask has one channel, of which the stored values count (a palette's indices; 0 and 1 where it has one bit).
    `values` are background; if empty: 2 in a trimap (which holds 1, 2 and 3 only: foreground, background, and the
    border between them, as in Oxford-IIIT Pet), else 0. It has the size
    of the upright image of `width` x `height` pixels. One that has the size of the image as it is stored in `data`,
    where EXIF turns that by a quarter, is turned along.

    ImageRejected `bad_mask` for one that does not decode or fit, or that is background all over.
    """
    labels = _decode_labels(mask, width, height)
    if labels.shape != (height, width):
        labels = _turn_labels(labels, data)
    if not values:
        values = (2,) if labels.min() >= 1 and labels.max() <= 3 else (0,)  # a trimap, or a plain mask
    is_background = np.isin(labels, values, kind="table").astype(np.uint8)
    if is_background.all():
        raise ImageRejected("bad_mask", f"every pixel is background (values {', '.join(map(str, values))})")
    return np.ascontiguousarray(is_background)


def _decode_labels(mask: bytes, width: int, height: int) -> npt.NDArray[Any]:
    """Return the stored values, [H, W] or turned by a quarter; the size is checked before anything is decoded."""
    try:
        # `verify` checks the checksums, which Pillow passes over when it decodes.
        Image.open(io.BytesIO(mask), formats=["PNG"]).verify()
        with Image.open(io.BytesIO(mask), formats=["PNG"]) as opened:
            if opened.size in ((width, height), (height, width)) and opened.mode in ("1", "L", "P", "I;16"):
                labels = np.asarray(opened)
                return _undo_scaling(labels, mask) if labels.dtype != np.bool_ else labels.astype(np.uint8)
            size, mode = opened.size, opened.mode
    except MemoryError:
        raise
    except Exception as error:  # broken bytes can raise anything, and they are in memory
        raise ImageRejected("bad_mask", f"no PNG that decodes: {str(error)[:200]}") from None
    if size not in ((width, height), (height, width)):
        raise ImageRejected("bad_mask", f"{size[0]} x {size[1]} pixels, the image has {width} x {height}")
    raise ImageRejected("bad_mask", f"mode {mode}, expected a single channel")


def _undo_scaling(labels: npt.NDArray[Any], mask: bytes) -> npt.NDArray[Any]:
    """Undo Pillow's scaling of gray of 2 or 4 bits to 0 to 255; depth and color type are bytes 24 and 25 of a PNG."""
    depth, color_type = mask[24], mask[25]
    return labels // (255 // (2**depth - 1)) if color_type == 0 and depth in (2, 4) else labels


def _turn_labels(labels: npt.NDArray[Any], data: bytes) -> npt.NDArray[Any]:
    """Turn the mask of a stored image that EXIF turns by a quarter upright (EXIF 2.32, 4.6.4.A)."""
    try:
        orientation = read_orientation(Image.open(io.BytesIO(data)))
    except Exception:  # as the decoder: a header that Pillow can't read means upright
        orientation = 1
    if orientation not in (5, 6, 7, 8):
        height, width = labels.shape
        raise ImageRejected("bad_mask", f"{width} x {height} pixels, the image has {height} x {width}")
    return apply_orientation(labels, orientation)


def fill_background(pixels: Pixels, background: Pixels, color: Sequence[int]) -> Pixels:
    """Return a copy with the background in one color, of as many channels as the pixels have."""
    height, width, channels = pixels.shape
    flat = np.empty((height, width * channels), np.uint8)
    flat[:] = np.tile(np.array(color, np.uint8), width)
    return _replace_background(pixels, background, flat)


def blur_background(pixels: Pixels, background: Pixels) -> Pixels:
    """Return a copy with the background blurred by a Gaussian of sigma = short side * `BLUR_SHARE`.

    Normalized convolution (Knutsson and Westin, 1993): each background pixel becomes the weighted mean of background
    pixels only, so no color of the foreground bleeds into it.
    """
    height, width = pixels.shape[:2]
    scale = max(1.0, min(height, width) / BLUR_SIDE)
    sigma = min(height, width) * BLUR_SHARE / scale
    size = (max(1, round(width / scale)), max(1, round(height / scale)))
    masked = cv2.copyTo(pixels, background)  # black where the foreground is
    total, weight = (_reduce_and_blur(plane, size, sigma) for plane in (masked, background * np.uint8(255)))
    mean = np.array(cv2.mean(pixels, background)[: pixels.shape[2]], np.float32)
    # Where there is hardly any background nearby, its weight rounds to 0: then the mean of all background is used.
    small = np.where(weight > 1, total * 255 / np.maximum(weight, 1), mean)
    soft: Any = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return _replace_background(pixels, background, cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR))


def _reduce_and_blur(plane: Any, size: tuple[int, int], sigma: float) -> npt.NDArray[np.float32]:
    """Return 256 times the area means of uint8 [H, W(, C)], blurred, 0 beyond the border: float32 [h, w, C]."""
    fine = plane.astype(np.uint16) << 8  # OpenCV rounds the means to its type
    small = cv2.resize(fine, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    soft = cv2.GaussianBlur(small, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(soft.reshape(*soft.shape[:2], -1), np.float32)


def _replace_background(pixels: Pixels, background: Pixels, flat: Any) -> Pixels:
    """Return a copy of the pixels with those of `flat` where the background is."""
    out = np.array(pixels, order="C")
    cv2.copyTo(flat.reshape(pixels.shape), background, out)
    return out
