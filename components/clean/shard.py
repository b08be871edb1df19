"""Cleaning of one slice of a raw shard: clean files (one per split, in shuffled order) and the rejected rows.

A row depends only on its raw row, the config and the class list, so that a slice can be cleaned alone, again, or by
another process, with the same bytes as its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash

from ..dataset.manifest import Dataset, File
from ..dataset.shards import Layout, ShardWriter, open_parquet, row_groups
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.standardize import StandardizedImage, standardize
from ..storage.parallel import map_ordered
from .config import CleanConfig
from .labels import LabelRules
from .measures import measure
from .schema import MEASURES, REJECTED, make_clean_layout, make_clean_schema
from .splits import choose_split, compute_shuffle_index

SLICE_BYTES = 32 * 2**20
"""Bytes of raw row groups in a slice: bounds a process's memory, and the work that is done again after a failure."""
UNSPLIT = ""
"""Split of candidates whose split is assigned only when all candidates are known."""


@dataclass(frozen=True)
class Slice:
    """The unit of cleaning's work: the row groups `first` (inclusive) to `last` (exclusive) of one raw shard.

    Attributes:
        file: the raw shard.
        first, last: range of row groups.
        rows: number of rows.
        bytes: uncompressed size of the row groups.
    """

    file: File
    first: int
    last: int
    rows: int
    bytes: int

    @property
    def key(self) -> str:
        """Name under which the finished work is recorded."""
        return f"{self.file.sha256[:16]}-{self.first:04d}"

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Slice:
        return cls(**{**record, "file": File(**record["file"])})


def plan_slices(raw: Dataset) -> list[Slice]:
    """Divide a raw dataset into slices, in its order.

    Reads only the footers of its files, and the ids of those that hold removed rows, which no slice counts.
    """
    slices: list[Slice] = []
    for file in raw.files():
        first = rows = size = 0
        kept = [table.num_rows for table in row_groups(raw, file, ["image_id"])] if raw.removed_ids(file) else None
        with open_parquet(raw.locate(file)) as parquet:
            last = parquet.num_row_groups
            for index in range(last):
                group = parquet.metadata.row_group(index)
                if size and size + group.total_byte_size > SLICE_BYTES:
                    slices.append(Slice(file, first, index, rows, size))
                    first, rows, size = index, 0, 0
                rows += group.num_rows if kept is None else kept[index]
                size += group.total_byte_size
        if rows:
            slices.append(Slice(file, first, last, rows, size))
    return slices


@dataclass(frozen=True)
class CleanedShard:
    """The files that one slice resulted in: of its kept rows, and of its rejected ones if there are any."""

    data: tuple[File, ...]
    rejected: tuple[File, ...]

    def to_record(self) -> dict[str, Any]:
        return {"data": [asdict(file) for file in self.data], "rejected": [asdict(file) for file in self.rejected]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CleanedShard:
        return cls(tuple(File(**file) for file in record["data"]), tuple(File(**file) for file in record["rejected"]))


@dataclass(frozen=True)
class RowRules:
    """Everything besides a raw row that its clean row depends on."""

    config: CleanConfig
    labels: LabelRules

    @property
    def is_one_hot(self) -> bool:
        return self.config.label_encoding == "one_hot"

    @property
    def layout(self) -> Layout:
        schema = make_clean_schema(self.labels.is_multi_label, self.is_one_hot, self.config.keep_masks)
        return make_clean_layout(schema)


@dataclass
class CleanedRows:
    """The cleaned rows of one slice, by split, and its rejected rows; about 64 MB."""

    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], split: str) -> None:
        if "reason" in row:
            self.rejected.append(row)
        else:
            self.kept.setdefault(split, []).append(row)


def clean_shard(
    raw: Dataset, part: Slice, uri: str, rules: RowRules, count: Callable[[int], None], decode_lock: threading.Lock,
    threads: int,
) -> CleanedShard:  # fmt: skip
    """Clean one slice into files below the dataset `uri`.

    Args:
        count: called with the number of rows just finished.
        decode_lock: held while rows are decoded, so that the slices of one process decode one after another, and
            one is written while the next is decoded.
        threads: number of decoding threads.
    """
    with decode_lock:
        rows = clean_rows(raw, part, rules, count, threads)
    return write_shard(rows, uri, rules)


def clean_rows(raw: Dataset, part: Slice, rules: RowRules, count: Callable[[int], None], threads: int) -> CleanedRows:
    """Clean every row of one slice on `threads` threads."""
    rows = CleanedRows()
    unsplit = rules.config.split == "exact"
    raw_rows = _read_rows(raw, part, rules.config)
    if threads == 1:
        cleaned: Iterable[dict[str, Any]] = (clean_row(row, rules) for row in raw_rows)
    else:
        cleaned = map_ordered(raw_rows, lambda r: clean_row(r, rules), threads, lambda r: len(r["image"] or b""))
    for row in cleaned:
        rows.add(row, UNSPLIT if unsplit else row.get("split", ""))
        count(1)
    return rows


