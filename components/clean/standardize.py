"""What is the same for every epoch, done once, in one pass over the decoded pixels.

The order of operations is: decode upright, then (in an order that will be documented here, operation by
operation) region of interest, colour, denoise, contrast, binarize. Today there is one: colour.
Where an operation changed pixels the image is encoded again; where none did, the original bytes pass through.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import simplejpeg
from PIL import Image

from ..store.images import Decoded, Pixels, decode
from .config import CleanConfig

LOSSY = ("JPEG", "WEBP")
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Standardized:
    """`data`: the bytes to store; `decoded`: their pixels, uint8 [H, W, C], and what the decoder said."""

    data: bytes
    decoded: Decoded


def standardize(data: bytes, config: CleanConfig) -> Standardized:
    """Decode strictly and apply the operations. Raises ImageRejected for what is no valid image."""
    decoded = decode(data, config.color, limits=config.limits())
    changed = config.color == "gray" and not decoded.as_stored
    return Standardized(encode(decoded.pixels, decoded.format) if changed else data, decoded)


def encode(pixels: Pixels, source_format: str) -> bytes:
    """uint8 [H, W, 1 or 3] as JPEG 95 4:4:4 where the source was lossy already, else as PNG."""
    gray = pixels.shape[2] == 1
    if source_format in LOSSY:
        space = "GRAY" if gray else "RGB"
        return bytes(simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, space, "Gray" if gray else "444"))
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if gray else pixels).save(out, "PNG", compress_level=6)
    return out.getvalue()
