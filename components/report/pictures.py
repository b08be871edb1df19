"""Thumbnails of images, found by id in a dataset, at a bounded cost.

For datasets of any size a fixed number of row groups is read, one at a time, and a fixed number of pixels is decoded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import CleanExtra
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet, read_columns, read_row_group
from ..imaging.decoder import ImageRejected, LenientDecoding, decode, keep_min_side
from ..imaging.pixel_options import DecodeLimits

SIDE, QUALITY = 160, 80
"""Pixels of a thumbnail's longer side, and its JPEG quality; about 6 kB."""
MAX_PIXELS = 300_000_000
"""Pixels that one call decodes."""
MAX_SEARCHED, MAX_READ = 2_000, 20
"""Row groups that are searched by image_id alone, and that are read with their images (8 MB each)."""
GALLERY_IMAGES, GALLERY_PER_CLASS, GALLERY_ROW_GROUPS = 48, 8, 12
REJECTS_PER_REASON = 8
_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)
_PROBLEMS = {"empty_file": "0 bytes", "not_an_image": "not an image", "too_many_pixels": "too large to show"}

Groups = Iterable[tuple[File, Sequence[int] | None]]
"""Data files, and the numbers of the row groups of each: None for all."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: `src` is a data URI, or empty, and then `problem` says why."""

    image_id: str
    src: str = ""
    problem: str = "no picture kept"


def make_thumbnails(
    dataset: Dataset,
    image_ids: Iterable[str],
    split: str = "",
    groups: Groups | None = None,
    max_read: float = MAX_READ,
) -> dict[str, Thumbnail]:
    """Return a thumbnail of each image of raw or clean by its id; of one that is not found within the limits, one
    without a picture.

    `split`: where the images are, if it is known. `groups`: what is searched, by default all data files.
    """
    ids, pixels_left = set(image_ids), MAX_PIXELS
    thumbnails = {image_id: Thumbnail(image_id) for image_id in ids}
    if groups is None:
        groups = ((file, None) for file in dataset.files("data", split) or dataset.files("data"))
    column = "image" if dataset.manifest.kind == "raw" else "image.bytes"
    for image_id, row in find_images(dataset, groups, ids, [column], MAX_SEARCHED, max_read):
        data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
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
    dataset: Dataset, groups: Groups, ids: Collection[str], columns: list[str],
    max_searched: float = float("inf"), max_read: float = float("inf"),
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Yield (image_id, columns of its row) of the images with these ids, in the dataset's order, each once.

    Ids are read alone first, in at most `max_searched` of the row groups, so that only those with a hit, at most
    `max_read`, are read with their images.
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

    The first rows of the shuffled order, so a fair sample. An image with several labels counts for the
    rarest that has room.
    """
    label = label_column(MULTI) if clean.manifest.task == MULTI else "label"
    totals = CleanExtra.of(clean.manifest).by_class_and_split["train"]
    per_class = min(GALLERY_PER_CLASS, max(1, GALLERY_IMAGES // max(1, sum(map(bool, totals.values())))))
    sample: dict[str, list[str]] = {}
    for table in islice(read_columns(clean, "data", ["image_id", label], "train"), GALLERY_ROW_GROUPS):
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
