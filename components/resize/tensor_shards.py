"""Write one tensor shard: read its rows, decode, resize, encode, write. Decoded images never leave the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..dataset.labels import MULTI, SINGLE, label_column
from ..dataset.manifest import File, sum_counts
from ..dataset.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.pixel_options import RAW
from ..imaging.tensors import encode_jpeg
from ..storage.errors import MillError
from .copies import CopyPolicy, assign_position, decode_with_copies
from .plan import ROW_GROUP_BYTES, RowSlice, ShardPlan
from .statistics import ChannelSums, Histogram, add_histogram

_LABEL_TYPES = {SINGLE: pa.int32(), MULTI: pa.list_(pa.int32())}
_ORIGINAL: dict[str, Any] = {"copy": 0, "augmentation": ""}
"""Columns of an image that is no copy, in a dataset with copies."""


@dataclass(frozen=True)
class TensorSpec:
    """Form of the tensors of a dataset, and what is computed while they are written. It travels to the workers.

    `with_sums`: every channel of the training images is summed, copies excluded. The other fields are options of
    resize.
    """

    geometry: Geometry
    encoding: str = RAW
    jpeg_quality: int = 90
    jpeg_subsampling: str = "420"
    with_sums: bool = False
    copies: CopyPolicy | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's pixels."""
        return int(np.prod(self.geometry.shape))

    def schema(self, task: str = SINGLE) -> pa.Schema:
        """Return the columns of a shard.

        `image` is the uint8 [H, W, C] of one image, C-contiguous, as `row_bytes` bytes, or a JPEG of it; `label_id`
        int32, or `label_ids` list<int32> if the task is multi-label. With copies, in every split, also `copy` (0 is the
        original) and `augmentation` (JSON of the sampled parameters, empty for the original).
        """
        image = pa.binary(self.row_bytes) if self.encoding == RAW else pa.binary()
        columns = [("image", image), (label_column(task), _LABEL_TYPES[task]), ("image_id", pa.string())]
        columns += [("copy", pa.int32()), ("augmentation", pa.string())] if self.copies else []
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])

    def has_copies(self, split: str) -> bool:
        """Return whether images of a split get augmented copies: only those of train do."""
        return self.copies is not None and split == "train"

    def required_columns(self, shard: ShardPlan) -> list[str]:
        """Return the columns of clean rows that the tensors of a shard are made from."""
        needs_masks = self.copies is not None and self.copies.needs_masks and self.has_copies(shard.split)
        columns = ["image_id", "image.bytes", label_column(shard.task), "shuffle_index"]
        return columns + (["mask"] if needs_masks else [])


Row = dict[str, Any]
Kernel = Callable[[Sequence[bytes], Geometry], Iterator[Pixels]]
"""Decodes and resizes encoded images, at most a row group, to uint8 [H, W, C] each, in order; raises ImageRejected."""


def decode_on_cpu(images: Sequence[bytes], geometry: Geometry) -> Iterator[Pixels]:
    """Decode and resize on the CPU: a `Kernel`."""
    return (decode_and_resize(data, geometry) for data in images)


def write_shard(
    shard: ShardPlan, dataset_uri: str, spec: TensorSpec, rows: list[Row] | None = None, kernel: Kernel = decode_on_cpu
) -> dict[str, Any]:
    """Write one shard; return its record.

    The record has the published file's entry as `file`, its `rows`, the bytes of its images (`image_bytes`), `sums` of
    the channels if `spec` asks for them and `copies` (see `CopyCounts`) if there are some.

    `rows`: those of the shard, if they are read already (`read_rows`).
    """
    geometry = spec.geometry
    _limit_library_threads(spec)
    histogram = np.zeros((geometry.shape[2], 256), np.int64) if spec.with_sums and shard.split == "train" else None
    rows = read_rows(shard.slices, spec.required_columns(shard)) if rows is None else rows
    counts = CopyCounts() if spec.copies and spec.has_copies(shard.split) else None
    if spec.copies and counts:
        file, image_bytes = _write_with_copies(shard, dataset_uri, spec, spec.copies, histogram, rows, counts)
    else:
        file, image_bytes = _write_originals(shard, dataset_uri, spec, histogram, rows, kernel)
    record: dict[str, Any] = {"file": asdict(file), "rows": file.rows, "image_bytes": image_bytes}
    record |= {"copies": asdict(counts)} if counts else {}
    return record if histogram is None else record | {"sums": asdict(ChannelSums.from_histogram(histogram))}


