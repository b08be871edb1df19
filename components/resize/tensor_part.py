"""Make the tensors of one clean part: decode, resize, encode, and write one file for each split.

The files are a function of the clean part, the options of resize and the rule of the splits. They hold every image of
the part that is valid, also those that the decision on all images leaves out, so that a changed decision makes no file
anew. Decoded images never leave the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Part
from ..dataset.parts import PartFolder, PartRecord, name_split_key
from ..dataset.shards import Layout, ShardWriter, read_file
from ..dataset.splits import SPLITS, UNDECLARED, Codes, choose_splits, encode_splits
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.pixel_options import RAW
from ..imaging.tensors import encode_jpeg
from ..storage.errors import MillError
from .copies import CopyPolicy, decode_with_copies
from .statistics import sum_channels

ROW_GROUP_BYTES = 24 * 2**20
"""Bytes of pixels in a row group: 16 to 32 MB are read at memory speed."""


@dataclass(frozen=True)
class SplitRule:
    """The rule by which an image's split follows from its clean row alone: `choose_splits` with these fractions.

    `declared`: whether the splits that the source declares count.
    """

    val_fraction: float
    test_fraction: float
    declared: bool

    def assign(self, table: pa.Table) -> Codes:
        """Return the split codes of the rows of a clean part, uint8 [rows]."""
        declared = encode_splits(table.column("declared_split"))
        declared = declared if self.declared else np.full_like(declared, UNDECLARED)
        positions = np.asarray(table.column("split_position"))
        return choose_splits(declared, positions, self.val_fraction, self.test_fraction)


@dataclass(frozen=True)
class TensorSpec:
    """Form of the tensors of a dataset, and what is computed while they are written. It travels to the workers.

    `with_sums`: the channels of each image are summed, copies excluded. The other fields are options of resize.
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

    @property
    def group_rows(self) -> int:
        """Images in a row group."""
        return max(1, ROW_GROUP_BYTES // self.row_bytes)

    def schema(self) -> pa.Schema:
        """Return the columns of a file.

        `image` is the uint8 [H, W, C] of one image, C-contiguous, as `row_bytes` bytes, or a JPEG of it; `source_row`
        its row in the clean part. With copies, in every split, also `copy` (0 is the original) and `augmentation` (JSON
        of the sampled parameters, empty for the original); with sums `channel_sums`: uint64 [2, C], the sums of the
        values and of their squares, of the original.
        """
        columns = [("image", pa.binary(self.row_bytes) if self.encoding == RAW else pa.binary())]
        columns += [("image_id", pa.string()), ("source_row", pa.int32())]
        columns += [("copy", pa.int32()), ("augmentation", pa.string())] if self.copies else []
        columns += [("channel_sums", pa.binary(16 * self.geometry.shape[2]))] if self.with_sums else []
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])

    def describe(self) -> dict[str, Any]:
        """Return the values that the bytes of a file depend on."""
        copies = asdict(self.copies) if self.copies else {}
        values: dict[str, Any] = {"geometry": asdict(self.geometry), "encoding": self.encoding, "sums": self.with_sums}
        if self.encoding != RAW:
            values |= {"quality": self.jpeg_quality, "subsampling": self.jpeg_subsampling}
        return values | ({"copies": {name: copies[name] for name in copies if name not in ("folder", "listing")}})


@dataclass(frozen=True)
class ResizeTask:
    """The unit of resizing's work: a clean part, and the key of the tensors that are made from it.

    `splits`: the rule of the splits, or their codes, of the part's rows, `UNDECLARED` for a row that is left out.
    """

    key: str
    clean: Part
    splits: SplitRule | tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.clean.rows


Row = dict[str, Any]
Kernel = Callable[[Sequence[bytes], Geometry], Iterator[Pixels]]
"""Decodes and resizes encoded images, at most a row group, to uint8 [H, W, C] each, in order; raises ImageRejected."""


