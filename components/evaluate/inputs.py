"""The test images as a model sees them: from its own tensors where they fit, else made from the clean images.

A champion may have been trained at another size or in another colour than today's tensors have; each model
gets its own preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.images import Pixels
from ..store.labels import MULTI, label_column, multi_hot
from ..store.manifest import Dataset, find_dataset
from ..store.parallel import cores, map_ordered
from ..store.resample import Geometry, decode_and_resize
from ..store.shards import row_groups
from ..store.tensors import center_crop, decode_column, input_size


@dataclass(frozen=True)
class InputBatch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or uint8 [B, classes] of zeros and ones where an image may have
    several; `ids` their image_ids."""

    images: Pixels
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    ids: list[str]


Row = tuple[Pixels, Any, str]
"""Image, `label_id` or list of `label_ids`, image_id."""


def tensors_for(model: Dataset, clean: Dataset) -> Dataset | None:
    """The tensors that the model was trained on, if they were made from this very clean dataset."""
    tensors = find_dataset(model.parent_uri("tensors"))
    if tensors is None or tensors.missing() or tensors.parent_uri("clean") != clean.uri:
        return None
    return tensors


def stored_geometry(model: Dataset, geometry: Geometry) -> Geometry:
    """The geometry of a model's input with what its tensors store around it, as far as they still say so."""
    tensors = find_dataset(model.parent_uri("tensors"))
    stored = Geometry.from_dict(tensors.manifest.image) if tensors and tensors.manifest.image else geometry
    return stored if stored.input == geometry.input else geometry


def input_batches(
    tensors: Dataset | None, clean: Dataset, geometry: Geometry, batch_size: int, around: bool = False
) -> Iterator[InputBatch]:
    """The clean dataset's test split; one batch and one row group at a time in memory.

    `around`: with all that the tensors store, or `geometry` says, around what the model sees."""
    rows = _from_tensors(tensors, around) if tensors else _from_clean(clean, geometry if around else geometry.input)
    classes = len(clean.manifest.classes) if clean.manifest.task == MULTI else 0
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield _batch(batch, classes)
            batch = []
    if batch:
        yield _batch(batch, classes)


def _batch(rows: list[Row], classes: int) -> InputBatch:
    """`classes` is 0 where every image has one label."""
    labels = [r[1] for r in rows]
    targets = multi_hot(labels, classes) if classes else np.array(labels, np.int64)
    return InputBatch(np.stack([r[0] for r in rows]), targets, [r[2] for r in rows])


def _from_tensors(tensors: Dataset, around: bool) -> Iterator[Row]:
    image, label_name = tensors.manifest.image, label_column(tensors.manifest.task)
    side = image["shape"][0] if around else input_size(image)
    for file in tensors.files("data", "test"):
        for table in row_groups(tensors, file):
            pixels = center_crop(decode_column(table.column("image"), image), side)
            columns = (table.column(name).to_pylist() for name in (label_name, "image_id"))
            yield from zip(pixels, *columns, strict=True)


def _from_clean(clean: Dataset, geometry: Geometry) -> Iterator[Row]:
    label = label_column(clean.manifest.task)

    def rows() -> Iterator[dict[str, Any]]:
        for file in clean.files("data", "test"):
            for table in row_groups(clean, file, ["image_id", "image.bytes", label]):
                yield from table.to_pylist()

    def resized(row: dict[str, Any]) -> Row:
        return decode_and_resize(row["image"]["bytes"], geometry), row[label], row["image_id"]

    yield from map_ordered(rows(), resized, cores(), lambda row: len(row["image"]["bytes"]))