@dataclass
class CopyCounts:
    """Counts of augmented copies in one tensor file: total, per class id (as text), and images without a copy."""

    rows: int = 0
    by_class: dict[str, int] = field(default_factory=dict)
    without: int = 0

    @classmethod
    def sum(cls, parts: Iterable[CopyCounts]) -> CopyCounts:
        """Return the counts of several files."""
        total = cls()
        for part in parts:
            by_class = sum_counts(total.by_class, part.by_class)
            total = cls(total.rows + part.rows, by_class, total.without + part.without)
        return total

    def add_to(self, by_class: dict[str, int], classes: Sequence[str]) -> dict[str, int]:
        """Return rows by class name, with the copies."""
        copies = {name: self.by_class.get(str(number), 0) for number, name in enumerate(classes)}
        return {name: rows + copies.get(name, 0) for name, rows in by_class.items()}


@dataclass(frozen=True)
class FinishedShard:
    """A written tensor shard: its file, the bytes of its images, the sums of its channels, and counts of its copies.

    `sums` is None if they were not asked for. `generation`: see `Manifest.generation`.
    """

    file: File
    image_bytes: int
    sums: ChannelSums | None
    copies: CopyCounts = field(default_factory=CopyCounts)
    generation: int = 0

    @property
    def rows(self) -> int:
        return self.file.rows

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> FinishedShard:
        """Parse the record of `write_shard`."""
        return cls(
            File(**record["file"]),
            record["image_bytes"],
            ChannelSums.from_record(record["sums"]) if "sums" in record else None,
            CopyCounts(**record.get("copies", {})),
            record.get("generation", 0),
        )

    def to_entry(self) -> dict[str, Any]:
        """Return the manifest's entry on this shard, beside its file: the record without `file`."""
        entry: dict[str, Any] = {"generation": self.generation, "image_bytes": self.image_bytes}
        entry |= {"sums": asdict(self.sums)} if self.sums else {}
        return entry | ({"copies": asdict(self.copies)} if self.copies != CopyCounts() else {})


def _limit_library_threads(spec: TensorSpec) -> None:
    """Let torch and OpenCV use one thread: parallelism is one task a core."""
    import torch

    torch.set_num_threads(1)
    if spec.copies or spec.geometry.edges or spec.geometry.color in ("ycbcr", "lab"):
        import cv2

        cv2.setNumThreads(1)


def _write_originals(
    shard: ShardPlan, dataset_uri: str, spec: TensorSpec, histogram: Histogram | None, rows: list[Row], kernel: Kernel
) -> tuple[File, int]:
    """Write images without copies; return the file and the bytes of its images. Adds to `histogram`."""
    schema, image_bytes = spec.schema(shard.task), 0
    group_rows = max(1, ROW_GROUP_BYTES // spec.row_bytes)
    rows = [row | _ORIGINAL for row in rows] if spec.copies else rows
    pixels = np.empty((min(group_rows, len(rows)), *spec.geometry.shape), np.uint8)  # one buffer for every row group
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(rows), group_rows):
            group = rows[start : start + group_rows]
            for number, image in enumerate(_decode_rows(group, spec.geometry, kernel)):
                pixels[number] = image
                if histogram is not None:
                    add_histogram(histogram, pixels[number])
            images, size = _encode_images(pixels[: len(group)], spec)
            writer.add_table(_build_table(group, images, schema))
            image_bytes += size
        return writer.publish(f"data/{shard.split}", "data", shard.split), image_bytes


