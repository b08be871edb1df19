"""Small tensors datasets written as the resize step writes them, for tests of whatever reads some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imagemill.components.dataset.kinds import ImageSpec, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, File, Manifest, commit
from imagemill.components.dataset.shards import Layout, ShardWriter
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.resize.tensor_shards import TensorSpec
from imagemill.components.train.data.loader import Batch

SHAPE = (4, 4, 3)


def write_split(uri: str, split: str, images: npt.NDArray[np.uint8], labels: list[int], group: int) -> File:
    row_bytes = int(np.prod(images.shape[1:]))
    schema = TensorSpec(Geometry(images.shape[1])).schema()
    with ShardWriter(uri, Layout(schema, plain=True)) as writer:
        for start in range(0, len(labels), group):
            part = images[start : start + group]
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(row_bytes), len(part), [None, pa.py_buffer(part.tobytes())]
            )
            ids = [f"{split}-{n}" for n in range(start, start + len(part))]
            columns = [column, pa.array(labels[start : start + group], pa.int32()), pa.array(ids)]
            writer.add_table(pa.Table.from_arrays(columns, schema=schema))
        return writer.publish(f"data/{split}", "data", split)


def numbered(workspace: Path | str, rows: int, group: int, files: int = 1, generations: Sequence[int] = ()) -> Dataset:
    """A tensors dataset whose labels are the numbers of its rows, and whose images hold them in every pixel.

    `generations`: of the files; none given: one.
    """
    uri = f"{workspace}/tensors/01"
    parts = [np.arange(start, rows, files) for start in range(files)]
    written = []
    for part in filter(len, parts):
        images = np.broadcast_to(part[:, None, None, None] % 256, (len(part), *SHAPE)).astype(np.uint8)
        written.append(write_split(uri, "train", images, part.tolist(), group))
    image = ImageSpec(SHAPE, mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = tuple(str(n) for n in range(rows))
    numbers = zip(written, generations or [0] * len(written), strict=True)
    extra = TensorsExtra(shards={file.uri: {"generation": generation} for file, generation in numbers})
    return commit(uri, Manifest("tensors", "01", classes=classes, files=tuple(written), image=image, extra=extra))


def rows_of(batches: Iterator[Batch]) -> list[int]:
    return [label for batch in batches for label in batch.labels.tolist()]
