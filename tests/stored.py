"""Small tensors datasets written as the resize step writes them, for tests of whatever reads some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from placed import place

from imagemill.components.dataset.index import make_tensors_index
from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit, count_values
from imagemill.components.dataset.shards import Layout
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.resize.tensor_part import TensorSpec
from imagemill.components.train.data.loader import Batch

SHAPE = (4, 4, 3)


def make_rows(
    split: str, images: npt.NDArray[np.uint8], labels: Sequence[int], prefix: str = ""
) -> list[dict[str, Any]]:
    """Rows of tensors, with the columns of parts and of the index."""
    return [
        {"image_id": f"{prefix or split}-{n}", "image": image.tobytes(), "source_row": n, "copy": 0, "label_id": label,
         "split": split}
        for n, (image, label) in enumerate(zip(images, labels, strict=True))
    ]  # fmt: skip


def commit_tensors(
    uri: str, rows: Sequence[dict[str, Any]], shape: tuple[int, ...], group: int = 1 << 20, parts: int = 0, **more: Any
) -> Dataset:
    """A tensors dataset of rows, with `group` of them in a row group; `parts`: of a dataset of one split."""
    schema = TensorSpec(Geometry(shape[1])).schema()
    schema = schema.set(0, schema.field("image").with_type(pa.binary(int(np.prod(shape)))))
    layout = Layout(schema, plain=True, row_group_rows=group)
    placed = place(uri, rows, layout, make_tensors_index("single"), by_split=not parts, parts=max(1, parts))
    totals = Totals(rows=len(rows), by_split=count_values(row["split"] for row in rows))
    image = ImageSpec((shape[0], shape[1], shape[2]), mean=(0.5,) * 3, std=(0.25,) * 3)
    fields: dict[str, Any] = {"image": image, "totals": totals} | placed | more
    return commit(uri, Manifest("tensors", uri.rpartition("/")[2], **fields))


def numbered(workspace: Path | str, rows: int, group: int, files: int = 1) -> Dataset:
    """A tensors dataset whose labels are the numbers of its rows, and whose images hold them in every pixel; the rows
    are dealt to so many parts."""
    numbers = np.arange(rows)
    images = np.broadcast_to(numbers[:, None, None, None] % 256, (rows, *SHAPE)).astype(np.uint8)
    classes = tuple(str(n) for n in range(rows))
    records = make_rows("train", images, numbers.tolist())
    return commit_tensors(f"{workspace}/tensors/01", records, SHAPE, group, files, classes=classes)


def rows_of(batches: Iterator[Batch]) -> list[int]:
    return [label for batch in batches for label in batch.labels.tolist()]
