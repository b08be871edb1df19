"""What a clean config says of pixels: what clean does to every image, and what a model must do to a new one.

A model takes these values along, so that `imagemill predict` makes of a picture just what clean made of those that the
model was trained on, without the clean dataset being there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from .choices import Limits
from .errors import wrong

NAMED_COLORS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}


class PixelRules:
    """What `standardize` reads of a config. No dataclass: those who have these fields inherit what follows of them."""

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

    def limits(self) -> Limits:
        """What is refused before it is decoded."""
        return Limits(pixels=self.max_pixels, side=self.max_side)

    @property
    def channels_color(self) -> str:
        """The colour that the stored images have: binarized ones have a single channel."""
        return "gray" if self.binarize != "off" and self.color == "rgb" else self.color

    def fill(self) -> tuple[int, int, int]:
        """`background_color` as (red, green, blue)."""
        text = self.background_color.strip().lower()
        if text in NAMED_COLORS:
            return NAMED_COLORS[text]
        if not re.fullmatch(r"#[0-9a-f]{6}", text):
            raise wrong("background_color", f"{', '.join(NAMED_COLORS)} or #rrggbb", self.background_color)
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

    def background_values(self) -> tuple[int, ...]:
        """`mask_background` as numbers; nothing for auto."""
        if self.mask_background == "auto":
            return ()
        parts = [part.strip() for part in self.mask_background.split(",")]
        if not all(part.isdecimal() and int(part) <= 255 for part in parts):
            raise wrong("mask_background", "auto, or values of 0 to 255 separated by commas", self.mask_background)
        return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class Standards(PixelRules):
    """The rules that a dataset was cleaned by, as its manifest records them. The defaults change no pixel."""

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
    max_pixels: int = Limits.pixels
    max_side: int = Limits.side

    @classmethod
    def of(cls, config: Mapping[str, Any], where: str) -> Self:
        """The rules among the values of a clean config, in whatever form they went through JSON; what an older one does
        not say was the default. UserError, by `where` they were found, for a value of another type."""
        found: dict[str, Any] = {}
        for one in fields(cls):
            value = config.get(one.name, one.default)
            if isinstance(one.default, float) and type(value) is int:
                value = float(value)
            if type(value) is not type(one.default):
                raise wrong(f"{where} ({one.name})", f"a value like {one.default!r}", value)
            found[one.name] = value
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Every value, for a model's description."""
        return asdict(self)
