"""Pillow's part of the decoder: headers, EXIF orientation, and pixels of every mode that 8 bits can represent."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..storage.errors import first_line
from .headers import parse_jpeg_precision
from .pixel_options import COLORS

T = TypeVar("T", bound=np.generic)
Pixels = npt.NDArray[np.uint8]
ORIENTATION_TAG = 0x0112
"""EXIF's number for the orientation."""


class ImageRejected(Exception):
    """The bytes are no valid image. `reason` is one of the reject codes, `detail` says what is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def summarize_decoder_error(error: BaseException) -> str:
    """Return the first line of an error's text, 200 characters at most: short enough for a row of rejects."""
    return first_line(error)[:200]


def open_image(data: bytes, format: str) -> Image.Image:
    """Read the header with Pillow; no pixel is decoded yet. Raises ImageRejected."""
    try:
        return Image.open(io.BytesIO(data), formats=[format])  # JPEG opens MPO too
    except MemoryError:
        raise
    except Exception as error:  # a broken header can raise anything; the bytes are in memory, so it is their fault
        if format == "TIFF" and (mode_error := _tiff_mode_error(data)):
            raise ImageRejected("unsupported_bands", mode_error) from None
        if format == "JPEG" and 8 < (bits := parse_jpeg_precision(data)) <= 16:
            raise ImageRejected("unsupported_bands", f"{bits} bits a sample can't be represented in 8") from None
        # UnidentifiedImageError names an address in memory, another one each time: a reject is the same always.
        cause = "" if isinstance(error, UnidentifiedImageError) else f": {summarize_decoder_error(error)}"
        raise ImageRejected("corrupt", f"a {format} header that does not parse{cause}") from None


def _tiff_mode_error(data: bytes) -> str:
    """Return Pillow's message for a TIFF whose bands it can't represent; empty for one that is broken otherwise."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        return summarize_decoder_error(error) if "mode" in str(error) else ""
    except Exception:  # broken in another way
        return ""
    return ""


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; anything else (0 occurs, and broken EXIF) means upright, 1."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # EXIF is an annotation: a broken one does not make the image invalid
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def apply_orientation(pixels: npt.NDArray[T], orientation: int) -> npt.NDArray[T]:
    """Turn [H, W, …] as stored upright (EXIF 2.32, 4.6.4.A: where the stored 0th row and column belong)."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def convert_to_pixels(image: Image.Image, color: str) -> Pixels:
    """Convert any mode that 8 bits can represent to uint8 [H, W, 1 or 3]; alpha is laid over white.

    `color`: `rgb` or `gray`. Raises ImageRejected for other modes.
    """
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        image = _convert_16_bit(image)
    elif mode in ("F", "LAB", "HSV"):
        raise ImageRejected("unsupported_bands", f"mode {mode} can't be represented in 8 bits a band without a guess")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        if np.asarray(layered.getchannel("A")).min() < 255:
            white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            layered = Image.alpha_composite(white, layered)
        image = layered.convert("RGB")
    target = "RGB" if color == "rgb" else "L"
    array: Any = np.array(image.convert(target) if image.mode != target else image)
    return np.ascontiguousarray(array.reshape(image.size[1], image.size[0], COLORS[color]))


def _convert_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageRejected("unsupported_bands", f"32-bit values up to {values.max()} can't be represented in 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
