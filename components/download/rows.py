"""The rows of a raw dataset: the schema of its parts, writing them, and the fingerprint of all rows.

A part holds everything that counts for a single image: its bytes, and the split, group, boxes and mask that the source
declares. Labels stand in the index alone, so that a relabeled table writes no image.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import RAW_INDEX
from ..dataset.kinds import FileList
from ..dataset.manifest import Part, canonical_json, digest
from ..dataset.parts import PART_BYTES, PART_ROWS, PartFolder, make_part_key
from ..dataset.shards import Layout, read_file
from ..storage.errors import UserError
from .archives import Member
from .columns import SIDES
from .config import VERSION
from .dataset_kinds import Labels

BOX = pa.struct([("name", pa.string())] + [(side, pa.float32()) for side in SIDES])
RAW = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # null: named by the source, but not there
        pa.field("sha256", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),  # rows of one group go to one split
        pa.field("boxes", pa.list_(BOX)),
        pa.field("mask", pa.binary()),
        pa.field("annotations", pa.string()),  # digest of boxes and mask; null without any
        pa.field("bytes", pa.int64()),
    ]
)
_IN_INDEX = ["image_id", "sha256", "split", "group", "annotations", "bytes"]
SKIPPED_NAMES = 10_000
"""Maximum number of skipped files, and of missing masks, that are named in the manifest; all are counted."""
Row = dict[str, Any]
"""A row of a part, and its `label`, which goes to the index."""


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


def make_row(member: Member, labels: Labels) -> Row:
    """Return the row of a file that was read."""
    row: Row = {
        "image_id": member.path,
        "image": member.data,
        "sha256": None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        "label": labels.label,
        "split": labels.split,
        "group": labels.group,
        "boxes": labels.boxes,
        "mask": labels.mask if labels.mask is not None else member.mask,
        "bytes": len(member.data or b""),
    }
    return row | {"annotations": _digest_annotations(row)}


def _digest_annotations(row: Row) -> str | None:
    if not row["boxes"] and row["mask"] is None:
        return None
    mask = hashlib.sha256(row["mask"]).hexdigest() if row["mask"] is not None else ""
    return digest({"boxes": row["boxes"], "mask": mask})


def describe_content(row: Row) -> tuple[Any, ...]:
    """Return what makes a row of a part the same as another of its id."""
    return (row["sha256"], row["split"], row["group"], row["annotations"])


def write_part(folder: PartFolder, rows: Iterable[Row]) -> tuple[Part, list[str | None]] | None:
    """Write rows to one part, named by its content; return it and the rows' labels, or None where there are no rows."""
    labels: list[str | None] = []
    content = hashlib.sha256()
    with folder.open_writer(Layout(RAW)) as writer:
        for row in rows:
            content.update(canonical_json([row["image_id"], *describe_content(row)]))
            labels.append(row["label"])
            writer.add({name: row[name] for name in RAW.names}, row["bytes"] + len(row["mask"] or b""))
        if not labels:
            return None
        key = make_part_key("download", VERSION, "", {"rows": content.hexdigest()})
        return writer.publish_part(key), labels


def write_parts(folder: PartFolder, rows: Iterator[Row]) -> Iterator[tuple[Part, list[str | None]]]:
    """Write rows to parts of at most `PART_BYTES` and `PART_ROWS`; yield each part with its rows' labels."""
    for first in rows:
        if written := write_part(folder, itertools.chain([first], _take_part(first["bytes"], rows))):
            yield written


def _take_part(size: int, rows: Iterator[Row]) -> Iterator[Row]:
    number = 1
    while number < PART_ROWS and size < PART_BYTES and (row := next(rows, None)) is not None:
        number, size = number + 1, size + row["bytes"]
        yield row


def make_index_rows(folder: PartFolder, part: Part, labels: Iterable[str | None] | None = None) -> pa.Table:
    """Return the rows of a part in the form of `RAW_INDEX`, without `label` where no labels are given."""
    table = pa.concat_tables(read_file(folder.locate(part.key), _IN_INDEX))
    columns = {name: table.column(name) for name in _IN_INDEX}
    columns |= {"part": pa.repeat(part.key, table.num_rows), "row": pa.array(range(table.num_rows), pa.int32())}
    columns["label"] = pa.array(labels if labels is not None else [None] * table.num_rows, pa.string())
    return pa.table({name: columns[name] for name in RAW_INDEX.names}, schema=RAW_INDEX)


def fingerprint_rows(index: pa.Table) -> str:
    """Return the fingerprint of a raw dataset: of all that its index says of the images, but not of where they lie.

    Neither the order of reading nor the parts change it.
    """
    names = ["image_id", "sha256", "label", "split", "group", "annotations"]
    table = index.select(names).sort_by("image_id")
    texts = [table.column(name).cast(pa.large_string()) for name in names]
    separator = pa.scalar("\0", pa.large_string())
    lines = pc.binary_join_element_wise(*texts, separator, null_handling="replace", null_replacement="\1")
    content = hashlib.sha256()
    for chunk in lines.chunks:
        for line in chunk.to_pylist():
            content.update(line.encode() + b"\n")
    return digest({"kind": "raw", "version": VERSION, "rows": content.hexdigest()})


def refuse_duplicate_ids(index: pa.Table) -> None:
    """Raise UserError for several files of the same normalized name."""
    counts = pc.value_counts(index.column("image_id"))
    names = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist()
    if names:
        name = min(names)
        number = pc.sum(pc.equal(index.column("image_id"), name)).as_py()
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"image_id: expected every path once, found {name!r} {number} times{more}")
