"""The Parquet schemas of clean rows, of rejected rows and of near-duplicate pairs."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from ..dataset.shards import Layout

MEASURES = ("brightness", "contrast", "sharpness", "entropy", "aspect_ratio", "colorfulness", "bytes_per_pixel")
"""The measures of a picture that are single numbers."""


def make_clean_schema(multi: bool = False, one_hot: bool = False, masks: bool = False) -> pa.Schema:
    """Return the schema of clean data, with the metadata by which Hugging Face `datasets` opens the image column.

    All fields are nullable: `datasets` applies its metadata only to fields that equal its own, and those are nullable.

    Args:
        multi: `label_ids` instead of `label_id`.
        one_hot: a column `label_one_hot` beside them.
        masks: a last column `mask`, a PNG of the stored picture's size (255 foreground, 0 background), null where
            the source has none.
    """
    types: dict[str, pa.DataType] = {
        "image_id": pa.string(),
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "label": pa.string(),
        **({"label_ids": pa.list_(pa.int32())} if multi else {"label_id": pa.int32()}),
        **({"label_one_hot": pa.list_(pa.uint8())} if one_hot else {}),
        **dict.fromkeys(("split", "declared_split", "group"), pa.string()),
        "shuffle_index": pa.int64(),
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


CLEAN = make_clean_schema()
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


def make_clean_layout(schema: pa.Schema) -> Layout:
    """Return a layout with small row groups, because resize reads a range of the shuffled order from every file, and
    can read only whole groups. Groups of 1 MB take 1 % longer to write than those of 4 MB."""
    return Layout(schema, row_group_bytes=2**20)


def make_candidates_layout(layout: Layout) -> Layout:
    """Return the layout of the same rows without their images, as one row group."""
    return Layout(pa.schema([field for field in layout.schema if field.name not in ("image", "mask")]))
