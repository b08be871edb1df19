"""One raw shard → clean files (one a split, in shuffled order) and its rejects.

A row depends only on its raw row, the config and the class list, so a shard can be done alone, again, or
by another process, with the same bytes as its result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import xxhash

from ..store.images import ImageRejected, Pixels
from ..store.manifest import Dataset, File
from ..store.parallel import cores, ordered
from ..store.progress import Progress
from ..store.shards import Layout, ShardWriter, row_groups
from .config import CleanConfig
from .splits import SPLITS, choose_split, shuffle_index
from .standardize import standardize

_FIELDS: list[tuple[str, pa.DataType, dict[str, Any]]] = [
    ("image_id", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"}),
    ("label", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("label_id", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("split", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("shuffle_index", pa.int64(), {"dtype": "int64", "_type": "Value"}),
    ("width", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("height", pa.int32(), {"dtype": "int32", "_type": "Value"}),
    ("sha256", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("format", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("image_bytes", pa.int64(), {"dtype": "int64", "_type": "Value"}),
    ("pixel_hash", pa.string(), {"dtype": "string", "_type": "Value"}),
    ("decoder_warning", pa.string(), {"dtype": "string", "_type": "Value"}),
]
CLEAN = pa.schema(
    # Nullable, all of them: Hugging Face `datasets` applies its metadata, by which the image column opens as images,
    # only to fields that equal its own, and those are nullable.
    [(name, kind) for name, kind, _ in _FIELDS],
    metadata={"huggingface": json.dumps({"info": {"features": {name: about for name, _, about in _FIELDS}}})},
)
REJECTED = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
# Small row groups: resize picks a range of the shuffled order out of every file.
CLEAN_LAYOUT = Layout(CLEAN, row_group_bytes=4 * 2**20)


@dataclass(frozen=True)
class CleanedShard:
    """What one raw shard gave: the files of its kept rows, and of its rejected ones if there are any."""

    data: tuple[File, ...]
    rejected: tuple[File, ...]

    def to_record(self) -> dict[str, Any]:
        return {"data": [asdict(f) for f in self.data], "rejected": [asdict(f) for f in self.rejected]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CleanedShard:
        return cls(tuple(File(**f) for f in record["data"]), tuple(File(**f) for f in record["rejected"]))


@dataclass(frozen=True)
class RowRules:
    """What decides about a row besides the row itself."""

    config: CleanConfig
    class_ids: dict[str, int]


def clean_shard(raw: Dataset, file: File, uri: str, rules: RowRules, progress: Progress) -> CleanedShard:
    """Clean one raw shard into files below the dataset `uri`. Holds the shard's images, about 128 MB."""
    kept: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rejected: list[dict[str, Any]] = []
    workers = rules.config.clean_workers or cores()
    rows = _rows(raw, file)
    for row in ordered(rows, lambda r: clean_row(r, rules), workers, lambda r: len(r["image"] or b"")):
        if "reason" in row:
            rejected.append(row)
        else:
            kept[row["split"]].append(row)
        progress.add(1)
    data = tuple(write_rows(uri, split, rows) for split, rows in kept.items() if rows)
    return CleanedShard(data, (write_rejected(uri, rejected),) if rejected else ())


def _rows(raw: Dataset, file: File) -> Iterator[dict[str, Any]]:
    for table in row_groups(raw, file, ["image_id", "image", "sha256", "label", "split"]):
        yield from table.to_pylist()


def clean_row(row: dict[str, Any], rules: RowRules) -> dict[str, Any]:
    """A raw row → a clean row, or a row of rejects (which has a `reason`)."""
    try:
        if row["image"] is None:
            raise ImageRejected("missing_file", "the source names it but it is not there")
        if not row["label"]:
            raise ImageRejected("no_label", "the source gives no label")
        done = standardize(row["image"], rules.config)
    except ImageRejected as error:
        return {k: row[k] for k in ("image_id", "sha256")} | {"reason": error.reason, "detail": error.detail}
    config, decoded = rules.config, done.decoded
    split = choose_split(row["sha256"], row["split"], config.val_fraction, config.test_fraction)
    return {
        "image_id": row["image_id"],
        "image": {"bytes": done.data, "path": row["image_id"].rpartition("/")[2]},
        "label": row["label"],
        "label_id": rules.class_ids[row["label"]],
        "split": split,
        "shuffle_index": shuffle_index(row["sha256"]),
        "width": decoded.width,
        "height": decoded.height,
        "sha256": row["sha256"],
        "format": decoded.format,
        "image_bytes": len(done.data),
        "pixel_hash": pixel_hash(decoded.pixels),
        "decoder_warning": decoded.warning or None,
    }


def pixel_hash(pixels: Pixels) -> str:
    """xxh3-128 of the upright pixels and their shape: equal pixels in whatever format and orientation."""
    found = xxhash.xxh3_128(str(pixels.shape).encode())
    found.update(pixels.data)
    return found.hexdigest()


def write_rows(uri: str, split: str, rows: list[dict[str, Any]]) -> File:
    """One clean file, its rows in shuffled order (ties, which only copies can have, by image_id)."""
    with ShardWriter(uri, CLEAN_LAYOUT) as writer:
        for row in sorted(rows, key=lambda r: (r["shuffle_index"], r["image_id"])):
            writer.add(row, len(row["image"]["bytes"]))
        return writer.publish(f"data/{split}", "data", split)


def write_rejected(uri: str, rows: list[dict[str, Any]]) -> File:
    """One file of rejects, by image_id."""
    with ShardWriter(uri, Layout(REJECTED)) as writer:
        for row in sorted(rows, key=lambda r: r["image_id"]):
            writer.add(row, 0)
        return writer.publish("rejected", "rejected")
