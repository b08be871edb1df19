"""Names and limits of imaging (colors, modes, encodings, file extensions), and the options of pixel operations: clean
applies them to every image, and a model to every new one.

A model's description holds these values, so that `imagemill predict` treats a picture exactly as clean treated those
that the model was trained on, without the clean dataset. Configs offer them as choices, so nothing heavy is imported
here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..storage.errors import UserError, wrong

COLORS = {"rgb": 3, "gray": 1, "ycbcr": 3, "lab": 3, "red": 1, "green": 1, "blue": 1}
"""Color spaces and their channels. `ycbcr`: full range, in the order Y, Cb, Cr (JFIF 1.02; ITU-T T.871);
`lab`: CIE L*a*b* of sRGB under D65 in 8 bits (L * 255 / 100, a + 128, b + 128), as OpenCV's RGB2LAB computes it;
`red`, `green`, `blue`: that channel alone."""

MODES = ("crop", "squash", "letterbox")
QUALITIES = ("exact", "fast")
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "area")
RAW, JPEG = "raw", "jpeg"
ENCODINGS = (RAW, JPEG)

EDGES: dict[str, tuple[str, ...]] = {
    "off": (),
    "sobel": ("sobel",),
    "canny": ("canny",),
    "both": ("sobel", "canny"),
}
"""The choices of `edges`, and the channels that each adds, in their order."""

CANNY_LOW, CANNY_HIGH = 100, 200
"""Canny's thresholds on |gx| + |gy| of the 3x3 Sobel derivatives, which is 2040 at most (1020 for a step edge)."""


@dataclass(frozen=True)
class DecodeLimits:
    """Largest image that is decoded: pixels, pixels a side, bytes. The default for pixels is Pillow's for an error."""

    pixels: int = 178_956_970
    side: int = 65_500
    bytes: int = 256 * 2**20


def usual_resize(size: int) -> int:
    """Return the short side before a center crop of `size`, as in torchvision's references: 256 for 224."""
    return round(size * 256 / 224)


IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".ico",
)  # fmt: skip


def has_image_extension(path: str) -> bool:
    """Return whether a file is named as an image: one that is none is rejected by clean, not skipped."""
    return path.lower().endswith(IMAGE_EXTENSIONS)


NAMED_COLORS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}
CHOICES: dict[str, tuple[str, ...]] = {
    "background": ("off", "fill", "blur"),
    "roi": ("off", "largest", "union"),
    "trim": ("off", "on"),
    "color": tuple(COLORS),
    "denoise": ("off", "gaussian", "median", "bilateral"),
    "equalize": ("off", "histogram", "clahe", "autocontrast"),
    "binarize": ("off", "fixed", "otsu", "adaptive"),
}
"""The values of options that name an operation, also of `CleanConfig`. A model may come from a newer release, which has
further ones."""


class PixelOptions:
    """The fields of a config that `standardize` reads, and values derived from them. A mixin, not a dataclass."""

    background: str
    background_color: str
    mask_background: str
    keep_masks: bool
    roi: str
    roi_margin: float
    trim: str
    trim_tolerance: int
    color: str
    denoise: str
    denoise_size: int
    equalize: str
    clahe_clip: float
    clahe_grid: int
    binarize: str
    binarize_threshold: int
    binarize_block: int
    binarize_offset: float
    max_pixels: int
    max_side: int

    def limits(self) -> DecodeLimits:
        """Return the limits of the decoder."""
        return DecodeLimits(pixels=self.max_pixels, side=self.max_side)

    @property
    def stored_color(self) -> str:
        """The color of the stored images: binarized ones have a single channel."""
        return "gray" if self.binarize != "off" and self.color == "rgb" else self.color

    def background_rgb(self) -> tuple[int, int, int]:
        """Return `background_color` as (red, green, blue)."""
        text = self.background_color.strip().lower()
        if text in NAMED_COLORS:
            return NAMED_COLORS[text]
        if not re.fullmatch(r"#[0-9a-f]{6}", text):
            raise wrong("background_color", f"{', '.join(NAMED_COLORS)} or #rrggbb", self.background_color)
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    def background_values(self) -> tuple[int, ...]:
        """Return `mask_background` as numbers; empty for auto."""
        if self.mask_background == "auto":
            return ()
        parts = [part.strip() for part in self.mask_background.split(",")]
        if not all(part.isdecimal() and int(part) <= 255 for part in parts):
            raise wrong("mask_background", "auto, or values of 0 to 255 separated by commas", self.mask_background)
        return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class StandardizeConfig(PixelOptions):
    """The pixel options that a dataset was cleaned with, as its manifest records them. The defaults change no pixel."""

    background: str = "off"
    background_color: str = "gray"
    mask_background: str = "auto"
    keep_masks: bool = False
    roi: str = "off"
    roi_margin: float = 0.0
    trim: str = "off"
    trim_tolerance: int = 12
    color: str = "rgb"
    denoise: str = "off"
    denoise_size: int = 3
    equalize: str = "off"
    clahe_clip: float = 2.0
    clahe_grid: int = 8
    binarize: str = "off"
    binarize_threshold: int = 128
    binarize_block: int = 11
    binarize_offset: float = 2.0
    max_pixels: int = DecodeLimits.pixels
    max_side: int = DecodeLimits.side

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """Read the options among the values of a clean config that went through JSON.

        Options that an older config lacks are the defaults. UserError, which names `where` they come from, for a value
        of another type, or of a newer release that has further operations.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = config.get(field.name, field.default)
            if isinstance(field.default, float) and type(value) is int:
                value = float(value)
            if type(value) is not type(field.default):
                raise wrong(f"{where} ({field.name})", f"a value like {field.default!r}", value)
            if field.name in CHOICES and value not in CHOICES[field.name]:
                error = wrong(f"{where} ({field.name})", f"one of {', '.join(CHOICES[field.name])}", value)
                raise UserError(f"{error}, which a newer release of imagemill may know")
            values[field.name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return every value, for a model's description."""
        return asdict(self)
