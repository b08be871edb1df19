"""The Parquet schemas of clean rows, of rejected rows and of near-duplicate pairs."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ..dataset.shards import Layout

MEASURES = ("brightness", "contrast", "sharpness", "entropy", "aspect_ratio", "colorfulness", "bytes_per_pixel")
"""The measures of a picture that are single numbers."""


def make_clean_schema(masks: bool = False) -> pa.Schema:
    """Return the schema of a clean part, with the metadata by which Hugging Face `datasets` opens the image column.

    All fields are nullable: `datasets` applies its metadata only to fields that equal its own, and those are nullable.
    Labels, splits and what was decided on all images stand in the index. `source_row`: of the raw part;
    `split_position` in [0, 1): by which the split is chosen; `problem`, `detail`: why the image can't be used, or null.

    `masks`: a last column `mask`, a PNG of the stored picture's size (255 foreground, 0 background), null where the
    source has none.
    """
    types: dict[str, pa.DataType] = {
        "image_id": pa.string(),
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "source_row": pa.int32(),
        **dict.fromkeys(("problem", "detail", "declared_split", "group"), pa.string()),
        "shuffle_index": pa.int64(),
        "split_position": pa.float64(),
        **dict.fromkeys(("width", "height"), pa.int32()),
        **dict.fromkeys(("sha256", "format"), pa.string()),
        "image_bytes": pa.int64(),
        "pixel_hash": pa.string(),
        "phash": pa.uint64(),
        **dict.fromkeys(MEASURES, pa.float32()),
        "thumbnail": pa.binary(),
        "decoder_warning": pa.string(),
        **({"mask": pa.binary()} if masks else {}),
    }
    features = {"info": {"features": {name: _make_feature(kind) for name, kind in types.items()}}}
    return pa.schema(list(types.items()), metadata={"huggingface": json.dumps(features)})


def _make_feature(kind: pa.DataType) -> dict[str, Any]:
    """Return the feature of `datasets` for a column: the only struct is the image."""
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _make_feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": "float32" if pa.types.is_float32(kind) else str(kind), "_type": "Value"}


REJECTED = pa.schema(
    [pa.field(name, pa.string(), nullable=name == "sha256") for name in ("image_id", "sha256", "reason", "detail")]
)
_TWINS = {
    "image_id": pa.string(),
    "twin_id": pa.string(),
    "distance": pa.uint8(),  # bits of 64 in which the hashes differ
    "difference": pa.float32(),  # of the thumbnails
    **dict.fromkeys(("label", "twin_label", "split", "twin_split"), pa.string()),
    "dropped": pa.string(),  # the image_id of the dropped one, `both`, or empty
}
TWINS = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _TWINS.items()])


def make_clean_layout(masks: bool = False) -> Layout:
    return Layout(make_clean_schema(masks))
