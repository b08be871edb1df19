"""Standardization of one image: the operations that are the same for every epoch, applied once.

The order: decode upright; background by the mask; crop to the region of interest; trim uniform borders; color; denoise;
contrast; black and white. YCbCr and Lab are made after the resize, so stored images stay RGB. Where an operation
changed pixels the image is encoded again; where none did, the original bytes are kept.

Denoising, contrast, and black and white are pure functions, uint8 [H, W, 1 or 3] (RGB) to uint8 [H, W, 1 or 3],
C-contiguous, of any size from 1 x 1. Where OpenCV has the operation the definition is OpenCV's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from .decoder import Pixels, convert_color, decode
from .headers import is_lossless_webp
from .pixel_options import COLORS, PixelOptions
from .region import (
    CropBox,
    blur_background,
    crop,
    decode_background_mask,
    fill_background,
    find_box_window,
    find_content_window,
)
from .tensors import encode_jpeg

JPEG_QUALITY = 95
JPEG_SIDE = 65_500
"""Pixels; libjpeg's limit."""
PNG_SIDE = 1_000_000
"""Pixels; the limit of libpng in OpenCV, which is faster than Pillow."""
# Runs of equal bytes only: for filtered photographs as small as zlib's level 6, in a tenth of the time.
_PNG = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH)


@dataclass(frozen=True)
class StandardizedImage:
    """An image that clean keeps, as it is stored.

    `data`: the bytes to store, the original ones where no operation changed a pixel; `pixels`: uint8
    [H, W, 1 or 3], C-contiguous, decoded from `data` (of a new JPEG: before its loss); `format`: the source's;
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
    config: PixelOptions,
    boxes: Sequence[Mapping[str, Any]] | None = None,
    mask: bytes | None = None,
) -> StandardizedImage:
    """Decode strictly and apply the operations that `config` asks for.

    `boxes`: name, xmin, ymin, xmax, ymax as in Pascal VOC (see `find_box_window`); `mask`: a PNG (see
    `decode_background_mask`). An image without them stays whole. Raises ImageRejected for an invalid image, box or
    mask.
    """
    color = config.stored_color if COLORS[config.stored_color] == 1 else "rgb"
    # A single channel is cheaper from the decoder, unless colors decide about a border or are blended first.
    decode_color = "rgb" if config.trim == "on" or config.background == "blur" else color
    decoded = decode(data, decode_color, limits=config.limits())
    pixels = decoded.pixels
    height, width = pixels.shape[:2]
    background: Pixels | None = None
    if mask is not None and (config.background != "off" or config.keep_masks):
        background = decode_background_mask(mask, config.background_values(), data, width, height)
    if background is not None and config.background != "off":
        pixels = _remove_background(pixels, config, decode_color, background)
    is_masked = pixels is not decoded.pixels
    box = _find_crop_box(pixels, config, boxes)
    pixels = crop(pixels, box)
    pixels = _enhance(convert_color(pixels, color), config)
    if (decode_color != "rgb" and not decoded.as_stored) or not _is_same_picture(pixels, decoded.pixels):
        exact = is_masked or config.binarize != "off" or not _is_lossy(data, decoded.format)
        data = encode_image(pixels, exact)
    stored_mask = _encode_mask(background, box) if background is not None and config.keep_masks else None
    return StandardizedImage(data, pixels, decoded.format, decoded.width, decoded.height, decoded.warning, stored_mask)


def _find_crop_box(pixels: Pixels, config: PixelOptions, boxes: Sequence[Mapping[str, Any]] | None) -> CropBox:
    """Return the box that is cut out: the region of interest, and of that the part within its uniform borders."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if config.roi != "off" and boxes:
        left, top, right, bottom = find_box_window(boxes, config.roi, config.roi_margin, width, height)
    if config.trim == "on":
        inner = find_content_window(pixels[top:bottom, left:right], config.trim_tolerance)
        left, top, right, bottom = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
    return left, top, right, bottom


def _encode_mask(background: Pixels, box: CropBox) -> bytes:
    """Encode uint8 [H, W], 1 where the background is, as the PNG that is stored, cropped like the picture."""
    foreground = (1 - crop(background, box)) * np.uint8(255)
    return encode_image(foreground[:, :, None], exact=True)


def _remove_background(pixels: Pixels, config: PixelOptions, color: str, background: Pixels) -> Pixels:
    """Fill or blur the background of pixels in `color`; return the same array where there is none."""
    if not background.any():
        return pixels
    if config.background == "blur":
        return blur_background(pixels, background)
    fill = convert_color(np.array([[config.background_rgb()]], np.uint8), color)
    return fill_background(pixels, background, fill.ravel().tolist())


def _enhance(pixels: Pixels, config: PixelOptions) -> Pixels:
    if config.denoise != "off":
        pixels = denoise(pixels, config.denoise, config.denoise_size)
    if config.equalize != "off":
        pixels = equalize(pixels, config.equalize, config.clahe_clip, config.clahe_grid)
    if config.binarize != "off":
        threshold, block = config.binarize_threshold, config.binarize_block
        pixels = binarize(pixels, config.binarize, threshold, block, config.binarize_offset)
    return pixels


def _is_same_picture(pixels: Pixels, decoded: Pixels) -> bool:
    """Return whether the picture equals the decoded one; a single channel may stand for three alike."""
    if pixels is decoded:
        return True
    return pixels.shape[:2] == decoded.shape[:2] and bool((pixels == decoded).all())


