"""One tensor file, made by one task: read its rows, decode, resize, write. Nothing decoded leaves the task."""

from __future__ import annotations

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
from .plan import ROW_GROUP_BYTES, Job
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


def make_file(job: Job, dataset_uri: str, recipe: Recipe) -> dict[str, Any]:
    """Do one job; returns the published file's entry as `file`, its rows, the bytes of its images (`image_bytes`), and
    `sums` where they are wanted; or `error` and `exit_code` (an error must cross processes)."""
    geometry = recipe.geometry
    _one_thread(geometry)
    histogram = np.zeros((geometry.shape[2], 256), np.int64) if recipe.with_sums and job.split == "train" else None
    try:
        file, image_bytes = _make(job, dataset_uri, recipe, histogram)
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


def _make(job: Job, dataset_uri: str, recipe: Recipe, histogram: Histogram | None) -> tuple[File, int]:
    task = _task(job)
    rows = _rows(job, label_column(task))
    schema, written = recipe.schema(task), 0
    group = max(1, ROW_GROUP_BYTES // recipe.row_bytes)
    pixels = np.empty((min(group, len(rows)), *recipe.geometry.shape), np.uint8)  # one buffer for every row group
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(rows), group):
            part = rows[start : start + group]
            for number, row in enumerate(part):
                pixels[number] = _resized(row, recipe.geometry)
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


def _task(job: Job) -> str:
    """As the clean files have it: all of a dataset's have the same columns."""
    with open_parquet(job.slices[0].uri) as parquet:
        return MULTI if label_column(MULTI) in parquet.schema_arrow.names else SINGLE


def _rows(job: Job, label: str) -> list[dict[str, Any]]:
    """The job's rows in shuffled order. Holds their encoded bytes: of one tensor file."""
    columns = ["image_id", "image.bytes", label, "shuffle_index"]
    rows: list[dict[str, Any]] = []
    for part in job.slices:
        with open_parquet(part.uri) as parquet:
            skip, left = part.skip, part.rows
            for index in part.groups:
                table = read_row_group(parquet, index, part.uri, columns).slice(skip, left)
                rows += table.to_pylist()
                left -= table.num_rows
                skip = 0
    return sorted(rows, key=lambda row: (row["shuffle_index"], row["image_id"]))


def _resized(row: dict[str, Any], geometry: Geometry) -> Pixels:
    try:
        return decode_to(row["image"]["bytes"], geometry)
    except ImageRejected as error:
        raise MillError(
            f"{row['image_id']}: clean passed this image, but resize can't decode it ({error}); this is an error of "
            "imagemill's, not of the image"
        ) from None


def _table(rows: list[dict[str, Any]], images: pa.Array, schema: pa.Schema) -> pa.Table:
    others = [pa.array([row[one.name] for row in rows], one.type) for one in list(schema)[1:]]
    return pa.Table.from_arrays([images, *others], schema=schema)
