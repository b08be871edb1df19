"""Helpers for tests of the decoder: a picture in any mode and format, and the reason of a rejection."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from imagemill.components.clean.config import REASONS
from imagemill.components.imaging.decoder import ImageRejected, decode

Pixels = npt.NDArray[np.uint8]
WIDTH, HEIGHT = 37, 23
ORIENTATION = 0x0112


def picture(mode: str = "RGB", width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture without symmetry: gradients, a bright corner, a dark bar."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x * 3 + y * 7) % 256], 2).astype(
        np.uint8
    )
    rgb[: height // 3, : width // 4] = (250, 240, 10)
    rgb[-2:, width // 2 :] = (5, 10, 60)
    return Image.fromarray(rgb).convert(mode)


def pixels_of(image: Image.Image) -> Pixels:
    """uint8 [H, W, C] of an RGB or L picture."""
    array = np.asarray(image, np.uint8)
    return array if array.ndim == 3 else array[:, :, None]


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageRejected) as error:
        decode(data, **options)
    assert error.value.reason in REASONS and error.value.detail
    return error.value.reason


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def jpeg_header(width: int, height: int) -> bytes:
    data = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]