def _write_with_copies(
    shard: ShardPlan, dataset_uri: str, spec: TensorSpec, policy: CopyPolicy, histogram: Histogram | None,
    rows: list[Row], counts: CopyCounts,
) -> tuple[File, int]:  # fmt: skip
    """Write images and their copies, on the CPU; return the file and the bytes of its images.

    Copies lie anywhere in the file, so all its pixels are in memory. Adds to `histogram` and `counts`.
    """
    schema, image_bytes = spec.schema(shard.task), 0
    group_rows = max(1, ROW_GROUP_BYTES // spec.row_bytes)
    pixels = np.empty((len(rows) * (1 + policy.per_image), *spec.geometry.shape), np.uint8)
    written: list[Row] = []
    for row in rows:
        labels = {name: value for name, value in row.items() if name not in ("image", "mask")}
        with _name_image_in_errors(row):
            for copy, (image, augmentation) in enumerate(decode_with_copies(row, spec.geometry, policy)):
                pixels[len(written)] = image
                position = assign_position(row["shuffle_index"], row["image_id"], copy, shard.low, shard.high)
                columns = {"copy": copy, "augmentation": augmentation, "at": len(written), "position": position}
                written.append(labels | columns)
                if histogram is not None and not copy:
                    add_histogram(histogram, image)
        counts.without += written[-1]["copy"] == 0
    count_copies(counts, written, label_column(shard.task))
    written.sort(key=lambda row: (row["position"], row["image_id"], row["copy"]))
    with ShardWriter(dataset_uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(written), group_rows):
            group = written[start : start + group_rows]
            column, size = _encode_images(pixels[[row["at"] for row in group]], spec)
            writer.add_table(_build_table(group, column, schema))
            image_bytes += size
        return writer.publish(f"data/{shard.split}", "data", shard.split), image_bytes


def count_copies(counts: CopyCounts, rows: list[Row], label: str) -> None:
    labels = [row[label] for row in rows if row["copy"]]
    by_id = Counter(label_id for value in labels for label_id in (value if isinstance(value, list) else [value]))
    counts.rows, counts.by_class = len(labels), {str(label_id): by_id[label_id] for label_id in sorted(by_id)}


def _encode_images(pixels: Pixels, spec: TensorSpec) -> tuple[pa.Array, int]:
    """uint8 [rows, H, W, C] → the column to store, and the bytes of its values."""
    if spec.encoding == RAW:
        kind = pa.binary(spec.row_bytes)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)]), pixels.nbytes
    encoded = [encode_jpeg(image, spec.jpeg_quality, spec.jpeg_subsampling) for image in pixels]
    return pa.array(encoded, pa.binary()), sum(map(len, encoded))


def read_rows(slices: Iterable[RowSlice], columns: list[str]) -> list[Row]:
    """Read the rows of some slices in shuffled order; their encoded bytes are held in memory."""
    rows = [row for row_slice in slices for table in read_tables(row_slice, columns) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["shuffle_index"], row["image_id"]))


def read_tables(row_slice: RowSlice, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of a slice, a row group at a time."""
    chosen = None if row_slice.chosen is None else np.array(row_slice.chosen, np.int64)
    with open_parquet(row_slice.uri) as parquet:
        first, end = -row_slice.skip, row_slice.rows  # places in the slice of a row group, and of the slice's end
        for index in row_slice.groups:
            table = read_row_group(parquet, index, row_slice.uri, columns)
            if chosen is None:
                begin = max(0, -first)
                yield table.slice(begin, max(0, end - first - begin))
            else:
                yield table.take(pa.array(chosen[(chosen >= first) & (chosen < first + table.num_rows)] - first))
            first += table.num_rows


def _decode_rows(rows: list[Row], geometry: Geometry, kernel: Kernel) -> Iterator[Pixels]:
    images = kernel([row["image"]["bytes"] for row in rows], geometry)
    for row in rows:
        with _name_image_in_errors(row):
            image = next(images)
        yield image


@contextmanager
def _name_image_in_errors(row: Row) -> Iterator[None]:
    """Turn an ImageRejected into an error of the step that names the row's image."""
    try:
        yield
    except ImageRejected as error:
        raise MillError(
            f"{row['image_id']}: clean passed this image, but resize can't decode it ({error}); this is an error of "
            "imagemill's, not of the image"
        ) from None


def _build_table(rows: list[Row], images: pa.Array, schema: pa.Schema) -> pa.Table:
    others = [pa.array([row[column.name] for row in rows], column.type) for column in list(schema)[1:]]
    return pa.Table.from_arrays([images, *others], schema=schema)
