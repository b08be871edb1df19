"""Read the test images as a model's input: from its own tensors where they fit, else decoded from the clean images.

A champion may have been trained at another size or in another color than today's tensors have; each model gets its own
preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.labels import MULTI, label_column, multi_hot
from ..dataset.manifest import Dataset, find_dataset
from ..dataset.shards import row_groups
from ..imaging.decoder import Pixels
from ..imaging.geometry import Geometry, decode_and_resize
from ..imaging.tensors import center_crop, decode_column
from ..storage.parallel import cores, map_ordered


@dataclass(frozen=True)
class InputBatch:
    """`images` uint8 [B, H, W, C]; `labels` int64 [B], or multi-hot uint8 [B, classes] where images may have several;
    `ids`: their image_ids."""

    images: Pixels
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]
    ids: list[str]


Row = tuple[Pixels, Any, str]
"""Image, `label_id` or list of `label_ids`, image_id."""


def find_tensors(model: Dataset, clean: Dataset) -> Dataset | None:
    """Return the tensors that the model was trained on, if they were made from this clean dataset."""
    tensors = find_dataset(model.parent_uri("tensors"))
    if tensors is None or tensors.missing() or tensors.parent_uri("clean") != clean.uri:
        return None
    return tensors


def find_stored_geometry(model: Dataset, geometry: Geometry) -> Geometry:
    """Return the geometry of a model's input with the margin of its tensors, if their manifest still exists."""
    tensors = find_dataset(model.parent_uri("tensors"))
    stored = Geometry.of(tensors.manifest.image_spec) if tensors and tensors.manifest.image else geometry
    return stored if stored.input == geometry.input else geometry


def read_test_batches(
    tensors: Dataset | None, clean: Dataset, geometry: Geometry, batch_size: int, with_margin: bool = False
) -> Iterator[InputBatch]:
    """Yield the clean dataset's test split; one batch and one row group at a time in memory.

    `with_margin`: with the margin around the model's input that the tensors, or `geometry`, have.
    """
    if tensors:
        return read_tensor_batches(tensors, "test", batch_size, with_margin)
    return _batch_rows(_decode_clean(clean, geometry if with_margin else geometry.input), clean, batch_size)


def read_tensor_batches(
    tensors: Dataset, split: str, batch_size: int, with_margin: bool = False
) -> Iterator[InputBatch]:
    """Yield a split of a tensors dataset, as `read_test_batches` does."""
    return _batch_rows(_read_tensors(tensors, split, with_margin), tensors, batch_size)


def _batch_rows(rows: Iterator[Row], dataset: Dataset, batch_size: int) -> Iterator[InputBatch]:
    classes = len(dataset.manifest.classes) if dataset.manifest.task == MULTI else 0
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield _collate(batch, classes)
            batch = []
    if batch:
        yield _collate(batch, classes)


def _collate(rows: list[Row], classes: int) -> InputBatch:
    """Stack rows; `classes` is 0 where every image has one label."""
    images, labels, ids = zip(*rows, strict=True)
    return InputBatch(np.stack(images), multi_hot(labels, classes) if classes else np.array(labels, np.int64), [*ids])


def _read_tensors(tensors: Dataset, split: str, with_margin: bool) -> Iterator[Row]:
    image, label_name = tensors.manifest.image_spec, label_column(tensors.manifest.task)
    side = image.shape[0] if with_margin else image.side
    for file in tensors.files("data", split):
        for table in row_groups(tensors, file):
            pixels = center_crop(decode_column(table.column("image"), image), side)
            columns = (table.column(name).to_pylist() for name in (label_name, "image_id"))
            yield from zip(pixels, *columns, strict=True)


def _decode_clean(clean: Dataset, geometry: Geometry) -> Iterator[Row]:
    label = label_column(clean.manifest.task)

    def read_rows() -> Iterator[dict[str, Any]]:
        for file in clean.files("data", "test"):
            for table in row_groups(clean, file, ["image_id", "image.bytes", label]):
                yield from table.to_pylist()

    def decode(row: dict[str, Any]) -> Row:
        return decode_and_resize(row["image"]["bytes"], geometry), row[label], row["image_id"]

    yield from map_ordered(read_rows(), decode, cores(), lambda row: len(row["image"]["bytes"]))