def write_tensors(
    task: ResizeTask, folder: PartFolder, clean_folder: PartFolder, spec: TensorSpec, threads: int = 1,
    kernel: Kernel | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the files of a task and return their record; `kernel`: what decodes, by default the CPU, on `threads`.

    Holds a row group of the clean part and, of each split, one of pixels.
    """
    limit_library_threads(spec)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads, "resize")) if threads > 1 and not kernel else None
        writers: dict[str, _SplitWriter] = {}
        for table, codes in _read_clean(task, clean_folder, spec):
            for code, split in enumerate(SPLITS):
                rows = table.filter(pa.array(codes == code)).to_pylist()
                if rows and split not in writers:
                    writer = stack.enter_context(folder.open_writer(Layout(spec.schema(), plain=True)))
                    writers[split] = _SplitWriter(split, spec, writer, pool, kernel)
                if rows:
                    writers[split].add(rows)
        files = tuple(writers[split].publish(task.key) for split in SPLITS if split in writers)
    image_bytes = {split: writer.image_bytes for split, writer in writers.items()}
    return folder.add(PartRecord(task.key, files, {"image_bytes": image_bytes})).to_dict()


def _read_clean(task: ResizeTask, folder: PartFolder, spec: TensorSpec) -> Iterator[tuple[pa.Table, Codes]]:
    """Yield the valid rows of a clean part with their split codes, a row group at a time."""
    columns = ["image_id", "image.bytes", "problem", "declared_split", "split_position", "shuffle_index"]
    columns += ["mask"] if spec.copies and spec.copies.needs_masks else []
    first = 0
    for table in read_file(folder.locate(task.clean.key), columns):
        rows = np.arange(first, first + table.num_rows, dtype=np.int32)
        first += table.num_rows
        if isinstance(task.splits, SplitRule):
            codes = task.splits.assign(table)
        else:
            codes = np.array(task.splits[rows[0] : rows[-1] + 1], np.uint8)
        is_read = np.asarray(pc.is_null(table.column("problem"))) & (codes < len(SPLITS))
        yield table.append_column("source_row", pa.array(rows)).filter(pa.array(is_read)), codes[is_read]


class _SplitWriter:
    """Writes the images of one split of a task, a row group at a time, from one buffer of pixels."""

    def __init__(
        self, split: str, spec: TensorSpec, writer: ShardWriter, pool: ThreadPoolExecutor | None, kernel: Kernel | None
    ) -> None:
        self._split, self._spec, self._writer, self._pool, self._kernel = split, spec, writer, pool, kernel
        self._policy = spec.copies if split == "train" else None
        self._pixels = np.empty((spec.group_rows, *spec.geometry.shape), np.uint8)
        self._rows: list[Row] = []
        self.image_bytes = 0

    def add(self, rows: list[Row]) -> None:
        if self._policy is not None:
            self._add_with_copies(rows, self._policy)
            return
        while rows:
            room = self._spec.group_rows - len(self._rows)
            self._decode(rows[:room])
            rows = rows[room:]
            self._flush_if_full()

    def _decode(self, rows: list[Row]) -> None:
        out, geometry = self._pixels[len(self._rows) :], self._spec.geometry
        if self._kernel is not None:
            images = self._kernel([row["image"]["bytes"] for row in rows], geometry)
            for row, target in zip(rows, out, strict=False):
                with _name_image_in_errors(row):
                    target[...] = next(images)
        else:

            def decode(number: int) -> None:
                with _name_image_in_errors(rows[number]):
                    out[number] = decode_and_resize(rows[number]["image"]["bytes"], geometry)

            numbers = range(len(rows))
            list(self._pool.map(decode, numbers) if self._pool else map(decode, numbers))
        self._rows += [row | {"copy": 0, "augmentation": ""} for row in rows]

    def _add_with_copies(self, rows: list[Row], policy: CopyPolicy) -> None:
        """Add images, each followed by its copies."""
        for row in rows:
            with _name_image_in_errors(row):
                for copy, (image, augmentation) in enumerate(decode_with_copies(row, self._spec.geometry, policy)):
                    self._pixels[len(self._rows)] = image
                    self._rows.append(row | {"copy": copy, "augmentation": augmentation})
                    self._flush_if_full()

    def _flush_if_full(self) -> None:
        if len(self._rows) == self._spec.group_rows:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        pixels = self._pixels[: len(self._rows)]
        columns: dict[str, Any] = {"image": self._encode(pixels)}
        if self._spec.with_sums:
            sums = [sum_channels(image).tobytes() for image in pixels]
            columns["channel_sums"] = pa.array(sums, pa.binary(len(sums[0])))
        schema = self._spec.schema()
        arrays = [
            columns[column.name] if column.name in columns
            else pa.array([row[column.name] for row in self._rows], column.type)
            for column in schema
        ]  # fmt: skip
        self._writer.add_table(pa.Table.from_arrays(arrays, schema=schema))
        self._rows = []

    def _encode(self, pixels: Pixels) -> pa.Array:
        """uint8 [rows, H, W, C] → the column to store."""
        spec = self._spec
        if spec.encoding == RAW:
            self.image_bytes += pixels.nbytes
            return pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(spec.row_bytes), len(pixels), [None, pa.py_buffer(pixels)]
            )
        encoded = [encode_jpeg(image, spec.jpeg_quality, spec.jpeg_subsampling) for image in pixels]
        self.image_bytes += sum(map(len, encoded))
        return pa.array(encoded, pa.binary())

    def publish(self, key: str) -> Part:
        self._flush()
        return self._writer.publish_part(name_split_key(key, self._split), self._split)


def limit_library_threads(spec: TensorSpec) -> None:
    """Let torch and OpenCV use one thread: parallelism is one task, or one thread of a task, a core."""
    import torch

    torch.set_num_threads(1)
    if spec.copies or spec.geometry.edges or spec.geometry.color in ("ycbcr", "lab"):
        import cv2

        cv2.setNumThreads(1)


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


def read_channel_sums(column: pa.ChunkedArray, channels: int) -> npt.NDArray[np.uint64]:
    """Return the sums of a column `channel_sums`, uint64 [rows, 2, C]."""
    values = b"".join(column.to_pylist())
    return np.frombuffer(values, np.uint64).reshape(-1, 2, channels)
