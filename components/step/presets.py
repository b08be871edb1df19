"""Presets by domain: safe values for a kind of picture, offline in clean and resize, at random in train.

A preset sets only options that are unset, so every value can be overruled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Value = str | int | float | bool


@dataclass(frozen=True)
class Preset:
    """A preset: `description` for the help, and the `values` of options `by_preset` that differ from their defaults."""

    description: str
    values: dict[str, Value] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "photo": Preset("natural photographs: nothing offline; crops of 60% and more, and flips, at random"),
    "ocr": Preset(
        "text, digits, arrows: gray (color says nothing) and autocontrast (paper and light differ); letterbox, for a "
        "crop would cut letters off; never flipped (a mirrored b is a d), crops of 90% and more",
        {"color": "gray", "equalize": "autocontrast", "resize_mode": "letterbox", "flip": "false", "crop_scale": 0.9},
    ),
    "medical": Preset(
        "scans and slides: pixels are left alone (a denoiser can remove a finding), letterbox (a finding may lie at "
        "the border); never flipped (left and right are a diagnosis), crops of 85% and more",
        {"resize_mode": "letterbox", "flip": "false", "crop_scale": 0.85},
    ),
    "satellite": Preset(
        "aerial tiles: the whole tile (squash), each band normalized by the dataset's own mean and spread (they are "
        "not those of photographs); both flips are safe, seen from above",
        {"resize_mode": "squash", "normalization": "dataset", "vertical_flip": "true"},
    ),
    "fashion": Preset(
        "products on a plain ground: uniform borders trimmed and letterbox, so that the whole product is seen; flips "
        "and crops of 80% and more, and no change of hue or saturation, for color is a property of the product",
        {"trim": "on", "resize_mode": "letterbox", "crop_scale": 0.8},
    ),
}

NAMES = tuple(PRESETS)
HELP = (
    "kind of picture, which sets what is left unset ("
    + "; ".join(f"{n}: {p.description}" for n, p in PRESETS.items())
    + ")"
)
