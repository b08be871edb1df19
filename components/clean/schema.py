"""The Parquet schemas of clean rows, of rejected rows and of near-duplicate pairs."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ..dataset.shards import Layout

MEASURES = ("brightness", "contrast", "sharpness", "entropy", "aspect_ratio", "colorfulness", "bytes_per_pixel")
"""The measures of a picture that are single numbers."""


def _make_value(kind: str) -> dict[str, Any]:
    return {"dtype": kind, "_type": "Value"}


def _make_sequence(kind: str) -> dict[str, Any]:
    return {"feature": _make_value(kind), "_type": "Sequence"}


def make_clean_schema(multi: bool = False, one_hot: bool = False, masks: bool = False) -> pa.Schema:
    """Return the schema of clean data, with the metadata by which Hugging Face `datasets` opens the image column.

    All fields are nullable: `datasets` applies its metadata only to fields that equal its own, and those are nullable.

    Args:
        multi: `label_ids` instead of `label_id`.
        one_hot: a column `label_one_hot` beside them.
        masks: a last column `mask`, a PNG of the stored picture's size (255 foreground, 0 background), null where
            the source has none.
    """
    ids = (
        ("label_ids", pa.list_(pa.int32()), _make_sequence("int32"))
        if multi
        else ("label_id", pa.int32(), _make_value("int32"))
    )
    fields: list[tuple[str, pa.DataType, dict[str, Any]]] = [
        ("image_id", pa.string(), _make_value("string")),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}),
        ("label", pa.string(), _make_value("string")),
        ids,
        *([("label_one_hot", pa.list_(pa.uint8()), _make_sequence("uint8"))] if one_hot else []),
        ("split", pa.string(), _make_value("string")),
        ("declared_split", pa.string(), _make_value("string")),
        ("group", pa.string(), _make_value("string")),
        ("shuffle_index", pa.int64(), _make_value("int64")),
        ("width", pa.int32(), _make_value("int32")),
        ("height", pa.int32(), _make_value("int32")),
        ("sha256", pa.string(), _make_value("string")),
        ("format", pa.string(), _make_value("string")),
        ("image_bytes", pa.int64(), _make_value("int64")),
        ("pixel_hash", pa.string(), _make_value("string")),
        ("phash", pa.uint64(), _make_value("uint64")),
        *((name, pa.float32(), _make_value("float32")) for name in MEASURES),
        ("thumbnail", pa.binary(), _make_value("binary")),
        ("decoder_warning", pa.string(), _make_value("string")),
        *([("mask", pa.binary(), _make_value("binary"))] if masks else []),
    ]
    metadata = {"info": {"features": {name: feature for name, _, feature in fields}}}
    return pa.schema([(name, kind) for name, kind, _ in fields], metadata={"huggingface": json.dumps(metadata)})


CLEAN = make_clean_schema()
REJECTED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
TWINS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("twin_id", pa.string(), nullable=False),
        pa.field("distance", pa.uint8(), nullable=False),  # bits of 64 in which the hashes differ
        pa.field("difference", pa.float32(), nullable=False),  # of the thumbnails
        pa.field("label", pa.string(), nullable=False),
        pa.field("twin_label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("twin_split", pa.string(), nullable=False),
        pa.field("dropped", pa.string(), nullable=False),  # the image_id of the dropped one, `both`, or empty
    ]
)


def make_clean_layout(schema: pa.Schema) -> Layout:
    """Return a layout with small row groups, because resize reads a range of the shuffled order from every file, and
    can read only whole groups. Groups of 1 MB take 1 % longer to write than those of 4 MB."""
    return Layout(schema, row_group_bytes=2**20)


def make_candidates_layout(layout: Layout) -> Layout:
    """Return the layout of the same rows without their images, as one row group."""
    names = [name for name in layout.schema.names if name not in ("image", "mask")]
    return Layout(pa.schema([layout.schema.field(name) for name in names]))
