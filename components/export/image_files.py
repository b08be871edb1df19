"""Image files for an export: extensions, PNG encoding, and conversion of files that TensorFlow reads otherwise."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ..imaging.decoder import NO_LIMITS, ImageRejected, Pixels, decode
from ..imaging.headers import parse_jpeg_header, sniff
from ..imaging.pillow_decoder import ORIENTATION_TAG
from ..imaging.standardize import encode_image
from ..storage.errors import MillError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp"}
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}


def get_extension(data: bytes, image_id: str) -> str:
    """Return the extension for an image file's format, without the dot."""
    format_name = sniff(data)
    if not format_name:
        raise MillError(f"{image_id}: clean passed these bytes, but they are none of {', '.join(EXTENSIONS)}")
    return EXTENSIONS[format_name]


def encode_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H, W, 1 or 3] (RGB) as PNG."""
    return encode_image(np.ascontiguousarray(pixels), exact=True)


def read_plain_shape(data: bytes) -> tuple[int, int, int] | None:
    """Return (height, width, channels) of a JPEG or PNG that every reader decodes to the same pixels, or None.

    None for other formats, CMYK, more than 8 bits, alpha, and an EXIF orientation, which TensorFlow does not apply.
    """
    format_name = sniff(data)
    if format_name == "JPEG" and (header := parse_jpeg_header(data)):
        return header.height, header.width, header.channels
    if format_name not in ("JPEG", "PNG"):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=[format_name]) as opened:
            is_opaque = opened.mode in _CHANNELS and "transparency" not in opened.info
            is_deep = format_name == "PNG" and data[24] > 8  # IHDR's bit depth: Pillow calls a color PNG of 16 bits RGB
            if not is_opaque or is_deep or opened.getexif().get(ORIENTATION_TAG, 1) in range(2, 9):
                return None
            return opened.height, opened.width, _CHANNELS[opened.mode]
    except (OSError, SyntaxError, ValueError):  # the caller decodes the image, which reports damage
        return None


def convert_to_png(data: bytes, image_id: str) -> tuple[bytes, tuple[int, int, int]]:
    """Convert an image file to a PNG of the same pixels, gray as one channel; also return (height, width, channels)."""
    try:
        pixels = decode(data, "rgb", limits=NO_LIMITS).pixels
    except ImageRejected as error:
        raise MillError(f"{image_id}: clean passed this image, but export can't decode it ({error})") from None
    if np.array_equal(pixels[:, :, 0], pixels[:, :, 1]) and np.array_equal(pixels[:, :, 1], pixels[:, :, 2]):
        pixels = pixels[:, :, :1]
    height, width, channels = pixels.shape
    return encode_png(pixels), (height, width, channels)
