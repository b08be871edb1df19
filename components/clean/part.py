"""Cleaning of one raw part: decode, standardize, measure and hash each image, and write one clean part.

A row depends only on its raw row and on the options that count for single images, so that the part is a function of
the raw part and these. It has every raw row: of an image that can't be used it says what the problem is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from ..dataset.manifest import Part
from ..dataset.parts import PartFolder, PartRecord
from ..dataset.shards import read_file
from ..dataset.splits import compute_shuffle_index, compute_split_position
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.standardize import standardize
from ..storage.parallel import map_ordered
from .config import CleanConfig
from .measures import Measures, ReducedPicture, measure_reduced, reduce_picture
from .schema import make_clean_layout

BATCH_BYTES = 2**20
"""Bytes of the image files that are decoded before they are measured."""
MAX_HELD_BYTES = 2**20
"""Largest reduced picture that is held until then; a photograph's of a megapixel has 0.4 MB."""


@dataclass(frozen=True)
class CleanTask:
    """The unit of cleaning's work: a raw part, and the key of the clean part that it becomes."""

    key: str
    raw: Part

    @property
    def rows(self) -> int:
        return self.raw.rows


def clean_part(
    task: CleanTask, folder: PartFolder, raw_folder: PartFolder, config: CleanConfig, threads: int
) -> dict[str, Any]:
    """Clean a raw part on `threads` threads; return the record of the clean part, whose rows are in shuffled order.

    Holds the part's cleaned rows, about twice `dataset.parts.PART_BYTES`.
    """
    rows = list(_clean_rows(raw_folder.locate(task.raw.key), config, threads))
    rows.sort(key=lambda row: (row["shuffle_index"], row["image_id"]))
    with folder.open_writer(make_clean_layout(config.keep_masks)) as writer:
        for row in rows:
            writer.add(row, len(row["image"]["bytes"]) if row["image"] else 0)
        part = writer.publish_part(task.key)
    return folder.add(PartRecord(task.key, (part,))).to_dict()


def _clean_rows(uri: str, config: CleanConfig, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the clean row of every row of a raw part."""
    batches = _read_batches(uri, config)
    cleaned: Iterable[list[dict[str, Any]]]
    if threads == 1:
        cleaned = (clean_batch(batch, config) for batch in batches)
    else:
        cleaned = map_ordered(batches, lambda batch: clean_batch(batch, config), threads, _count_bytes)
    return itertools.chain.from_iterable(cleaned)


def _count_bytes(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["image"] or b"") for row in rows)


def _read_batches(uri: str, config: CleanConfig) -> Iterator[list[dict[str, Any]]]:
    """Yield raw rows with the columns that the config needs, and their numbers, about `BATCH_BYTES` at a time."""
    columns = ["image_id", "image", "sha256", "split", "group"]
    columns += ["boxes"] if config.roi != "off" else []
    columns += ["mask"] if config.background != "off" or config.keep_masks else []
    batch: list[dict[str, Any]] = []
    size = number = 0
    for table in read_file(uri, columns):
        for row in table.to_pylist():
            batch.append(row | {"source_row": number})
            number += 1
            size += len(row["image"] or b"")
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def clean_batch(rows: list[dict[str, Any]], config: CleanConfig) -> list[dict[str, Any]]:
    """Return the clean row of each raw row.

    All are decoded before the first is measured: a decode empties a core's caches, and right after it Python and small
    functions take two to three times as long as in a loop of their own.
    """
    images = [_decode_row(row, config) for row in rows]
    held = [(i, i.measures) for i in images if isinstance(i, _RowImage) and isinstance(i.measures, ReducedPicture)]
    for (image, _), measures in zip(held, measure_reduced([picture for _, picture in held]), strict=True):
        image.measures = measures
    return [_make_row(row, image) for row, image in zip(rows, images, strict=True)]


@dataclass
class _RowImage:
    """A row's standardized image without its pixels; its measures, or what they are computed from, if it has some."""

    columns: dict[str, Any]
    measures: Measures | ReducedPicture | None


def _decode_row(row: dict[str, Any], config: CleanConfig) -> _RowImage | ImageRejected:
    """Standardize the image of a raw row; return why where it can't be used."""
    try:
        if row["image"] is None:
            raise ImageRejected("missing_file", "the source names it but it is not there")
        image = standardize(row["image"], config, row.get("boxes"), row.get("mask"))
    except ImageRejected as error:
        return error
    height, width = image.pixels.shape[:2]
    columns: dict[str, Any] = {
        "image": {"bytes": image.data, "path": row["image_id"].rpartition("/")[2]},
        "width": width,
        "height": height,
        "format": image.format,
        "image_bytes": len(image.data),
        "pixel_hash": hash_pixels(image.pixels),
        "decoder_warning": image.warning or None,
    }
    if config.keep_masks:
        columns["mask"] = image.mask
    if not config.measures:
        return _RowImage(columns, None)
    columns["aspect_ratio"] = width / height
    columns["bytes_per_pixel"] = len(row["image"]) / (image.source_width * image.source_height)
    picture = reduce_picture(image.pixels)
    return _RowImage(columns, picture if picture.nbytes <= MAX_HELD_BYTES else measure_reduced([picture])[0])


def _make_row(row: dict[str, Any], image: _RowImage | ImageRejected) -> dict[str, Any]:
    """Return the clean row of a raw row, whose image has been measured."""
    sha256 = row["sha256"]
    content = sha256 or row["image_id"]  # of a missing file
    columns: dict[str, Any] = {
        "image_id": row["image_id"],
        "source_row": row["source_row"],
        "sha256": sha256,
        "declared_split": row["split"],
        "group": row["group"],
        "shuffle_index": compute_shuffle_index(content),
        "split_position": compute_split_position(content, row["group"]),
    }
    if isinstance(image, ImageRejected):
        return columns | {"image": None, "problem": image.reason, "detail": image.detail}
    return columns | image.columns | (vars(image.measures) if isinstance(image.measures, Measures) else {})


def hash_pixels(pixels: Pixels) -> str:
    """Return xxh3-128 of the upright pixels and their shape: equal pixels in whatever format and orientation."""
    digest = xxhash.xxh3_128(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
