"""Thumbnails of images, found by id in a dataset, at a bounded cost.

For datasets of any size a fixed number of row groups is read, one at a time, and a fixed number of pixels is decoded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import list_part_rows, read_index, read_part_rows, read_rows
from ..dataset.kinds import CleanExtra
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..imaging.decoder import ImageRejected, LenientDecoding, decode, keep_min_side
from ..imaging.pixel_options import DecodeLimits

SIDE, QUALITY = 160, 80
"""Pixels of a thumbnail's longer side, and its JPEG quality; about 6 kB."""
MAX_PIXELS = 300_000_000
"""Pixels that one call decodes."""
MAX_READ = 40
"""Row groups (8 MB each) that are read for thumbnails."""
GALLERY_IMAGES, GALLERY_PER_CLASS, GALLERY_TABLES = 48, 8, 12
REJECTS_PER_REASON = 8
_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)
_PROBLEMS = {"empty_file": "0 bytes", "not_an_image": "not an image", "too_many_pixels": "too large to show"}


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: `src` is a data URI, or empty, and then `problem` says why."""

    image_id: str
    src: str = ""
    problem: str = "no picture kept"


def make_thumbnails(
    dataset: Dataset, image_ids: Iterable[str], split: str | None = None, max_read: float = MAX_READ
) -> dict[str, Thumbnail]:
    """Return a thumbnail of each image of raw or clean by its id; of one that is not found within the limit, one
    without a picture.

    `split`: where the images are, if it is known. `max_read`: row groups that are read at most.
    """
    ids = list(image_ids)
    column = "image" if dataset.manifest.kind == "raw" else "image.bytes"
    images = (
        (image_id, row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"])
        for image_id, row in find_images(dataset, ids, [column], split, max_read)
    )
    return encode_thumbnails(ids, images)


def encode_thumbnails(image_ids: Iterable[str], images: Iterable[tuple[str, bytes | None]]) -> dict[str, Thumbnail]:
    """Return a thumbnail of each image by its id; `images`: those that were found, with their bytes."""
    thumbnails, pixels_left = {image_id: Thumbnail(image_id) for image_id in image_ids}, MAX_PIXELS
    for image_id, data in images:
        if data is None or pixels_left <= 0:
            problem = "no bytes" if data is None else "not decoded: enough large images shown"
            thumbnails[image_id] = Thumbnail(image_id, problem=problem)
            continue
        try:
            src, pixels = encode_picture(data)
        except ImageRejected as error:
            thumbnails[image_id] = Thumbnail(image_id, problem=_PROBLEMS.get(error.reason, "does not decode"))
            continue
        pixels_left -= pixels
        thumbnails[image_id] = Thumbnail(image_id, src, "")
    return thumbnails


def find_images(
    dataset: Dataset, ids: Collection[str], columns: list[str], split: str | None = None,
    max_read: float = float("inf"),
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Yield (image_id, columns of its row in a part) of the images with these ids, in the dataset's order.

    At most `max_read` row groups are read.
    """
    if not ids:
        return
    index = read_index(dataset, ["image_id", "part", "row"], split)
    index = index.filter(pc.is_in(index.column("image_id"), pa.array(sorted(set(ids)), pa.string())))
    num_read = 0
    for rows in list_part_rows(dataset, index):
        for table in read_part_rows(dataset, rows, columns, ["image_id"]):
            for row in table.to_pylist():
                yield row.pop("image_id"), row
            num_read += 1
            if num_read >= max_read:
                return


def encode_picture(data: bytes) -> tuple[str, int]:
    """Return an encoded image, upright, as a JPEG data URI of at most `SIDE` pixels a side, and its number of pixels.

    Lenient: what decodes in part is shown in part. Raises ImageRejected for an image that does not decode at all, or is
    larger than `_LIMITS`.
    """
    from PIL import Image

    decoded = decode(data, "rgb", lenient=LenientDecoding(keep_min_side(SIDE), vetted=False), limits=_LIMITS)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return make_data_uri(buffer.getvalue()), decoded.width * decoded.height


def make_data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def sample_classes(clean: Dataset) -> dict[str, list[str]]:
    """Return the ids of some training images by class, `GALLERY_IMAGES` in all at most.

    The first rows of the index, whose parts are in shuffled order, so a fair sample. An image with several labels
    counts for the rarest that has room.
    """
    label = label_column(MULTI) if clean.manifest.task == MULTI else "label"
    totals = CleanExtra.of(clean.manifest).by_class_and_split["train"]
    per_class = min(GALLERY_PER_CLASS, max(1, GALLERY_IMAGES // max(1, sum(map(bool, totals.values())))))
    sample: dict[str, list[str]] = {}
    for table in islice(read_rows(clean, ["image_id", label], "train"), GALLERY_TABLES):
        for image_id, value in zip(table.column("image_id").to_pylist(), table.column(label).to_pylist(), strict=True):
            names = [value] if isinstance(value, str) else [clean.manifest.classes[class_id] for class_id in value]
            names = [name for name in names if len(sample.get(name, ())) < per_class]
            if names and sum(map(len, sample.values())) < GALLERY_IMAGES:
                sample.setdefault(min(names, key=totals.__getitem__), []).append(image_id)
    return dict(sorted(sample.items()))


def read_rejects(clean: Dataset) -> dict[str, list[tuple[str, str]]]:
    """Return (image_id, detail) of the first rejects of each reason, the most frequent reason first.

    The first ones come from the first raw shards, where their bytes are soon found.
    """
    by_reason = clean.manifest.totals.by_reason
    ordered = sorted(by_reason, key=lambda reason: (-by_reason[reason], reason))
    rejects: dict[str, list[tuple[str, str]]] = {reason: [] for reason in ordered}
    for table in read_columns(clean, "rejected", ["image_id", "reason", "detail"]):
        for row in table.to_pylist():
            if len(shown := rejects.setdefault(row["reason"], [])) < REJECTS_PER_REASON:
                shown.append((row["image_id"], row["detail"]))
        if all(len(rejects[reason]) >= min(REJECTS_PER_REASON, by_reason[reason]) for reason in ordered):
            break
    return rejects
