"""From a decoded image to the fixed shape a model sees: the one geometry, for resize and evaluate alike.

`crop`: short side to round(size · 256/224), then the centre square (the ImageNet evaluation transform,
torchvision's `ImageClassification` preset); `squash`: straight to the square; `letterbox`: long side to
the size, the rest filled with black. Antialiased bilinear on uint8, as Pillow computes it.

YCbCr and Lab are made of RGB last, after the resample: of fewer pixels, and of the picture that everybody else
gets, for bilinear on RGB is what models and their pretrained weights know. A single channel is taken first: a
third of the resample, and the same pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .images import COLORS, VETTED, Decoded, Pixels, decode, in_color

MODES = ("crop", "squash", "letterbox")
LONG = 16
"""Sides beyond this ratio are cropped while they are resized: 1 x 65,500 pixels would be 4 GB before the crop."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes `size` x `size` pixels. Its dict travels in manifests and models."""

    size: int
    mode: str = "crop"
    color: str = "rgb"

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H, W, C] of what comes out."""
        return (self.size, self.size, COLORS[self.color])

    @property
    def short_side(self) -> int:
        """What the short side is resized to before a centre crop."""
        return round(self.size * 256 / 224)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
    return np.ascontiguousarray(in_color(_fitted(image, geometry), geometry.color))


def _fitted(image: Decoded, geometry: Geometry) -> Pixels:
    """uint8 [H, W, channels of the image]: resampled, then cropped or padded with black."""
    width, height = geometry.scaled(image.width, image.height)
    # torchvision's CenterCrop rounds half to even; the same here, so that pixels are equal.
    top, left = round((height - geometry.size) / 2.0), round((width - geometry.size) / 2.0)
    if geometry.mode == "crop" and max(width, height) > LONG * min(width, height):
        return _resample_part(image.pixels, width, height, top, left, geometry.size)
    resized = resample(image.pixels, width, height)
    if geometry.mode == "crop":
        resized = resized[top : top + geometry.size, left : left + geometry.size]
    elif geometry.mode == "letterbox":
        canvas: Pixels = np.zeros((geometry.size, geometry.size, image.pixels.shape[2]), np.uint8)
        top, left = (geometry.size - height) // 2, (geometry.size - width) // 2
        canvas[top : top + height, left : left + width] = resized
        resized = canvas
    return resized


def resample(pixels: Pixels, width: int, height: int) -> Pixels:
    """Antialiased bilinear on uint8 [H, W, C], by torch's native uint8 kernel; equal to Pillow's to ±1, seldom ±2."""
    import torch
    from torch.nn.functional import interpolate

    if pixels.shape[:2] == (height, width):
        return pixels
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
