"""What the choice of encoding means for this dataset on this machine, in two lines: size, and how fast it is read.

A few images are resized by Pillow, for the kernel's library takes two seconds to import; their pixels differ by a level
or two, their JPEGs by nothing that matters here. Nothing of this goes into a manifest: it depends on the machine.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from ..store.choices import COLORS, JPEG, RAW
from ..store.images import Pixels
from ..store.manifest import Dataset
from ..store.parallel import cores
from ..store.progress import format_size
from ..store.resample import Geometry
from ..store.shards import open_parquet, read_row_group
from ..store.step import Context
from ..store.tensors import decode_column, encode_jpeg
from .config import ResizeConfig
from .work import Recipe

IMAGES, FILES = 24, 4
"""What is looked at, at most."""
READ_S, RESIZE_S, MEASURE_S = 0.1, 0.1, 0.04
"""Seconds after which no further file is opened, no further image resized, and no measurement begun again."""
LINK = 100e6
"""Bytes a second of a storage that is not the machine's own memory: a gigabit link, a busy object store."""
MEASURED_BYTES = {RAW: 24 * 2**20, JPEG: 8 * 2**20}
"""Of pixels: raw ones as many as a row group has, which no cache holds."""
JPEGS_A_THREAD = 16
"""At least, so that every core has something to do."""
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
T = TypeVar("T")


def say_estimate(clean: Dataset, config: ResizeConfig, recipe: Recipe, context: Context) -> None:
    """Say the lines. An estimate costs less than half a second, and never a run."""
    try:
        for line in estimate(clean, config, recipe):
            context.say(line)
    except Exception as error:  # what is really wrong the work itself will meet, and tell as it should be told
        context.say(f"no estimate of size and reading rate: {type(error).__name__}: {error}")


def estimate(clean: Dataset, config: ResizeConfig, recipe: Recipe) -> Iterator[str]:
    """A line for each encoding that the recipe's images can have."""
    totals, geometry = clean.manifest.totals, recipe.geometry
    rows = totals.rows + config.copies * totals.by_split.get("train", 0)
    line = _raw_line(rows, recipe)
    if geometry.edges or geometry.color in ("ycbcr", "lab"):
        yield f"{line}; {'edges' if geometry.edges else geometry.color} can't be kept as JPEG"
        return
    yield line
    if recipe.row_bytes > MEASURED_BYTES[RAW]:  # a second's work
        return

    def encoded(data: bytes) -> bytes:
        return encode_jpeg(_resized(data, geometry), config.jpeg_quality, config.jpeg_subsampling)

    jpegs = list(_until(RESIZE_S, (partial(encoded, data) for data in sample(clean))))
    if jpegs:
        yield f"{_jpeg_line(rows, jpegs, geometry, config)}; chosen: {recipe.encoding}"


def _raw_line(rows: int, recipe: Recipe) -> str:
    raw = recipe.row_bytes
    width = min(raw, MEASURED_BYTES[RAW])
    number = MEASURED_BYTES[RAW] // width
    pixels = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), number, [None, pa.py_buffer(bytes(number * width))])
    rate = _rate(pixels, {"shape": [1, width, 1], "encoding": RAW}) * width / raw
    return (
        f"raw: {format_size(rows * raw)}, read at about {_about(rate)} images/s from memory, "
        f"{_about(min(rate, LINK / raw))}/s over a {LINK / 1e6:.0f} MB/s link"
    )


def _jpeg_line(rows: int, jpegs: Sequence[bytes], geometry: Geometry, config: ResizeConfig) -> str:
    mean, shape = sum(map(len, jpegs)) / len(jpegs), geometry.shape
    wanted = max(MEASURED_BYTES[JPEG] // math.prod(shape), JPEGS_A_THREAD * cores())
    wanted = max(1, min(wanted, 8 * MEASURED_BYTES[JPEG] // math.prod(shape)))
    measured = [jpegs[i % len(jpegs)] for i in range(wanted)]
    ends = np.cumsum([0, *map(len, measured)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(measured))]
    rate = _rate(pa.Array.from_buffers(pa.binary(), wanted, buffers), {"shape": shape, "encoding": JPEG})
    colour = f", {':'.join(config.jpeg_subsampling)}" if shape[2] == 3 else ""
    return (
        f"jpeg (quality {config.jpeg_quality}{colour}): {format_size(rows * mean)}, decoded at about "
        f"{_about(rate)} images/s, {_about(min(rate, LINK / mean))}/s over that link"
    )


def sample(clean: Dataset) -> list[bytes]:
    """Up to `IMAGES` encoded images: the same ones of the same dataset, from the first row groups of files that are
    spread over its splits. Fewer where the storage is slow."""
    files = clean.files("data")
    chosen = [files[i] for i in _spread(len(files), FILES)]

    def read(uri: str) -> list[bytes]:
        with open_parquet(uri) as parquet:
            table = read_row_group(parquet, 0, uri, ["image.bytes"])
        column = table.column("image").combine_chunks().field("bytes")
        return [column[i].as_py() for i in _spread(len(column), IMAGES // len(chosen))]

    found = _until(READ_S, (partial(read, clean.locate(file)) for file in chosen))
    return [data for part in found for data in part]


def _spread(number: int, wanted: int) -> list[int]:
    """Up to `wanted` of the numbers below `number`, evenly."""
    wanted = min(number, wanted)
    return [i * number // wanted for i in range(wanted)]


def _until(seconds: float, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of the tasks, of the first one at least, as many as begin within so many seconds."""
    started = time.perf_counter()
    for task in tasks:
        yield task()
        if time.perf_counter() - started > seconds:
            return


def _resized(data: bytes, geometry: Geometry) -> Pixels:
    """About what resize makes of it: uint8 [H, W, 1 or 3]."""
    image: Image.Image = Image.open(io.BytesIO(data))
    mode = "RGB" if COLORS[geometry.color] == 3 else "L"
    width, height = geometry.scaled(*image.size)
    image.draft(mode, (2 * width, 2 * height))  # so that a large JPEG is decoded smaller
    image, kept = image.convert(mode), geometry.kept
    how = _FILTERS.get(geometry.interpolation, Image.Resampling.BILINEAR)
    if geometry.mode == "crop":
        across, down = kept * image.width / width, kept * image.height / height
        left, top = (image.width - across) / 2, (image.height - down) / 2
        image = image.resize((kept, kept), how, (left, top, left + across, top + down))
    else:
        image = ImageOps.pad(image.resize((width, height), how), (kept, kept))
    return np.asarray(image).reshape(geometry.shape)


def _rate(images: pa.Array, image: dict[str, Any]) -> float:
    """Images a second that come out of a Parquet file in memory as pixels, in the way that training reads them. The
    array is made of buffers: of a list Arrow makes none before it has imported pandas."""
    out = pa.BufferOutputStream()
    table = pa.Table.from_arrays([images], ["image"])
    pq.write_table(table, out, compression="none", use_dictionary=False, write_statistics=False)
    written = out.getvalue()

    def read() -> float:
        started = time.perf_counter()
        with pq.ParquetFile(pa.BufferReader(written)) as parquet:
            decode_column(parquet.read_row_group(0, use_threads=False).column("image"), image)
        return time.perf_counter() - started

    return len(images) / min(_until(MEASURE_S, [read] * 10))


def _about(number: float) -> str:
    """Two digits of it: `4,900`."""
    return f"{float(f'{number:.2g}'):,.0f}" if number >= 10 else f"{number:.1g}"
