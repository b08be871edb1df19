"""Pictures as files: pixels into PNG, which files TensorFlow reads as the mill does, and the rest made such."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from ..store.errors import MillError
from ..store.headers import parse_jpeg_header, sniff
from ..store.images import NO_LIMITS, ImageRejected, Pixels, decode

ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
# Runs of equal bytes only: for filtered photographs as small as zlib's level 6, in a third of the time.
_PNG = (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_PAETH)
_ORIENTATION = 0x0112
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}


def ending(data: bytes, image_id: str) -> str:
    """The ending of a file that has these bytes, without its dot."""
    kind = sniff(data)
    if not kind:
        raise MillError(f"{image_id}: clean passed these bytes, but they are none of {', '.join(ENDINGS)}")
    return ENDINGS[kind]


def png(pixels: Pixels) -> bytes:
    """uint8 [H, W, 1 or 3] as a PNG of the same values."""
    rows = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else np.ascontiguousarray(pixels)
    done, data = cv2.imencode(".png", rows, _PNG)
    if not done:
        raise MillError(f"OpenCV made no PNG of pixels of the shape {pixels.shape}")
    return data.tobytes()


def plain_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, channels) of a JPEG or PNG that every reader shows alike, TensorFlow's among them, or None.

    None are other formats, CMYK, more than 8 bits, alpha, and whatever EXIF turns: TensorFlow turns nothing.
    """
    kind = sniff(data)
    if kind == "JPEG" and (header := parse_jpeg_header(data)):
        return header.height, header.width, header.channels
    if kind not in ("JPEG", "PNG"):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as opened:
            known = opened.mode in _CHANNELS and "transparency" not in opened.info
            deep = kind == "PNG" and data[24] > 8  # IHDR's bit depth: Pillow calls a colour PNG of 16 bits RGB
            if not known or deep or opened.getexif().get(_ORIENTATION, 1) in range(2, 9):
                return None
            return opened.height, opened.width, _CHANNELS[opened.mode]
    except (OSError, SyntaxError, ValueError):  # annotations that do not parse: the decoder will say
        return None


def as_png(data: bytes, image_id: str) -> tuple[bytes, tuple[int, int, int]]:
    """Any image as a PNG of what the mill's decoder sees, grey as one channel; and its (height, width, channels)."""
    try:
        pixels = decode(data, "rgb", limits=NO_LIMITS).pixels
    except ImageRejected as error:
        raise MillError(f"{image_id}: clean passed this image, but export can't decode it ({error})") from None
    if np.array_equal(pixels[:, :, 0], pixels[:, :, 1]) and np.array_equal(pixels[:, :, 1], pixels[:, :, 2]):
        pixels = pixels[:, :, :1]
    height, width, channels = pixels.shape
    return png(pixels), (height, width, channels)
