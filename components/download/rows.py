"""The rows of a raw dataset: the schema of its parts, writing them, and the fingerprint of all rows.

A part holds everything that counts for a single image: its bytes, and the split, group, boxes and mask that the source
declares. Labels stand in the index alone, so that a relabeled table writes no image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

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
ROW_GROUP_BYTES = 4 * 2**20
LANES = 8
"""Parts that a source which can't be listed is dealt to at a time; each holds a row group in memory."""
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
    with _PartWriter(folder) as writer:
        for row in rows:
            writer.add(row)
        return writer.publish() if writer.labels else None


def write_parts(folder: PartFolder, rows: Iterable[Row]) -> Iterator[tuple[Part, list[str | None]]]:
    """Write rows to parts of at most `PART_BYTES` and `PART_ROWS`; yield each part with its rows' labels.

    They are dealt to `LANES` parts at a time by a hash of their ids: a source that is read in the order of its classes
    has many of them in a part then.
    """
    with ExitStack() as stack:
        lanes: dict[int, _PartWriter] = {}
        for row in rows:
            lane = hash_id(row["image_id"]) % LANES
            if lane not in lanes:
                lanes[lane] = stack.enter_context(_PartWriter(folder))
            lanes[lane].add(row)
            if lanes[lane].is_full:
                yield lanes.pop(lane).publish()
        for lane in sorted(lanes):
            yield lanes[lane].publish()


class _PartWriter:
    """Writes rows to one part."""

    def __init__(self, folder: PartFolder) -> None:
        self._writer = folder.open_writer(Layout(RAW, row_group_bytes=ROW_GROUP_BYTES))
        self._content, self._size = hashlib.sha256(), 0
        self.labels: list[str | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def add(self, row: Row) -> None:
        self._content.update(canonical_json([row["image_id"], *describe_content(row)]))
        self.labels.append(row["label"])
        size = row["bytes"] + len(row["mask"] or b"")
        self._size += size
        self._writer.add({name: row[name] for name in RAW.names}, size)

    @property
    def is_full(self) -> bool:
        return self._size >= PART_BYTES or len(self.labels) == PART_ROWS

    def publish(self) -> tuple[Part, list[str | None]]:
        key = make_part_key("download", VERSION, "", {"rows": self._content.hexdigest()})
        return self._writer.publish_part(key), self.labels


def hash_id(image_id: str) -> int:
    return xxhash.xxh3_64_intdigest(image_id.encode())


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
