"""The pictures of the report: thumbnails of kept images, of rejects and of mistakes, at a bounded cost.

Whatever the size of a dataset, a gallery reads a fixed number of row groups at most, one at a time, and decodes
a fixed number of pixels at most.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..store.choices import DecodeLimits
from ..store.images import ImageRejected, LenientDecoding, decode, keep_min_side
from ..store.labels import MULTI, label_column
from ..store.manifest import Dataset, File
from ..store.shards import open_parquet, read_columns, read_row_group

THUMBNAIL_SIDE = 128
"""Pixels of a thumbnail's longer side; shown at 96, so that a fine screen has something to show."""

GALLERY_PICTURES, GALLERY_PER_CLASS, GALLERY_ROW_GROUPS = 48, 8, 12
REJECTS_SHOWN, MISTAKES_SHOWN = 60, 24
LOOKUP_ROW_GROUPS = 20
"""So many row groups (8 MB in raw) are read with their images to find what is asked for."""

ID_ROW_GROUPS = 400
"""So many are searched by image_id alone."""

_LIMITS = DecodeLimits(pixels=50_000_000, bytes=64 * 2**20)
_BUDGET_PIXELS = 300_000_000
_BYTES = "image.bytes"


@dataclass(frozen=True)
class Picture:
    """One image of the report. `src` is a data URI, or empty, and then `why` says why there is no picture."""

    image_id: str
    label: str = ""
    src: str = ""
    why: str = "not looked up"


