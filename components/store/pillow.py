"""Pillow's part of the decoder: headers, and pixels of every mode that 8 bits can represent."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .choices import COLORS
from .jpeg import sample_bits
from .pixels import ImageRejected, Pixels


def open_image(data: bytes, kind: str) -> Image.Image:
    """The header, read by Pillow; no pixel is decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=[kind])  # JPEG opens MPO too
    except MemoryError:
        raise
    except Exception as error:  # a broken header can raise anything; the bytes are in memory, so it is their fault
        if kind == "TIFF" and (found := _tiff_mode_error(data)):
            raise ImageRejected("unsupported_bands", found) from None
        if kind == "JPEG" and 8 < (bits := sample_bits(data)) <= 16:
            raise ImageRejected("unsupported_bands", f"{bits} bits a sample can't be represented in 8") from None
        # What is not identified has an address in its message, another one each time: a reject is the same always.
        said = "" if isinstance(error, UnidentifiedImageError) else f": {short(error)}"
        raise ImageRejected("corrupt", f"a {kind} header that does not parse{said}") from None


def _tiff_mode_error(data: bytes) -> str:
    """Pillow's words for a TIFF whose bands it can't represent, or nothing if it is just broken."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        TiffImageFile(io.BytesIO(data))
    except SyntaxError as error:
        return short(error) if "mode" in str(error) else ""
    except Exception:  # broken in another way
        return ""
    return ""


def to_color(image: Image.Image, color: str) -> Pixels:
    """Any mode that 8 bits can represent, as uint8 [H, W, 1 or 3]; alpha is laid over white."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        image = _from_16_bit(image)
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


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise ImageRejected("unsupported_bands", f"32-bit values up to {values.max()} can't be represented in 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
