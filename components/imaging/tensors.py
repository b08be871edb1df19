"""Pixels as the files of tensors hold them, for train, evaluate and export."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import simplejpeg

from ..dataset.kinds import ImageSpec
from ..storage.parallel import cores
from .decoder import Pixels
from .pixel_options import JPEG

if TYPE_CHECKING:
    import pyarrow as pa

JPEGS_PER_TASK = 16
"""JPEGs that a thread decodes in one task."""
SMALL_SIDE = 16
"""Pixels of a side at most, of images for models that know pixels alone."""


def decode_column(column: pa.ChunkedArray, image: ImageSpec) -> Pixels:
    """Decode the column `image` to uint8 [rows, H, W, C]. Raw pixels are not copied where they are one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    shape = image.shape
    if image.encoding == JPEG:
        return _decode_jpegs(array, shape)
    row_bytes = int(np.prod(shape))
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * row_bytes : (array.offset + len(array)) * row_bytes].reshape(len(array), *shape)


def _decode_jpegs(array: pa.Array, shape: tuple[int, int, int]) -> Pixels:
    out: Pixels = np.empty((len(array), *shape), np.uint8)
    colorspace = "RGB" if shape[2] == 3 else "GRAY"

    def decode(start: int) -> None:
        for row in range(start, min(start + JPEGS_PER_TASK, len(array))):
            data = memoryview(array[row].as_buffer()).cast("B")  # Arrow calls its bytes signed
            simplejpeg.decode_jpeg(data, colorspace, buffer=out[row])

    _run_tasks(decode, range(0, len(array), JPEGS_PER_TASK))
    return out


def _run_tasks(work: Callable[[int], None], items: range) -> None:
    if len(items) > 1 and cores() > 1:
        list(_pool(os.getpid()).map(work, items))
    else:
        for item in items:
            work(item)


@cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """Return the thread pool of the process `pid`: a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="jpeg")


def encode_jpeg(pixels: Pixels, quality: int, subsampling: str) -> bytes:
    """Encode uint8 [H, W, 1 or 3] as a JPEG; `subsampling` of the color: 420 or 444."""
    gray = pixels.shape[2] == 1
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "GRAY" if gray else "RGB", "Gray" if gray else subsampling))


def center_crop(images: Pixels, size: int) -> Pixels:
    """Return a view of the center square of `size` of uint8 [..., H, W, C]: the model's input of stored images."""
    top, left = (images.shape[-3] - size) // 2, (images.shape[-2] - size) // 2
    return images[..., top : top + size, left : left + size, :]


def shrink(images: Pixels) -> npt.NDArray[np.float32]:
    """Return uint8 [N, H, W, C] as the means of at most `SMALL_SIDE` x `SMALL_SIDE` cells, float32 [N, C · cells]."""
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    side = min(SMALL_SIDE, *images.shape[1:3])
    cells: npt.NDArray[np.float32] = torch.nn.functional.adaptive_avg_pool2d(planes, side).flatten(1).numpy()
    return cells
