"""One tensor file, made by one task: read its rows, decode, resize, write. Nothing decoded leaves the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from ..store.choices import RAW
from ..store.errors import MillError
from ..store.images import ImageRejected, Pixels
from ..store.labels import MULTI, SINGLE, label_column
from ..store.manifest import File, sum_counts
from ..store.resample import Geometry, decode_and_resize
from ..store.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..store.tensors import encode_jpeg
from .copies import CopyPolicy, place, with_copies
from .plan import ROW_GROUP_BYTES, Job, Slice
from .statistics import Histogram, Sums, add_histogram

_LABELS = {SINGLE: pa.int32(), MULTI: pa.list_(pa.int32())}
_ORIGINAL: dict[str, Any] = {"copy": 0, "augmentation": ""}
"""What a row says that is no copy, where a dataset has some."""


@dataclass(frozen=True)
class Recipe:
    """What becomes of an image: its geometry, how its pixels are stored, and what is counted on the way.

    `with_sums`: of training images also the exact sums of every channel, of the originals alone. `copies`: what makes
    further rows of training images.
    """

    geometry: Geometry
    encoding: str = RAW
    jpeg_quality: int = 90
    jpeg_subsampling: str = "420"
    with_sums: bool = False
    copies: CopyPolicy | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of an image's pixels."""
        return int(np.prod(self.geometry.shape))

    def schema(self, task: str = SINGLE) -> pa.Schema:
        """`image` is the uint8 [H, W, C] of one image, C-contiguous, as `row_bytes` bytes, or a JPEG of it; `label_id`
        int32, or `label_ids` list<int32> where the task is multi-label. With copies, in every split, also `copy` (0 is
        the original) and `augmentation` (JSON of what was drawn, empty for the original)."""
        image = pa.binary(self.row_bytes) if self.encoding == RAW else pa.binary()
        about_copies = [("copy", pa.int32()), ("augmentation", pa.string())] if self.copies else []
        columns = [("image", image), (label_column(task), _LABELS[task]), ("image_id", pa.string()), *about_copies]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])

    def makes_copies(self, split: str) -> bool:
        """Only of training images."""
        return self.copies is not None and split == "train"

    def columns(self, job: Job) -> list[str]:
        """What the job's clean rows must have to become tensors."""
        masked = self.copies is not None and self.copies.masked and self.makes_copies(job.split)
        return columns(job.task) + (["mask"] if masked else [])


M = TypeVar("M")
Row = dict[str, Any]
Kernel = Callable[[Sequence[bytes], Geometry], Iterator[Pixels]]
"""Encoded images, of one row group at most → uint8 [H, W, C] of each, in their order. Raises ImageRejected."""


def one_by_one(images: Sequence[bytes], geometry: Geometry) -> Iterator[Pixels]:
    """The kernel of the CPU."""
    return (decode_and_resize(data, geometry) for data in images)


def make_file(
    job: Job, dataset_uri: str, recipe: Recipe, rows: list[Row] | None = None, kernel: Kernel = one_by_one
) -> dict[str, Any]:
    """Do one job; returns the published file's entry as `file`, its rows, the bytes of its images (`image_bytes`), and
    `sums` where they are wanted, `copies` (see `Copied`) where some are made; or `error` and `exit_code` (an error must
    cross processes).

    `rows`: the job's, where somebody has read them already (`read_rows`).
    """
    geometry = recipe.geometry
    _one_thread(recipe)
    histogram = np.zeros((geometry.shape[2], 256), np.int64) if recipe.with_sums and job.split == "train" else None
    try:
        rows = read_rows(job.slices, recipe.columns(job)) if rows is None else rows
        copied = Copied() if recipe.copies and recipe.makes_copies(job.split) else None
        if recipe.copies and copied:
            file, image_bytes = _make_with_copies(job, dataset_uri, recipe, recipe.copies, histogram, rows, copied)
        else:
            file, image_bytes = _make(job, dataset_uri, recipe, histogram, rows, kernel)
    except MillError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    found: dict[str, Any] = {"file": asdict(file), "rows": file.rows, "image_bytes": image_bytes}
    found |= {"copies": asdict(copied)} if copied else {}
    return found if histogram is None else found | {"sums": asdict(Sums.of(histogram))}


@dataclass
class Copied:
    """Of one file: its copies, how many of each class (by its id as text), and the images that have none."""

    rows: int = 0
    by_class: dict[str, int] = field(default_factory=dict)
    without: int = 0

    @classmethod
    def sum_of(cls, some: Iterable[Copied]) -> Copied:
        """Of several files."""
        total = cls()
        for one in some:
            total = cls(total.rows + one.rows, sum_counts(total.by_class, one.by_class), total.without + one.without)
        return total

    def added_to(self, by_class: dict[str, int], classes: Sequence[str]) -> dict[str, int]:
        """Rows by class, with the copies."""
        names = {name: self.by_class.get(str(number), 0) for number, name in enumerate(classes)}
        return {name: rows + names.get(name, 0) for name, rows in by_class.items()}


