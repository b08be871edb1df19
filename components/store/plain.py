"""PNG, WebP and BMP of the simplest form, without Pillow: 8 bits a channel, grey or RGB, upright, nothing transparent.

Only for what clean has decoded strictly: OpenCV keeps silent about damage. It takes four fifths of Pillow's time, a
third for BMP, and does not hold the interpreter's lock. Anything that is not plain is left to the full decoder.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_PNG_SILENT = frozenset((b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sRGB", b"bKGD"))
"""Chunks that say nothing about how the pixels are to be shown, or that Pillow does not look at either."""


class Plain(NamedTuple):
    """Sides in pixels, and 1 channel (grey) or 3 (RGB)."""

    width: int
    height: int
    channels: int


def plain_header(data: bytes, kind: str) -> Plain | None:
    """What a plain PNG, WEBP or BMP declares, or None where the full decoder must look."""
    if kind == "PNG":
        return _png(data)
    if kind == "WEBP":
        return _webp(data)
    return _bmp(data) if kind == "BMP" else None


def decode_plain(data: bytes, header: Plain) -> npt.NDArray[np.uint8] | None:
    """uint8 [height, width, channels], or None when it is not what the header says."""
    import cv2

    flag = cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR_RGB
    found = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if found is None or found.shape[:2] != (header.height, header.width):
        return None
    return np.asarray(found, np.uint8).reshape(header.height, header.width, header.channels)


def _png(data: bytes) -> Plain | None:
    """PNG (third edition) 11.2 and 11.3: 8 bits, colour type 0 or 2, not interlaced, whole to its end."""
    if len(data) < 45 or data[12:16] != b"IHDR":
        return None
    width, height, bits, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if bits != 8 or kind not in (0, 2) or interlaced or not width or not height:
        return None
    at = 33
    while at + 12 <= len(data):
        name = data[at + 4 : at + 8]
        if name not in _PNG_SILENT:
            return None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND":
            return Plain(width, height, 1 if kind == 0 else 3) if at <= len(data) else None
    return None


def _webp(data: bytes) -> Plain | None:
    """RFC 9649, 2.5: the simple lossy form has no alpha, no EXIF and no animation."""
    if data[12:16] != b"VP8 " or len(data) < 30 or data[23:26] != b"\x9d\x01\x2a":
        return None
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        return None
    width, height = struct.unpack_from("<HH", data, 26)
    return Plain(width & 0x3FFF, height & 0x3FFF, 3) if width & 0x3FFF and height & 0x3FFF else None


def _bmp(data: bytes) -> Plain | None:
    """Windows' BITMAPINFOHEADER with 24 bits a pixel, uncompressed, bottom-up."""
    if len(data) < 54:
        return None
    _, _, offset, header, width, height, planes, bits, *_ = struct.unpack_from("<IIIIiiHH", data, 2)
    compression = int.from_bytes(data[30:34], "little")
    if (header, planes, bits, compression) != (40, 1, 24, 0) or width < 1 or height < 1:
        return None
    row = (width * 3 + 3) // 4 * 4
    return Plain(width, height, 3) if offset >= 54 and offset + row * height <= len(data) else None
