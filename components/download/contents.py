"""The rows of a raw dataset: their schema, the digest of each, and the counts that the manifest has of them."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ..dataset.kinds import FileList
from ..dataset.manifest import File, canonical_json, digest
from .columns import SIDES
from .config import VERSION

BOX = pa.struct([("name", pa.string())] + [(side, pa.float32()) for side in SIDES])
RAW = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # null: named by the source, but not there
        pa.field("sha256", pa.string()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),  # rows of one group go to one split
        pa.field("boxes", pa.list_(BOX)),
        pa.field("mask", pa.binary()),
    ]
)
SKIPPED_NAMES = 10_000
"""Maximum number of skipped files, and of missing masks, that are named in the manifest; all are counted."""
DIGEST_BYTES = 32


@dataclass
class FileCounter:
    """Counter of files, of which up to `SKIPPED_NAMES` are named."""

    count: int = 0
    files: list[dict[str, str]] = field(default_factory=list)

    def add(self, **description: str) -> None:
        self.count += 1
        if len(self.files) < SKIPPED_NAMES:
            self.files.append(description)

    def freeze(self) -> FileList:
        return FileList(self.count, tuple(self.files))


@dataclass
class Contents:
    """The rows of a snapshot: a digest of each (40 bytes with the hash of its id), and counts.

    `files`: the shards that were written for it; more of its rows may be in earlier ones.
    """

    digests: bytearray = field(default_factory=bytearray)
    id_hashes: array[int] = field(default_factory=lambda: array("Q"))
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    skipped: FileCounter = field(default_factory=FileCounter)
    missing_masks: FileCounter = field(default_factory=FileCounter)
    files: list[File] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.digests += hash_row(row)
        self.id_hashes.append(hash_id(row["image_id"]))
        self.labels[row["label"] or ""] += 1
        self.splits[row["split"] or ""] += 1

    @property
    def rows(self) -> int:
        return len(self.id_hashes)

    def fingerprint(self) -> str:
        """Return the fingerprint of the sorted rows: neither the order of reading nor the sharding changes it."""
        rows = _sort_digests(self.digests)
        return digest({"kind": "raw", "version": VERSION, "rows": hashlib.sha256(rows).hexdigest()})


def hash_id(image_id: str) -> int:
    return xxhash.xxh3_64_intdigest(image_id.encode())


def hash_row(row: dict[str, Any]) -> bytes:
    """Return the sha256 of everything that a row holds, with the image by its own sha256."""
    values = [row["image_id"], row["sha256"], row["label"], row["split"], _hash_annotations(row)]
    if group := row.get("group"):  # only then, so that sources without groups keep their fingerprints
        values.append(group)
    return hashlib.sha256(canonical_json(values)).digest()


def _hash_annotations(row: dict[str, Any]) -> str:
    if not row["boxes"] and row["mask"] is None:
        return ""
    mask = hashlib.sha256(row["mask"]).hexdigest() if row["mask"] is not None else ""
    return digest({"boxes": row["boxes"], "mask": mask})


def _sort_digests(digests: bytearray) -> bytes:
    """Return the 32-byte digests in ascending order, as one byte string."""
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 4)
    order = np.lexsort((keys[:, 3], keys[:, 2], keys[:, 1], keys[:, 0]))
    return keys[order].tobytes()
