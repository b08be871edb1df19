"""One tensor file, made by one task: read its rows, decode, resize, write. Nothing decoded leaves the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..store.errors import MillError
from ..store.images import ImageRejected, Pixels
from ..store.labels import MULTI, SINGLE, label_column
from ..store.manifest import File
from ..store.resample import Geometry, decode_to
from ..store.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..store.tensors import RAW, encode_jpeg
from .plan import ROW_GROUP_BYTES, Job, Slice
from .statistics import Histogram, Sums, add_histogram

_LABELS = {SINGLE: pa.int32(), MULTI: pa.list_(pa.int32())}


@dataclass(frozen=True)
class Recipe:
    """What becomes of an image: its geometry, how its pixels are stored, and what is counted on the way.

    `with_sums`: of training images also the exact sums of every channel.
    """

    geometry: Geometry
    encoding: str = RAW
    jpeg_quality: int = 90
    jpeg_subsampling: str = "420"
    with_sums: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of an image's pixels."""
        return int(np.prod(self.geometry.shape))

    def schema(self, task: str = SINGLE) -> pa.Schema:
        """`image` is the uint8 [H, W, C] of one image, C-contiguous, as `row_bytes` bytes, or a JPEG of it; `label_id`
        int32, or `label_ids` list<int32> where the task is multi-label."""
        image = pa.binary(self.row_bytes) if self.encoding == RAW else pa.binary()
        return pa.schema(
            [
                pa.field("image", image, nullable=False),
                pa.field(label_column(task), _LABELS[task], nullable=False),
                pa.field("image_id", pa.string(), nullable=False),
            ]
        )


Row = dict[str, Any]
Kernel = Callable[[Sequence[bytes], Geometry], Iterator[Pixels]]
"""Encoded images, of one row group at most → uint8 [H, W, C] of each, in their order. Raises ImageRejected."""


def one_by_one(images: Sequence[bytes], geometry: Geometry) -> Iterator[Pixels]:
    """The kernel of the CPU."""
    return (decode_to(data, geometry) for data in images)


def make_file(
    job: Job, dataset_uri: str, recipe: Recipe, rows: list[Row] | None = None, kernel: Kernel = one_by_one
) -> dict[str, Any]:
    """Do one job; returns the published file's entry as `file`, its rows, the bytes of its images (`image_bytes`), and
    `sums` where they are wanted; or `error` and `exit_code` (an error must cross processes).

    `rows`: the job's, where somebody has read them already (`read_rows`).
    """
    geometry = recipe.geometry
    _one_thread(geometry)
    histogram = np.zeros((geometry.shape[2], 256), np.int64) if recipe.with_sums and job.split == "train" else None
    try:
        rows = read_rows(job.slices, columns(job.task)) if rows is None else rows
        file, image_bytes = _make(job, dataset_uri, recipe, histogram, rows, kernel)
    except MillError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    found = {"file": asdict(file), "rows": file.rows, "image_bytes": image_bytes}
    return found if histogram is None else found | {"sums": asdict(Sums.of(histogram))}


def _one_thread(geometry: Geometry) -> None:
    """Parallelism is one task a core."""
    import torch

    torch.set_num_threads(1)
    if geometry.edges or geometry.color in ("ycbcr", "lab"):
        import cv2

        cv2.setNumThreads(1)


def _make(
    job: Job, dataset_uri: str, recipe: Recipe, histogram: Histogram | None, rows: list[Row], kernel: Kernel
) -> tuple[File, int]:
    schema, written = recipe.schema(job.task), 0
    group = max(1, ROW_GROUP_BYTES // recipe.row_bytes)
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
            raise MillError(
                f"{row['image_id']}: clean passed this image, but resize can't decode it ({error}); this is an error "
                "of imagemill's, not of the image"
            ) from None


def _table(rows: list[Row], images: pa.Array, schema: pa.Schema) -> pa.Table:
    others = [pa.array([row[one.name] for row in rows], one.type) for one in list(schema)[1:]]
    return pa.Table.from_arrays([images, *others], schema=schema)
