"""What is the same for every epoch, done once, in one pass over the decoded pixels.

The order: decoded upright; the background by the mask; cropped to the region of interest; uniform borders trimmed;
colour; denoised; contrast; black and white. YCbCr and Lab are made after the resize, so what is stored stays RGB.
Where an operation changed pixels the image is encoded again; where none did, the original bytes pass through.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from .choices import COLORS
from .images import Pixels, decode, in_color
from .operations import binarize, denoise, equalize
from .region import Window, background, blurred, box_window, cropped, filled, trimmed_window
from .standards import PixelRules

JPEG_QUALITY = 95
JPEG_SIDE = 65_500
"""Pixels; libjpeg's limit."""
PNG_SIDE = 1_000_000
"""Pixels; the limit of libpng in OpenCV, which is faster than Pillow."""
# Runs of equal bytes only: for filtered photographs as small as zlib's level 6, in a tenth of the time.
_PNG = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH)


@dataclass(frozen=True)
class Standardized:
    """An image that is kept, as it is stored.

    `data`: the bytes to store, the original ones where no operation changed a pixel; `pixels`: uint8
    [H, W, 1 or 3], C-contiguous, what `data` decodes to (of a new JPEG: before its loss); `format`: the source's;
    `source_width`, `source_height`: of the upright source, in pixels; `warning`: the decoder's, or nothing; `mask`:
    where it is kept a PNG of one channel and of the size of `pixels`, 255 the foreground, 0 the background.
    """

    data: bytes
    pixels: Pixels
    format: str
    source_width: int
    source_height: int
    warning: str
    mask: bytes | None = None


def standardize(
    data: bytes,
    config: PixelRules,
    boxes: Sequence[Mapping[str, Any]] | None = None,
    mask: bytes | None = None,
) -> Standardized:
    """Decode strictly and apply the operations that `config` asks for.

    `boxes`: name, xmin, ymin, xmax, ymax as in Pascal VOC (see `box_window`); `mask`: a PNG (see `background`). An
    image without them stays whole. Raises ImageRejected for what is no valid image, box or mask.
    """
    color = config.channels_color if COLORS[config.channels_color] == 1 else "rgb"
    # A single channel is cheaper from the decoder, unless colours decide about a border or are blended first.
    early = "rgb" if config.trim == "on" or config.background == "blur" else color
    decoded = decode(data, early, limits=config.limits())
    pixels = decoded.pixels
    height, width = pixels.shape[:2]
    behind: Pixels | None = None
    if mask is not None and (config.background != "off" or config.keep_masks):
        behind = background(mask, config.background_values(), data, width, height)
    if behind is not None and config.background != "off":
        pixels = _without_background(pixels, config, early, behind)
    masked = pixels is not decoded.pixels
    window = _window(pixels, config, boxes)
    pixels = cropped(pixels, window)
    pixels = _enhanced(in_color(pixels, color), config)
    if (early != "rgb" and not decoded.as_stored) or not _same(pixels, decoded.pixels):
        exact = masked or config.binarize != "off" or not _is_lossy(data, decoded.format)
        data = encode(pixels, exact)
    kept = _kept_mask(behind, window) if behind is not None and config.keep_masks else None
    return Standardized(data, pixels, decoded.format, decoded.width, decoded.height, decoded.warning, kept)


def _window(pixels: Pixels, config: PixelRules, boxes: Sequence[Mapping[str, Any]] | None) -> Window:
    """What is cut out: the region of interest, and of that what is within its uniform borders."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if config.roi != "off" and boxes:
        left, top, right, bottom = box_window(boxes, config.roi, config.roi_margin, width, height)
    if config.trim == "on":
        inner = trimmed_window(pixels[top:bottom, left:right], config.trim_tolerance)
        left, top, right, bottom = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    return left, top, right, bottom


def _kept_mask(behind: Pixels, window: Window) -> bytes:
    """uint8 [H, W], 1 where the background is → the PNG that is stored, cut out like the picture."""
    foreground = (1 - cropped(behind, window)) * np.uint8(255)
    return encode(foreground[:, :, None], exact=True)


def _without_background(pixels: Pixels, config: PixelRules, color: str, behind: Pixels) -> Pixels:
    """The pixels (in `color`) with a background that is filled or blurred; the same array where there is none."""
    if not behind.any():
        return pixels
    if config.background == "blur":
        return blurred(pixels, behind)
    fill = in_color(np.array([[config.fill()]], np.uint8), color)
    return filled(pixels, behind, fill.ravel().tolist())


def _enhanced(pixels: Pixels, config: PixelRules) -> Pixels:
    if config.denoise != "off":
        pixels = denoise(pixels, config.denoise, config.denoise_size)
    if config.equalize != "off":
        pixels = equalize(pixels, config.equalize, config.clahe_clip, config.clahe_grid)
    if config.binarize != "off":
        threshold, block = config.binarize_threshold, config.binarize_block
        pixels = binarize(pixels, config.binarize, threshold, block, config.binarize_offset)
    return pixels


def _same(pixels: Pixels, decoded: Pixels) -> bool:
    """Whether the picture is the decoded one; a single channel may stand for three alike."""
    if pixels is decoded:
        return True
    return pixels.shape[:2] == decoded.shape[:2] and bool((pixels == decoded).all())


def _is_lossy(data: bytes, source_format: str) -> bool:
    """Whether the source had lost detail already, so that a little more can't be seen."""
    return source_format == "JPEG" or (source_format == "WEBP" and not _is_lossless_webp(data))


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first frame of a WebP is lossless (RFC 9649: its chunk is VP8L, else VP8)."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # a frame's chunks come after 16 bytes about it
    return False


def encode(pixels: Pixels, exact: bool) -> bytes:
    """uint8 [H, W, 1 or 3] → PNG where it must be `exact` (or is too long for JPEG), else JPEG 95 4:4:4."""
    gray = pixels.shape[2] == 1
    if not exact and max(pixels.shape) <= JPEG_SIDE:
        space = "GRAY" if gray else "RGB"
        return bytes(simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, space, "Gray" if gray else "444"))
    if max(pixels.shape) > PNG_SIDE:
        out = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(out, "PNG", compress_level=1)
        return out.getvalue()
    return cv2.imencode(".png", pixels if gray else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)[1].tobytes()