def _is_lossy(data: bytes, source_format: str) -> bool:
    """Return whether the source is lossy already, so that another lossy encoding can't be seen."""
    return source_format == "JPEG" or (source_format == "WEBP" and not is_lossless_webp(data))


def encode_image(pixels: Pixels, exact: bool) -> bytes:
    """Encode uint8 [H, W, 1 or 3] as PNG where it must be `exact` (or is too long for JPEG), else as JPEG 95 4:4:4."""
    gray = pixels.shape[2] == 1
    if not exact and max(pixels.shape) <= JPEG_SIDE:
        return encode_jpeg(pixels, JPEG_QUALITY, "444")
    if max(pixels.shape) > PNG_SIDE:
        out = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if gray else pixels).save(out, "PNG", compress_level=1)
        return out.getvalue()
    return cv2.imencode(".png", pixels if gray else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), _PNG)[1].tobytes()


BILATERAL_SIGMA = 50.0
"""Levels; as in the color examples of Tomasi and Manduchi, "Bilateral filtering for gray and color images" (1998)."""

cv2.setNumThreads(1)  # images are spread over the cores, so the threads of OpenCV would only get in their way


def denoise(pixels: Pixels, kind: str, size: int) -> Pixels:
    """Denoise each pixel from its window of `size` x `size` (odd), the image mirrored at its border (median: repeated).

    `gaussian`: its weighted mean, by OpenCV's kernel for the size (1 2 1, 1 4 6 4 1, ..., which is about a sigma of
    0.3 * ((size - 1) / 2 - 1) + 0.8 pixels).
    `median`: the median of each channel.
    `bilateral`: the mean over the disc in the window, weighted by Gaussians of that sigma in space and of
    `BILATERAL_SIGMA` in color (colors are as far apart as their channels are in sum), so that edges stay.

    ValueError for another kind.
    """
    if kind == "gaussian":
        return _add_channel_axis(cv2.GaussianBlur(pixels, (size, size), 0))
    if kind == "median":
        return _add_channel_axis(cv2.medianBlur(pixels, size))
    if kind == "bilateral":
        return _add_channel_axis(cv2.bilateralFilter(pixels, size, BILATERAL_SIGMA, 0.3 * ((size - 1) / 2 - 1) + 0.8))
    raise ValueError(f"denoise: expected gaussian, median or bilateral, found {kind!r}")


def equalize(pixels: Pixels, kind: str, clip: float, grid: int) -> Pixels:
    """Increase the contrast, by the lightness alone where there are colors.

    `histogram`: `cv2.equalizeHist`, on Y of YCrCb. `clahe`: `cv2.createCLAHE` with the limit `clip` and
    `grid` x `grid` tiles, on L of Lab (Zuiderveld, "Contrast limited adaptive histogram equalization", 1994).
    `autocontrast`: all channels stretched alike, so that the darkest luma is 0 and the brightest 255; Pillow's
    `ImageOps.autocontrast(preserve_tone=True)`.

    ValueError for another kind.
    """
    if kind == "autocontrast":
        return _autocontrast(pixels)
    if kind == "histogram":
        equalize_channel, to_space, to_rgb = cv2.equalizeHist, cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB
    elif kind == "clahe":
        # A new one for each call: a CLAHE object can't be shared by threads.
        equalize_channel = cv2.createCLAHE(clip, (grid, grid)).apply
        to_space, to_rgb = cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB
    else:
        raise ValueError(f"equalize: expected histogram, clahe or autocontrast, found {kind!r}")
    if pixels.shape[2] == 1:
        return _add_channel_axis(equalize_channel(pixels))
    channels = list(cv2.split(cv2.cvtColor(pixels, to_space)))
    channels[0] = equalize_channel(channels[0])
    return _add_channel_axis(cv2.cvtColor(cv2.merge(channels), to_rgb))


def _autocontrast(pixels: Pixels) -> Pixels:
    # Pillow's luma and its rounding: in a narrow range, one level more or less is a visible difference.
    luma = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("L")
    low, high = (int(level) for level in luma.getextrema())  # type: ignore[arg-type]
    if high <= low:
        return pixels
    scale = 255.0 / (high - low)
    table = np.clip((np.arange(256) * scale - low * scale).astype(int), 0, 255).astype(np.uint8)
    return _add_channel_axis(cv2.LUT(pixels, table))


def binarize(pixels: Pixels, kind: str, threshold: int, block: int, offset: float) -> Pixels:
    """Convert to black (0) and white (255), uint8 [H, W, 1], by the luma where there are colors.

    `fixed`: white from the level `threshold` on. `otsu`: white above the level that separates the histogram best
    (Otsu, "A threshold selection method from gray-level histograms", 1979). `adaptive`: white above the mean of the
    window of `block` x `block` pixels (odd; beyond the border it is repeated), rounded, less `offset`.

    ValueError for another kind.
    """
    gray = convert_color(pixels, "gray")[:, :, 0]
    if kind == "fixed":
        return _add_channel_axis(cv2.threshold(gray, threshold - 1, 255, cv2.THRESH_BINARY)[1])
    if kind == "otsu":
        return _add_channel_axis(cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1])
    if kind == "adaptive":
        mean = cv2.ADAPTIVE_THRESH_MEAN_C
        return _add_channel_axis(cv2.adaptiveThreshold(gray, 255, mean, cv2.THRESH_BINARY, block, offset))
    raise ValueError(f"binarize: expected fixed, otsu or adaptive, found {kind!r}")


def _add_channel_axis(image: Any) -> Pixels:
    """Return OpenCV's uint8 [H, W] or [H, W, C] as uint8 [H, W, C], C-contiguous."""
    return np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])
