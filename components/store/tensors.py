"""Tensors as their files hold them, for everybody who reads some: train, evaluate, export.

`image` is what a manifest says of the pixels: `shape` [H, W, C] as stored, `input_size` (the model sees the centre
square of so many pixels a side), `encoding` raw or jpeg.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from .choices import JPEG, RAW
from .images import Pixels
from .parallel import cores

if TYPE_CHECKING:
    import pyarrow as pa

_SHARE = 16
"""JPEGs that a thread decodes at a time."""


def images_of(column: pa.ChunkedArray, image: dict[str, Any]) -> Pixels:
    """The column `image` of some rows as uint8 [rows, H, W, C]. Raw pixels are not copied where they are one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    shape = image["shape"]
    if image.get("encoding", RAW) == JPEG:
        return _decoded(array, shape)
    width = int(np.prod(shape))
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), *shape)


def _decoded(array: pa.Array, shape: list[int]) -> Pixels:
    out: Pixels = np.empty((len(array), *shape), np.uint8)
    colorspace = "RGB" if shape[2] == 3 else "GRAY"

    def decode(start: int) -> None:
        for row in range(start, min(start + _SHARE, len(array))):
            data = memoryview(array[row].as_buffer()).cast("B")  # Arrow calls its bytes signed
            simplejpeg.decode_jpeg(data, colorspace, buffer=out[row])

    _each(decode, range(0, len(array), _SHARE))
    return out


def _each(work: Callable[[int], None], items: range) -> None:
    if len(items) > 1 and cores() > 1:
        list(_pool(os.getpid()).map(work, items))
    else:
        for item in items:
            work(item)


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """One for the process `pid`: a forked one has no threads of its parent's."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="jpeg")


def encode_jpeg(pixels: Pixels, quality: int, subsampling: str) -> bytes:
    """uint8 [H, W, 1 or 3] as a JPEG; `subsampling` of the colour: 420 or 444."""
    gray = pixels.shape[2] == 1
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "GRAY" if gray else "RGB", "Gray" if gray else subsampling))


def centre(images: Pixels, size: int) -> Pixels:
    """uint8 [..., H, W, C] → a view of the centre square of `size`: what the model sees of stored images."""
    top, left = (images.shape[-3] - size) // 2, (images.shape[-2] - size) // 2
    return images[..., top : top + size, left : left + size, :]


def input_size(image: dict[str, Any]) -> int:
    """Side in pixels of what the model sees."""
    return int(image.get("input_size", image["shape"][0]))


def input_image(image: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of stored pixels, made to say what the model sees: the centre, as raw pixels."""
    size = input_size(image)
    return image | {"shape": [size, size, image["shape"][2]], "input_size": size, "encoding": RAW}