def write_shard(rows: CleanedRows, uri: str, rules: RowRules) -> CleanedShard:
    """Write the files of one slice, in alphabetical order of their splits."""
    data = tuple(write_rows(uri, split, rows.kept[split], rules.layout) for split in sorted(rows.kept))
    return CleanedShard(data, (write_rejected(uri, rows.rejected),) if rows.rejected else ())


def _read_rows(raw: Dataset, part: Slice, config: CleanConfig) -> Iterator[dict[str, Any]]:
    """Yield raw rows with the columns that the config needs; shards of older versions lack `group`."""
    columns = ["image_id", "image", "sha256", "label", "split", "group"]
    columns += ["boxes"] if config.roi != "off" else []
    columns += ["mask"] if config.background != "off" or config.keep_masks else []
    for table in row_groups(raw, part.file, columns, range(part.first, part.last)):
        yield from table.to_pylist()


def clean_row(row: dict[str, Any], rules: RowRules) -> dict[str, Any]:
    """Return the clean row of a raw row, or its rejected row, which has a `reason`."""
    config = rules.config
    try:
        if row["image"] is None:
            raise ImageRejected("missing_file", "the source names it but it is not there")
        labels = rules.labels.parse(row["label"])
        image = standardize(row["image"], config, row.get("boxes"), row.get("mask"))
        measures = _measure(image, len(row["image"]), config)
    except ImageRejected as error:
        return {k: row[k] for k in ("image_id", "sha256")} | {"reason": error.reason, "detail": error.detail}
    height, width = image.pixels.shape[:2]
    declared = row["split"] if config.declared_splits == "respect" else None
    split = choose_split(row["sha256"], declared, config.val_fraction, config.test_fraction, row.get("group"))
    return {
        "image_id": row["image_id"],
        "image": {"bytes": image.data, "path": row["image_id"].rpartition("/")[2]},
        **_encode_labels(labels, rules),
        "split": split,
        "declared_split": row["split"],
        "group": row.get("group"),
        "shuffle_index": compute_shuffle_index(row["sha256"]),
        "width": width,
        "height": height,
        "sha256": row["sha256"],
        "format": image.format,
        "image_bytes": len(image.data),
        "pixel_hash": hash_pixels(image.pixels),
        **measures,
        "decoder_warning": image.warning or None,
    } | ({"mask": image.mask} if config.keep_masks else {})


def _encode_labels(labels: list[str], rules: RowRules) -> dict[str, Any]:
    """Return the label columns: text, ids and, with `label_encoding` one_hot, a list of ones and zeros."""
    ids = [rules.labels.ids[name] for name in labels]
    if rules.labels.is_multi_label:
        columns: dict[str, Any] = {"label": rules.labels.separator.join(labels), "label_ids": ids}
    else:
        columns = {"label": labels[0], "label_id": ids[0]}
    if rules.is_one_hot:
        columns["label_one_hot"] = [int(number in ids) for number in range(len(rules.labels.ids))]
    return columns


def _measure(image: StandardizedImage, source_bytes: int, config: CleanConfig) -> dict[str, Any]:
    """Return the columns of measures of a standardized image; ImageRejected for one that violates a limit."""
    height, width = image.pixels.shape[:2]
    short, long = min(width, height), max(width, height)
    if short < config.min_side:
        raise ImageRejected("too_small", f"{width:,} x {height:,} pixels, at least {config.min_side:,} a side")
    if config.max_aspect and long > config.max_aspect * short:
        raise ImageRejected(
            "extreme_aspect", f"{width:,} x {height:,} pixels, sides of at most {config.max_aspect:g}:1"
        )
    if not config.measures:
        return {}
    measures = measure(image.pixels)
    if measures.contrast < config.min_contrast:
        raise ImageRejected("blank", f"contrast {measures.contrast:.4f}, at least {config.min_contrast:g}")
    return {
        **{name: getattr(measures, name) for name in MEASURES if hasattr(measures, name)},
        "aspect_ratio": width / height,
        "bytes_per_pixel": source_bytes / (image.source_width * image.source_height),
        "phash": measures.phash,
        "thumbnail": measures.thumbnail,
    }


def hash_pixels(pixels: Pixels) -> str:
    """Return xxh3-128 of the upright pixels and their shape: equal pixels in whatever format and orientation."""
    digest = xxhash.xxh3_128(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def write_rows(uri: str, split: str, rows: list[dict[str, Any]], layout: Layout) -> File:
    """Write one clean file, its rows in shuffled order (ties, which only copies can have, by image_id)."""
    with ShardWriter(uri, layout) as writer:
        for row in sorted(rows, key=lambda r: (r["shuffle_index"], r["image_id"])):
            writer.add(row, len(row["image"]["bytes"]))
        return writer.publish(f"data/{split or 'unsplit'}", "data", split)


def write_rejected(uri: str, rows: list[dict[str, Any]]) -> File:
    """Write one file of rejected rows, sorted by image_id."""
    with ShardWriter(uri, Layout(REJECTED)) as writer:
        for row in sorted(rows, key=lambda r: r["image_id"]):
            writer.add(row, 0)
        return writer.publish("rejected", "rejected")
