"""Estimate, before the work, how long resizing takes, and size and reading rate of both encodings on this machine.

For the latter a few images are resized by Pillow, since importing the kernel's library takes two seconds; their pixels
differ by a level or two, the size of their JPEGs hardly. None of it goes into a manifest: it depends on the machine.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from ..dataset.kinds import ImageSpec
from ..dataset.manifest import Dataset, Totals
from ..dataset.shards import open_parquet, read_row_group
from ..imaging.decoder import Pixels
from ..imaging.geometry import Geometry
from ..imaging.pixel_options import COLORS, JPEG, RAW
from ..imaging.resample import PILLOW_FILTERS
from ..imaging.tensors import decode_column, encode_jpeg
from ..step.progress import format_size
from ..step.step import Context
from ..storage.parallel import cores
from .config import ResizeConfig
from .tensor_shards import TensorSpec

SAMPLED_IMAGES, SAMPLED_FILES = 24, 4
READ_S, RESIZE_S, MEASURE_S = 0.1, 0.1, 0.04
"""Seconds after which no further file is opened, no further image resized, and no measurement begun again."""
LINK_BYTES_PER_S = 100e6
"""Bytes a second from remote storage: a gigabit link, a busy object store."""
MEASURED_BYTES = {RAW: 24 * 2**20, JPEG: 8 * 2**20}
"""Bytes of pixels that are read: of raw ones as many as a row group has, which no CPU cache holds."""
MIN_JPEGS_PER_THREAD = 16
T = TypeVar("T")


def report_estimate(clean: Dataset, config: ResizeConfig, spec: TensorSpec, context: Context) -> None:
    """Report the estimate, which costs less than half a second. A failure is reported and never ends a run."""
    try:
        for line in estimate_encodings(clean, config, spec):
            context.say(line)
    except Exception as error:  # a real fault is met again by the work itself, which reports it properly
        context.say(f"no estimate of size and reading rate: {type(error).__name__}: {error}")


def estimate_encodings(clean: Dataset, config: ResizeConfig, spec: TensorSpec) -> Iterator[str]:
    """Yield a line for each encoding that the tensors can have."""
    totals, geometry = clean.manifest.totals, spec.geometry
    rows = totals.rows + config.copies * totals.by_split.get("train", 0)
    line = _format_raw(rows, spec)
    if geometry.edges or geometry.color in ("ycbcr", "lab"):
        yield f"{line}; {'edges' if geometry.edges else geometry.color} can't be kept as JPEG"
        return
    yield line
    if spec.row_bytes > MEASURED_BYTES[RAW]:  # it would take about a second
        return

    def encode(data: bytes) -> bytes:
        return encode_jpeg(_resize_with_pillow(data, geometry), config.jpeg_quality, config.jpeg_subsampling)

    jpegs = list(_run_until(RESIZE_S, (partial(encode, data) for data in sample_images(clean))))
    if jpegs:
        yield f"{_format_jpeg(rows, jpegs, geometry, config)}; chosen: {spec.encoding}"


def _format_raw(rows: int, spec: TensorSpec) -> str:
    row_bytes = spec.row_bytes
    width = min(row_bytes, MEASURED_BYTES[RAW])
    number = MEASURED_BYTES[RAW] // width
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), number, [None, pa.py_buffer(bytes(number * width))])
    rate = _measure_rate(pixels, ImageSpec((1, width, 1), encoding=RAW)) * width / row_bytes
    return (
        f"raw: {format_size(rows * row_bytes)}, read at about {_round(rate)} images/s from memory, "
        f"{_round(min(rate, LINK_BYTES_PER_S / row_bytes))}/s over a {LINK_BYTES_PER_S / 1e6:.0f} MB/s link"
    )


def _format_jpeg(rows: int, jpegs: Sequence[bytes], geometry: Geometry, config: ResizeConfig) -> str:
    mean, shape = sum(map(len, jpegs)) / len(jpegs), geometry.shape
    number = max(MEASURED_BYTES[JPEG] // math.prod(shape), MIN_JPEGS_PER_THREAD * cores())
    number = max(1, min(number, 8 * MEASURED_BYTES[JPEG] // math.prod(shape)))
    measured = [jpegs[i % len(jpegs)] for i in range(number)]
    offsets = np.cumsum([0, *map(len, measured)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(measured))]
    rate = _measure_rate(pa.Array.from_buffers(pa.binary(), number, buffers), ImageSpec(shape, encoding=JPEG))
    subsampling = f", {':'.join(config.jpeg_subsampling)}" if shape[2] == 3 else ""
    quality = f"quality {config.jpeg_quality}{subsampling}"
    return (
        f"jpeg ({quality}): {format_size(rows * mean)}, decoded at about {_round(rate)} images/s, "
        f"{_round(min(rate, LINK_BYTES_PER_S / mean))}/s over that link"
    )


def sample_images(clean: Dataset) -> list[bytes]:
    """Return up to `SAMPLED_IMAGES` encoded images, from the first row groups of files spread over the splits.

    The same ones at every call, unless the storage is slow: then they are fewer.
    """
    files = clean.files("data")
    chosen = [files[i] for i in _spread_evenly(len(files), SAMPLED_FILES)]

    def read(uri: str) -> list[bytes]:
        with open_parquet(uri) as parquet:
            table = read_row_group(parquet, 0, uri, ["image.bytes"])
        column = table.column("image").combine_chunks().field("bytes")
        return [column[i].as_py() for i in _spread_evenly(len(column), SAMPLED_IMAGES // len(chosen))]

    parts = _run_until(READ_S, (partial(read, clean.locate(file)) for file in chosen))
    return [data for part in parts for data in part]


def _spread_evenly(stop: int, count: int) -> list[int]:
    """Return up to `count` of the integers below `stop`, evenly spaced."""
    count = min(stop, count)
    return [i * stop // count for i in range(count)]


def _run_until(seconds: float, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of the tasks that start within `seconds`, of the first one in any case."""
    started = time.perf_counter()
    for task in tasks:
        yield task()
        if time.perf_counter() - started > seconds:
            return


