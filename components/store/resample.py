"""From a decoded image to the fixed shape a model sees: the one geometry, for resize and evaluate alike.

`crop`: short side to round(size · 256/224), then the centre square (the ImageNet evaluation transform,
torchvision's `ImageClassification` preset); `squash`: straight to the square; `letterbox`: long side to
the size, the rest filled with black. Antialiased on uint8, bilinear as Pillow computes it where nothing else is said.

YCbCr and Lab are made of RGB last, after the resample: of fewer pixels, and of the picture that everybody else
gets, for bilinear on RGB is what models and their pretrained weights know. A single channel is taken first: a
third of the resample, and the same pixels. Edge channels come after the colour's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .choices import CANNY_HIGH, CANNY_LOW, COLORS, usual_resize
from .edges import edge_channels
from .images import VETTED, Decoded, Lenient, Pixels, decode, in_color
from .kernel import Size, Window, resample, resample_long

__all__ = ["Geometry", "decode_to", "fit", "resample"]
LONG = 16
"""Sides beyond this ratio are cropped while they are resized: 1 x 65,500 pixels would be 4 GB before the crop."""
LARGE = 2**20
"""Pixels. Small pictures were mostly made of larger ones and are sharp to the last pixel; a camera's are not."""
LARGE_MARGIN, SMALL_MARGIN, FAST_MARGIN = 2.0, 3.0, 1.2
"""How many times the target a scaled decode must keep on both sides: of a large picture, of a small one, and of any
with quality `fast`. Measured on photographs: in the mean 0.2 to 0.3 of 255 off at twice (large) and at three times
(small), 0.9 to 1.4 at 1.2 times, 2.8 at the target itself."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes `size` x `size` pixels. Its dict travels in manifests and models.

    `edges` are names of edge channels, `canny_low` and `canny_high` the thresholds of the one that has some.
    `resize`: what the short side is resized to before a crop (0: `usual_resize`). `stored`: a larger square around
    the model's own that is kept for random crops (0: none); the model's is its centre.
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

    def __post_init__(self) -> None:
        """One geometry has one form: what says the same as the default is the default."""
        if self.resize == usual_resize(self.size):
            object.__setattr__(self, "resize", 0)
        if self.stored == self.size:
            object.__setattr__(self, "stored", 0)

    @property
    def kept(self) -> int:
        """Side in pixels of the square that comes out."""
        return self.stored or self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of what comes out: the colour's channels, then one for each of `edges`."""
        return (self.kept, self.kept, COLORS[self.color] + len(self.edges))

    @property
    def short_side(self) -> int:
        """What the short side is resized to before a centre crop."""
        return self.resize or usual_resize(self.size)

    @property
    def input(self) -> Geometry:
        """The geometry of what the model sees of it: the same without what is stored around."""
        return replace(self, stored=0)

    def to_dict(self) -> dict[str, Any]:
        """What a manifest says of it in `image`."""
        found: dict[str, Any] = {"shape": list(self.shape), "input_size": self.size, "color": self.color}
        found |= {"mode": self.mode, "interpolation": self.interpolation, "quality": self.quality}
        found |= {"resize_size": self.short_side} if self.mode == "crop" else {}
        found |= {"edges": list(self.edges)}
        return found | ({"canny_low": self.canny_low, "canny_high": self.canny_high} if self.edges else {})

    @classmethod
    def from_dict(cls, image: dict[str, Any]) -> Geometry:
        """The geometry of tensors by the `image` of their manifest. What an older one does not say was the default."""
        return cls(
            image.get("input_size", image["shape"][0]),
            image["mode"],
            image["color"],
            tuple(image.get("edges", ())),
            image.get("canny_low", CANNY_LOW),
            image.get("canny_high", CANNY_HIGH),
            image.get("resize_size", 0),
            image["shape"][0],
            image.get("interpolation", "bilinear"),
            image.get("quality", "exact"),
        )

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an image of that size is resized to, before crop or padding."""
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
"""A change of the picture when it is resampled and cropped, before its colour and edges are made: the same shape."""

_memory = threading.local()
"""Each thread's own decode buffer: memory that is fresh for every image costs a twelfth of the time."""
_SCRATCH = 24 * 2**20
"""Bytes of the largest buffer that is kept."""


def decode_to(data: bytes, geometry: Geometry, before: Before | None = None, after: After | None = None) -> Pixels:
    """Bytes that clean has vetted → uint8 [H, W, C]. Raises ImageRejected.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that leaves enough pixels.
    """
    color = geometry.color if COLORS[geometry.color] == 1 else "rgb"
    fast = geometry.quality == "fast"

    def enough(width: int, height: int) -> tuple[int, int]:
        margin = FAST_MARGIN if fast else LARGE_MARGIN if width * height >= LARGE else SMALL_MARGIN
        target_width, target_height = geometry.scaled(width, height)
        return math.ceil(margin * target_width), math.ceil(margin * target_height)

    scratch, scaled = _scratch(), geometry.interpolation != "area"  # the mean of an area is that of all its pixels
    decoded = decode(data, color, lenient=Lenient(enough if scaled else None, fast, scratch), limits=VETTED)
    found = fit(before(decoded) if before else decoded, geometry, after)
    return found.copy() if np.may_share_memory(found, scratch) else found


def _scratch() -> Pixels:
    found: Pixels | None = getattr(_memory, "scratch", None)
    if found is None:
        found = _memory.scratch = np.empty(_SCRATCH, np.uint8)  # pages that are never touched cost nothing
    return found


def fit(image: Decoded, geometry: Geometry, after: After | None = None) -> Pixels:
    """A decoded image, of three channels in RGB and of one in the geometry's colour → uint8 [H, W, C].

    The full image's size decides, not that of a scaled decode.
    """
    picture = _picture(image, geometry)
    if after:
        picture = after(picture)
    color = in_color(_padded(picture, geometry.kept), geometry.color)
    if not geometry.edges:
        return color
    edges = edge_channels(in_color(picture, "gray"), geometry.edges, geometry.canny_low, geometry.canny_high)
    return np.concatenate([color, _padded(edges, geometry.kept)], axis=2)


def _picture(image: Decoded, geometry: Geometry) -> Pixels:
    """uint8 [h, w, channels of the image], contiguous: resampled and cropped, not yet padded."""
    width, height = geometry.scaled(image.width, image.height)
    full = Size(image.width, image.height, image.divisor)
    how = geometry.interpolation
    if geometry.mode != "crop":
        return np.ascontiguousarray(resample(image.pixels, width, height, how, None, full))
    window = _centre(width, height, geometry)
    if max(width, height) > LONG * min(width, height):
        return resample_long(image.pixels, width, height, how, window, full)
    return np.ascontiguousarray(resample(image.pixels, width, height, how, window, full))


def _centre(width: int, height: int, geometry: Geometry) -> Window:
    """What is kept of a picture that was resampled to width x height: around the model's own square.

    torchvision's CenterCrop rounds half to even; the same here, so that pixels are equal.
    """
    around = (geometry.kept - geometry.size) // 2
    top, left = (round((side - geometry.size) / 2.0) - around for side in (height, width))
    return Window(top, left, geometry.kept)


def _padded(picture: Pixels, size: int) -> Pixels:
    """The picture in the middle of size x size pixels, 0 around it."""
    height, width, channels = picture.shape
    if height == width == size:
        return picture
    canvas: Pixels = np.zeros((size, size, channels), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas
