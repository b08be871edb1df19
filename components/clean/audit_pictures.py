"""The pictures of the audit, as data URIs, at a bounded cost: so many images decoded, the others as thumbnails.

What cleaning dropped is no longer in the clean files; it is looked up in the raw dataset, if that is there.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..store.choices import DecodeLimits
from ..store.errors import DatasetError, UserError
from ..store.images import ImageRejected, LenientDecoding, Pixels, decode, keep_min_side
from ..store.manifest import Dataset, read_dataset
from ..store.shards import open_parquet, read_row_group
from .phash import CHROMA, LUMA, THUMBNAIL_BYTES

SIDE, QUALITY = 160, 70
"""Pixels of a picture's longer side, and its JPEG quality: about 6 kB."""
LARGE = 96
"""So many pictures are made from the images themselves; the others are the stored thumbnails."""
RAW_GROUPS = 2_000
"""So many row groups of raw (8 MB each) are searched, by image_id alone, for what was dropped."""
_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)
_BUDGET_PIXELS = 300_000_000


@dataclass(frozen=True)
class Picture:
    """`src` is a data URI, or empty. `small`: it is the stored thumbnail; `raw`: as in the source, for it went."""

    src: str = ""
    small: bool = False
    raw: bool = False


def find_pictures(dataset: Dataset, ids: Sequence[str]) -> dict[str, Picture]:
    """A picture of each image that is found, the first `LARGE` of `ids` as large ones. Holds a row group at a time."""
    wanted = dict.fromkeys(ids)
    maker = _Maker(frozenset(list(wanted)[:LARGE]))
    found = _look_up(dataset, set(wanted), maker, raw=False)
    missing = set(wanted) - found.keys()
    if missing:
        try:
            raw = read_dataset(dataset.parent_uri("raw"), "raw")
            found |= _look_up(raw, missing, maker, raw=True)
        except (UserError, DatasetError):  # it was made elsewhere, or its raw dataset was removed since
            pass
    return found


@dataclass
class _Maker:
    """Makes pictures until its budget of decoded pixels is spent."""

    large: frozenset[str]
    left: int = _BUDGET_PIXELS

    def make(self, image_id: str, data: bytes | None, thumbnail: bytes | None, raw: bool) -> Picture:
        if image_id in self.large and data and self.left > 0:
            try:
                src, pixels = picture(data)
                self.left -= pixels
                return Picture(src, raw=raw)
            except ImageRejected:  # larger than what is decoded for a look
                pass
        return Picture(thumbnail_uri(thumbnail), small=True) if thumbnail else Picture(raw=raw)


def _look_up(dataset: Dataset, missing: set[str], maker: _Maker, raw: bool) -> dict[str, Picture]:
    """Ids are read alone first, so that only row groups with a hit are read with their images."""
    found: dict[str, Picture] = {}
    searched = 0
    for file in dataset.files():
        uri = dataset.locate(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                if not missing or (raw and searched >= RAW_GROUPS):
                    return found
                searched += 1
                names = read_row_group(parquet, index, uri, ["image_id"]).column("image_id")
                rows = pc.indices_nonzero(pc.is_in(names, pa.array(sorted(missing), names.type)))
                if not len(rows):
                    continue
                columns = ["image"] if raw else ["image.bytes", "thumbnail"]
                table = read_row_group(parquet, index, uri, columns).take(rows)
                for row, name in enumerate(names.take(rows).to_pylist()):
                    image = table.column("image")[row].as_py()
                    thumbnail = table.column("thumbnail")[row].as_py() if "thumbnail" in table.column_names else None
                    found[name] = maker.make(name, image if raw else image["bytes"], thumbnail, raw)
                    missing.discard(name)
    return found


def picture(data: bytes) -> tuple[str, int]:
    """An encoded image → a JPEG data URI of at most `SIDE` pixels a side, and the pixels of the full image.

    Raises ImageRejected for what does not decode, or is too large to be decoded for a look.
    """
    decoded = decode(data, "rgb", lenient=LenientDecoding(keep_min_side(SIDE), vetted=False), limits=_LIMITS)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return _data_uri("jpeg", buffer.getvalue()), decoded.width * decoded.height


def thumbnail_uri(data: bytes) -> str:
    """A stored thumbnail → a PNG data URI, or nothing for bytes of another form."""
    pixels = thumbnail_pixels(data)
    if pixels is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _data_uri("png", buffer.getvalue())


def thumbnail_pixels(data: bytes) -> Pixels | None:
    """The `thumbnail` column's bytes → uint8 [24, 24, 3] RGB; the picture is squeezed into the square."""
    if len(data) != THUMBNAIL_BYTES:
        return None
    luma, chroma = np.split(np.frombuffer(data, np.uint8), [LUMA * LUMA])
    coarse = chroma.reshape(CHROMA, CHROMA, 2)
    scale = LUMA // CHROMA
    planes = [luma.reshape(LUMA, LUMA, 1), coarse.repeat(scale, axis=0).repeat(scale, axis=1)]
    return cv2.cvtColor(np.concatenate(planes, axis=2), cv2.COLOR_YCrCb2RGB).astype(np.uint8, copy=False)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
