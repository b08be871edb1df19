"""From a decoded image to the fixed shape a model sees: the one geometry, for resize and evaluate alike.

`crop`: short side to round(size · 256/224), then the centre square (the ImageNet evaluation transform,
torchvision's `ImageClassification` preset); `squash`: straight to the square; `letterbox`: long side to
the size, the rest filled with black. Antialiased bilinear on uint8, as Pillow computes it.

YCbCr and Lab are made of RGB last, after the resample: of fewer pixels, and of the picture that everybody else
gets, for bilinear on RGB is what models and their pretrained weights know. A single channel is taken first: a
third of the resample, and the same pixels. Edge channels come after the colour's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .edges import CANNY_HIGH, CANNY_LOW, edge_channels
from .images import COLORS, VETTED, Decoded, Pixels, decode, in_color

MODES = ("crop", "squash", "letterbox")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "area")
QUALITIES = ("exact", "fast")
LONG = 16
"""Sides beyond this ratio are cropped while they are resized: 1 x 65,500 pixels would be 4 GB before the crop."""
KERNEL_CHANNELS = 4
"""What torch's uint8 kernel takes at a time; with more it falls back on one that is five times slower."""


def usual_resize(size: int) -> int:
    """The short side before a centre crop of `size`, as torchvision's references have it: 256 for 224."""
    return round(size * 256 / 224)


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


def decode_to(data: bytes, geometry: Geometry) -> Pixels:
    """Bytes that clean has vetted → uint8 [H, W, C]. Raises ImageRejected.

    A JPEG is decoded at a fraction of its size where that stays at least twice the target, which costs
    no accuracy that can be seen (scaling down to the target itself would).
    """
    target = geometry.size if geometry.mode != "crop" else geometry.short_side
    color = geometry.color if COLORS[geometry.color] == 1 else "rgb"
    # Letterbox fits the long side, so the short one may need less than `target`: never more than it has.
    return fit(decode(data, color, strict=False, min_side=2 * target, limits=VETTED), geometry)


def fit(image: Decoded, geometry: Geometry) -> Pixels:
    """A decoded image, of three channels in RGB and of one in the geometry's colour → uint8 [H, W, C].

    The full image's size decides, not that of a scaled decode.
    """
    picture = _picture(image, geometry)
    color = in_color(_padded(picture, geometry.size), geometry.color)
    if not geometry.edges:
        return color
    edges = edge_channels(in_color(picture, "gray"), geometry.edges, geometry.canny_low, geometry.canny_high)
    return np.concatenate([color, _padded(edges, geometry.size)], axis=2)


def _picture(image: Decoded, geometry: Geometry) -> Pixels:
    """uint8 [h, w, channels of the image], contiguous: resampled and cropped, not yet padded."""
    width, height = geometry.scaled(image.width, image.height)
    if geometry.mode != "crop":
        return np.ascontiguousarray(resample(image.pixels, width, height))
    size = geometry.size
    # torchvision's CenterCrop rounds half to even; the same here, so that pixels are equal.
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    if max(width, height) > LONG * min(width, height):
        return _resample_part(image.pixels, width, height, top, left, size)
    return np.ascontiguousarray(resample(image.pixels, width, height)[top : top + size, left : left + size])


def _padded(picture: Pixels, size: int) -> Pixels:
    """The picture in the middle of size x size pixels, 0 around it."""
    height, width, channels = picture.shape
    if height == width == size:
        return picture
    canvas: Pixels = np.zeros((size, size, channels), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas


def resample(pixels: Pixels, width: int, height: int) -> Pixels:
    """Antialiased bilinear on uint8 [H, W, C], by torch's native uint8 kernel; equal to Pillow's to ±1, seldom ±2."""
    import torch
    from torch.nn.functional import interpolate

    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[2] > KERNEL_CHANNELS:
        parts = np.split(pixels, range(KERNEL_CHANNELS, pixels.shape[2], KERNEL_CHANNELS), axis=2)
        return np.concatenate([resample(np.ascontiguousarray(part), width, height) for part in parts], axis=2)
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # a channels-last view, nothing is copied
    out = interpolate(source, (height, width), mode="bilinear", antialias=True, align_corners=False)
    result: Pixels = out[0].permute(1, 2, 0).numpy()
    return result


def _resample_part(pixels: Pixels, width: int, height: int, top: int, left: int, size: int) -> Pixels:
    """The square of `size` at (top, left) of the picture resampled to width x height, without the rest of it."""
    from PIL import Image

    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    gray = pixels.shape[2] == 1
    source = Image.fromarray(pixels[:, :, 0] if gray else pixels)
    # One pass after the other, in the order in which a plain resize makes them: each rounds to 8 bits.
    for shape, box in (
        ((size, source.height), (left * across, 0, (left + size) * across, source.height)),
        ((size, size), (0, top * down, size, (top + size) * down)),
    ):
        source = source.resize(shape, Image.Resampling.BILINEAR, box)
    return np.array(source).reshape(size, size, -1)
