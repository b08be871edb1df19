"""Make the report's thumbnails, of kept images, of rejects and of mistakes, at a bounded cost.

For datasets of any size, a gallery reads a fixed number of row groups at most, one at a time, and decodes a fixed
number of pixels at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..dataset.kinds import CleanExtra
from ..dataset.labels import MULTI, label_column
from ..dataset.manifest import Dataset, File
from ..dataset.shards import read_columns
from ..imaging.decoder import ImageRejected
from ..imaging.pictures import BUDGET_PIXELS, encode_picture, find_images

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 128, 82
"""Pixels of a thumbnail's longer side, which is shown at 96, for screens of high resolution; its JPEG quality."""

GALLERY_IMAGES, GALLERY_PER_CLASS, GALLERY_ROW_GROUPS = 48, 8, 12
MAX_REJECTS = 60
LOOKUP_ROW_GROUPS = 20
"""Row groups (8 MB in raw) that are read with their images to look images up."""

ID_ROW_GROUPS = 400
"""Row groups that are searched by image_id alone."""

_BYTES = "image.bytes"


@dataclass(frozen=True)
class Thumbnail:
    """One image of the report: `src` is a data URI, or empty, and then `problem` says why."""

    image_id: str
    label: str = ""
    src: str = ""
    problem: str = "not looked up"


@dataclass(frozen=True)
class GalleryClass:
    """Some thumbnails of a class that has `total` images."""

    name: str
    total: int
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class Reject:
    """One rejected image."""

    image_id: str
    reason: str
    detail: str
    thumbnail: Thumbnail


@dataclass
class ThumbnailMaker:
    """Maker of thumbnails within a budget of pixels to decode."""

    pixels_left: int = BUDGET_PIXELS

    def make(self, image_id: str, data: bytes | None, label: str = "") -> Thumbnail:
        """Return the upright thumbnail of an encoded image, or a Thumbnail with the problem."""
        if data is None:
            return Thumbnail(image_id, label, problem="no bytes")
        if self.pixels_left <= 0:
            return Thumbnail(image_id, label, problem="not decoded: enough large images shown")
        try:
            src, pixels = encode_picture(data, THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
        except ImageRejected as error:
            return Thumbnail(image_id, label, problem=_PROBLEMS.get(error.reason, "does not decode"))
        self.pixels_left -= pixels
        return Thumbnail(image_id, label, src, "")


_PROBLEMS = {"empty_file": "0 bytes", "not_an_image": "not an image", "too_many_pixels": "too large to show"}


def divide_evenly(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Return the number of each to show, `total` in all at most: evenly, and the remainder of small ones to the
    others."""
    shares: dict[str, int] = {}
    for number, (name, count) in enumerate(sorted(counts.items(), key=lambda item: (item[1], item[0]))):
        shares[name] = min(count, (total - sum(shares.values())) // (len(counts) - number))
    return shares


def make_thumbnails(
    dataset: Dataset, files: Iterable[File], image_ids: Iterable[str], column: str = _BYTES
) -> dict[str, Thumbnail]:
    """Return a thumbnail of each image by its id; of an image that is not found within the limits, one without."""
    make, ids = ThumbnailMaker().make, set(image_ids)
    thumbnails = {name: Thumbnail(name) for name in ids}
    groups = ((file, None) for file in files)
    rows = find_images(dataset, groups, ids, [column], ID_ROW_GROUPS, LOOKUP_ROW_GROUPS)
    return thumbnails | {name: make(name, _get_bytes(row["image"])) for name, row in rows}


def _get_bytes(image: Any) -> bytes | None:
    """Return the bytes of raw's `image` (binary) or clean's (a struct)."""
    data: bytes | None = image["bytes"] if isinstance(image, dict) else image
    return data


def sample_classes(clean: Dataset) -> list[GalleryClass]:
    """Return training images by class, `GALLERY_IMAGES` in all at most and `GALLERY_PER_CLASS` of a class.

    The first rows of the shuffled order, so a fair sample; with more classes than images, the classes read first. An
    image with several labels is shown once, for the rarest of its classes that has room.
    """
    label = label_column(MULTI) if clean.manifest.task == MULTI else "label"
    totals = {c: n for c, n in CleanExtra.of(clean.manifest).by_class_and_split["train"].items() if n}
    per_class = min(GALLERY_PER_CLASS, max(1, GALLERY_IMAGES // max(1, len(totals))))
    sample = _ClassSample(totals, per_class, GALLERY_IMAGES, clean.manifest.classes)
    for table in islice(read_columns(clean, "data", ["image_id", label, _BYTES], "train"), GALLERY_ROW_GROUPS):
        sample.add(table.column("image_id"), table.column(label), table.column("image"))
        if sample.is_full():
            break
    return sample.make_classes()


@dataclass
class _ClassSample:
    """A sample of at most `per_class` images of each class and `limit` in all. `totals`: images of each class."""

    totals: dict[str, int]
    per_class: int
    limit: int
    classes: tuple[str, ...] = ()
    thumbnails: dict[str, list[Thumbnail]] = field(default_factory=dict)
    maker: ThumbnailMaker = field(default_factory=ThumbnailMaker)

    def add(self, image_ids: Any, labels: Any, images: Any) -> None:
        """Take from a row group the images that there is room for; `labels` are names, or lists of ids."""
        for row, label in enumerate(labels.to_pylist()):
            if self.is_full():
                return
            names = [label] if isinstance(label, str) else [self.classes[class_id] for class_id in label]
            names = [name for name in names if len(self.thumbnails.get(name, ())) < self._capacity(name)]
            if names:
                name = min(names, key=self.totals.__getitem__)
                thumbnail = self.maker.make(image_ids[row].as_py(), _get_bytes(images[row].as_py()), name)
                self.thumbnails.setdefault(name, []).append(thumbnail)

    def _capacity(self, name: str) -> int:
        return min(self.totals.get(name, 0), self.per_class)

    def is_full(self) -> bool:
        number = sum(map(len, self.thumbnails.values()))
        return number >= min(self.limit, sum(map(self._capacity, self.totals))) or self.maker.pixels_left <= 0

    def make_classes(self) -> list[GalleryClass]:
        thumbnails = sorted(self.thumbnails.items())
        return [GalleryClass(name, self.totals[name], tuple(images)) for name, images in thumbnails if images]


def read_rejects(raw: Dataset, clean: Dataset) -> list[tuple[str, int, list[Reject]]]:
    """Return (reason, number of rejects, some of them with thumbnails), `MAX_REJECTS` thumbnails in all at most."""
    by_reason = clean.manifest.totals.by_reason
    rows = _read_first_rejects(clean, divide_evenly(by_reason, MAX_REJECTS))
    ids = [row["image_id"] for rows_of_reason in rows.values() for row in rows_of_reason]
    thumbnails = make_thumbnails(raw, raw.files(), ids, "image")
    return [
        (reason, number, [Reject(**row, thumbnail=thumbnails[row["image_id"]]) for row in rows.get(reason, [])])
        for reason, number in sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    ]


def _read_first_rejects(clean: Dataset, limits: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """Return the first rejects of each reason: they come from the first raw shards, where their bytes are soon
    found."""
    rejects: dict[str, list[dict[str, str]]] = {reason: [] for reason in limits}
    for table in read_columns(clean, "rejected", ["image_id", "reason", "detail"]):
        for row in table.to_pylist():
            of_reason = rejects.setdefault(row["reason"], [])
            if len(of_reason) < limits.get(row["reason"], 0):
                of_reason.append(row)
        if all(len(rejects[reason]) >= number for reason, number in limits.items()):
            break
    return rejects