@dataclass(frozen=True)
class Group:
    """Pictures that belong together: a class, with `total` images in all."""

    name: str
    total: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Reject:
    """One rejected image, and why."""

    image_id: str
    reason: str
    detail: str
    picture: Picture


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction of the test split; `note` says how wrong."""

    image_id: str
    truth: str
    predicted: str
    note: str
    picture: Picture


@dataclass
class Thumbnails:
    """Makes thumbnails until its budget of decoded pixels is spent."""

    left: int = _BUDGET_PIXELS

    def make(self, image_id: str, data: bytes | None, label: str = "") -> Picture:
        """The upright thumbnail of an encoded image, or a Picture that says why there is none."""
        if data is None:
            return Picture(image_id, label, why="no bytes")
        if self.left <= 0:
            return Picture(image_id, label, why="not decoded: enough large images shown")
        try:
            src, pixels = thumbnail(data)
        except ImageRejected as error:
            return Picture(image_id, label, why=_why(error))
        self.left -= pixels
        return Picture(image_id, label, src, "")


def _why(error: ImageRejected) -> str:
    return {"empty_file": "0 bytes", "not_an_image": "not an image", "too_many_pixels": "too large to show"}.get(
        error.reason, "does not decode"
    )


def thumbnail(data: bytes) -> tuple[str, int]:
    """An encoded image → a JPEG data URI of at most `THUMBNAIL_SIDE` pixels a side, and the full image's pixels.

    Lenient: what decodes in part is shown in part. Raises ImageRejected for what does not decode at all.
    """
    from PIL import Image

    decoded = decode(data, "rgb", lenient=LenientDecoding(keep_min_side(THUMBNAIL_SIDE), vetted=False), limits=_LIMITS)
    image = Image.fromarray(decoded.pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), decoded.width * decoded.height


def shares(counts: Mapping[str, int], places: int) -> dict[str, int]:
    """How many of each to show, `places` in all at most: evenly, and what one leaves goes to the others."""
    given: dict[str, int] = {}
    for number, (name, count) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0]))):
        given[name] = min(count, (places - sum(given.values())) // (len(counts) - number))
    return given


def find_images(dataset: Dataset, files: Iterable[File], ids: set[str], column: str) -> Iterator[tuple[str, Any]]:
    """(image_id, its bytes or None) of the images found, in the dataset's order; stops when all are found.

    Ids are read alone first, so that only row groups with a hit are read with their images.
    """
    missing, searched, opened = set(ids), 0, 0
    for file in files:
        if not missing:
            return
        uri = dataset.locate(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                if not missing or searched >= ID_ROW_GROUPS or opened >= LOOKUP_ROW_GROUPS:
                    return
                searched += 1
                names = read_row_group(parquet, index, uri, ["image_id"]).column("image_id").to_pylist()
                rows = [(row, name) for row, name in enumerate(names) if name in missing]
                if rows:
                    opened += 1
                    images = read_row_group(parquet, index, uri, [column]).column("image")
                    for row, name in rows:
                        yield name, _bytes(images[row])
                    missing.difference_update(name for _, name in rows)


def _bytes(value: Any) -> bytes | None:
    """The bytes of raw's `image` (binary) or clean's (a struct)."""
    found = value.as_py()
    data: bytes | None = found["bytes"] if isinstance(found, dict) else found
    return data


def look_up(
    dataset: Dataset, files: Iterable[File], labels: Mapping[str, str], column: str = _BYTES
) -> dict[str, Picture]:
    """A picture for each image_id that was found, under the label given for it."""
    make = Thumbnails().make
    return {name: make(name, data, labels[name]) for name, data in find_images(dataset, files, set(labels), column)}


def class_gallery(clean: Dataset) -> list[Group]:
    """Training images by class, as many as `GALLERY_PICTURES` allows: a class in eight of them, or eight of a class.

    The first rows of the shuffled order, so a fair sample; with more classes than pictures, the classes met first.
    An image with several labels is shown once, for the rarest of its classes that wants pictures still.
    """
    label = label_column(MULTI) if clean.manifest.task == MULTI else "label"
    numbers = {c: n for c, n in clean.manifest.extra["by_class_and_split"]["train"].items() if n}
    each = min(GALLERY_PER_CLASS, max(1, GALLERY_PICTURES // max(1, len(numbers))))
    sample = _Sample(numbers, each, GALLERY_PICTURES, clean.manifest.classes)
    read = 0
    for file in clean.files("data", "train"):
        uri = clean.locate(file)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                if sample.full() or read >= GALLERY_ROW_GROUPS:
                    return sample.groups()
                read += 1
                table = read_row_group(parquet, index, uri, ["image_id", label, _BYTES])
                sample.take(table.column("image_id"), table.column(label), table.column("image"))
    return sample.groups()


@dataclass
class _Sample:
    """The pictures chosen so far: `each` of a class at most, `places` in all. `totals`: images of each class."""

    totals: dict[str, int]
    each: int
    places: int
    classes: tuple[str, ...] = ()
    found: dict[str, list[Picture]] = field(default_factory=dict)
    thumbnails: Thumbnails = field(default_factory=Thumbnails)

    def take(self, image_ids: Any, labels: Any, images: Any) -> None:
        """What a row group has of what is wanted still; `labels` are names, or lists of ids."""
        for row, label in enumerate(labels.to_pylist()):
            if self.full():
                return
            names = [label] if isinstance(label, str) else [self.classes[number] for number in label]
            if names := [name for name in names if len(self.found.get(name, ())) < self._wanted(name)]:
                name = min(names, key=self.totals.__getitem__)
                picture = self.thumbnails.make(image_ids[row].as_py(), _bytes(images[row]), name)
                self.found.setdefault(name, []).append(picture)

    def _wanted(self, name: str) -> int:
        return min(self.totals.get(name, 0), self.each)

    def full(self) -> bool:
        taken = sum(len(p) for p in self.found.values())
        return taken >= min(self.places, sum(map(self._wanted, self.totals))) or self.thumbnails.left <= 0

    def groups(self) -> list[Group]:
        return [Group(c, self.totals[c], tuple(p)) for c, p in sorted(self.found.items()) if p]


def rejects(raw: Dataset, clean: Dataset) -> list[tuple[str, int, list[Reject]]]:
    """(reason, its number in all, some of its rejects with pictures), at most `REJECTS_SHOWN` rejects in all."""
    by_reason = clean.manifest.totals.by_reason
    rows = _some_rejects(clean, shares(by_reason, REJECTS_SHOWN))
    ids = {row["image_id"]: "" for chosen in rows.values() for row in chosen}
    found = look_up(raw, raw.files(), ids, "image")
    return [
        (reason, number, [_reject(row, found) for row in rows.get(reason, [])])
        for reason, number in sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    ]


def _reject(row: dict[str, str], found: Mapping[str, Picture]) -> Reject:
    picture = found.get(row["image_id"]) or Picture(row["image_id"])
    return Reject(row["image_id"], row["reason"], row["detail"], picture)


def _some_rejects(clean: Dataset, wanted: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """The first rejects of each reason: they come from the first raw shards, where their bytes are found soon."""
    chosen: dict[str, list[dict[str, str]]] = {reason: [] for reason in wanted}
    for table in read_columns(clean, "rejected", ["image_id", "reason", "detail"]):
        for row in table.to_pylist():
            of_reason = chosen.setdefault(row["reason"], [])
            if len(of_reason) < wanted.get(row["reason"], 0):
                of_reason.append(row)
        if all(len(chosen[reason]) >= number for reason, number in wanted.items()):
            break
    return chosen
