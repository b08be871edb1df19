"""The geometry of a model's input: from a decoded image to a fixed shape, for resize and evaluate alike.

`crop`: short side to round(size · 256/224), then the center square (the ImageNet evaluation transform, torchvision's
`ImageClassification` preset); `squash`: straight to the square; `letterbox`: long side to the size, the rest filled
with black. Antialiased on uint8, bilinear as Pillow computes it by default.

YCbCr and Lab are made of RGB last, after the resample: of fewer pixels, and of pixels that pretrained weights know. A
single channel is taken first: a third of the resample, and the same pixels. Edge channels come after the color's. They
are computed of the gray of the resampled picture before any padding, so that neither the size of the original nor the
border of a letterbox makes edges.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dataset.kinds import ImageSpec
from .decoder import NO_LIMITS, Decoded, LenientDecoding, Pixels, convert_color, decode
from .pixel_options import CANNY_HIGH, CANNY_LOW, COLORS, usual_resize
from .resample import CropSquare, SourceSize, resample, resample_long

__all__ = ["Geometry", "compute_edges", "decode_and_resize", "resample", "resize_image"]
MAX_ASPECT_RATIO = 16
"""Sides beyond this ratio are cropped while they are resized: 1 x 65,500 pixels would be 4 GB before the crop."""
LARGE_PIXELS = 2**20
"""Small pictures were mostly reduced from larger ones and are sharp to the last pixel; a camera's are not."""
LARGE_MARGIN, SMALL_MARGIN, FAST_MARGIN = 2.0, 3.0, 1.2
"""Multiples of the target that a scaled decode must keep on both sides: of a large picture, of a small one, and of any
with quality `fast`. Measured on photographs: in the mean 0.2 to 0.3 of 255 off at twice (large) and at three times
(small), 0.9 to 1.4 at 1.2 times, 2.8 at the target itself."""
SOBEL_SCALE = 1 / math.sqrt(20)
"""The magnitude is at most 255 * sqrt(20) (a step whose corner is cut by one pixel); a straight step of the full
255 levels, 1020, becomes 228."""
_AXES = ((1, 0), (0, 1))
"""Orders of the derivatives in x and y."""


@dataclass(frozen=True)
class Geometry:
    """The transform of an image to `size` x `size` pixels. Manifests and models have it as their `image`.

    `edges`: names of edge channels; `canny_low`, `canny_high`: the thresholds of `canny`. `resize`: the short side is
    resized to this before a crop (0: `usual_resize`). `stored`: side of a larger square around the model's own that is
    kept for random crops (0: none); the model's is its center.
    """

    size: int
    mode: str = "crop"
    color: str = "rgb"
    edges: tuple[str, ...] = ()
    canny_low: int = CANNY_LOW
    canny_high: int = CANNY_HIGH
    resize: int = 0
    stored: int = 0
    interpolation: str = "bilinear"
    quality: str = "exact"

    @classmethod
    def create(cls, size: int, *, resize: int = 0, stored: int = 0, **options: Any) -> Geometry:
        """Return the geometry with 0 for a `resize` or `stored` that 0 stands for, so that equal ones compare equal."""
        resize = 0 if resize == usual_resize(size) else resize
        return cls(size, resize=resize, stored=0 if stored == size else stored, **options)

    @property
    def kept(self) -> int:
        """Side in pixels of the square that comes out."""
        return self.stored or self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of the result: the color's channels, then one for each of `edges`."""
        return (self.kept, self.kept, COLORS[self.color] + len(self.edges))

    @property
    def short_side(self) -> int:
        """Short side in pixels before a center crop."""
        return self.resize or usual_resize(self.size)

    @property
    def input(self) -> Geometry:
        """The geometry of the model's input: the same without the larger stored square."""
        return replace(self, stored=0)

    def describe(self, encoding: str, mean: Sequence[float], std: Sequence[float]) -> ImageSpec:
        """Return the manifest's `image` entry on images of this geometry."""
        return ImageSpec(
            shape=self.shape,
            input_size=self.size,
            color=self.color,
            mode=self.mode,
            interpolation=self.interpolation,
            quality=self.quality,
            resize_size=self.short_side if self.mode == "crop" else None,
            edges=self.edges,
            canny_low=self.canny_low if self.edges else None,
            canny_high=self.canny_high if self.edges else None,
            encoding=encoding,
            mean=tuple(mean),
            std=tuple(std),
        )

    @classmethod
    def of(cls, image: ImageSpec) -> Geometry:
        """Return the geometry of a manifest's images."""
        return cls.create(
            image.side,
            mode=image.mode,
            color=image.color,
            edges=image.edges,
            canny_low=CANNY_LOW if image.canny_low is None else image.canny_low,
            canny_high=CANNY_HIGH if image.canny_high is None else image.canny_high,
            resize=image.resize_size or 0,
            stored=image.shape[0],
            interpolation=image.interpolation,
            quality=image.quality,
        )

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) that an image of that size is resized to, before crop or padding."""
        if self.mode == "squash":
            return self.size, self.size
        short, long = min(width, height), max(width, height)
        if self.mode == "crop":
            new_short, new_long = self.short_side, int(self.short_side * long / short)
        else:
            new_short, new_long = max(1, round(self.size * short / long)), self.size
        return (new_short, new_long) if width <= height else (new_long, new_short)


Before = Callable[[Decoded], Decoded]
"""A change of the decoded image, at the size it was decoded in."""
After = Callable[[Pixels], Pixels]
"""A change of the picture when it is resampled and cropped, before its color and edges are made: the same shape."""

_thread_buffers = threading.local()
"""Each thread's own decode buffer: memory that is fresh for every image costs a twelfth of the time."""
_BUFFER_BYTES = 24 * 2**20