def _resize_with_pillow(data: bytes, geometry: Geometry) -> Pixels:
    """Resize nearly as the kernel does: to uint8 [H, W, 1 or 3]."""
    image: Image.Image = Image.open(io.BytesIO(data))
    mode = "RGB" if COLORS[geometry.color] == 3 else "L"
    width, height = geometry.scaled(*image.size)
    image.draft(mode, (2 * width, 2 * height))  # so that a large JPEG is decoded smaller
    image, kept = image.convert(mode), geometry.kept
    resample = PILLOW_FILTERS[geometry.interpolation]
    if geometry.mode == "crop":
        crop_width, crop_height = kept * image.width / width, kept * image.height / height
        left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
        image = image.resize((kept, kept), resample, (left, top, left + crop_width, top + crop_height))
    else:
        image = ImageOps.pad(image.resize((width, height), resample), (kept, kept))
    return np.asarray(image).reshape(geometry.shape)


def _measure_rate(images: pa.Array, image: ImageSpec) -> float:
    """Return the images a second that are read as pixels from a Parquet file in memory, as training reads them.

    `images` should be made of buffers: to convert a list, Arrow first imports pandas. `image`: as in the manifest.
    """
    out = pa.BufferOutputStream()
    table = pa.Table.from_arrays([images], ["image"])
    pq.write_table(table, out, compression="none", use_dictionary=False, write_statistics=False)
    buffer = out.getvalue()

    def read() -> float:
        started = time.perf_counter()
        with pq.ParquetFile(pa.BufferReader(buffer)) as parquet:
            decode_column(parquet.read_row_group(0, use_threads=False).column("image"), image)
        return time.perf_counter() - started

    return len(images) / min(_run_until(MEASURE_S, [read] * 10))


def _round(number: float) -> str:
    """Format a number with two significant digits: `4,900`."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else f"{number:.1g}"


SECONDS_PER_IMAGE = 0.7e-3
"""Core-seconds for each image, whatever its size: resampling, writing, hashing."""
SECONDS_PER_BYTE = 17e-9
"""Core-seconds for each byte of an image file: reading and decoding."""
SECONDS_PER_COPIED_BYTE = 4e-9
"""Core-seconds for each byte of pixels of a shard that is written again without rows that left: reading, hashing."""
RAY_START_S = 8.0
"""Seconds that Ray takes to start on two cores (measured: 6 to 10 s with its first workers)."""


def estimate_core_seconds(totals: Totals, copies: int = 0) -> float:
    """Return the core-seconds that resizing a clean dataset takes, by its totals. `copies`: of each training image.

    It is a line through three measurements of the resize step on two cores (to 224 x 224, start-up apart):

    | images | file | measured | estimated |
    |---|---|---|---|
    | 500 x 375 | 34 kB | 1,400 to 1,700 images/s | 1,570 images/s |
    | 1600 x 1200 | 231 kB | 420 to 430 images/s | 430 images/s |
    | 4000 x 3000 | 1 MB | 119 images/s | 113 images/s |
    """
    images = totals.rows + copies * totals.by_split.get("train", 0)
    return images * (SECONDS_PER_IMAGE + SECONDS_PER_BYTE * totals.bytes / max(1, totals.rows))
