"""The columns of clean rows, of rejects and of twins."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ..store.shards import Layout

MEASURES = ("brightness", "contrast", "sharpness", "entropy", "aspect_ratio", "colorfulness", "bytes_per_pixel")
"""The measures of a picture that are single numbers; `phash` and `thumbnail` are for finding its twins."""


def _value(kind: str) -> dict[str, Any]:
    return {"dtype": kind, "_type": "Value"}


def _list(kind: str) -> dict[str, Any]:
    return {"feature": _value(kind), "_type": "Sequence"}


def clean_schema(multi: bool = False, one_hot: bool = False, masks: bool = False) -> pa.Schema:
    """The schema of clean data. `multi`: `label_ids` instead of `label_id`; `one_hot`: `label_one_hot` beside them;
    `masks`: `mask` as the last one, a PNG of the stored picture's size (255 foreground, 0 background), null where the
    source has none.

    Nullable, all of it: Hugging Face `datasets` applies its metadata, by which the image column opens as images,
    only to fields that equal its own, and those are nullable.
    """
    ids = ("label_ids", pa.list_(pa.int32()), _list("int32")) if multi else ("label_id", pa.int32(), _value("int32"))
    fields: list[tuple[str, pa.DataType, dict[str, Any]]] = [
        ("image_id", pa.string(), _value("string")),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}),
        ("label", pa.string(), _value("string")),
        ids,
        *([("label_one_hot", pa.list_(pa.uint8()), _list("uint8"))] if one_hot else []),
        ("split", pa.string(), _value("string")),
        ("declared_split", pa.string(), _value("string")),
        ("group", pa.string(), _value("string")),
        ("shuffle_index", pa.int64(), _value("int64")),
        ("width", pa.int32(), _value("int32")),
        ("height", pa.int32(), _value("int32")),
        ("sha256", pa.string(), _value("string")),
        ("format", pa.string(), _value("string")),
        ("image_bytes", pa.int64(), _value("int64")),
        ("pixel_hash", pa.string(), _value("string")),
        ("phash", pa.uint64(), _value("uint64")),
        *((name, pa.float32(), _value("float32")) for name in MEASURES),
        ("thumbnail", pa.binary(), _value("binary")),
        ("decoder_warning", pa.string(), _value("string")),
        *([("mask", pa.binary(), _value("binary"))] if masks else []),
    ]
    about = {"info": {"features": {name: feature for name, _, feature in fields}}}
    return pa.schema([(name, kind) for name, kind, _ in fields], metadata={"huggingface": json.dumps(about)})


CLEAN = clean_schema()
REJECTED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
TWINS = pa.schema(
    # One row a pair of near-duplicates; `done` says what followed from it for the first, or nothing.
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("twin_id", pa.string(), nullable=False),
        pa.field("distance", pa.uint8(), nullable=False),  # bits of 64 in which the hashes differ
        pa.field("difference", pa.float32(), nullable=False),  # of the thumbnails
        pa.field("label", pa.string(), nullable=False),
        pa.field("twin_label", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("twin_split", pa.string(), nullable=False),
        pa.field("dropped", pa.string(), nullable=False),  # `image_id` or `twin_id`, whichever went, or nothing
    ]
)


def clean_layout(schema: pa.Schema) -> Layout:
    """Small row groups: resize picks a range of the shuffled order out of every file, and can read whole groups only.
    Of 1 MB they take 1 % longer to write than of 4 MB."""
    return Layout(schema, row_group_bytes=2**20)