def _one_thread(recipe: Recipe) -> None:
    """Parallelism is one task a core."""
    import torch

    torch.set_num_threads(1)
    if recipe.copies or recipe.geometry.edges or recipe.geometry.color in ("ycbcr", "lab"):
        import cv2

        cv2.setNumThreads(1)


def _make(
    job: Job, dataset_uri: str, recipe: Recipe, histogram: Histogram | None, rows: list[Row], kernel: Kernel
) -> tuple[File, int]:
    schema, written = recipe.schema(job.task), 0
    group = max(1, ROW_GROUP_BYTES // recipe.row_bytes)
    rows = [row | _ORIGINAL for row in rows] if recipe.copies else rows
    pixels = np.empty((min(group, len(rows)), *recipe.geometry.shape), np.uint8)  # one buffer for every row group
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(rows), group):
            part = rows[start : start + group]
            for number, image in enumerate(_resized(part, recipe.geometry, kernel)):
                pixels[number] = image
                if histogram is not None:
                    add_histogram(histogram, pixels[number])
            images, size = _column(pixels[: len(part)], recipe)
            writer.add_table(_table(part, images, schema))
            written += size
        return writer.publish(f"data/{job.split}", "data", job.split), written


def _make_with_copies(
    job: Job, dataset_uri: str, recipe: Recipe, policy: CopyPolicy, histogram: Histogram | None, rows: list[Row],
    copied: Copied,
) -> tuple[File, int]:  # fmt: skip
    """As `_make`, each image and then its copies, which lie all over the file: it is held as a whole. On the CPU."""
    schema, written = recipe.schema(job.task), 0
    group = max(1, ROW_GROUP_BYTES // recipe.row_bytes)
    pixels = np.empty((len(rows) * (1 + policy.number), *recipe.geometry.shape), np.uint8)
    made: list[Row] = []
    for row in rows:
        about = {name: value for name, value in row.items() if name not in ("image", "mask")}
        for copy, (image, augmentation) in enumerate(_decodable(row, with_copies(row, recipe.geometry, policy))):
            pixels[len(made)] = image
            where = place(row["shuffle_index"], row["image_id"], copy, job.low, job.high)
            made.append(about | {"copy": copy, "augmentation": augmentation, "at": len(made), "place": where})
            if histogram is not None and not copy:
                add_histogram(histogram, image)
        copied.without += made[-1]["copy"] == 0
    _count(copied, made, label_column(job.task))
    made.sort(key=lambda row: (row["place"], row["image_id"], row["copy"]))
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(made), group):
            part = made[start : start + group]
            images, size = _column(pixels[[row["at"] for row in part]], recipe)
            writer.add_table(_table(part, images, schema))
            written += size
        return writer.publish(f"data/{job.split}", "data", job.split), written


def _count(copied: Copied, made: list[Row], label: str) -> None:
    labels = [row[label] for row in made if row["copy"]]
    ids = Counter(one for found in labels for one in (found if isinstance(found, list) else [found]))
    copied.rows, copied.by_class = len(labels), {str(one): ids[one] for one in sorted(ids)}


def _column(pixels: Pixels, recipe: Recipe) -> tuple[pa.Array, int]:
    """uint8 [rows, H, W, C] as they are stored, and the bytes of that."""
    if recipe.encoding == RAW:
        kind = pa.binary(recipe.row_bytes)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)]), pixels.nbytes
    encoded = [encode_jpeg(one, recipe.jpeg_quality, recipe.jpeg_subsampling) for one in pixels]
    return pa.array(encoded, pa.binary()), sum(map(len, encoded))


def columns(task: str) -> list[str]:
    """What a clean row must have to become a tensor."""
    return ["image_id", "image.bytes", label_column(task), "shuffle_index"]


def read_rows(slices: Iterable[Slice], columns: list[str]) -> list[Row]:
    """The rows of some slices in shuffled order. Holds their encoded bytes."""
    rows: list[Row] = []
    for part in slices:
        with open_parquet(part.uri) as parquet:
            skip, left = part.skip, part.rows
            for index in part.groups:
                table = read_row_group(parquet, index, part.uri, columns).slice(skip, left)
                rows += table.to_pylist()
                left -= table.num_rows
                skip = 0
    return sorted(rows, key=lambda row: (row["shuffle_index"], row["image_id"]))


def _resized(rows: list[Row], geometry: Geometry, kernel: Kernel) -> Iterator[Pixels]:
    made = kernel([row["image"]["bytes"] for row in rows], geometry)
    for row in rows:
        try:
            yield next(made)
        except ImageRejected as error:
            raise _undecodable(row, error) from None


def _decodable(row: Row, made: Iterator[M]) -> Iterator[M]:
    """What is made of a row that clean has vetted."""
    try:
        yield from made
    except ImageRejected as error:
        raise _undecodable(row, error) from None


def _undecodable(row: Row, error: ImageRejected) -> MillError:
    return MillError(
        f"{row['image_id']}: clean passed this image, but resize can't decode it ({error}); this is an error of "
        "imagemill's, not of the image"
    )


def _table(rows: list[Row], images: pa.Array, schema: pa.Schema) -> pa.Table:
    others = [pa.array([row[one.name] for row in rows], one.type) for one in list(schema)[1:]]
    return pa.Table.from_arrays([images, *others], schema=schema)
