"""Small pictures for HTML pages, as data URIs, and the images of a dataset that they are made of, found by id."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet, read_row_group
from .decoder import LenientDecoding, decode, keep_min_side
from .pixel_options import DecodeLimits

BUDGET_PIXELS = 300_000_000
"""Pixels that a page decodes for its pictures."""
_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)


def find_images(
    dataset: Dataset, groups: Iterable[tuple[File, Sequence[int] | None]], ids: Collection[str], columns: list[str],
    max_searched: float = float("inf"), max_read: float = float("inf"),
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Yield (image_id, columns of its row) of the images with these ids, in the dataset's order, each once.

    Ids are read alone first, in at most `max_searched` of the row groups of `groups` (None: all of a file), so that
    only those with a hit, at most `max_read`, are read with their images.
    """
    missing, searched, read = set(ids), 0, 0
    for file, indices in groups:
        uri, removed = dataset.locate(file), dataset.removed_ids(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups) if indices is None else indices:
                if not missing or searched >= max_searched or read >= max_read:
                    return
                searched += 1
                names = read_row_group(parquet, index, uri, ["image_id"]).column("image_id")
                rows = pc.indices_nonzero(pc.is_in(names, pa.array(sorted(missing - removed), names.type)))
                if not len(rows):
                    continue
                read += 1
                table = read_row_group(parquet, index, uri, columns).take(rows)
                for name, row in zip(names.take(rows).to_pylist(), table.to_pylist(), strict=True):
                    missing.discard(name)
                    yield name, row


def encode_picture(data: bytes, side: int, quality: int) -> tuple[str, int]:
    """Return an encoded image, upright, as a JPEG data URI of at most `side` pixels a side, and its number of pixels.

    Lenient: what decodes in part is shown in part. Raises ImageRejected for an image that does not decode at all, or is
    larger than `_LIMITS`.
    """
    from PIL import Image

    decoded = decode(data, "rgb", lenient=LenientDecoding(keep_min_side(side), vetted=False), limits=_LIMITS)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return make_data_uri("jpeg", buffer.getvalue()), decoded.width * decoded.height


def make_data_uri(kind: str, data: bytes) -> str:
    """Return an image file of a kind (`jpeg`, `png`) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
