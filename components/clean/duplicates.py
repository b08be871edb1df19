"""Exact duplicates over all shards: one copy stays, the others are rejected with its name.

The copy in test stays before the one in val before the one in train (a test image must not be trained on, and
test should not shrink); within a split the smallest image_id. In memory an image costs 25 bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..store import uri as uris
from ..store.manifest import File
from ..store.shards import ShardWriter, open_parquet, read_row_group
from .shard import CLEAN, CLEAN_LAYOUT

_KEPT_FIRST = {"test": 0, "val": 1, "train": 2}


@dataclass(frozen=True)
class Duplicate:
    """A row to reject: where it is, and the row of rejects that takes its place."""

    file: File
    image_id: str
    rejected: dict[str, Any]


def find_duplicates(uri: str, files: list[File]) -> list[Duplicate]:
    """Every row that has the pixels of a row that is kept, by file and image_id."""
    hashes, owners = bytearray(), []
    for number, file in enumerate(files):
        for table in _columns(uri, file, ["pixel_hash"]):
            for value in table.column("pixel_hash"):
                hashes += bytes.fromhex(value.as_py())
            owners.append(np.full(table.num_rows, number, np.uint32))
    if not hashes:
        return []
    keys = np.frombuffer(hashes, dtype=">u8").reshape(-1, 2)
    unique, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    double = (counts > 1)[inverse.reshape(-1)]
    suspects = {key.tobytes().hex() for key in unique[counts > 1]}
    affected = sorted({int(n) for n in np.concatenate(owners)[double]})
    return list(_verdicts(uri, [files[n] for n in affected], suspects)) if suspects else []


def _verdicts(uri: str, files: list[File], suspects: set[str]) -> Iterator[Duplicate]:
    groups: defaultdict[str, list[tuple[tuple[int, str], File, dict[str, Any]]]] = defaultdict(list)
    for file in files:
        for table in _columns(uri, file, ["image_id", "sha256", "pixel_hash", "label", "split"]):
            keep = np.array([h in suspects for h in table.column("pixel_hash").to_pylist()], dtype=bool)
            for row in table.filter(keep).to_pylist():
                groups[row["pixel_hash"]].append(((_KEPT_FIRST[row["split"]], row["image_id"]), file, row))
    for copies in groups.values():
        (_, _, kept), *others = sorted(copies, key=lambda c: c[0])
        for _, file, row in others:
            yield Duplicate(file, row["image_id"], _rejected(row, kept))


def _rejected(row: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    detail = f"same as {kept['image_id']} ({kept['split']})"
    if row["label"] != kept["label"]:
        detail += f"; labelled {row['label']} here, {kept['label']} there"
    reason = "duplicate_bytes" if row["sha256"] == kept["sha256"] else "duplicate_pixels"
    return {"image_id": row["image_id"], "sha256": row["sha256"], "reason": reason, "detail": detail}


def without(uri: str, file: File, image_ids: Iterable[str]) -> File | None:
    """The file without some rows, as a new file; None when no row is left."""
    gone = set(image_ids)
    with ShardWriter(uri, CLEAN_LAYOUT) as writer:
        for table in _columns(uri, file, None):
            for row in table.cast(CLEAN).to_pylist():
                if row["image_id"] not in gone:
                    writer.add(row, len(row["image"]["bytes"]))
        return writer.publish(f"data/{file.split}", "data", file.split) if writer.rows else None


def _columns(uri: str, file: File, columns: list[str] | None) -> Iterator[Any]:
    where = uris.join(uri, file.uri)
    with open_parquet(where) as parquet:
        for index in range(parquet.num_row_groups):
            yield read_row_group(parquet, index, where, columns)
