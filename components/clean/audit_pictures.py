"""The pictures of the audit page, as data URIs: a limited number of images is decoded, the others are thumbnails.

Images that cleaning dropped are not in the clean files; they are looked up in the raw dataset, if it exists.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..dataset.manifest import Dataset, File, read_dataset
from ..dataset.shards import open_parquet, read_row_group
from ..imaging.choices import DecodeLimits
from ..imaging.decoder import ImageRejected, LenientDecoding, Pixels, decode, keep_min_side
from ..storage.errors import DatasetError, UserError
from .phash import CHROMA, LUMA, THUMBNAIL_BYTES

SIDE, QUALITY = 160, 70
"""Pixels of a picture's longer side, and its JPEG quality; about 6 kB."""
MAX_LARGE = 96
"""Maximum number of pictures that are made from the images; the others are the stored thumbnails."""
MAX_RAW_GROUPS = 2_000
"""Maximum number of row groups of raw (8 MB each) that are searched, by image_id alone, for dropped images."""
_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)
_BUDGET_PIXELS = 300_000_000


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        src: data URI, or empty.
        small: whether it is the stored thumbnail.
        raw: whether it is from the raw dataset, because cleaning dropped the image.
    """

    src: str = ""
    small: bool = False
    raw: bool = False


Places = Mapping[str, tuple[File, range]]
"""Where images are, by image_id: a data file, and the row groups of it to look into."""


def find_pictures(
    dataset: Dataset, ids: Sequence[str], kept: Places | None = None, dropped: Places | None = None
) -> dict[str, Picture]:
    """Make a picture of each image that is found, the first `MAX_LARGE` of `ids` as large ones.

    Holds one row group at a time.

    Args:
        kept: places of the images in `dataset`; by default all of it is searched.
        dropped: places of the others in the raw dataset.
    """
    unique = list(dict.fromkeys(ids))
    maker = _PictureMaker(frozenset(unique[:MAX_LARGE]))
    pictures = _look_up(dataset, set(unique), maker, raw=False, places=kept)
    missing = set(unique) - pictures.keys()
    if missing:
        try:
            raw = read_dataset(dataset.parent_uri("raw"), "raw")
            pictures |= _look_up(raw, missing, maker, raw=True, places=dropped)
        except (UserError, DatasetError):  # the raw dataset is elsewhere, or was removed
            pass
    return pictures


@dataclass
class _PictureMaker:
    """Makes pictures until its budget of decoded pixels is spent."""

    large: frozenset[str]
    budget: int = _BUDGET_PIXELS

    def make(self, image_id: str, data: bytes | None, thumbnail: bytes | None, raw: bool) -> Picture:
        if image_id in self.large and data and self.budget > 0:
            try:
                src, pixels = make_picture_uri(data)
                self.budget -= pixels
                return Picture(src, raw=raw)
            except ImageRejected:  # larger than `_LIMITS`
                pass
        return Picture(make_thumbnail_uri(thumbnail), small=True) if thumbnail else Picture(raw=raw)


def _look_up(
    dataset: Dataset, missing: set[str], maker: _PictureMaker, raw: bool, places: Places | None = None
) -> dict[str, Picture]:
    """Make pictures of the images in `missing`, and remove those that are found from it.

    Ids are read alone first, so that only row groups with a hit are read with their images.
    """
    pictures: dict[str, Picture] = {}
    searched = 0
    for file, groups in _list_groups(dataset, places):
        uri, removed = dataset.locate(file), dataset.removed_ids(file)
        with open_parquet(uri) as parquet:
            for index in groups if groups is not None else range(parquet.num_row_groups):
                if not missing or (raw and searched >= MAX_RAW_GROUPS):
                    return pictures
                searched += 1
                names = read_row_group(parquet, index, uri, ["image_id"]).column("image_id")
                rows = pc.indices_nonzero(pc.is_in(names, pa.array(sorted(missing - removed), names.type)))
                if not len(rows):
                    continue
                columns = ["image"] if raw else ["image.bytes", "thumbnail"]
                table = read_row_group(parquet, index, uri, columns).take(rows)
                for row, name in enumerate(names.take(rows).to_pylist()):
                    image = table.column("image")[row].as_py()
                    thumbnail = table.column("thumbnail")[row].as_py() if "thumbnail" in table.column_names else None
                    pictures[name] = maker.make(name, image if raw else image["bytes"], thumbnail, raw)
                    missing.discard(name)
    return pictures


def _list_groups(dataset: Dataset, places: Places | None) -> Iterator[tuple[File, Sequence[int] | None]]:
    """Yield the data files to search, in their order, and the row groups: None for all of them."""
    if places is None:
        yield from ((file, None) for file in dataset.files())
        return
    groups: dict[str, set[int]] = {}
    for file, numbers in places.values():
        groups.setdefault(file.uri, set()).update(numbers)
    yield from ((file, sorted(groups[file.uri])) for file in dataset.files() if file.uri in groups)


def make_picture_uri(data: bytes) -> tuple[str, int]:
    """Return an image as a JPEG data URI of at most `SIDE` pixels a side, and the number of pixels of the full image.

    Raises ImageRejected for an image that does not decode, or is larger than `_LIMITS`.
    """
    decoded = decode(data, "rgb", lenient=LenientDecoding(keep_min_side(SIDE), vetted=False), limits=_LIMITS)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return _make_data_uri("jpeg", buffer.getvalue()), decoded.width * decoded.height


def make_thumbnail_uri(data: bytes) -> str:
    """Return a stored thumbnail as a PNG data URI; empty for bytes of another length."""
    pixels = decode_thumbnail(data)
    if pixels is None:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _make_data_uri("png", buffer.getvalue())


def decode_thumbnail(data: bytes) -> Pixels | None:
    """Decode the `thumbnail` column to uint8 [24, 24, 3] RGB; the picture is squeezed into the square.

    None for bytes of another length.
    """
    if len(data) != THUMBNAIL_BYTES:
        return None
    luma, chroma = np.split(np.frombuffer(data, np.uint8), [LUMA * LUMA])
    coarse = chroma.reshape(CHROMA, CHROMA, 2)
    scale = LUMA // CHROMA
    planes = [luma.reshape(LUMA, LUMA, 1), coarse.repeat(scale, axis=0).repeat(scale, axis=1)]
    return cv2.cvtColor(np.concatenate(planes, axis=2), cv2.COLOR_YCrCb2RGB).astype(np.uint8, copy=False)


def _make_data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