def decode_and_resize(
    data: bytes, geometry: Geometry, before: Before | None = None, after: After | None = None
) -> Pixels:
    """Decode bytes that clean has vetted to uint8 [H, W, C]. Raises ImageRejected.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough pixels.
    """
    color = geometry.color if COLORS[geometry.color] == 1 else "rgb"
    fast = geometry.quality == "fast"

    def min_size(width: int, height: int) -> tuple[int, int]:
        margin = FAST_MARGIN if fast else LARGE_MARGIN if width * height >= LARGE_PIXELS else SMALL_MARGIN
        target_width, target_height = geometry.scaled(width, height)
        return math.ceil(margin * target_width), math.ceil(margin * target_height)

    buffer = _thread_buffer()
    may_scale = geometry.interpolation != "area"  # the mean of an area is that of all its pixels
    lenient = LenientDecoding(min_size if may_scale else None, fast, buffer)
    decoded = decode(data, color, lenient=lenient, limits=NO_LIMITS)
    pixels = resize_image(before(decoded) if before else decoded, geometry, after)
    return pixels.copy() if np.may_share_memory(pixels, buffer) else pixels


def _thread_buffer() -> Pixels:
    buffer: Pixels | None = getattr(_thread_buffers, "buffer", None)
    if buffer is None:
        buffer = _thread_buffers.buffer = np.empty(_BUFFER_BYTES, np.uint8)  # untouched pages cost nothing
    return buffer


def resize_image(image: Decoded, geometry: Geometry, after: After | None = None) -> Pixels:
    """Resize a decoded image, of three channels in RGB or of one in the geometry's color, to uint8 [H, W, C].

    The full image's size decides, not that of a scaled decode.
    """
    picture = _resample_and_crop(image, geometry)
    return finish_tensor(after(picture) if after else picture, geometry)


def finish_tensor(picture: Pixels, geometry: Geometry) -> Pixels:
    """Convert the color, add edges and pad: uint8 [h, w, RGB or one channel] → uint8 [H, W, C]."""
    color = convert_color(pad_to_square(picture, geometry.kept), geometry.color)
    if not geometry.edges:
        return color
    edges = compute_edges(convert_color(picture, "gray"), geometry.edges, geometry.canny_low, geometry.canny_high)
    return np.concatenate([color, pad_to_square(edges, geometry.kept)], axis=2)


def _resample_and_crop(image: Decoded, geometry: Geometry) -> Pixels:
    """Return uint8 [h, w, channels of the image], contiguous: resampled and cropped, not yet padded."""
    width, height = geometry.scaled(image.width, image.height)
    source = SourceSize(image.width, image.height, image.divisor)
    interpolation = geometry.interpolation
    if geometry.mode != "crop":
        return np.ascontiguousarray(resample(image.pixels, width, height, interpolation, None, source))
    square = center_square(width, height, geometry)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return resample_long(image.pixels, width, height, interpolation, square, source)
    return np.ascontiguousarray(resample(image.pixels, width, height, interpolation, square, source))


def center_square(width: int, height: int, geometry: Geometry) -> CropSquare:
    """Return the square that is kept of a picture resampled to width x height: around the model's own square.

    torchvision's CenterCrop rounds half to even; the same here, so that pixels are equal.
    """
    margin = (geometry.kept - geometry.size) // 2
    top, left = (round((side - geometry.size) / 2.0) - margin for side in (height, width))
    return CropSquare(top, left, geometry.kept)


def pad_to_square(picture: Pixels, size: int) -> Pixels:
    """Return the picture in the middle of size x size pixels, 0 around it."""
    height, width, channels = picture.shape
    if height == width == size:
        return picture
    canvas: Pixels = np.zeros((size, size, channels), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas


def compute_edges(gray: Pixels, edges: tuple[str, ...], low: int = CANNY_LOW, high: int = CANNY_HIGH) -> Pixels:
    """Compute edge channels: uint8 [H, W, 1] → uint8 [H, W, one for each of `edges`].

    `sobel`: sqrt(gx² + gy²) of the two 3x3 Sobel derivatives, scaled by `SOBEL_SCALE` so that it fits into 0 to
    255 without clipping. `canny`: 255 on the edges of Canny's detector (Canny, "A Computational Approach to Edge
    Detection", 1986; cv2.Canny with aperture 3 and the L1 norm, thresholds `low` and `high`), else 0. At the border
    the outermost pixels are repeated, which makes no edges there.
    """
    import cv2

    def sobel(flat: Pixels) -> Any:
        gx, gy = (cv2.Sobel(flat, cv2.CV_32F, *axis, ksize=3, borderType=cv2.BORDER_REPLICATE) for axis in _AXES)
        return cv2.convertScaleAbs(cv2.magnitude(gx, gy), alpha=SOBEL_SCALE)

    flat = gray[:, :, 0]
    channels = [sobel(flat) if name == "sobel" else cv2.Canny(flat, low, high) for name in edges]
    return np.stack(channels, axis=2)
