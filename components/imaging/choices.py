"""Names and limits of imaging: colors, modes, encodings, file extensions. Configs offer them as choices, so nothing
heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

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
